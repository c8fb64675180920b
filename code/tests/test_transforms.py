"""What happens to a clip: against torchvision where both mean the same, and by its own words elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from slr import transforms
from slr.runtime import generator
from slr.transforms import Augment, center_box, crop_resize, draw, mixup, no_draw, random_box, to_input

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
ONES, ZEROS = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def clips(n: int = 3, frames: int = 4, size: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, frames, size, size, 3), dtype=torch.uint8, generator=random)


def draws(**columns: float) -> torch.Tensor:
    """(3, 6): nothing is drawn but the named columns, and those for the middle clip only."""
    table = torch.tensor(no_draw()).repeat(3, 1)
    for name, value in columns.items():
        table[1, ("flip", "brightness", "contrast", "saturation", "hue", "share").index(name)] = value
    return table


def plain(x: torch.Tensor) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W) in 0..1."""
    return x.permute(0, 4, 1, 2, 3).float() / 255


def theirs(function, x: torch.Tensor, *words) -> torch.Tensor:
    """A torchvision function on the middle clip's frames (T, 3, H, W), the others as they were."""
    whole = plain(x)
    whole[1] = function(whole[1].transpose(0, 1), *words).transpose(0, 1)
    return whole


# --- on the device ------------------------------------------------------------------------------------------

def test_normalise():
    x = clips()
    expected = torch.stack([F.normalize(c.transpose(0, 1), MEAN, STD).transpose(0, 1) for c in plain(x)])
    for table in (draws(), draws(brightness=1.0001)):  # the short way and the way through the colours
        found = to_input(x, table, MEAN, STD)
        assert torch.allclose(found, expected, atol=2e-3 if table[1, 1] != 1 else 1e-5)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("column", "value", "function", "words"), [
    ("flip", 1.0, F.horizontal_flip, ()),
    ("brightness", 0.7, F.adjust_brightness, (0.7,)), ("brightness", 1.4, F.adjust_brightness, (1.4,)),
    ("saturation", 0.0, F.adjust_saturation, (0.0,)), ("saturation", 1.6, F.adjust_saturation, (1.6,)),
])
def test_against_torchvision(column, value, function, words):
    x = clips()
    found = to_input(x, draws(**{column: value}), ZEROS, ONES)
    assert torch.allclose(found, theirs(function, x, *words), atol=2e-3)  # its grey has rounded weights


@pytest.mark.parametrize("value", [0.5, 1.5])
def test_contrast_is_torchvisions_on_one_frame_and_the_clips_own_on_many(value):
    one = clips(frames=1)
    assert torch.allclose(to_input(one, draws(contrast=value), ZEROS, ONES),
                          theirs(F.adjust_contrast, one, value), atol=2e-3)
    still = one.repeat(1, 5, 1, 1, 1)
    still[:, 2:] //= 2
    found = to_input(still, draws(contrast=value), ZEROS, ONES)[1]
    grey = torch.tensor([0.299, 0.587, 0.114])
    mean = (plain(still)[1].permute(1, 2, 3, 0) @ grey).mean()
    assert torch.allclose(found, (value * plain(still)[1] + (1 - value) * mean).clamp(0, 1), atol=1e-5)


def test_hue_turns_colours_and_leaves_grey():
    grey = torch.full((3, 2, 2, 2, 3), 100, dtype=torch.uint8)
    assert torch.allclose(to_input(grey, draws(hue=0.3), ZEROS, ONES), plain(grey), atol=1e-5)
    soft = (100 + clips() // 8).to(torch.uint8)  # nothing is clamped
    there = to_input(soft, draws(hue=0.2), ZEROS, ONES)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    assert (there[1] - plain(soft)[1]).abs().max() > 0.01
    assert torch.allclose((there[1] * luma).sum(0), (plain(soft)[1] * luma).sum(0), atol=1e-5)
    red = torch.tensor([[[[[200, 60, 60]]]]], dtype=torch.uint8).expand(3, 1, 1, 1, 3)
    turned = to_input(red, draws(hue=1 / 3), ZEROS, ONES)[1].flatten()
    assert turned.argmax() == 1  # a third of a turn makes red green, the way torchvision's goes
    assert F.adjust_hue(plain(red)[1].transpose(0, 1), 1 / 3).flatten().argmax() == 1
    assert torch.allclose(to_input(soft, draws(hue=1.0), ZEROS, ONES), plain(soft), atol=1e-5)


def test_colours_stay_in_range_and_a_clip_in_one_piece():
    x = clips(frames=5)
    table = draws(flip=1, brightness=1.8, contrast=1.7, saturation=0.2, hue=-0.4)
    found = to_input(x, table, ZEROS, ONES)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.allclose(found[[0, 2]], plain(x)[[0, 2]], atol=1e-5)  # the others are untouched
    still = x[:, :1].expand(-1, 5, -1, -1, -1)
    same = to_input(still, table, ZEROS, ONES)
    assert torch.allclose(same, same[:, :, :1].expand_as(same))  # all frames of a clip change alike
    for i in range(3):
        alone = to_input(x[i:i + 1], table[i:i + 1], MEAN, STD)
        assert torch.allclose(alone[0], to_input(x, table, MEAN, STD)[i], atol=1e-6)


def test_subtract_clip_mean():
    x = clips()
    expected = (plain(x) * 255 - (plain(x) * 255).mean(2, keepdim=True)) / 48
    for table in (draws(), draws(brightness=1 + 1e-6)):
        found = to_input(x, table, MEAN, STD, subtract_clip_mean=True)
        assert torch.allclose(found, expected, atol=1e-4)
    still = x[:, :1].expand(-1, 4, -1, -1, -1)
    assert to_input(still, draws(flip=1, hue=0.1), MEAN, STD, subtract_clip_mean=True).abs().max() < 1e-4


# --- mixup --------------------------------------------------------------------------------------------------

@given(st.integers(1, 9))
def test_partners_are_mutual(n):
    other = transforms.partners(n)
    assert torch.equal(other[other], torch.arange(n)) and ((other - torch.arange(n)).abs() <= 1).all()
    assert (other == torch.arange(n)).sum() == n % 2


def test_mixup():
    x = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 3, 2, 2, 2)
    table = torch.zeros(5, 6)
    table[:, 5] = torch.tensor([0.75, 0.5, 0.6, 0.9, 0.8])
    mixed, other, share = mixup(x, table)
    assert other.tolist() == [1, 0, 3, 2, 4]
    assert torch.allclose(share, torch.tensor([0.75, 0.75, 0.6, 0.6, 0.8]))  # a pair uses its first one's share
    assert torch.allclose(mixed[:, 0, 0, 0, 0], torch.tensor([0.25, 0.75, 2.4, 2.6, 4.0]))


# --- draws and boxes ----------------------------------------------------------------------------------------

def test_no_augmentation_draws_nothing():
    assert np.array_equal(draw(generator(0, 0, "x"), Augment()), no_draw())


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 2), st.floats(0, 0.5), st.floats(0, 2))
def test_draws_are_in_their_ranges(seed, flip, jitter, hue, alpha):
    found = draw(generator(seed, 0, "x"), Augment(hflip=flip, jitter=(jitter, jitter, jitter, hue), mixup=alpha))
    assert found.shape == (6,) and found.dtype == np.float32 and found[0] in (0, 1)
    assert (found[1:4] >= max(0, 1 - jitter) - 1e-6).all() and (found[1:4] <= 1 + jitter + 1e-6).all()
    assert abs(found[4]) <= hue + 1e-6 and 0.5 <= found[5] <= 1


def test_draws_are_what_they_are_called():
    augment = Augment(hflip=0.3, jitter=(0.4, 0.2, 0.1, 0.05), mixup=0.5)
    table = np.stack([draw(generator(0, 0, str(i)), augment) for i in range(2000)])
    assert abs(table[:, 0].mean() - 0.3) < 0.04
    assert table[:, 1:5].std(0) == pytest.approx(np.array([0.4, 0.2, 0.1, 0.05]) / np.sqrt(3), rel=0.06)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 10**6), st.floats(0.01, 1), st.floats(1, 4))
def test_random_boxes_lie_in_the_square_that_evaluation_sees(height, width, seed, min_scale, max_aspect):
    x0, y0, x1, y1 = random_box(height, width, generator(seed, 0, "x"), min_scale, max_aspect)
    left, top, right, bottom = center_box(height, width, 1.0)
    assert 0 <= left <= x0 < x1 <= right <= width and 0 <= top <= y0 < y1 <= bottom <= height
    side, w, h = right - left, x1 - x0, y1 - y0
    if side > 100 and min_scale > 0.05:
        assert w * h >= min_scale * side * side * 0.9
        assert max(w / h, h / w) <= max_aspect * 1.1


def test_random_boxes_vary_on_wide_frames_too():
    boxes = {random_box(1080, 1920, generator(0, 0, str(i)), 0.7, 1.333) for i in range(50)}
    assert len(boxes) > 40
    areas = [(x1 - x0) * (y1 - y0) / 1080**2 for x0, y0, x1, y1 in boxes]
    assert min(areas) < 0.75 and max(areas) > 0.93 and len({x0 for x0, *_ in boxes}) > 30


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1, 2))
def test_center_box_is_the_resized_square(height, width, eval_resize):
    x0, y0, x1, y1 = center_box(height, width, eval_resize)
    assert x1 - x0 == y1 - y0 == max(1, round(min(height, width) / eval_resize))
    assert abs((x0 + x1) / 2 - width / 2) <= 0.5 and abs((y0 + y1) / 2 - height / 2) <= 0.5


def test_crop_resize():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 40, 60, 3), np.uint8)
    assert np.array_equal(crop_resize(frames, (10, 5, 30, 25), 20), frames[:, 5:25, 10:30])
    for size, tolerance in ((32, 3), (10, 3)):  # larger, and by half
        found = crop_resize(frames, (10, 0, 50, 40), size)
        box = torch.tensor(frames[:, :40, 10:50]).permute(0, 3, 1, 2)
        expected = F.resize(box, [size, size], antialias=size < 20).permute(0, 2, 3, 1).numpy()
        assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).mean() < tolerance * 4
    flat = np.full((1, 64, 48, 3), 77, np.uint8)
    assert (crop_resize(flat, (0, 0, 48, 64), 17) == 77).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40))
def test_crop_resize_takes_any_box(height, width, size):
    frames = np.zeros((2, height, width, 3), np.uint8)
    assert crop_resize(frames, (0, 0, width, height), size).shape == (2, size, size, 3)
