"""The figure that signs: what it looks like, where it stands, and how its poses become frames.

Points are in the space of `slr.datasets.signs` (shoulders one apart, y downwards, z towards the viewer). The
arms are two links each, solved by inverse kinematics; every hand is a palm and five jointed fingers in three
dimensions. A clip becomes a list of layers (polygons and thick lines, computed for all frames at once) that
are painted back to front. `keypoints` says where body, hands and face are in every frame."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slr.datasets.signs import FINGERS, POSITION, ROTATION, Array, matrices

Image = NDArray[Any]  # uint8
Colour = tuple[float, float, float]

FRACTION = 4  # binary places of the fixed-point coordinates that OpenCV paints with
BODY = 6  # columns of a body track: sideways, downwards, head sideways, nod, mouth open, brows
_SKINS = ((250, 221, 196), (238, 196, 158), (222, 170, 126), (190, 132, 90), (142, 92, 60), (98, 64, 44))
_HAIRS = ((32, 26, 24), (60, 40, 28), (104, 70, 42), (176, 134, 78), (212, 182, 130), (140, 62, 34),
          (156, 152, 150))


@dataclass(frozen=True)
class Signer:
    """One person: proportions (1 = average), colours (RGB, 0-255) and manner. Made by `make_signer`."""

    arm: float
    hand: float
    head: float
    head_width: float
    torso: float
    skin: Colour
    hair: Colour
    cloth: Colour
    hair_style: str
    sleeves: str
    collar: str
    stripes: bool
    left_handed: bool
    hanging: bool
    amplitude: float
    tempo: float
    shift: tuple[float, float]


def _mix(a: Colour, b: Colour, s: float) -> Colour:
    return (a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * s, a[2] + (b[2] - a[2]) * s)


def _shade(colour: Colour, gain: float) -> Colour:
    return (min(255.0, colour[0] * gain), min(255.0, colour[1] * gain), min(255.0, colour[2] * gain))


def _between(table: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    at = rng.uniform(0, len(table) - 1)
    i = min(int(at), len(table) - 2)
    return _mix(table[i], table[i + 1], at - i)


def _colour(rng: np.random.Generator, saturation: float = 0.7) -> Colour:
    hsv = [rng.uniform(0, 180), rng.uniform(0, 255) * saturation, rng.uniform(25, 235)]
    r, g, b = cv2.cvtColor(np.array([[hsv]], dtype=np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return (r, g, b)


def _unlike(other: Colour, rng: np.random.Generator, distance: float = 95.0) -> Colour:
    """A colour that stands out from `other`, as interpreters dress to let their hands be seen."""
    while True:
        colour = _colour(rng)
        if np.linalg.norm(np.subtract(colour, other)) > distance:
            return colour


def make_signer(rng: np.random.Generator) -> Signer:
    """A person drawn at random; one in eight is left-handed."""
    skin = _between(_SKINS, rng)
    return Signer(
        arm=rng.uniform(0.94, 1.08), hand=rng.uniform(0.92, 1.12), head=rng.uniform(0.92, 1.10),
        head_width=rng.uniform(0.92, 1.08), torso=rng.uniform(0.9, 1.15), skin=skin,
        hair=_between(_HAIRS, rng), cloth=_unlike(skin, rng),
        hair_style=str(rng.choice(["short", "long", "bald", "bun", "parted"])),
        sleeves=str(rng.choice(["long", "short", "half"])), collar=str(rng.choice(["round", "v", "shirt"])),
        stripes=bool(rng.random() < 0.2), left_handed=bool(rng.random() < 0.125),
        hanging=bool(rng.random() < 0.35), amplitude=rng.uniform(0.75, 1.15), tempo=rng.uniform(0.85, 1.2),
        shift=(rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07)))


# ---------------------------------------------------------------- scene

@dataclass(frozen=True)
class Scene:
    """Everything about a recording that is not the person: made by `make_scene`, for one frame size."""

    size: int
    scale: float  # pixels of the frame per unit of the figure
    place: tuple[float, float]  # where the middle between the shoulders stands, in pixels
    background: Image  # a little larger than the frame, for the camera's movement
    light: Image  # gain / 128 for every pixel and channel
    noise: Image  # a field of 128 + noise, larger than the frame
    blur: float  # sigma in pixels, 0 = none
    jitter: float  # pixels
    drift: tuple[float, float]  # pixels over the clip
    seed: int  # of the camera's shaking and the noise

    def box(self, signer: Signer) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the person with the space that the arms sign in, cut to the frame. It depends on
        the person and the camera only, never on the sign."""
        x, y = self.place
        half, top = 1.12 * self.scale * signer.arm, 0.98 * self.scale * signer.head
        edges = (x - half, y - top, x + half, y + 1.22 * self.scale)
        x0, y0, x1, y1 = (int(round(min(max(v, 0), self.size))) for v in edges)
        return x0, y0, x1, y1


MARGIN = 6  # pixels of background on every side for the camera's movement


def _plain(rng: np.random.Generator, n: int) -> Image:
    return np.full((n, n, 3), _colour(rng, 0.5), dtype=np.uint8)


def _gradient(rng: np.random.Generator, n: int) -> Image:
    corners = np.array([[_colour(rng, 0.5), _colour(rng, 0.5)], [_colour(rng, 0.5), _colour(rng, 0.5)]])
    return cv2.resize(corners.astype(np.float32), (n, n), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _texture(rng: np.random.Generator, n: int) -> Image:
    cells, contrast = int(rng.integers(4, 24)), rng.uniform(8, 40)
    grain = rng.normal(0, contrast, (cells, cells, 1)).astype(np.float32)
    field_ = cv2.resize(grain, (n, n), interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(field_ + np.array(_colour(rng, 0.5), dtype=np.float32), 0, 255).astype(np.uint8)


def _shapes(rng: np.random.Generator, n: int) -> Image:
    image = _gradient(rng, n)
    for _ in range(int(rng.integers(3, 9))):
        a, b = rng.integers(-n // 4, n, 2).tolist(), rng.integers(n // 10, n // 2, 2).tolist()
        colour = _colour(rng, 0.6)
        if rng.random() < 0.6:
            cv2.rectangle(image, a, [a[0] + b[0], a[1] + b[1]], colour, -1, cv2.LINE_AA)
        else:
            cv2.circle(image, a, b[0] // 2, colour, -1, cv2.LINE_AA)
    return image


def _background(rng: np.random.Generator, n: int) -> Image:
    kind = (_plain, _gradient, _texture, _shapes)[int(rng.integers(4))]
    return cv2.GaussianBlur(kind(rng, n), (0, 0), rng.uniform(0.3, 2.0))


def _light(rng: np.random.Generator, n: int) -> Image:
    gain = 128 * rng.uniform(0.75, 1.15) * np.array([rng.uniform(0.93, 1.07), 1.0, rng.uniform(0.93, 1.07)])
    falloff = rng.uniform(0.75, 1.1, (2, 2, 1)).astype(np.float32)
    smooth = cv2.resize(falloff, (n, n), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(smooth * gain, 0, 255).astype(np.uint8)


def make_scene(signer: Signer, rng: np.random.Generator, size: int) -> Scene:
    """A room, light and camera at random, for square frames of `size` pixels. The figure's box is drawn first
    at a size of 80 to 98 % of the frame and then placed so that it is inside."""
    extent = max(2.24 * signer.arm, 0.98 * signer.head + 1.22)
    scale = rng.uniform(0.80, 0.98) * size / extent
    slack = size - extent * scale
    x = size / 2 + slack * rng.uniform(-0.5, 0.5)
    y = 0.98 * signer.head * scale + slack * rng.uniform(0.1, 1.0)
    noise = rng.normal(128, rng.uniform(0.5, 6), (size + 16, size + 16, 3))
    return Scene(size, scale, (x, y), _background(rng, size + 2 * MARGIN), _light(rng, size),
                 np.clip(noise, 0, 255).astype(np.uint8), rng.uniform(0.3, 0.8) * float(rng.random() < 0.4),
                 rng.uniform(0, 0.008) * size * float(rng.random() < 0.5),
                 (rng.normal(0, 0.02) * size, rng.normal(0, 0.012) * size), int(rng.integers(2**31)))


def _camera(scene: Scene, frames: int, rng: np.random.Generator) -> Array:
    """Displacement of the picture `(T, 2)` in pixels: a slow drift and a shaking hand."""
    drift = np.linspace(-0.5, 0.5, frames)[:, None] * np.array(scene.drift)
    return np.clip(drift + rng.normal(0, 1, (frames, 2)) * scene.jitter, -MARGIN + 1, MARGIN - 1)


# ---------------------------------------------------------------- skeleton

UPPER_ARM, FOREARM, HAND = 0.76, 0.68, 0.56
# Knuckles of index .. little finger in the palm's plane (to the thumb, along the fingers); hand length 1.
_KNUCKLES = np.array([[0.185, 0.47], [0.062, 0.50], [-0.062, 0.48], [-0.18, 0.43]])
_LENGTHS = np.array([[0.215, 0.13, 0.10], [0.235, 0.15, 0.105], [0.215, 0.14, 0.10], [0.165, 0.10, 0.09]])
_THUMB_BASE, _THUMB_LENGTHS = np.array([0.13, 0.14]), np.array([0.20, 0.16, 0.13])
_PALM = np.array([[-0.11, 0.0], [-0.19, 0.22], [-0.20, 0.43], [-0.06, 0.49], [0.07, 0.50], [0.205, 0.46],
                  [0.19, 0.22], [0.11, 0.0]])


def elbows(shoulder: Array, wrist: Array, upper: float, fore: float) -> tuple[Array, Array]:
    """Two-link inverse kinematics: elbows and reachable wrists, each `(T, 3)`, of arms from `shoulder` to
    `wrist` (T, 3). The elbow hangs down and outwards; a wrist out of reach is drawn in along its line."""
    reach = wrist - shoulder
    length = np.linalg.norm(reach, axis=1, keepdims=True)
    line = reach / np.maximum(length, 1e-9)
    length = np.clip(length, abs(upper - fore) + 0.02, 0.995 * (upper + fore))
    along = (upper**2 - fore**2 + length**2) / (2 * length)
    out = np.sqrt(np.maximum(upper**2 - along**2, 0))
    pole = np.stack([0.75 * np.sign(shoulder[:, 0]), np.ones(len(wrist)), np.full(len(wrist), -0.45)], axis=1)
    pole = pole - line * np.sum(pole * line, axis=1, keepdims=True)
    pole /= np.maximum(np.linalg.norm(pole, axis=1, keepdims=True), 1e-9)
    return shoulder + along * line + out * pole, shoulder + length * line


def _chain(base: Array, lengths: Array, angles: Array) -> Array:
    """Joints `(T, 4, 3)` of one finger in the hand's axes (thumb side, palm normal, fingers): `angles` (T,
    4)."""
    bend = np.cumsum(angles[:, 1:], axis=1)
    ahead, sideways = np.cos(bend) * lengths, angles[:, :1]
    steps = np.stack([ahead * np.sin(sideways), np.sin(bend) * lengths, ahead * np.cos(sideways)], axis=2)
    start = np.broadcast_to(np.array([base[0], 0.0, base[1]]), (len(angles), 1, 3))
    return np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1)


def _thumb(angles: Array) -> Array:
    """Joints `(T, 4, 3)` of the thumb: it leaves the palm sideways, swings over it and bends back to the
    fingers."""
    side, over = angles[:, 0], angles[:, 1]
    first = np.stack([np.sin(side) * np.cos(over), np.sin(over), np.cos(side) * np.cos(over)], axis=1)
    back = np.stack([-0.8 * np.ones_like(side), 0.15 * np.ones_like(side), 0.6 * np.ones_like(side)], axis=1)
    links, turn = [first], np.zeros((len(angles), 1))
    for k in (2, 3):
        turn = turn + angles[:, k : k + 1]
        link = np.cos(turn) * first + np.sin(turn) * back
        links.append(link / np.linalg.norm(link, axis=1, keepdims=True))
    steps = np.stack(links, axis=1) * _THUMB_LENGTHS[:, None]
    start = np.broadcast_to(np.array([_THUMB_BASE[0], 0.03, _THUMB_BASE[1]]), (len(angles), 1, 3))
    return np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1)


def hand_joints(fingers: Array) -> Array:
    """Joints `(T, 5, 4, 3)` of thumb .. little finger in the hand's own axes, hand length 1, wrist at the
    origin, from finger angles `(T, 20)`."""
    angles = fingers.reshape(-1, 5, 4)
    chains = [_chain(_KNUCKLES[i], _LENGTHS[i], angles[:, i + 1]) for i in range(4)]
    return np.stack([_thumb(angles[:, 0]), *chains], axis=1)


@dataclass(frozen=True)
class Limb:
    """One arm with its hand in the figure's space, mirrored for the other side already; arrays over the
    frames."""

    shoulder: Array  # (T, 3)
    elbow: Array
    wrist: Array
    fingers: Array  # (T, 5, 4, 3)
    palm: Array  # (T, 8, 3)
    normal: Array  # (T, 3)

    def moved(self, mirror: Array, by: Array) -> "Limb":
        """The same arm mirrored by the factors `(3,)` and then moved `by` (T, 3); the normal stays."""
        return Limb(self.shoulder * mirror + by, self.elbow * mirror + by, self.wrist * mirror + by,
                    self.fingers * mirror + by[:, None, None], self.palm * mirror + by[:, None], self.normal)


def limb(signer: Signer, pose: Array, other: bool) -> Limb:
    """The arm of a hand's track `(T, 27)`; `other` = not the dominant one."""
    mirror = np.array([-1.0 if other else 1.0, 1.0, 1.0])
    axes = matrices(pose[:, ROTATION])
    length = HAND * signer.hand
    centre = pose[:, POSITION] * mirror  # back to the dominant side, where rotations are kept
    shoulder = np.broadcast_to(np.array([-0.47, 0.03, 0.0]), centre.shape)
    wish = centre - 0.42 * length * axes[:, :, 2]
    elbow, wrist = elbows(shoulder, wish, UPPER_ARM * signer.arm, FOREARM * signer.arm)
    joints = np.einsum("tij,tfkj->tfki", axes, hand_joints(pose[:, FINGERS])) * length + wrist[:, None, None]
    flat = np.stack([_PALM[:, 0], np.zeros(len(_PALM)), _PALM[:, 1]], axis=1)
    palm = np.einsum("tij,kj->tki", axes, flat) * length + wrist[:, None]
    return Limb(shoulder, elbow, wrist, joints, palm, axes[:, :, 1]).moved(mirror, np.zeros_like(wrist))


# ---------------------------------------------------------------- layers

@dataclass
class Layer:
    """A polygon (`width` 0) or a line of `width` pixels, for every frame: points `(T, K, 2)` in fixed
    point."""

    points: NDArray[np.int32]
    colour: list[Colour]
    width: list[int]
    depth: Array


class Canvas:
    """Collects layers in the figure's space and turns them into pixels of a canvas `factor` times the
    frame."""

    def __init__(self, scene: Scene, moved: Array, factor: int):
        self.scale, self.frames = scene.scale * factor, len(moved)
        self.place = (np.array(scene.place) + moved) * factor
        self.layers: list[Layer] = []

    def add(self, points: Array, colour: Colour | list[Colour], radius: float, depth: float | Array,
            line: int = 0) -> None:
        """A line through `points` (T, K, 2 or 3) of thickness 2 x `radius` + 2 x `line` (pixels), or a
        polygon."""
        nearer = 1 / (1 - 0.13 * points[..., 2:3]) if points.shape[2] == 3 else 1.0
        pixels = points[..., :2] * nearer * self.scale + self.place[:, None]
        fixed = np.round(pixels * (1 << FRACTION)).astype(np.int32)
        zoom = np.broadcast_to(nearer, points.shape[:2] + (1,)).mean(axis=(1, 2))
        width = 2 * radius * self.scale * zoom
        widths = [max(int(w), 1) if radius else 0 for w in np.round(width + 2 * line)]
        colours = colour if isinstance(colour, list) else [colour] * self.frames
        self.layers.append(Layer(fixed, colours, widths, np.broadcast_to(depth, (self.frames,))))

    def paint(self, t: int, order: NDArray[np.intp], image: Image) -> None:
        """Paint frame `t` onto `image` in `order` of layers."""
        for i in order:
            layer = self.layers[i]
            points, colour, width = [layer.points[t]], layer.colour[t], layer.width[t]
            if width:
                cv2.polylines(image, points, False, colour, width, cv2.LINE_AA, FRACTION)
            else:
                cv2.fillPoly(image, points, colour, cv2.LINE_AA, FRACTION)


def _arc(start: float, stop: float, points: int) -> Array:
    angles = np.linspace(start, stop, points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_ROUND, _UPPER_HALF = _arc(0, 1.9 * np.pi, 20), _arc(np.pi, 2 * np.pi, 12)
Outline = Array | list[tuple[float, float]]


def _at(middle: Array, shape: Outline, size: tuple[float, float] = (1.0, 1.0)) -> Array:
    """A fixed shape `(K, 2)` around moving middles `(T, 2)`."""
    return middle[:, None] + np.asarray(shape) * np.array(size)


def _torso(canvas: Canvas, signer: Signer, body: Array) -> None:
    dark, w = _shade(signer.cloth, 0.62), signer.torso
    outline = [(-0.13, -0.16), (-0.36, -0.09), (-0.52, 0.03), (-0.50 * w, 0.5), (-0.43 * w, 0.9),
               (-0.50 * w, 3.0), (0.50 * w, 3.0), (0.43 * w, 0.9), (0.50 * w, 0.5), (0.52, 0.03),
               (0.36, -0.09), (0.13, -0.16)]
    canvas.add(_at(body, outline), dark, 0.05, -90, line=1)
    canvas.add(_at(body, outline), signer.cloth, 0.05, -90)
    canvas.add(_at(body, outline), signer.cloth, 0, -89)
    for k in range(4 if signer.stripes else 0):
        canvas.add(_at(body, [(-0.44 * w, 0.3 + 0.25 * k), (0.44 * w, 0.3 + 0.25 * k)]), dark, 0.03, -88)
    necks = {"round": [(-0.16, -0.15), (-0.12, 0.0), (0.0, 0.05), (0.12, 0.0), (0.16, -0.15)],
             "v": [(-0.16, -0.15), (0.0, 0.22), (0.16, -0.15)],
             "shirt": [(-0.14, -0.15), (0.0, 0.06), (0.14, -0.15)]}
    neck = _at(body, necks[signer.collar])
    canvas.add(neck, _shade(signer.skin, 0.92), 0, -87)
    canvas.add(neck, dark, 0.012, -86)
    if signer.collar == "shirt":
        canvas.add(_at(body, [(0.0, 0.06), (0.0, 1.4)]), dark, 0.008, -86)


def _head(canvas: Canvas, signer: Signer, body: Array, head: Array) -> None:
    h, w = 0.33 * signer.head, 0.245 * signer.head * signer.head_width
    dark = _shade(signer.skin, 0.66)
    canvas.add(np.stack([body, head + [0, 0.2 * h]], axis=1), _shade(signer.skin, 0.78), 0.115, -85)
    if signer.hair_style == "long":
        canvas.add(_at(head, _ROUND, (1.28 * w, 1.2 * h)), _shade(signer.hair, 0.8), 0, -95)
        canvas.add(_at(head, [(-0.85 * w, 0), (-0.95 * w, 1.5 * h), (0.95 * w, 1.5 * h), (0.85 * w, 0)]),
                   _shade(signer.hair, 0.8), 0.05, -95)
    if signer.hair_style == "bun":
        canvas.add(_at(head + [0, -1.22 * h], _ROUND, (0.42 * w, 0.4 * w)), signer.hair, 0, -95)
    for side in (-1.0, 1.0):
        ear = _at(head + [side * w, 0.05 * h], _ROUND, (0.16 * w, 0.2 * h))
        canvas.add(ear, _shade(signer.skin, 0.85), 0, -84)
    face = [(x * (1 - 0.14 * max(y, 0) ** 2), y) for x, y in _ROUND]
    canvas.add(_at(head, face, (w, h)), dark, 0.012, -83)
    canvas.add(_at(head, face, (w, h)), signer.skin, 0, -82)
    if signer.hair_style != "bald":
        part = -0.25 if signer.hair_style == "parted" else 0.05
        fringe = [*_UPPER_HALF * 1.07, (0.93, 0.12), (0.8, -0.38), (part, -0.55), (-0.8, -0.38),
                  (-0.93, 0.12)]
        canvas.add(_at(head, fringe, (w, h)), signer.hair, 0, -81)


def _face(canvas: Canvas, signer: Signer, head: Array, body: Array) -> None:
    """Eyes, brows, nose and mouth; `body` (T, BODY) opens the mouth and lifts the brows."""
    h, w = 0.33 * signer.head, 0.245 * signer.head * signer.head_width
    dark, mouth, lift = _shade(signer.skin, 0.6), _mix(signer.skin, (150, 30, 40), 0.6), body[:, 5:6] * 0.05
    middle = head + np.stack([np.zeros(len(head)), 0.12 * h + body[:, 3]], axis=1)
    for side in (-0.42 * w, 0.42 * w):
        eye = middle + [side, -0.2 * h]
        canvas.add(_at(eye, _ROUND, (0.21 * w, 0.095 * h)), (245, 245, 245), 0, -80)
        canvas.add(_at(eye, _ROUND, (0.105 * w, 0.09 * h)), (45, 32, 28), 0, -79)
        brow = eye + np.concatenate([np.zeros_like(lift), -0.22 * h - lift], axis=1)
        canvas.add(_at(brow, [(-0.24 * w, 0.03 * h), (0, -0.03 * h), (0.24 * w, 0.03 * h)]),
                   _mix(signer.hair, (30, 20, 20), 0.4), 0.011, -79)
    canvas.add(_at(middle, [(0.02, -0.12 * h), (0.10 * w, 0.18 * h), (-0.04 * w, 0.2 * h)]), dark, 0.008, -79)
    lip = np.stack([np.full(len(head), 0.36 * w), (0.03 + 0.10 * body[:, 4]) * h], axis=1)
    lips = (middle + [0, 0.45 * h])[:, None] + _ROUND * lip[:, None]
    canvas.add(lips, mouth, 0.006, -79)
    canvas.add(lips, _mix(mouth, (40, 10, 15), 0.6), 0, -78)


def _taper(a: Array, b: Array, r: float, s: float) -> Array:
    """The outline `(T, 4, 3)` of a link from `a` (T, 3), radius r, to `b`, radius s, seen from the front."""
    along = b[:, :2] - a[:, :2]
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    side = np.stack([-along[:, 1], along[:, 0], np.zeros(len(a))], axis=1)
    return np.stack([a + r * side, b + s * side, b - s * side, a - r * side], axis=1)


def _arm(canvas: Canvas, signer: Signer, arm: Limb, near: Array) -> None:
    cuff = {"long": 0.95, "half": 0.25, "short": -0.45}[signer.sleeves]
    end = arm.elbow + (arm.wrist - arm.elbow if cuff > 0 else arm.elbow - arm.shoulder) * cuff
    dark, skin_dark = _shade(signer.cloth, 0.62), _shade(signer.skin, 0.6)
    skin, cloth = _shade(signer.skin, 0.95), _shade(signer.cloth, 0.92)

    def link(a: Array, b: Array, r: float, s: float, colour: Colour, line: int, depth: Array) -> None:
        canvas.add(np.stack([a, a + 0.02 * (b - a)], axis=1), colour, r, depth, line)
        canvas.add(np.stack([b, b + 0.02 * (a - b)], axis=1), colour, s, depth, line)
        canvas.add(_taper(a, b, r + line / canvas.scale, s + line / canvas.scale), colour, 0, depth)

    links = [(arm.elbow, arm.wrist, 0.098, 0.062, skin, skin_dark)]
    links += [(arm.shoulder, arm.elbow, 0.125, 0.10, skin, skin_dark)] if cuff < 0 else []
    links += [(arm.elbow, end, 0.108, 0.108 - 0.035 * cuff, cloth, dark)] if cuff > 0 else []
    links += [(arm.shoulder, arm.elbow if cuff > 0 else end, 0.13, 0.112, cloth, dark)]
    for k, wanted in enumerate(links):  # the forearm lies over the upper arm: it is nearer to the viewer
        a, b, r, s, fill, edge = wanted
        over = near + (-40 if a is arm.shoulder else -30) + k * 0.1
        link(a, b, r, s, edge, 1, over)
        link(a, b, r, s, fill, 0, over + 0.05)


def _hand(canvas: Canvas, signer: Signer, arm: Limb, near: Array) -> None:
    length = HAND * signer.hand
    facing = 0.5 + 0.5 * arm.normal[:, 2]
    lit = [_shade(_mix(signer.skin, (255, 190, 175), 0.22 * f), 0.93 + 0.12 * f) for f in facing.tolist()]
    edge = _shade(signer.skin, 0.5)
    middle = np.mean(arm.palm[:, :, 2], axis=1)
    closed = np.concatenate([arm.palm, arm.palm[:, :1]], axis=1)
    canvas.add(closed, edge, 0.05 * length, near, line=1)
    canvas.add(closed, lit, 0.05 * length, near + 0.001)
    canvas.add(arm.palm, lit, 0, near + 0.002)
    for i in range(5):
        joints, radius = arm.fingers[:, i], (0.062 if i == 0 else 0.054 if i < 4 else 0.047) * length
        ahead = np.mean(joints[:, 1:, 2], axis=1) - middle
        depth = near + 10 * ahead / length + 0.003 * i
        depth = np.where(np.abs(ahead) < 0.04 * length, near + 0.01 + 0.003 * i, depth)
        canvas.add(joints, edge, radius, depth, line=1)
        canvas.add(joints, lit, radius, depth + 0.001)


# ---------------------------------------------------------------- frames

def _head_place(signer: Signer, body: Array) -> Array:
    """The middle of the head (T, 2)."""
    return body[:, :2] + [0, -0.17 - 0.33 * signer.head] + np.stack([body[:, 2], 0.3 * body[:, 3]], axis=1)


def _arms(signer: Signer, poses: Array, body: Array) -> list[Limb]:
    """Both arms where they are, the dominant one first."""
    sway = np.concatenate([body[:, :2], np.zeros((len(body), 1))], axis=1)
    mirror = np.array([-1.0 if signer.left_handed else 1.0, 1.0, 1.0])
    return [limb(signer, poses[:, k], bool(k)).moved(mirror, sway) for k in (0, 1)]


def _layers(canvas: Canvas, signer: Signer, poses: Array, body: Array) -> NDArray[np.intp]:
    """Fill the canvas and return every frame's painting order `(T, layers)`."""
    trunk, head = body[:, :2], _head_place(signer, body)
    _torso(canvas, signer, trunk)
    _head(canvas, signer, trunk, head)
    _face(canvas, signer, head, body)
    arms = _arms(signer, poses, body)
    front = np.where(arms[0].wrist[:, 2] >= arms[1].wrist[:, 2], 1.0, -1.0)
    for arm, near in zip(arms, (100 * front, -100 * front), strict=True):
        _arm(canvas, signer, arm, near + 200)
        _hand(canvas, signer, arm, near + 200)
    return np.argsort(np.stack([layer.depth for layer in canvas.layers], axis=1), axis=1, kind="stable")


def render(signer: Signer, scene: Scene, poses: Array, body: Array) -> Image:
    """Frames `(T, H, W, 3)` uint8 RGB of a signer who takes `poses` (T, 2, 27) with a `body` track `(T,
    BODY)`."""
    rng = np.random.default_rng(scene.seed)
    n, frames = scene.size, len(poses)
    factor = 2 if n < 160 else 1
    moved = _camera(scene, frames, rng)
    canvas = Canvas(scene, moved, factor)
    order = _layers(canvas, signer, poses, body)
    room = cv2.resize(scene.background, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    corners = np.round((MARGIN - moved) * factor).astype(int)
    grains = rng.integers(0, 16, (frames, 2))
    out = np.empty((frames, n, n, 3), dtype=np.uint8)
    for t in range(frames):
        x, y = corners[t]
        image = room[y : y + n * factor, x : x + n * factor].copy()
        canvas.paint(t, order[t], image)
        small = cv2.resize(image, (n, n), interpolation=cv2.INTER_AREA) if factor > 1 else image
        small = cv2.multiply(small, scene.light, scale=1 / 128)
        small = cv2.GaussianBlur(small, (3, 3), scene.blur) if scene.blur else small
        gy, gx = grains[t]
        cv2.addWeighted(small, 1, scene.noise[gy : gy + n, gx : gx + n], 1, -128, dst=out[t])
    return out


# ---------------------------------------------------------------- keypoints

def _on_frame(points: Array, scene: Scene, moved: Array) -> Array:
    """Points of the figure's space (T, K, 2 or 3) in pixels of the frame (T, K, 2), a pixel's middle being whole."""
    nearer = 1 / (1 - 0.13 * points[..., 2:3]) if points.shape[2] == 3 else 1.0
    finer = 2 if scene.size < 160 else 1  # than the frame is what is painted
    return points[..., :2] * nearer * scene.scale + (np.array(scene.place) + moved)[:, None] - (0.5 - 0.5 / finer)


def _face_points(signer: Signer, body: Array) -> tuple[Array, Array, Array]:
    """Nose, eyes and ears (T, 5, 2), the mouth (T, 10, 2), more of the face (T, 16, 2); left is the figure's own."""
    h, w, head = 0.33 * signer.head, 0.245 * signer.head * signer.head_width, _head_place(signer, body)
    middle = head + np.stack([np.zeros(len(head)), 0.12 * h + body[:, 3]], axis=1)
    size, eye, raised = np.array([w, h]), 0.42, (0.05 / h * body[:, 5:6])[:, None] * [0, 1]
    nose_and_eyes = _at(middle, [(0.05, 0.18), (eye, -0.2), (-eye, -0.2)], (w, h))
    body_points = np.concatenate([nose_and_eyes, _at(head, [(1, 0.05), (-1, 0.05)], (w, h))], axis=1)
    lip = np.stack([np.full(len(head), 0.36 * w), (0.03 + 0.10 * body[:, 4]) * h], axis=1)
    rim = np.concatenate([_arc(np.pi, 2.667 * np.pi, 6), 0.7 * _arc(np.pi, 2.5 * np.pi, 4)])
    mouth = (middle + [0, 0.45 * h])[:, None] + rim * lip[:, None]
    jaw = _at(head, _arc(np.pi, np.pi / 16, 6), (w, h))
    brows = _at(middle, [(-eye - 0.12, -0.43), (-eye + 0.24, -0.39), (eye, -0.45)], (w, h)) - raised * size
    inner = [(0.1, -0.12), (0.1, 0.18), (-0.04, 0.2), *((x, -0.2) for x in (-eye - 0.21, -eye + 0.21, eye - 0.21,
                                                                           eye + 0.21))]
    return body_points, mouth, np.concatenate([jaw, brows, _at(middle, inner, (w, h))], axis=1)


def keypoints(signer: Signer, scene: Scene, poses: Array, body: Array) -> Array:
    """Where the points of the figure are in `render`'s frames: `(T, 79, 3)`, x and y in pixels and 1, seen or not.

    Their order is that of COCO-WholeBody's points in slr.datasets.keypoints: 11 of the body (nose, eyes, ears,
    shoulders, elbows, wrists; left before right), 10 of the mouth, 21 of the left hand and of the right, 16 of the
    face.
    """
    moved = _camera(scene, len(poses), np.random.default_rng(scene.seed))
    arms = _arms(signer, poses, body)
    left, right = arms if signer.left_handed else arms[::-1]
    joints = [np.stack([getattr(arm, name) for name in ("shoulder", "elbow", "wrist") for arm in (left, right)], 1)]
    hands = [np.concatenate([arm.wrist[:, None], arm.fingers.reshape(len(poses), 20, 3)], 1) for arm in (left, right)]
    head, mouth, face = _face_points(signer, body)
    parts = [_on_frame(part, scene, moved) for part in (head, *joints, mouth, *hands, face)]
    found = np.concatenate(parts, axis=1)
    return np.concatenate([found, np.ones((*found.shape[:2], 1))], axis=2)
