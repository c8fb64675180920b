"""RandAugment and random erasing: each operation is torchvision's, frames of a clip and points on them go together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little_videos import grey_frames
from torchvision.transforms.v2 import functional as F

from slr import augment
from slr.augment import FILTERS, MOVES, OPERATIONS, TABLES, UNCHANGED, Changes, Recipe, carry_out, draw_changes
from slr.datasets.clips import ClipDataset
from slr.datasets.wlasl import Clip
from slr.loading import Key
from slr.runtime import generator

SIZE = 40
SIGNED = st.floats(-1, 1)


def clip(frames: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture that moves, and noise."""
    rng, axis = np.random.default_rng(seed), np.arange(SIZE)
    waves = np.stack([np.sin((axis[:, None] + 2 * axis[None] + 3 * t) / 9) for t in range(frames)])
    colours = 110 + 60 * waves[..., None] * np.array([1, 0.5, -0.8])
    return (colours + rng.integers(-20, 20, (*colours.shape[:3], 1))).astype(np.uint8)


def many(recipe: Recipe, count: int = 400) -> list[Changes]:
    return [draw_changes(generator(0, number, "x"), SIZE, recipe) for number in range(count)]


# --- operations ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "strength", "theirs"), [
    ("auto_contrast", 0.5, F.autocontrast), ("equalize", 0.5, F.equalize), ("invert", 0.5, F.invert),
    ("posterize", 0.5, lambda x: F.posterize(x, 2)), ("solarize", 0.5, lambda x: F.solarize(x, 128)),
    ("brightness", 0.5, lambda x: F.adjust_brightness(x, 1.45)),
    ("brightness", -0.5, lambda x: F.adjust_brightness(x, 0.55)),
    ("contrast", -0.5, lambda x: F.adjust_contrast(x, 0.55)), ("contrast", 1, lambda x: F.adjust_contrast(x, 1.9)),
    ("saturation", -0.5, lambda x: F.adjust_saturation(x, 0.55)),
    ("saturation", 0.5, lambda x: F.adjust_saturation(x, 1.45)),
    ("sharpness", 0.5, lambda x: F.adjust_sharpness(x, 1.45)),
    ("sharpness", -1, lambda x: F.adjust_sharpness(x, 0.1)),
])
def test_a_single_frame_becomes_what_torchvision_makes_of_it(name, strength, theirs):
    frame = clip(1)
    found = carry_out(frame, (name, strength))
    wanted = theirs(torch.from_numpy(frame).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    inner = np.s_[:, 1:-1, 1:-1] if name == "sharpness" else np.s_[:]  # they leave the rim as it is
    assert np.abs(found[inner].astype(int) - wanted[inner]).max() <= 2 and not np.array_equal(found, frame)


def test_solarize_add_and_the_last_bit():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    wanted = [value + 55 if value < 128 else value for value in range(256)]
    assert carry_out(ramp, ("solarize_add", 0.5))[..., 0].ravel().tolist() == wanted
    assert set(carry_out(ramp, ("posterize", 1.0)).ravel()) == {0, 128}
    assert set(carry_out(ramp, ("posterize", 0.5)).ravel()) == {0, 64, 128, 192}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_treats_the_frames_of_a_clip_alike(name):
    """What two frames have in common they still have; that holds for statistics of single frames too."""
    frames = clip(4)
    frames[1], frames[2] = frames[0], 255 - frames[0] // 3
    kept = frames.copy()
    found = carry_out(frames, (name, -0.5))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert np.array_equal(frames, kept) and found.dtype == np.uint8 and found.shape == frames.shape
    if name in TABLES:  # the same value becomes the same value in every frame
        for channel in range(3):
            values, others = frames[..., channel].ravel(), found[..., channel].ravel()
            assert all(len(set(others[values == value])) == 1 for value in np.unique(values)[::7])
    assert (name in MOVES) == (augment.affine((name, 0.5), SIZE) is not None)
    assert (name in TABLES) + (name in FILTERS) + (name in MOVES) == 1


@given(st.lists(st.tuples(st.sampled_from(OPERATIONS[-5:]), SIGNED), min_size=1, max_size=2),
       st.integers(14, 25), st.integers(14, 25))
def test_a_dot_and_its_point_move_alike(steps, x, y):
    frames = np.full((2, SIZE, SIZE, 3), 128, np.uint8)
    frames[:, y - 1:y + 2, x - 1:x + 2] = 255
    changes = Changes(tuple(steps))
    moved, points = changes.of_frames(frames), changes.of_points(np.array([[x, y, 1.0], [x, y, 0.0]]), SIZE)
    weight = moved[1, ..., 0].astype(float) - 128
    way = np.array([Changes(tuple(steps[:n + 1])).of_points(np.array([[x, y, 1.0]]), SIZE)[0, :2]
                    for n in range(len(steps))])
    if (way >= 2).all() and (way <= SIZE - 3).all():  # a dot that has once left the frame does not come back
        across, down = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
        middle = [(weight * axis).sum() / weight.sum() for axis in (across, down)]
        assert np.abs(points[0, :2] - middle).max() < 0.5
    assert np.array_equal(moved[0], moved[1]) and points[:, 2].tolist() == [1, 0] and points.dtype == np.float32


def test_the_strengths_are_timms():
    found = {name: augment.affine((name, 0.5), 100) for name in MOVES}
    assert np.allclose(found["rotate"][:, :2], [[np.cos(np.pi / 12), np.sin(np.pi / 12)],
                                                [-np.sin(np.pi / 12), np.cos(np.pi / 12)]])
    assert found["shear_x"][0, 1] == found["shear_y"][1, 0] == 0.15
    assert found["translate_x"][0, 2] == found["translate_y"][1, 2] == 22.5
    for name in ("rotate", "shear_x", "shear_y"):
        assert np.allclose(found[name] @ [49.5, 49.5, 1], 49.5)  # the middle stays


# --- what is drawn ------------------------------------------------------------------------------------------

def test_nothing_is_drawn_of_what_is_off():
    frames = clip()
    for recipe in (UNCHANGED, Recipe(magnitude=5, operation_p=0.0), Recipe(magnitude=0, operation_p=1.0)):
        for changes in many(recipe, 20):
            assert changes == Changes() and changes.of_frames(frames) is frames
    rng, other = generator(0, 0, "x"), generator(0, 0, "x")
    draw_changes(rng, SIZE, UNCHANGED)
    assert rng.random() == other.random()  # so that what is drawn afterwards stays as it was


def test_probabilities_and_strengths_are_honoured():
    found = many(Recipe(magnitude=5, operations=3, operation_p=0.3, erase_p=0.2))
    steps = [step for changes in found for step in changes.steps]
    assert 0.27 < len(steps) / 1200 < 0.33 and {abs(strength) for _, strength in steps} == {0.5}
    assert 0.4 < np.mean([strength < 0 for _, strength in steps]) < 0.6
    assert {name for name, _ in steps} == set(OPERATIONS)
    assert 0.14 < np.mean([changes.patch is not None for changes in found]) < 0.26
    assert all(len(changes.steps) == 2 for changes in many(Recipe(magnitude=5, operation_p=1.0), 20))


def test_one_rectangle_is_erased_at_the_same_place_in_all_frames():
    shares = []
    for changes in many(Recipe(erase_p=1.0), 100):
        frames = np.zeros((4, SIZE, SIZE, 3), np.uint8)
        erased = (changes.of_frames(frames) > 0).any(-1)
        rows, columns = np.flatnonzero(erased[0].any(1)), np.flatnonzero(erased[0].any(0))
        box = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        assert erased[0][box].mean() > 0.99 and erased[0].sum() == erased[0][box].sum()  # noise is rarely black
        assert (frames == frames[0]).all()
        height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        assert height == SIZE or width == SIZE or 0.2 < height / width < 5
        shares.append(height * width / SIZE**2)
    assert min(shares) > 0.015 and max(shares) < 0.36 and max(shares) - min(shares) > 0.2


# --- isolated signs -----------------------------------------------------------------------------------------

class _Frames:
    """Clips of 24 grey frames without files."""

    def length(self, clip: Clip) -> int:
        return 24

    def images(self, clip: Clip, indices: np.ndarray) -> np.ndarray:
        return grey_frames(24)[indices]


def test_clips_of_single_signs_are_changed_too():
    def item(epoch: int, recipe: Recipe) -> np.ndarray:
        dataset = ClipDataset([Clip("a", "go", 0)], _Frames(), num_frames=8, frame_size=SIZE, recipe=recipe)
        return dataset[Key(epoch, 0)]["frames"]

    recipe = Recipe(magnitude=9, operation_p=1.0, erase_p=1.0)
    assert np.array_equal(item(3, recipe), item(3, recipe)) and not np.array_equal(item(3, recipe), item(4, recipe))
    assert np.array_equal(item(3, UNCHANGED), item(4, UNCHANGED))
