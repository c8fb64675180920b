"""Landmarks: what is normalised away and what is not, missing points, the graph's convolution against a loop."""

import math

import numpy as np
import pytest
import torch

from slr.errors import Mistake
from slr.hamnosys import EDGES, PARTS, VALUES
from slr.models.landmark_nets import (
    FEATURES,
    GraphConvolution,
    GraphNet,
    LandmarkMLP,
    Normalised,
    bones,
    build,
    loose,
)
from slr.models.masked import Frames

ALL = tuple(PARTS)
START = {part: sum(PARTS[other] for other in ALL[:number]) for number, part in enumerate(ALL)}
POINTS = sum(PARTS.values())
CPU = torch.device("cpu")


def some_points(items: int = 2, steps: int = 3, parts: tuple[str, ...] = ALL, seed: int = 0) -> torch.Tensor:
    """(N, T, P, 8), all seen."""
    count = sum(PARTS[part] for part in parts)
    values = torch.rand(items, steps, count, VALUES, generator=torch.Generator().manual_seed(seed))
    values[..., 3:5] = 0
    values[..., 7] = values[..., 7] * 2 - 1
    return values


def normalised(values: torch.Tensor, lengths: list[int] | None = None, parts: tuple[str, ...] = ALL):
    frames = Frames(torch.tensor(lengths or [values.shape[1]] * len(values)), values.shape[1], CPU)
    return Normalised(parts)(values.flatten(2), frames)


def hide(values: torch.Tensor, *where) -> torch.Tensor:
    """The same, with points flagged as missing, and nothing in them."""
    values = values.clone()
    values[(..., *where, slice(None))] = 0
    values[(..., *where, slice(3, 5))] = 1
    return values


# ---- normalisation


def by_hand(clip: np.ndarray) -> np.ndarray:
    """(T, P, 8), all seen -> (T, P, 10), point by point."""
    out = np.zeros((*clip.shape[:2], FEATURES))
    left, right = (clip[:, START["pose"] + k, :3] for k in (11, 12))
    middles, widths = (left + right) / 2, np.hypot(*(left - right)[:, :2].T)
    for t, frame in enumerate(clip):
        for part in ALL:
            own = frame[START[part]:START[part] + PARTS[part], :3]
            if part == "pose":
                root, size = middles[t], widths[t]
            elif part == "face":
                root = own.mean(0)
                size = math.sqrt(np.mean([(x - root[0]) ** 2 + (y - root[1]) ** 2 for x, y, _ in own]))
            else:
                root, size = own[0], math.dist(own[9], own[0])
            for k in range(PARTS[part]):
                x, y, z, _, _, r, theta, phi = frame[START[part] + k]
                theta, phi = theta * math.pi, phi * math.pi
                out[t, START[part] + k] = [
                    (x - middles[:, 0].mean()) / widths.mean(), (y - middles[:, 1].mean()) / widths.mean(),
                    (x - root[0]) / size, (y - root[1]) / size, (z - root[2]) / size, r / size,
                    math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta), 0]
    return out


def test_normalised_as_by_hand():
    values = some_points()
    found, seen = normalised(values)
    assert seen.all()
    for clip, ours in zip(values, found, strict=True):
        np.testing.assert_allclose(ours.numpy(), by_hand(clip.double().numpy()), rtol=1e-4, atol=1e-4)


def test_place_and_scale_of_the_picture_change_nothing():
    values = some_points()
    moved = values.clone()
    moved[..., :3] = moved[..., :3] * 7 + torch.tensor([3.0, -2.0, 5.0])
    moved[..., 5] *= 7
    torch.testing.assert_close(normalised(moved)[0], normalised(values)[0], rtol=1e-3, atol=1e-3)


def test_a_movement_of_the_body_is_seen_and_the_hands_shape_stays():
    values = some_points(1)
    moved = values.clone()
    moved[:, 1, :, 0] += 1
    before, after = normalised(values)[0], normalised(moved)[0]
    assert not torch.allclose(before[..., 0], after[..., 0], atol=0.1)
    torch.testing.assert_close(before[..., 2:], after[..., 2:], rtol=1e-3, atol=1e-3)


def test_phi_is_the_same_at_its_two_ends():
    values = some_points()
    values[..., 7] = 1
    other = values.clone()
    other[..., 7] = -1
    torch.testing.assert_close(normalised(values)[0], normalised(other)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("held", [0.0, 123.0, float("nan")])
def test_what_a_missing_point_holds_is_not_looked_at(held):
    values = hide(some_points(), START["pose"] + 5)
    values[:, :, START["left_hand"]] = values[:, :, START["left_hand"]].new_tensor([held] * 3 + [1, 1] + [held] * 3)
    found, seen = normalised(values)
    torch.testing.assert_close(found, normalised(hide(values, START["left_hand"]))[0], rtol=0, atol=0)
    assert not seen[..., [START["left_hand"], START["pose"] + 5]].any() and seen.sum() == 6 * (POINTS - 2)
    assert (found[:, :, START["left_hand"]] == torch.tensor([0.0] * 9 + [1])).all()


def test_shoulders_of_other_frames_serve_and_then_all_points():
    values = some_points(1, 4)
    once = values.clone()
    once[:, 1:] = hide(values[:, 1:], START["pose"] + 11)
    middle = (values[0, 0, START["pose"] + 11] + values[0, 0, START["pose"] + 12])[:2] / 2
    width = (values[0, 0, START["pose"] + 11] - values[0, 0, START["pose"] + 12])[:2].norm()
    hand = slice(0, PARTS["right_hand"])
    torch.testing.assert_close(normalised(once)[0][0, :, hand, :2], (values[0, :, hand, :2] - middle) / width)

    hands = ("right_hand", "left_hand")
    values = some_points(1, 4, hands)
    flat = values[0, :, :, :2].flatten(0, 1)
    spread = (flat - flat.mean(0)).square().sum(1).mean().sqrt()
    found = normalised(values, parts=hands)[0][0, :, :, :2]
    torch.testing.assert_close(found, (values[0, :, :, :2] - flat.mean(0)) / spread)


def test_nothing_seen_and_all_points_in_one_place_stay_finite():
    nothing = hide(some_points(), slice(None))
    found, seen = normalised(nothing)
    assert not seen.any() and found[..., :9].eq(0).all() and found[..., 9].eq(1).all()
    same = some_points()
    same[..., :3] = 0.25
    assert normalised(same)[0].isfinite().all()


def test_the_padding_is_not_looked_at_by_the_clip_s_means():
    values = some_points(2, 4)
    values[1, 2:] = float("nan")
    found, seen = normalised(values, [4, 2])
    torch.testing.assert_close(found[1:, :2], normalised(values[1:, :2])[0], rtol=0, atol=1e-6)
    assert found[1, 2:].eq(0).all() and not seen[1, 2:].any()


def test_a_real_file(shared):
    file = shared / "hearai_sample_input" / "10" / "10.npz"
    if not file.is_file():
        pytest.skip(f"the real file is not there: {file}")
    with np.load(file) as held:
        whole = np.concatenate([held[part] for part in ALL], 1, dtype=np.float32)
    found, seen = normalised(torch.from_numpy(whole).view(1, len(whole), POINTS, VALUES))
    assert found.isfinite().all() and found.abs().max() < 40
    assert not seen[..., :21].any()  # no frame shows the right hand
    assert 0 < seen[..., 21].float().mean() < 1
    shoulders = found[0, :, [START["pose"] + 11, START["pose"] + 12], :2].mean(0)
    torch.testing.assert_close(shoulders[1] - shoulders[0], torch.tensor([-1.0, 0.0]), rtol=0, atol=0.1)


# ---- the graph


def test_bones_join_the_hands_to_the_wrists_and_the_face_to_the_nose():
    pairs = set(bones(ALL))
    assert {(START["pose"] + 15, START["left_hand"]), (START["pose"] + 16, START["right_hand"])} <= pairs
    assert len(pairs) == sum(len(edges) for edges in EDGES.values()) + 2
    assert loose(ALL) == [*range(START["face"], POINTS), START["pose"]]
    assert len(bones(("left_hand", "right_hand"))) == 2 * len(EDGES["left_hand"])
    assert loose(("pose", "left_hand")) == [] and loose(("face",)) == list(range(128)) and not bones(("face",))
    assert bones(("left_hand", "pose"))[-1] == (21 + 15, 0)


@pytest.mark.parametrize("parts", [ALL, ("face",), ("left_hand", "pose")], ids=" ".join)
def test_graph_convolution_is_a_loop_over_neighbours(parts):
    torch.manual_seed(0)
    points, edges, free = sum(PARTS[part] for part in parts), bones(parts), loose(parts)
    layer = GraphConvolution(4, 3, points, edges, free)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = torch.randn(2, points, 4)
    neighbours: dict[int, list[int]] = {point: [] for point in range(points)}
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    importance = {} if layer.importance is None else dict(
        zip([*edges, *((b, a) for a, b in edges)], layer.importance.tolist(), strict=True))
    expected = layer.itself(x)
    for point in range(points):
        for other in neighbours[point]:
            weight = importance[point, other] / math.sqrt(len(neighbours[point]) * len(neighbours[other]))
            expected[:, point] = expected[:, point] + weight * (x[:, other] @ layer.around.weight.T)
    for row, point in enumerate(free):
        shares = layer.learnt[row].exp() / layer.learnt[row].exp().sum()
        for share, other in zip(shares, free, strict=True):
            expected[:, point] = expected[:, point] + share * (x[:, other] @ layer.among.weight.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


# ---- the nets


def test_parameters_of_the_nets():
    def count(net):
        return sum(parameter.numel() for parameter in net.parameters())

    wide, inputs = 512, 10 * 75
    assert count(LandmarkMLP(wide, ALL[:3])) == inputs * wide + wide + 2 * (wide * wide + wide) + 2 * 2 * wide
    edges, free, width = sum(map(len, EDGES.values())) + 2, 129, 64
    convolution = width * width + width + width * width + width * width + 2 * edges + free * free
    assert count(GraphNet(wide, ALL)) == (10 * width + width + POINTS * width + 3 * (convolution + 2 * width)
                                          + 4 * width * wide + wide)


@pytest.mark.parametrize("name", ["landmark_extractor", "gcn_extractor"])
def test_frames_are_seen_alone_but_for_the_body(name):
    """A frame's vector depends on other frames by the shoulders' mean alone."""
    torch.manual_seed(0)
    net = build(name, 16, ALL).eval()
    frames = Frames(torch.tensor([3, 2]), 3, CPU)
    values = some_points()
    values[:, :, START["pose"] + 11:START["pose"] + 13] = values[:, :1, START["pose"] + 11:START["pose"] + 13]
    other = values.clone()
    other[0, 1, :20, :3] += 1
    before, after = net(values.flatten(2), frames), net(other.flatten(2), frames)
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[0, 1], after[0, 1]) and before[1, 2].eq(0).all()
    assert before.shape == (2, 3, 16)


@pytest.mark.parametrize(("name", "parts", "told"), [
    ("mlp", ALL, "no such net"), ("gcn_extractor", (), "are not known: none"),
    ("gcn_extractor", ("pose", "pose"), "once or not at all"),
    ("landmark_extractor", ("foot",), "are not known: foot")])
def test_unknown_names(name, parts, told):
    with pytest.raises(Mistake) as caught:
        build(name, 8, parts)
    assert told in str(caught.value)


def test_landmarks_of_other_parts_are_refused():
    net = build("landmark_extractor", 8, ("pose",))
    with pytest.raises(Mistake, match="of other parts"):
        net(torch.zeros(1, 2, 8), Frames(torch.tensor([2]), 2, CPU))
