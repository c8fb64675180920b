"""Keypoints from their file to the model: read, looked up, moved with the frames, drawn as heatmaps, and looked at."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import preprocess
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inis import OPTIMIZER

from slr.config import parse_config
from slr.datasets import keypoints, sentence_clips, sentences, signer
from slr.datasets import synthetic_sentences as drawn
from slr.datasets.sentences import Sentence
from slr.errors import Mistake
from slr.models import mamba
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task
from slr.tasks.continuous import Continuous
from slr.transforms import SIGMA, center_box, crop_resize, heatmaps, mirrored, on_crop

SPLIT = "demo_continuous_points"
POINTS = f"SYNTHETIC/{SPLIT}/annotations/keypoints.pkl"
INI = f"""
[experiment]
task = 'continuous'
[training]
batch_size = 2
update_per_step = 1
max_epoch = 1
{OPTIMIZER}[model_params]
drop_p = 0.0
pretrained = False
[mamba]
dim = 16
depth = 2
headdim = 4
spatial_state = 2
temporal_state = 2
attn_layers = (1,)
attn_heads = 2
stem_depth = 1
[data]
num_frames = 24
frame_size = 32
frame_stride = 2
workers = 0
eval_resize = 1.1
jitter = (0, 0, 0, 0)
keypoints = '{POINTS}'
heatmap = 'max'
"""


def written(path: Path, entries: dict[str, np.ndarray]) -> Path:
    path.write_bytes(pickle.dumps({name: {"keypoints": points} for name, points in entries.items()}))
    return path


def some(frames: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, (frames, count, 3)).astype(np.float32)


# --- the file -----------------------------------------------------------------------------------------------

def test_points_of_a_file(tmp_path):
    points = some(5, 7)
    points[2, 3], points[4, 1, 0] = (np.nan, 3, 1), 1e9
    found = keypoints.load(written(tmp_path / "k.pkl", {"fullFrame-210x260px/train/a": points, "b": points}))
    same = found.at(Sentence("a", "train", ()), np.array([4, 0, 0]), 260, 210)
    assert found.count == 7 and same.shape == (3, 7, 3) and same.dtype == np.float32
    assert np.abs(same[1:] - points[0]).max() < 0.07 and not same[0, 1].any()
    assert not found.at(Sentence("b", "train", ()), np.array([2]), 99, 99)[0, 3].any()
    twice = found.at(Sentence("a", "train", ()), np.array([0]), 520, 420)  # the same frames, twice as large
    assert np.abs(twice[0, :, :2] - (2 * points[0, :, :2] + 0.5)).max() < 0.15
    assert np.array_equal(found.at(Sentence("b", "train", ()), np.array([0]), 520, 420)[0], same[1])


def test_the_79_points_of_a_whole_body(tmp_path):
    numbers = np.zeros((1, 133, 3), np.float32)
    numbers[0, :, 0], numbers[..., 2] = np.arange(133), 1
    found = keypoints.load(written(tmp_path / "k.pkl", {"a": numbers})).tracks["a"][0, :, 0].astype(int).tolist()
    mouth, hands, face = found[11:21], found[21:63], found[63:]
    assert found[:11] == list(range(11)) and hands == list(range(91, 133)) and len(found) == len(set(found)) == 79
    assert mouth[0] == 71 and mouth[-1] == 89 and face[0] == 23 and face[-1] == 68 and len(face) == 16


def test_a_file_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(Mistake, match="cannot be read"):
        keypoints.load(tmp_path / "none.pkl")
    with pytest.raises(Mistake, match="of one kind"):
        keypoints.load(written(tmp_path / "k.pkl", {"a": some(2, 3), "b": some(2, 4)}))
    found = keypoints.load(written(tmp_path / "k.pkl", {"a": some(2, 3), "b": some(5, 3)}))
    found.check([Sentence("a", "train", (), 2), Sentence("b", "train", (), 5)])
    with pytest.raises(Mistake, match=r"1 of 2 sentences have no keypoints(.|\n)*c"):
        found.check([Sentence("a", "train", (), 2), Sentence("c", "train", (), 2)])
    with pytest.raises(Mistake, match=r"other frames(.|\n)*b \(5 for 4 frames\)"):
        found.check([Sentence("b", "train", (), 4)])


# --- on frames ----------------------------------------------------------------------------------------------

@given(st.integers(0, 12), st.integers(0, 12), st.integers(20, 40), st.integers(20, 40))
def test_a_dot_on_the_crop_is_where_its_point_is(left, top, width, height):
    frame, (x, y) = np.zeros((60, 60, 3), np.uint8), (left + width // 2, top + height // 2)
    frame[y - 1:y + 2, x - 1:x + 2] = 255
    box = (left, top, left + width, top + height)
    crop = crop_resize([frame], box, 48)[0, ..., 0].astype(float)
    point = on_crop(np.array([[x, y, 0.7]]), box, 48)
    middle = [(crop.sum(axis) * np.arange(48)).sum() / crop.sum() for axis in (0, 1)]
    assert np.abs(point[0, :2] - middle).max() < 0.5 and point[0, 2] == np.float32(0.7)
    assert np.allclose(mirrored(point, 48)[0], [47 - point[0, 0], point[0, 1], 0.7])


@pytest.mark.parametrize("kind", ["max", "points"])
def test_heatmaps_against_a_loop(kind):
    points = torch.tensor([[[3.2, 8.0, 0.4], [11.0, -2.0, 1.0], [5.0, 5.0, 0.0]], [[0.0, 0, 0]] * 3])
    size = 14
    wanted = np.zeros((3, 2, size, size))
    for t, k, y, x in np.ndindex(2, 3, size, size):
        px, py, confidence = points[t, k].tolist()
        if confidence > 0:
            wanted[k, t, y, x] = np.exp(-((x - px)**2 + (y - py)**2) / (2 * (SIGMA[kind] * size)**2))
    wanted = wanted.max(0, keepdims=True) if kind == "max" else wanted
    found = heatmaps(points, size, kind)
    assert found.shape == wanted.shape and np.abs(found.numpy() - wanted).max() < 1e-6
    assert SIGMA["max"] * 256 == 32 and SIGMA["points"] * 112 == 8 and not found[:, 1].any()
    assert heatmaps(torch.tensor([[[4.0, 6.0, 1.0]]]), size, kind)[0, 0, 6, 4] == 1


# --- of the drawn signer ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with SPLIT, as preprocess.py makes it: 2, 1 and 1 sentences at 32 pixels."""
    root = tmp_path_factory.mktemp("points")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawn.SIZES, SPLIT, drawn.Size((2, 1, 1), (1, 1, 1), 32))
        assert preprocess.main(["-as", SPLIT, "--data", str(root), "--workers", "0"]) == 0
    return root


@pytest.fixture(autouse=True)
def place(data, monkeypatch) -> None:
    monkeypatch.setenv("SLR_DATA", str(data))


def test_the_drawn_sentences_have_keypoints(data):
    found = keypoints.load(data / POINTS)
    entries = pickle.loads((data / POINTS).read_bytes())
    made = drawn.plans(SPLIT, drawn.Size((2, 1, 1), (1, 1, 1), 32), 42)
    assert list(entries) == [f"fullFrame-32x32px/{plan.video[:-4]}" for plan in made] and found.count == 79
    for part in ("train", "val", "test"):
        found.check(sentences.load_sentences(data, SPLIT, part))
    wanted = drawn.film(made[3], 32).keypoints()
    assert np.array_equal(entries[f"fullFrame-32x32px/{made[3].video[:-4]}"]["keypoints"], wanted)
    before = (data / POINTS).stat().st_mtime_ns
    drawn.draw(data, SPLIT, size=drawn.Size((2, 1, 1), (1, 1, 1), 32), workers=0)
    assert (data / POINTS).stat().st_mtime_ns == before


@pytest.mark.parametrize("size", [96, 200])
def test_the_points_are_where_the_figure_is(size):
    """In plain light the points of the eyes are dark, those of the hands skin, and left is left."""
    made = drawn.film(drawn.plans("demo_continuous", drawn.SIZES["demo_continuous"], 42)[0], size)
    figure = replace(made.signer, skin=(220.0, 180.0, 150.0), cloth=(20.0, 60.0, 20.0), sleeves="long",
                     hair_style="bald")
    scene = replace(made.scene, light=np.full_like(made.scene.light, 128), blur=0.0,
                    noise=np.full_like(made.scene.noise, 128), background=np.zeros_like(made.scene.background))
    poses, body = made.motion.poses[:2], made.motion.body[:2]
    frame = signer.render(figure, scene, poses, body)[1].astype(float)
    points = signer.keypoints(figure, scene, poses, body)
    assert points.shape == (2, 79, 3) and (points[..., 2] == 1).all()
    x, y = np.round(points[1, :, :2]).astype(int).T
    on = (0 <= x) & (x < size) & (0 <= y) & (y < size)
    colours = frame[y.clip(0, size - 1), x.clip(0, size - 1)]
    assert colours[1:3].sum(1).max() < 250 < colours[[63 + 3, 63 + 2]].sum(1).min()  # the eyes, and the chin
    hands = colours[21:63][on[21:63]]
    assert len(hands) > 20 and np.mean(hands[:, 0] > 90) > 0.9
    for left, right in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10)):
        assert points[1, left, 0] > points[1, right, 0]  # the figure's left is the picture's right
    assert np.array_equal(points[1, 9], points[1, 21]) and np.array_equal(points[1, 10], points[1, 42])  # the wrists


# --- in the task --------------------------------------------------------------------------------------------

def a_task(model: str = "MambaSLR", **changes: object) -> Continuous:
    config = parse_config(INI, Experiment(model, SPLIT, "1"), {f"data.{k}": str(v) for k, v in changes.items()})
    task = build_task(config, Runtime.start("cpu", 3))
    assert isinstance(task, Continuous)
    return task


def batches(task: Continuous, part: str, train: bool) -> list[dict]:
    loader = task.loader(part, train)
    loader.batch_sampler.start(0)
    return [task.prepare(batch, train) for batch in loader]


def test_evaluation_draws_the_points_of_its_frames(data):
    task = a_task()
    (batch,), sentence = batches(task, "test", False), task.sentences("test")[0]
    points = keypoints.load(data / POINTS).at(sentence, np.array(batch["indices"][0]), 32, 32)
    placed = torch.from_numpy(on_crop(points, center_box(32, 32, 1.1), 32))
    assert batch["inputs"].shape[1] == 4 and torch.equal(batch["points"], placed)
    assert torch.equal(batch["inputs"][0, 3], heatmaps(placed, 32, "max")[0])
    plain = a_task(keypoints="", heatmap="none")
    (frames,) = batches(plain, "test", False)
    assert torch.equal(frames["inputs"], batch["inputs"][:, :3]) and plain.meta()["heatmap_channels"] == 0


def test_a_mirrored_clip_has_mirrored_heatmaps():
    (one,), (other,) = (batches(a_task(hflip=p, rand_augment=5, rand_augment_p=1.0), "train", True) for p in (0, 1))
    assert torch.allclose(one["inputs"], other["inputs"].flip(4), atol=1e-5)


def test_a_sentence_is_changed_alike_whatever_is_beside_it():
    def seen(workers: int) -> dict[str, torch.Tensor]:
        task = a_task(workers=workers, rand_augment=5, rand_augment_p=1.0, erase_p=1.0)
        return {name: batch["inputs"][i, :, :batch["lengths"][i]] for batch in batches(task, "train", True)
                for i, name in enumerate(batch["ids"])}

    one, other = seen(0), seen(1)
    assert len(one) == 2 and all(torch.equal(one[name], other[name]) for name in one)
    plain = {name: batch["inputs"][i, :, :batch["lengths"][i]] for batch in batches(a_task(), "train", True)
             for i, name in enumerate(batch["ids"])}
    assert all(plain[name].shape == one[name].shape and not torch.equal(plain[name], one[name]) for name in one)


@torch.no_grad()
def test_the_model_looks_at_the_heatmaps_and_never_at_padding():
    task = a_task()
    task.model.double().eval()
    (batch,) = batches(task, "train", True)
    clips, lengths = batch["inputs"].double(), torch.tensor([24, 17])
    padded, steps = task.model(clips, lengths)
    packed = mamba.MambaSLR.forward(task.model, *mamba.pack(clips, lengths))
    assert torch.allclose(torch.cat([row[:n] for row, n in zip(padded, steps, strict=True)]), packed, atol=1e-12)
    clips[1, :, 17:] = torch.nan
    assert torch.equal(task.model(clips, lengths)[0], padded)
    clips[1, 3, 4] = 0
    changed = task.model(clips, lengths)[0]
    assert torch.allclose(changed[0], padded[0], rtol=0, atol=1e-12)
    assert (changed[1, :17] - padded[1, :17]).abs().amax(1).min() > 1e-9


def test_points_are_packed_as_frames_are():
    task = a_task()
    dataset = task.dataset(task.sentences("train"), True)
    items = [dataset[key] for key in next(iter(task.loader("train", True).batch_sampler))]
    batch = sentence_clips.packed(items)
    for item, frames, points in zip(items, sentence_clips.split(batch), sentence_clips.split(batch, "points"),
                                    strict=True):
        assert np.array_equal(item["points"], points) and len(points) == len(frames) == item["lengths"]


def test_a_channel_for_every_point(data, tmp_path):
    task = a_task(heatmap="points")
    assert task.model.backbone.stem.conv.in_channels == 82 and task.meta()["heatmap_channels"] == 79
    (batch,) = batches(task, "test", False)
    assert batch["inputs"].shape[1] == 82 and batch["inputs"][0, 3:].flatten(1).amax(1).min() > 0.5
    path = written(tmp_path / "k.pkl", {s.id: some(s.num_frames, 5) for s in task.sentences("test")})
    again = Continuous.build(parse_config(INI, Experiment("MambaSLR", SPLIT, "1"),
                                          {"data.heatmap": "points", "data.keypoints": str(path)}),
                             Runtime.start("cpu", 3), task.meta())
    with pytest.raises(Mistake, match="5 a frame of .*, 79 in the model"):
        again.loader("test", False)


@pytest.mark.parametrize(("changes", "words"), [
    ({"heatmap": "none"}, "belong together"), ({"keypoints": ""}, "belong together"),
    ({"heatmap": "points", "hflip": 0.5}, "left points would be right ones"),
    ({"heatmap": "mean"}, "has no such value"), ({"rand_augment": 11}, "out of range"),
    ({"rand_augment_n": 0}, "out of range"), ({"rand_augment_p": 1.5}, "out of range"),
    ({"erase_p": -1}, "out of range"),
    ({"keypoints": "nowhere.pkl", "heatmap": "points"}, "cannot be read"),
])
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(Mistake, match=words):
        a_task(**changes)


def test_points_of_left_and_right_are_not_mirrored_in_tests():
    given = Experiment("MambaSLR", SPLIT, "1"), {"data.heatmap": "points", "decoding.mirror": "True"}
    with pytest.raises(Mistake, match="decoding.mirror cannot be with a channel for every point"):
        parse_config(INI, *given)
    one_channel = parse_config(INI, given[0], {**given[1], "data.heatmap": "max"})
    assert one_channel.decoding and one_channel.decoding.mirror


def test_other_models_take_no_heatmaps():
    head, _, rest = INI.partition("[mamba]")
    with pytest.raises(Mistake, match="S3D_CTC takes no heatmaps(.|\n)*MambaSLR"):
        parse_config(head + "[data]" + rest.partition("[data]")[2], Experiment("S3D_CTC", SPLIT, "1"))
