"""From a frame's landmarks to a representation: a perceptron, or convolutions over the graph of the bones.

    net = build("gcn_extractor", 512, ("right_hand", "left_hand", "pose"))
    vectors = net(landmarks, Frames(lengths, 8, landmarks.device))        # (N, T, 600) -> (N, T, 512)

Landmarks are as slr.hamnosys lists them, 8 numbers a point. Whatever a point holds that is flagged as missing is not
looked at (HearAI's files fill such points in with those of another frame), nor is what stands behind an item's end.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slr.errors import Mistake
from slr.hamnosys import EDGES, FLAGS, PARTS, VALUES, landmark_size
from slr.models.masked import Frames

FEATURES = 10  # numbers a point that Normalised makes
WRIST, MIDDLE = 0, 9  # of a hand; MIDDLE is where the middle finger begins
NOSE, SHOULDERS = 0, (11, 12)  # of the pose
WRISTS = {"left_hand": 15, "right_hand": 16}  # the pose's points at which the hands are
NOTHING = 1e-8  # a distance that is none; the root of a true 0 has no gradient
SMALLEST = 0.02  # no part is taken for smaller than this share of the body's scale: division by a glitch


class Place(NamedTuple):
    """Where something is, (…, 3), how large it is, (…), and whether that is known, (…) bool."""

    centre: Tensor
    size: Tensor
    known: Tensor


class Normalised(nn.Module):
    """Landmarks (N, T, 8 P) of P points -> what a net sees of each point (N, T, P, 10), and which are seen (N, T, P).

    The 10 numbers of a point:
      0, 1   x, y relative to the body: to the middle between the shoulders, in shoulder widths, both the means over the
             clip's frames that show them (so a signer who leans is seen to); where none does, or without the pose, to
             the mean of all points of the clip, in root mean squares of their distance from it
      2-4    x, y, z relative to the part in this very frame: to the hand's wrist, in distances from there to the middle
             finger's base; to the middle between the shoulders, in shoulder widths; to the face's mean point, in root
             mean squares; of a part whose own points for this are missing to its mean point, too. (Depth of a hand and
             of the face has other zeros than that of the pose: MediaPipe measures it from the wrist and from the head.)
      5      r, the distance from the point's neighbour, in the same unit
      6-8    the direction from there, as a unit vector: phi is the same at its two ends, its sine and cosine are, too
      9      1 where the point is missing; then all others are 0
    Behind an item's end all are 0. Shift and scale of the picture change nothing.
    """

    def __init__(self, parts: tuple[str, ...]):
        super().__init__()
        self.parts = parts

    def forward(self, landmarks: Tensor, valid: Frames) -> tuple[Tensor, Tensor]:
        values = landmarks.float().unflatten(2, (-1, VALUES))
        there = valid.valid[..., None].expand(values.shape[:3])
        seen = there & (values[..., FLAGS] < 0.5).all(3) & values.isfinite().all(3)
        values = torch.where(seen[..., None], values, 0.0)
        points = values[..., :3]
        body = self._body(points, seen)
        counts = [PARTS[part] for part in self.parts]
        by_part = zip(self.parts, points.split(counts, 2), seen.split(counts, 2), strict=True)
        own = [(_own_place(*part, body.size), count) for part, count in zip(by_part, counts, strict=True)]
        sizes = torch.cat([place.size[:, :, None, None].expand(-1, -1, count, -1) for place, count in own], 2)
        roots = torch.cat([place.centre[:, :, None].expand(-1, -1, count, -1) for place, count in own], 2)
        to_body = (points - body.centre[:, None, None])[..., :2] / body.size[:, None, None, None]
        features = torch.cat((to_body, (points - roots) / sizes, values[..., 5:6] / sizes, _direction(values)), 3)
        features = torch.where(seen[..., None], features, 0.0)
        return torch.cat((features, (there & ~seen)[..., None].float()), 3), seen

    def _body(self, points: Tensor, seen: Tensor) -> Place:
        """Of each clip: (N, 3), (N,); all are known."""
        whole = _spread(points.flatten(1, 2), seen.flatten(1, 2))
        whole = Place(whole.centre, torch.where(whole.size > NOTHING, whole.size, 1.0), whole.known)
        if "pose" not in self.parts:
            return whole
        first = sum(PARTS[part] for part in self.parts[:self.parts.index("pose")])
        pose = slice(first, first + PARTS["pose"])
        shoulders = _shoulders(points[:, :, pose], seen[:, :, pose])
        count = shoulders.known.sum(1).clamp(min=1)
        mean = Place((shoulders.centre * shoulders.known[..., None]).sum(1) / count[:, None],
                     (shoulders.size * shoulders.known).sum(1) / count, shoulders.known.any(1))
        return _first_known(mean, whole)


def _own_place(part: str, points: Tensor, seen: Tensor, scale: Tensor) -> Place:
    """Of a part in each frame: (N, T, 3), (N, T); `scale` (N,) is the body's."""
    place = _spread(points, seen)
    if part == "pose":
        place = _first_known(_shoulders(points, seen), place)
    elif part != "face":
        palm = (points[:, :, MIDDLE] - points[:, :, WRIST]).norm(dim=2)
        place = _first_known(Place(points[:, :, WRIST], palm, seen[:, :, WRIST] & seen[:, :, MIDDLE]), place)
    return place._replace(size=torch.maximum(place.size, SMALLEST * scale[:, None]))


def _shoulders(points: Tensor, seen: Tensor) -> Place:
    """Of the pose (N, T, 33, 3): (N, T, 3), (N, T); their distance is taken in the picture, depth being a guess."""
    one, other = (points[:, :, index] for index in SHOULDERS)
    width = (one - other)[..., :2].norm(dim=2)
    return Place((one + other) / 2, width, seen[:, :, SHOULDERS[0]] & seen[:, :, SHOULDERS[1]] & (width > NOTHING))


def _spread(points: Tensor, seen: Tensor) -> Place:
    """Mean of the seen points (…, P, 3) and the root mean square of their distance from it in the picture."""
    count, weights = seen.sum(-1).clamp(min=1), seen[..., None].to(points.dtype)
    centre = (points * weights).sum(-2) / count[..., None]
    squares = ((points - centre[..., None, :]) * weights)[..., :2].square().sum((-2, -1)) / count
    return Place(centre, squares.clamp(min=NOTHING ** 2).sqrt(), seen.any(-1))


def _first_known(place: Place, other: Place) -> Place:
    return Place(torch.where(place.known[..., None], place.centre, other.centre),
                 torch.where(place.known, place.size, other.size), place.known | other.known)


def _direction(values: Tensor) -> Tensor:
    """(…, 8) -> (…, 3), of length 1: what theta / pi and phi / pi, the last two numbers, say."""
    theta, phi = values[..., 6] * math.pi, values[..., 7] * math.pi
    return torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), -1)


# --- the perceptron -----------------------------------------------------------------------------------------


class LandmarkNet(nn.Module, ABC):
    """Landmarks (N, T, 8 points) and which frames are valid -> (N, T, representation), 0 behind an item's end."""

    def __init__(self, parts: tuple[str, ...]):
        super().__init__()
        self.parts, self.normalised = parts, Normalised(parts)

    @abstractmethod
    def represent(self, points: Tensor, seen: Tensor) -> Tensor:
        """Normalised points (N, T, P, 10), and which are seen (N, T, P) -> (N, T, representation)."""

    def forward(self, landmarks: Tensor, valid: Frames) -> Tensor:
        if landmarks.shape[2] != landmark_size(self.parts):
            raise Mistake("the landmarks are of other parts", f"{landmarks.shape[2]} numbers a frame",
                          f"{', '.join(self.parts)} have {landmark_size(self.parts)}")
        return valid.zero(self.represent(*self.normalised(landmarks, valid)), 1)


class LandmarkMLP(LandmarkNet):
    """All points of a frame -> linear -> layer-norm -> GELU, twice, -> linear."""

    def __init__(self, representation: int, parts: tuple[str, ...], hidden: int | None = None):
        super().__init__(parts)
        width, sizes = hidden or representation, FEATURES * landmark_size(parts) // VALUES
        self.layers = nn.Sequential(nn.Linear(sizes, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width),
                                    nn.LayerNorm(width), nn.GELU(), nn.Linear(width, representation))

    def represent(self, points: Tensor, seen: Tensor) -> Tensor:
        return self.layers(points.flatten(2))


# --- the graph ----------------------------------------------------------------------------------------------


def bones(parts: tuple[str, ...]) -> list[tuple[int, int]]:
    """Pairs of points, numbered through the parts as they come; the hands are joined to the wrists of the pose."""
    first, total = {}, 0
    for part in parts:
        first[part], total = total, total + PARTS[part]
    found = [(first[part] + a, first[part] + b) for part in parts for a, b in EDGES[part]]
    if "pose" in first:
        found += [(first["pose"] + at, first[hand] + WRIST) for hand, at in WRISTS.items() if hand in first]
    return found


def loose(parts: tuple[str, ...]) -> list[int]:
    """Points of parts without known bones, and the nose, which they are about, where there is one."""
    found, total = [], 0
    for part in parts:
        found += [total + point for point in range(PARTS[part])] if not EDGES[part] else []
        total += PARTS[part]
    if found and "pose" in parts:
        found.append(sum(PARTS[part] for part in parts[:parts.index("pose")]) + NOSE)
    return found


class GraphConvolution(nn.Module):
    """x (…, P, in) -> (…, P, out): I x W0 + (Â * importance) x W1, and among loose points + softmax(learnt) x W2.

    Â = D^-1/2 A D^-1/2 (Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017,
    https://arxiv.org/abs/1609.02907, equation 2); a point and its neighbours have weights of their own, and each
    direction of a bone a learnt importance (Yan et al., Spatial Temporal Graph Convolutional Networks, 2018,
    https://arxiv.org/abs/1801.07455, section 3.3 "distance partitioning", 3.4). Loose points have no bones: how much
    each looks at each other one is learnt; to begin with, evenly.
    """

    pairs: Tensor
    norms: Tensor
    loose: Tensor

    def __init__(self, width: int, out: int, points: int, edges: list[tuple[int, int]], loose: list[int]):
        super().__init__()
        self.points = points
        pairs = torch.tensor([*edges, *((b, a) for a, b in edges)], dtype=torch.long).view(-1, 2).T
        degree = torch.bincount(pairs[0], minlength=points).float()
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("norms", (degree[pairs[0]] * degree[pairs[1]]).rsqrt(), persistent=False)
        self.register_buffer("loose", torch.tensor(loose, dtype=torch.long), persistent=False)
        self.itself = nn.Linear(width, out)
        self.around = nn.Linear(width, out, bias=False) if edges else None
        self.among = nn.Linear(width, out, bias=False) if loose else None
        self.importance = nn.Parameter(torch.ones(pairs.shape[1])) if edges else None
        self.learnt = nn.Parameter(torch.zeros(len(loose), len(loose))) if loose else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.itself(x)
        if self.around is not None and self.importance is not None:
            weights = self.norms * self.importance
            matrix = weights.new_zeros(self.points, self.points).index_put((self.pairs[0], self.pairs[1]), weights)
            out = out + matrix.to(out.dtype) @ self.around(x)
        if self.among is not None and self.learnt is not None:
            seen = self.learnt.softmax(1).to(out.dtype) @ self.among(x.index_select(-2, self.loose))
            out = out.index_add(-2, self.loose, seen.to(out.dtype))
        return out


class GraphNet(LandmarkNet):
    """Each point with a vector that says which it is, graph convolutions with residuals, the mean over every part's
    seen points (0 where none is), and a linear layer of those.
    """

    def __init__(self, representation: int, parts: tuple[str, ...], width: int = 64, layers: int = 3):
        super().__init__(parts)
        points, edges, free = sum(PARTS[part] for part in parts), bones(parts), loose(parts)
        self.enter = nn.Linear(FEATURES, width)
        self.which = nn.Parameter(torch.randn(points, width) * 0.1)
        self.convolutions = nn.ModuleList(GraphConvolution(width, width, points, edges, free) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.leave = nn.Linear(width * len(parts), representation)

    def represent(self, points: Tensor, seen: Tensor) -> Tensor:
        x = self.enter(points) + self.which
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + convolution(norm(x)).relu()
        sizes = [PARTS[part] for part in self.parts]
        means = [(one * there[..., None]).sum(2) / there.sum(2).clamp(min=1)[..., None]
                 for one, there in zip(x.split(sizes, 2), seen.split(sizes, 2), strict=True)]
        return self.leave(torch.cat(means, 2))


LANDMARK_NETS = {"landmark_extractor": LandmarkMLP, "gcn_extractor": GraphNet}


def build(name: str, representation: int, parts: tuple[str, ...]) -> LandmarkNet:
    """The net `name` of LANDMARK_NETS for these parts, in this order. Raises Mistake for unknown or repeated ones."""
    if name not in LANDMARK_NETS:
        raise Mistake("no such net for landmarks", name or "no name", f"there are {', '.join(LANDMARK_NETS)}")
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
        raise Mistake("the parts of the landmarks are not known", " ".join(parts) or "none",
                      f"give each of {', '.join(PARTS)} once or not at all")
    return LANDMARK_NETS[name](representation, parts)
