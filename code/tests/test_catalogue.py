"""The table of models against torchvision, its names, its limits, and what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from slr.catalogue import ALIASES, MODELS, builder_of, canonical, check_clip
from slr.errors import Mistake

EIGHT = ["S3D", "R3D_18", "R(2+1)D_18", "Swin3D_T", "Swin3D_S", "Swin3D_B", "MViTv2_S", "MViTv1_B"]


def test_the_eight_classifiers_are_there():
    assert [name for name, entry in MODELS.items() if entry.task == "isolated"][:8] == EIGHT
    assert all(name == entry.name for name, entry in MODELS.items())


@pytest.mark.parametrize("alias, name", [*ALIASES.items(), ("S3D", "S3D")])
def test_aliases_lead_to_models(alias, name):
    assert canonical(alias) == name and name in MODELS


NEAR = [("s3d", "S3D"), ("MViT_v2_S", "MViTv2_S"), ("r2plus1d_18", "R2Plus1D_18")]


@pytest.mark.parametrize("wrong, closest", NEAR)
def test_an_unknown_name_is_an_error_that_names_the_closest(wrong, closest):
    with pytest.raises(Mistake) as caught:
        canonical(wrong)
    assert f"Did you mean {closest}?" in str(caught.value)
    assert all(name in str(caught.value) for name in EIGHT)


def test_an_unknown_name_far_from_all_gets_no_suggestion():
    with pytest.raises(Mistake) as caught:
        canonical("qqqq")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", EIGHT)
def test_default_clips_are_possible(name):
    entry = MODELS[name]
    check_clip(name, entry.default_frames, entry.default_size, training_on_cpu=True)


@pytest.mark.parametrize(
    "frames, size, cpu, told",
    [
        (4, 64, False, "data.num_frames = 4\n  It takes 5 or more"),
        (16, 16, False, "data.frame_size = 16\n  It takes 17 or more"),
        (7, 64, True, "take 8 frames or more"),
    ],
)
def test_clips_that_s3d_cannot_take(frames, size, cpu, told):
    with pytest.raises(Mistake) as caught:
        check_clip("S3D", frames, size, training_on_cpu=cpu)
    assert told in str(caught.value)


def test_the_limits_themselves_are_possible():
    check_clip("S3D", 5, 17)
    check_clip("S3D", 8, 17, training_on_cpu=True)
    check_clip("R2Plus1D_18", 1, 1, training_on_cpu=True)


@pytest.mark.parametrize("frames", [0, -3])
def test_no_model_takes_clips_without_frames(frames):
    with pytest.raises(Mistake):
        check_clip("R3D_18", frames, 64)


@pytest.mark.parametrize("name", EIGHT)
def test_weights_and_normalisation_are_torchvisions(name):
    from torchvision.models import get_weight

    entry = MODELS[name]
    weights = get_weight(entry.weights)
    assert weights.url.endswith("/" + entry.weights_file)
    transforms = weights.transforms()
    assert (tuple(transforms.mean), tuple(transforms.std)) == (entry.mean, entry.std)


@pytest.mark.parametrize("name", EIGHT)
def test_builders_can_be_imported(name):
    assert callable(builder_of(name))


def test_the_table_needs_no_torch():
    code = "import sys, slr.catalogue; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    where = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=where).returncode == 0
