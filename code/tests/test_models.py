"""The classifiers against torchvision's own nets, and the ways in which weights get into them."""

import dataclasses
import hashlib
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import video
from torchvision.models.video import mvit as torchvision_mvit

from slr.catalogue import MODELS, builder_of
from slr.errors import Mistake
from slr.models.classifier import init_from, load_backbone, parameter_groups
from slr.models.mvit import resize_table
from slr.models.weights import NUMBERED, from_old, kinetics_file, read_weights

CLASSES = 7
MAKERS = {
    "S3D": video.s3d,
    "R3D_18": video.r3d_18,
    "R(2+1)D_18": video.r2plus1d_18,
    "Swin3D_T": video.swin3d_t,
    "Swin3D_S": video.swin3d_s,
    "Swin3D_B": video.swin3d_b,
    "MViTv2_S": video.mvit_v2_s,
    "MViTv1_B": video.mvit_v1_b,
}
# The smallest clip that torchvision's S3D takes; the other nets get small ones.
CLIPS = {"S3D": (13, 209), "MViTv2_S": (6, 64), "MViTv1_B": (6, 64)}


def torchvision_net(name: str, frames: int, size: int) -> nn.Module:
    """torchvision's net; MViT through its inner builder, since its makers build for 16 x 224 only."""
    if not name.startswith("MViT"):
        return MAKERS[name](num_classes=CLASSES).eval()
    make, clip = torchvision_mvit._mvit, {"temporal_size": frames, "spatial_size": (size, size)}
    with mock.patch.object(torchvision_mvit, "_mvit", lambda **given: make(**given | clip)):
        return MAKERS[name](num_classes=CLASSES).eval()


def stir(net: nn.Module) -> nn.Module:
    """Other values in batch-norm's statistics and in biases than those of a new net, which hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator) * 0.2
                tensor.copy_(tensor + noise if not name.endswith("running_mean") else noise)
    return net


def a_clip(frames: int, size: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, frames, size, size, generator=torch.Generator().manual_seed(2))


def small(name: str, classes: int = CLASSES, frames: int = 8, size: int = 32, **given) -> nn.Module:
    return builder_of(name)(classes, frames=frames, size=size, **given)


def refusal(call, *given, **named) -> str:
    with pytest.raises(Mistake) as caught:
        call(*given, **named)
    return str(caught.value)


# ---- the nets


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    """(name, torchvision's net, ours with its weights, frames, size), one model alive at a time."""
    name = request.param
    frames, size = CLIPS.get(name, (5, 40))
    theirs = stir(torchvision_net(name, frames, size))
    ours = builder_of(name)(CLASSES, frames=frames, size=size).eval()
    ours.load_state_dict(from_old(theirs.state_dict(), name))
    return name, theirs, ours, frames, size


@torch.no_grad()
def test_same_logits_as_torchvision(pair):
    name, theirs, ours, frames, size = pair
    clip = a_clip(frames, size)
    torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-5, atol=1e-6)


def test_same_tensors_as_torchvision(pair):
    name, theirs, ours, frames, size = pair
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    drops = [m.p for m in theirs.modules() if type(m).__name__ == "StochasticDepth"]
    assert [m.p for m in ours.modules() if type(m).__name__ == "StochasticDepth"] == drops
    assert (max(drops) if drops else None) == MODELS[name].drop_path
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm3d)]
    assert bool(norms) == MODELS[name].batch_norm


def test_parameter_groups_hold_every_parameter_once(pair):
    ours = pair[2]
    groups = parameter_groups(ours)
    grouped = [id(parameter) for group in groups.values() for parameter in group.params]
    assert sorted(grouped) == sorted(id(parameter) for parameter in ours.parameters())
    assert len(grouped) == len(set(grouped))
    assert [p.shape[0] for p in groups["classifier"].params] == [CLASSES, CLASSES]


def test_rates_decay_layer_by_layer(pair):
    """In the order in which a clip passes them: each layer at half the rate of the next, the classifier at its own."""
    ours = pair[2]
    groups = parameter_groups(ours, layer_decay=0.5)
    scales = [group.scale for group in groups.values()]
    assert scales == [0.5 ** n for n in reversed(range(len(groups)))] and len(groups) > 4
    assert list(groups)[-1].startswith("classifier") and all(group.decay for group in groups.values())
    assert sum(len(group.params) for group in groups.values()) == len(list(ours.parameters()))


@torch.no_grad()
def test_the_old_programs_weights_load(pair):
    """Its state_dict has the backbone by number and by name, the head as classifier.1 (Swin3D: head.1)."""
    name, theirs, ours, frames, size = pair
    old = {}
    for key, value in theirs.state_dict().items():
        part, _, rest = key.partition(".")
        if part in NUMBERED[name]:
            old[f"backbone.{NUMBERED[name].index(part)}.{rest}"] = old[key] = value
            continue
        old["classifier.1." + rest.rpartition(".")[2]] = value
        if name.startswith("Swin"):
            old["head.1." + rest] = value
    mapped = from_old(old, name)
    assert mapped.keys() == ours.state_dict().keys()
    assert all(torch.equal(mapped[key], value) for key, value in ours.state_dict().items())
    assert from_old(mapped, name).keys() == mapped.keys()  # our own names stay
    ours.load_state_dict(mapped)
    clip = a_clip(frames, size)
    torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_learns_from_a_small_odd_clip(name):
    frames, size = (9, 33) if name == "S3D" else (5, 27)
    every_block = {} if MODELS[name].drop_path is None else {"drop_path": 0.0}
    model = small(name, frames=frames, size=size, drop_p=0.2, **every_block)
    logits = model(a_clip(frames, size, count=2))
    assert logits.shape == (2, CLASSES)
    nn.functional.cross_entropy(logits, torch.tensor([0, 5])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["MViTv2_S", "MViTv1_B"])
def test_mvit_at_the_size_torchvision_builds_it_for(name):
    theirs = MAKERS[name](num_classes=CLASSES).eval()
    ours = small(name, frames=16, size=224).eval()
    ours.load_state_dict(from_old(theirs.state_dict(), name))
    torch.testing.assert_close(ours(a_clip(16, 224)), theirs(a_clip(16, 224)), rtol=1e-5, atol=1e-6)


# ---- limits and settings


@torch.no_grad()
def test_s3d_takes_the_smallest_clip_and_nothing_smaller():
    model = small("S3D", frames=5, size=17).eval()
    assert model(a_clip(5, 17)).shape == (1, CLASSES)
    for frames, size in ((4, 17), (5, 16)):
        with pytest.raises(RuntimeError):
            model(a_clip(frames, size))
        assert "It takes" in refusal(small, "S3D", frames=frames, size=size)


@torch.no_grad()
@pytest.mark.parametrize("name", ["R3D_18", "R(2+1)D_18", "Swin3D_T", "MViTv2_S", "MViTv1_B"])
def test_the_others_take_a_single_pixel(name):
    assert small(name, frames=1, size=1).eval()(a_clip(1, 1)).isfinite().all()


@pytest.mark.parametrize("frames", [8, 12])
def test_s3d_gradient_is_right_from_8_frames_on(frames):
    """torch's weight gradient of the stem's temporal convolution is wrong below that on a CPU."""
    stem = small("S3D").backbone.features[0]
    clip = a_clip(frames, 17)
    wanted = torch.autograd.grad(stem.double()(clip.double()).square().sum(), list(stem.parameters()))
    found = torch.autograd.grad(stem.float()(clip).square().sum(), list(stem.parameters()))
    for mine, reference in zip(found, wanted, strict=True):
        assert (mine - reference).norm() <= 1e-3 * reference.norm()


def test_batch_norm_momentum_of_s3d(tmp_path):
    def momenta(name="S3D", **given):
        return {m.momentum for m in small(name, **given).modules() if isinstance(m, nn.BatchNorm3d)}

    file = tmp_path / "weights.pth"
    torch.save(video.s3d().state_dict(), file)
    assert momenta() == {0.1}
    assert momenta(weights=file) == {0.001}
    assert momenta(weights=file, bn_momentum=0.05) == momenta(bn_momentum=0.05) == {0.05}
    assert momenta("R3D_18", bn_momentum=0.3) == {0.3}


@pytest.mark.parametrize("name", ["Swin3D_T", "MViTv1_B"])
def test_a_batch_norm_key_for_a_model_without_one_is_refused(name):
    assert "no batch-norm" in refusal(small, name, bn_momentum=0.1)


@pytest.mark.parametrize("name", ["Swin3D_T", "MViTv2_S"])
def test_stochastic_depth_grows_to_the_rate_given(name):
    rates = [m.p for m in small(name, drop_path=0.5).modules() if type(m).__name__ == "StochasticDepth"]
    assert rates[0] == 0.0 and rates[-1] == 0.5 and rates == sorted(rates)
    off = [m.p for m in small(name, drop_path=0.0).modules() if type(m).__name__ == "StochasticDepth"]
    assert set(off) == {0.0}


def test_dropout_is_in_the_classifier():
    assert small("S3D", drop_p=0.3).classifier[0].p == 0.3
    assert small("MViTv2_S", drop_p=0.3).classifier[0].p == 0.3


# ---- position tables of MViT


def test_a_table_of_the_right_size_stays_itself():
    table = torch.randn(49, 3)
    assert resize_table("backbone.pos_encoding.spatial_pos", table, 49) is table
    assert resize_table("backbone.blocks.0.attn.rel_pos_h", table, 49) is table


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["spatial_pos", "temporal_pos"]))
def test_stretching_keeps_a_level_table_level_and_a_mirrored_one_mirrored(old, new, key):
    rows, wanted = (old**2, new**2) if key == "spatial_pos" else (old, new)
    level = resize_table(key, torch.full((rows, 2), 3.0), wanted)
    torch.testing.assert_close(level, torch.full((wanted, 2), 3.0))
    table = torch.randn(rows, 2, generator=torch.Generator().manual_seed(old))
    mirrored = resize_table(key, table.flip(0), wanted)
    torch.testing.assert_close(mirrored, resize_table(key, table, wanted).flip(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tables_stretched_once_do_what_torchvision_does_at_every_forward():
    """80 pixels leave 20, 10, 5, 3 patches; torchvision lays the last tables out for 2 and stretches them."""
    theirs = torchvision_net("MViTv2_S", 6, 80)
    ours = small("MViTv2_S", frames=6, size=80).eval()
    report = load_backbone(ours, from_old(theirs.state_dict(), "MViTv2_S"))
    ours.head.load_state_dict(theirs.head[1].state_dict())
    assert report.resized
    torch.testing.assert_close(ours(a_clip(6, 80)), theirs(a_clip(6, 80)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name, tables", [("MViTv2_S", 16 * 3), ("MViTv1_B", 2)])
def test_weights_for_16x224_fit_other_clips(name, tables, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(MAKERS[name]().state_dict(), file)
    model = small(name, frames=9, size=50, weights=file)
    assert len(model.report.resized) == tables
    assert all("pos" in key for key in model.report.resized)
    assert f"{tables} of them position tables" in str(model.report)
    assert model.eval()(a_clip(9, 50)).isfinite().all()


def test_mvit_says_what_clips_it_was_built_for():
    with pytest.raises(ValueError, match=r"\(8, 32, 32\), given \(6, 32, 32\)"):
        small("MViTv2_S")(a_clip(6, 32))


# ---- weights in files


def test_a_weights_file_fills_the_backbone_and_leaves_the_head(tmp_path):
    net = stir(video.r3d_18())
    torch.save({"model_state_dict": net.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    model = small("R3D_18", weights=tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, model.backbone.state_dict()[key])
               for key, value in net.state_dict().items() if not key.startswith("fc."))
    assert model.report.loaded == len(model.backbone.state_dict())
    assert model.report.unused == ["classifier.1.weight", "classifier.1.bias"]
    assert model.head.weight.shape == (CLASSES, 512)


def test_without_weights_there_is_no_report():
    assert small("R3D_18").report is None


def test_another_models_weights_are_refused_by_name(tmp_path):
    torch.save(video.r2plus1d_18().state_dict(), tmp_path / "other.pth")
    told = refusal(small, "R3D_18", weights=tmp_path / "other.pth")
    assert "other.pth" in told and "of another model" in told
    assert "backbone.stem.0.weight (64, 3, 3, 7, 7)" in told


def test_only_batch_norms_step_counters_may_be_missing():
    model = small("S3D")
    state = dict(model.state_dict())
    without = {key: value for key, value in state.items() if "num_batches" not in key}
    load_backbone(model, without)
    del without["backbone.features.2.1.running_mean"]
    assert "1 of its" in refusal(load_backbone, model, without)


def test_the_old_programs_mvit_v1_that_is_a_v2():
    state = small("MViTv2_S").state_dict()
    assert "use them as MViTv2_S" in refusal(from_old, state, "MViTv1_B")


def test_names_that_no_part_could_have_are_refused():
    assert "backbone.9.weight" in refusal(from_old, {"backbone.9.weight": torch.zeros(1)}, "S3D")


def test_two_tensors_for_one_name_are_refused():
    state = {"backbone.0.0.weight": torch.zeros(1), "features.0.weight": torch.ones(1)}
    assert "backbone.features.0.weight" in refusal(from_old, state, "S3D")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."], ids=repr)
def test_a_damaged_file_is_named(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    assert str(file) in refusal(read_weights, file)


def test_other_things_than_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    for content in ({"epoch": 3}, {"model_state_dict": [1]}, [1, 2], {}, torch.zeros(2)):
        torch.save(content, file)
        assert "holds no weights" in refusal(read_weights, file)
    torch.save(nn.Linear(1, 1), file)  # a pickled module could run anything
    assert "cannot be read" in refusal(read_weights, file)
    assert "is missing" in refusal(read_weights, tmp_path / "nowhere.pth")
    assert "cannot be read" in refusal(read_weights, tmp_path)


# ---- torchvision's cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and an S3D whose weights are the bytes `weights`."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = f"s3d-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    monkeypatch.setitem(MODELS, "S3D", dataclasses.replace(MODELS["S3D"], weights_file=file))
    return tmp_path / "hub" / "checkpoints" / file


def test_a_cached_file_is_used_without_a_network(cache, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=AssertionError))
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"weights")
    assert kinetics_file("S3D") == cache


def test_a_missing_file_is_fetched_and_checked(cache, monkeypatch):
    def fetch(url, place, hash_prefix, progress):
        assert url == "https://download.pytorch.org/models/s3d-d76dad2f.pth" and hash_prefix in cache.name
        Path(place).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert kinetics_file("S3D") == cache and cache.read_bytes() == b"weights"


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash"), OSError("disk full")])
def test_without_a_network_the_error_names_file_and_place(cache, monkeypatch, error):
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=error))
    told = refusal(kinetics_file, "S3D")
    assert str(cache) in told and "https://download.pytorch.org/models/s3d-d76dad2f.pth" in told
    assert "model_params.pretrained = False" in told and not cache.exists()


def test_a_truncated_cached_file_is_noticed(cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"weig")
    told = refusal(kinetics_file, "S3D")
    assert "damaged" in told and str(cache) in told


# ---- starting from another experiment


@pytest.mark.parametrize("name", ["S3D", "R3D_18"])
def test_the_heads_rows_follow_their_glosses(name):
    old_classes, new_classes = ["book", "drink", "computer"], ["chair", "computer", "go", "book"]
    other = stir(small(name, classes=3))
    state = {key: value.clone() for key, value in other.state_dict().items()}
    model = small(name, classes=4)
    fresh = model.head.weight.detach().clone()
    report = init_from(model, state, old_classes, new_classes)
    assert (report.shared, report.fresh, report.unused) == (["computer", "book"], ["chair", "go"], [])
    assert "2 glosses taken over, 2 fresh" in str(report)
    for part in ("weight", "bias"):
        rows, theirs = getattr(model.head, part), state[f"classifier.1.{part}"]
        assert torch.equal(rows[1], theirs[2]) and torch.equal(rows[3], theirs[0])
    assert torch.equal(model.head.weight[[0, 2]], fresh[[0, 2]])
    backbone = model.backbone.state_dict()
    assert all(torch.equal(backbone[key], value) for key, value in other.backbone.state_dict().items())


@torch.no_grad()
def test_the_same_glosses_in_another_order_give_the_same_logits_in_that_order():
    other, model = stir(small("S3D", classes=3)).eval(), small("S3D", classes=3).eval()
    init_from(model, other.state_dict(), ["a", "b", "c"], ["c", "a", "b"])
    torch.testing.assert_close(model(a_clip(8, 32)), other(a_clip(8, 32))[:, [2, 0, 1]])


def test_nothing_shared_leaves_the_head_fresh():
    model = small("R3D_18", classes=2)
    fresh = model.head.weight.detach().clone()
    report = init_from(model, small("R3D_18", classes=2).state_dict(), ["a", "b"], ["c", "d"])
    assert report.shared == [] and torch.equal(model.head.weight, fresh)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    model = small("R3D_18", classes=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = dict(small("R3D_18", classes=3).state_dict())
    assert "the checkpoint's classes" in refusal(init_from, model, state, ["a"], ["a", "b"])
    assert "the model's classes" in refusal(init_from, model, state, ["a", "b", "c"], ["a"])
    lacking = {key: value for key, value in state.items() if key != "backbone.layer1.0.conv1.0.weight"}
    told = refusal(init_from, model, lacking, ["a", "b", "c"], ["a", "b"])
    assert "backbone.layer1.0.conv1.0.weight" in told
    headless = {key: value for key, value in state.items() if key.startswith("backbone.")}
    assert "no head" in refusal(init_from, model, headless, ["a", "b", "c"], ["a", "b"])
    other = dict(small("S3D", classes=3).state_dict())
    assert "head is of another model" in refusal(init_from, model, other, ["a", "b", "c"], ["a", "b"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
