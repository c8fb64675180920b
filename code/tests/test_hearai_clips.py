"""Signs as a torch data set: pictures as torchvision makes them, one draw a clip, the same items for any worker."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from slr.augment import GREY
from slr.datasets.hearai import Sample, load_landmarks, read_samples, sample_indices
from slr.datasets.hearai_clips import Pictures, SignDataset, center_crop, read_pictures
from slr.errors import Mistake
from slr.hamnosys import HEADS, PARTS
from slr.loading import EpochBatches, Key, build_loader
from slr.runtime import generator
from slr.transforms import no_draw
from slr.video import VideoError

ALL = Pictures(resize=32, crop=(28, 24), rotation=30, erase_p=0.9, jitter=(0.3, 0.3, 0.3, 0.1))
HANDS = ("left_hand", "right_hand")


def make(folder: Path, name: str, frames: int, size: tuple[int, int] = (20, 30),
         **labels: int) -> Sample:
    """A sign of png frames of the grey 9 * i, and of landmarks."""
    (folder / name).mkdir(parents=True)
    for number in range(frames):
        cv2.imwrite(str(folder / name / f"{name}_{number}.png"), np.full((*size, 3), 9 * number, np.uint8))
    rng, file = np.random.default_rng(frames), folder / name / f"{name}.npz"
    np.savez(file, **{part: rng.normal(size=(frames, 8 * PARTS[part])) for part in HANDS})
    return Sample(f"x/{name}", name, folder, 0, frames, labels, fps=25.0, frames=frames, landmarks=file)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("x")
    return [make(folder, "a", 13, p=1, q=2), make(folder, "b", 3, q=0), make(folder, "c", 8, p=0)]


def data(samples: list[Sample], train: bool = True, seed: int = 5, pictures: Pictures | None = ALL,
         parts: tuple[str, ...] = HANDS, **options: float) -> SignDataset:
    return SignDataset(samples, ["q", "p"], segments=6, parts=parts, pictures=pictures, train=train, seed=seed,
                       **options)  # type: ignore[arg-type]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# --- items --------------------------------------------------------------------------------------------------

def test_evaluation_takes_the_middle_of_every_segment(samples):
    items = data(samples, train=False, pictures=Pictures())
    assert len(items) == 3 and items.size == (20, 30) and items.landmark_size == 336
    for number, length, labels in ((0, 6, [2, 1]), (1, 3, [0, -1]), (2, 6, [-1, 0])):
        item, own = items[Key(0, number)], samples[number]
        indices = sample_indices(0, own.stop, segments=6)
        assert item["ids"] == own.id and item["length"] == length == len(indices) and item["ghost"] is False
        assert item["labels"].tolist() == labels and item["labels"].dtype == np.int64
        assert item["frames"].shape == (6, 20, 30, 3) and item["frames"].dtype == np.uint8
        assert item["frames"][:, 0, 0, 0].tolist() == (9 * indices).tolist() + [0] * (6 - length)
        wanted = load_landmarks(own.landmarks, HANDS, 0, own.stop - 1)[indices]
        assert np.array_equal(item["landmarks"][:length], wanted) and not item["landmarks"][length:].any()
        assert item["landmarks"].shape == (6, 336) and item["landmarks"].dtype == np.float32
        assert np.array_equal(item["draws"], no_draw()) and same(item, items[Key(7, number)])


def test_what_is_not_asked_for_is_not_there(samples):
    assert data(samples, parts=())[Key(0, 0)].keys() == {"ids", "labels", "length", "draws", "ghost", "frames"}
    bones = data(samples, pictures=None)
    assert bones[Key(0, 0, ghost=True)].keys() == {"ids", "labels", "length", "draws", "ghost", "landmarks"}
    assert bones[Key(0, 0, ghost=True)]["ghost"] is True and bones.size is None
    with pytest.raises(ValueError, match="neither"):
        data(samples, pictures=None, parts=())


def test_frames_and_landmarks_are_of_the_same_frames_in_training(samples):
    items, own = data(samples, pictures=Pictures()), samples[0]
    landmarks, seen = load_landmarks(own.landmarks, HANDS, 0, own.stop - 1), set()
    for epoch in range(20):
        item = items[Key(epoch, 0)]
        numbers = item["frames"][:, 0, 0, 0] // 9
        assert np.array_equal(item["landmarks"], landmarks[numbers]) and (np.diff(numbers.astype(int)) > 0).all()
        assert np.array_equal(numbers, sample_indices(0, 13, segments=6, rng=generator(5, epoch, own.id)))
        seen.add(tuple(numbers))
    assert len(seen) > 5


def test_frames_so_many_seconds_apart(samples):
    item = data(samples, pictures=Pictures(), time=0.12)[Key(0, 0)]
    assert (item["frames"][:, 0, 0, 0] // 9).tolist() == [0, 3, 6, 9, 12, 0] and item["length"] == 5


def test_an_item_follows_from_seed_epoch_and_id_alone(samples):
    items = data(samples)
    first = items[Key(3, 2)]
    items[Key(0, 0)]
    assert same(items[Key(3, 2)], first) and same(data(samples[::-1])[Key(3, 0)], first)
    assert not same(items[Key(4, 2)], first) and not same(data(samples, seed=6)[Key(3, 2)], first)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_same_items_from_any_number_of_workers(samples, batch_size):
    items, found = data(samples), []
    for workers in (0, 2):
        batches = EpochBatches(3, batch_size, shuffle=False, seed=1)
        batches.start(2)
        loader = build_loader(items, batches, workers=workers, prefetch=1, pin_memory=False)
        found.append(list(loader))
        loader.close()
    for one, other in zip(*found, strict=True):
        assert one["ids"] == other["ids"] and one["ghost"] is False
        for name in ("frames", "landmarks", "labels", "length", "draws"):
            assert torch.equal(one[name], other[name])
    assert torch.equal(found[0][0]["frames"][0], torch.from_numpy(items[Key(2, 0)]["frames"]))
    assert found[0][0]["frames"].shape == (batch_size, 6, 28, 24, 3) and found[0][0]["draws"].dtype == torch.float32


# --- pictures -----------------------------------------------------------------------------------------------

def clip(frames: int = 4, height: int = 20, width: int = 30) -> np.ndarray:
    """The same smooth picture in every frame."""
    waves = np.sin(np.arange(height)[:, None, None] / 5 + np.arange(width)[None, :, None] / 7 + np.arange(3))
    return np.stack([(120 + 90 * waves).astype(np.uint8)] * frames)


def test_all_frames_of_a_clip_change_alike():
    turned, erased, whole = 0, 0, clip()
    plain = Pictures(resize=32, crop=(28, 24)).of(whole)
    for epoch in range(30):
        frames = ALL.of(whole, generator(0, epoch, "x"))
        assert frames.shape == (4, 28, 24, 3) and frames.dtype == np.uint8 and (frames == frames[:1]).all()
        turned += not np.array_equal(Pictures(32, (28, 24), rotation=30).of(whole, generator(0, epoch, "x")), plain)
        erased += not np.array_equal(Pictures(32, (28, 24), erase_p=0.5).of(whole, generator(0, epoch, "x")), plain)
    assert turned == 30 and 5 < erased < 25
    assert np.array_equal(ALL.of(whole), plain)
    assert np.array_equal(clip(), whole)


def test_draws_of_a_clip_are_its_own(samples):
    draws = np.stack([data(samples)[Key(epoch, 0)]["draws"] for epoch in range(10)])
    assert (draws[:, [0, 5]] == no_draw()[[0, 5]]).all() and (draws[:, 1:5].std(0) > 0.01).all()
    assert (np.abs(draws[:, 1:4] - 1) <= 0.3).all() and (np.abs(draws[:, 4]) <= 0.1).all()
    assert np.array_equal(data(samples, pictures=Pictures(rotation=9))[Key(0, 0)]["draws"], no_draw())


@pytest.mark.parametrize("size", [(20, 30), (7, 30), (25, 12), (21, 41), (20, 29)])
def test_the_middle_is_torchvisions(size):
    frames = clip()
    theirs = F.center_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), list(size)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(center_crop(frames, *size), theirs)


@pytest.mark.parametrize("side", [12, 15, 45])
def test_resizing_is_near_torchvisions(side):
    """Which smooths otherwise where it shrinks."""
    frames = clip()
    theirs = F.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [side, side]).permute(0, 2, 3, 1).numpy()
    found = Pictures(resize=side).of(frames)
    assert found.shape == theirs.shape and np.abs(found.astype(int) - theirs).max() <= 8


def test_a_rotation_turns_about_the_middle():
    class Always:
        def uniform(self, low: float, high: float) -> float:
            assert (low, high) == (-90, 90)
            return 90.0

    square, wide = clip(1, 21, 21), clip(1, 21, 41)
    assert np.array_equal(Pictures(rotation=90).of(square, Always())[0], np.rot90(square[0]))  # type: ignore[arg-type]
    turned = Pictures(rotation=90).of(wide, Always())[0]  # type: ignore[arg-type]
    assert np.array_equal(turned[:, 10:31], np.rot90(wide[0, :, 10:31])) and (turned[:, :10] == GREY).all()


# --- mistakes -----------------------------------------------------------------------------------------------

def test_pictures_that_do_not_do(tmp_path):
    fine, other = make(tmp_path, "a", 2), make(tmp_path, "b", 2, size=(10, 10))
    with pytest.raises(Mistake, match="x/b are of another size than those of x/a"):
        data([fine, other], pictures=Pictures())[Key(0, 1)]
    assert data([fine, other], pictures=Pictures(resize=9))[Key(0, 1)]["frames"].shape == (6, 9, 9, 3)
    (tmp_path / "b" / "b_0.png").write_bytes((tmp_path / "a" / "a_0.png").read_bytes())
    with pytest.raises(VideoError, match="2 sizes"):
        read_pictures(other, [0, 1])
    (tmp_path / "b" / "b_1.png").write_bytes(b"nothing")
    with pytest.raises(VideoError, match="b_1"):
        read_pictures(other, [1])
    (tmp_path / "b" / "b_1.png").unlink()
    with pytest.raises(VideoError, match=r"b_1.*\n?.*"):
        read_pictures(other, [1])


def test_samples_that_lack_what_is_asked_for(samples):
    bare = Sample("x/bare", "bare", Path("x"), 0, 3, {})
    with pytest.raises(Mistake, match="1 of 4 signs have none: x/bare"):
        data([*samples, bare], pictures=None)
    with pytest.raises(Mistake, match="frame rate"):
        data([bare], parts=(), pictures=ALL, time=0.1)


# --- the real files -----------------------------------------------------------------------------------------

def test_real_pictures_and_landmarks(shared):
    found = read_samples(shared / "hearai_sanity", "test_hamnosys.txt", HEADS).samples
    item = SignDataset(found, list(HEADS), segments=10, pictures=Pictures())[Key(0, 1)]
    assert item["frames"].shape == (10, 100, 100, 3) and item["length"] == 8 and not item["frames"][8:].any()
    file = cv2.imread(str(shared / "hearai_sanity" / "2" / "2_3.jpg"))
    assert np.array_equal(item["frames"][3], file[..., ::-1]) and item["labels"].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    found = read_samples(shared / "hearai_sample_input", "test_hamnosys.txt", HEADS, needs_frames=False,
                         needs_landmarks=True).samples
    item = SignDataset(found, list(HEADS), segments=4, parts=("pose", "right_hand"), time=0.1)[Key(0, 0)]
    with np.load(found[0].landmarks) as theirs:  # int(24 * 0.1) = 2 frames apart
        assert np.array_equal(item["landmarks"][:, :264], theirs["pose"][7:15:2].astype(np.float32))
    assert item["landmarks"].shape == (4, 432) and np.isfinite(item["landmarks"]).all() and item["length"] == 4
