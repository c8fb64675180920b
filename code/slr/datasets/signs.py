"""Signs as parameters in the manner of HamNoSys, and the hand trajectories that the parameters stand for.

A sign is a hand shape, an orientation, a location, a movement and a symmetry (Hanke, "HamNoSys - representing
sign language data in language resources and language processing contexts", 2004). The value lists below are
ordered, and an index into them is the label of the corresponding head (`Sign.labels`).

Space: the middle between the shoulders is the origin and the distance between the shoulders 1; x grows to the
viewer's right, y downwards, z towards the viewer. Everything is written for a right-handed signer, whose
dominant hand is on the viewer's left (x < 0); a left-handed one is its mirror image.

A pose of both hands is an array `(2, 27)`, dominant hand first: 3 numbers for the centre of the hand, 4 for
its rotation (a unit quaternion, w first), 20 for the fingers (thumb to little finger, four joint angles each,
radians)."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from slr.hamnosys import HEADS

Array = NDArray[np.float64]

POSITION, ROTATION, FINGERS = slice(0, 3), slice(3, 7), slice(7, 27)
SHAPES = ("fist", "flat", "finger2", "finger23", "finger23spread", "finger2345", "pinch12", "pinchall",
          "pinch12open", "cee12", "ceeall", "cee12open")
THUMBS = ("default", "out", "across", "open")
BENDINGS = ("none", "straight", "bent", "hooked", "double bent", "double hooked")
PALMS = ("front", "front-left", "left", "back-left", "back", "back-right", "right", "front-right")
LOCATIONS_X = ("left beside", "left", "centre", "right", "right beside")
SYMMETRIES = ("one-handed", "mirror", "parallel", "mirror opposed", "parallel opposed", "mirror alternating",
              "parallel alternating", "dominance", "dominance flat")
PATHS = ("line", "arc", "circle", "zigzag", "wave", "corner", "tap", "shake", "wiggle", "hold")

# The signer's own right is the viewer's left.
_UP, _DOWN, _RIGHT, _LEFT, _OUT, _IN = (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, -1)
DIRECTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "up": (_UP,), "up-right": (_UP, _RIGHT), "right": (_RIGHT,), "down-right": (_DOWN, _RIGHT),
    "down": (_DOWN,), "down-left": (_DOWN, _LEFT), "left": (_LEFT,), "up-left": (_UP, _LEFT), "out": (_OUT,),
    "up-out": (_UP, _OUT), "right-out": (_RIGHT, _OUT), "down-out": (_DOWN, _OUT), "left-out": (_LEFT, _OUT),
    "in": (_IN,), "up-in": (_UP, _IN), "right-in": (_RIGHT, _IN), "down-in": (_DOWN, _IN),
    "left-in": (_LEFT, _IN),
}

# name -> (height, distance from the body's middle plane, half the width of the body part there)
LOCATIONS: dict[str, tuple[float, float, float]] = {
    "neutral": (0.30, 0.55, 0.45), "head": (-0.52, 0.35, 0.25), "head top": (-0.86, 0.10, 0.22),
    "forehead": (-0.70, 0.30, 0.22), "eyebrows": (-0.62, 0.32, 0.22), "eyes": (-0.56, 0.33, 0.22),
    "nose": (-0.48, 0.36, 0.18), "nostrils": (-0.45, 0.36, 0.16), "ear": (-0.52, 0.12, 0.30),
    "earlobe": (-0.44, 0.12, 0.30), "cheek": (-0.44, 0.28, 0.20), "lips": (-0.36, 0.34, 0.16),
    "tongue": (-0.35, 0.38, 0.14), "teeth": (-0.36, 0.36, 0.14), "chin": (-0.26, 0.32, 0.18),
    "under chin": (-0.18, 0.26, 0.18), "neck": (-0.10, 0.22, 0.20), "shoulder top": (-0.06, 0.16, 0.45),
    "shoulders": (0.06, 0.28, 0.45), "chest": (0.28, 0.38, 0.38), "stomach": (0.66, 0.38, 0.36),
    "below stomach": (0.90, 0.36, 0.36), "upper arm": (0.30, 0.26, 0.55), "elbow": (0.62, 0.24, 0.55),
    "inner elbow": (0.58, 0.34, 0.50), "lower arm": (0.62, 0.46, 0.40), "wrist back": (0.58, 0.50, 0.32),
    "wrist pulse": (0.58, 0.52, 0.30), "thumb ball": (0.54, 0.54, 0.28), "palm": (0.50, 0.55, 0.24),
    "hand back": (0.48, 0.52, 0.24), "thumb side": (0.46, 0.54, 0.24),
    "little finger side": (0.56, 0.54, 0.24),
    "thumb": (0.44, 0.56, 0.22), "index finger": (0.42, 0.56, 0.20), "middle finger": (0.42, 0.57, 0.18),
    "ring finger": (0.43, 0.57, 0.18),
}
SYMBOLS = dict(zip(HEADS, (SYMMETRIES, SHAPES, THUMBS, BENDINGS, tuple(DIRECTIONS), PALMS, LOCATIONS_X,
                           tuple(LOCATIONS)), strict=True))  # the name of every class of every head


@dataclass(frozen=True)
class Sign:
    """One sign's parameters. `shape_to` is the hand shape at the path's far end (empty: the shape does not
    change); `backwards` runs the path, with its shapes, from the far end to the near one; `size` is half the
    path's extent."""

    gloss: str
    shape: str = "flat"
    thumb: str = "default"
    bending: str = "none"
    fingers: str = "up"
    palm: str = "front"
    x: str = "centre"
    y: str = "chest"
    path: str = "line"
    direction: str = "right"
    size: float = 0.4
    symmetry: str = "one-handed"
    shape_to: str = ""
    backwards: bool = False

    def labels(self) -> dict[str, int]:
        """Class index of every HamNoSys head (the head's name -> 0 .. `HEADS[name]` - 1); shapes as at the
        start."""
        start = self.shape_to if self.backwards and self.shape_to else self.shape
        values = (SYMMETRIES.index(self.symmetry), SHAPES.index(start), THUMBS.index(self.thumb),
                  BENDINGS.index(self.bending), list(DIRECTIONS).index(self.fingers), PALMS.index(self.palm),
                  LOCATIONS_X.index(self.x), list(LOCATIONS).index(self.y))
        return dict(zip(HEADS, values, strict=True))

    def reverse(self, gloss: str) -> "Sign":
        """The sign that shows the same poses in the opposite order."""
        return replace(self, gloss=gloss, backwards=not self.backwards)


def _pair(first: Sign, second: str) -> tuple[Sign, Sign]:
    return first, first.reverse(second)


# Five pairs, each a sign and its reversal: no single frame tells the members of a pair apart.
DEMO: tuple[Sign, ...] = (
    *_pair(Sign("go", "finger2", fingers="up", palm="front", x="right", y="shoulders", path="line",
                direction="right", size=0.38), "come"),
    *_pair(Sign("sunrise", "flat", fingers="left-out", palm="back", x="right", y="chest", path="line",
                direction="up", size=0.34, symmetry="mirror"), "sunset"),
    *_pair(Sign("tomorrow", "finger23spread", fingers="up", palm="front", x="right", y="neutral",
                path="circle", direction="up", size=0.32), "yesterday"),
    *_pair(Sign("open", "finger2345", fingers="up-out", palm="front", x="right", y="chest", path="line",
                direction="right", size=0.25, symmetry="mirror", shape_to="fist"), "close"),
    *_pair(Sign("thank you", "flat", fingers="up", palm="back", x="centre", y="neck", path="arc",
                direction="down-right", size=0.34, shape_to="pinchall"), "excuse me"),
)


# ---------------------------------------------------------------- hand shapes

_STRAIGHT, _CURLED, _TO_THUMB, _CEE = (0, 2, 4, 3), (0, 82, 98, 60), (0, 62, 48, 26), (0, 28, 42, 30)
# four angles of a thumb: away from the fingers, out of the palm's plane, bends of its middle and end joints
_THUMB_BESIDE, _THUMB_OVER, _THUMB_MEETS = (20, 12, 5, 5), (28, 62, 50, 40), (34, 58, 18, 16)
_THUMB_CEE = (48, 48, 8, 14)
_THUMB_OUT, _THUMB_ACROSS, _THUMB_OPEN = (72, 5, 0, 0), (14, 66, 42, 30), (46, 34, 5, 5)
_BEND = {"none": (0, 0, 0), "straight": (-8, -2, -2), "bent": (62, 8, 6), "hooked": (4, 74, 52),
         "double bent": (42, 44, 24), "double hooked": (46, 88, 62)}
_OF_SHAPE = {
    "fist": (_THUMB_OVER, "cccc"), "flat": (_THUMB_BESIDE, "ssss"), "finger2": (_THUMB_OVER, "sccc"),
    "finger23": (_THUMB_OVER, "sscc"), "finger23spread": (_THUMB_OVER, "vvcc"),
    "finger2345": (_THUMB_OUT, "vvvv"), "pinch12": (_THUMB_MEETS, "tccc"), "pinchall": (_THUMB_MEETS, "tttt"),
    "pinch12open": (_THUMB_MEETS, "tvvv"), "cee12": (_THUMB_CEE, "eccc"), "ceeall": (_THUMB_CEE, "eeee"),
    "cee12open": (_THUMB_CEE, "evvv"),
}
_FINGER = {"c": _CURLED, "s": _STRAIGHT, "v": _STRAIGHT, "t": _TO_THUMB, "e": _CEE}
_SPREAD = (14, 2, -11, -24)  # degrees, towards the thumb's side, for spread fingers


def finger_angles(shape: str, thumb: str = "default", bending: str = "none") -> Array:
    """Joint angles `(20,)` in radians of a hand shape: thumb, index .. little finger; sideways, then three
    bends."""
    own_thumb, letters = _OF_SHAPE[shape]
    thumbs = {"default": own_thumb, "out": _THUMB_OUT, "across": _THUMB_ACROSS, "open": _THUMB_OPEN}
    angles: list[tuple[int, ...]] = [thumbs[thumb]]
    for i, letter in enumerate(letters):
        sideways, *bends = _FINGER[letter]
        if letter in "sv":  # the modifier bends the fingers that are stretched
            bends = [a + b for a, b in zip(bends, _BEND[bending], strict=True)]
        sideways = _SPREAD[i] if letter == "v" else _SPREAD[i] // 6
        angles.append((sideways, *bends))
    return np.radians(np.array(angles, dtype=np.float64).ravel())


# ---------------------------------------------------------------- rotations

def direction_vector(name: str) -> Array:
    """Unit vector `(3,)` of one of the 18 directions."""
    vector = np.sum(np.array(DIRECTIONS[name], dtype=np.float64), axis=0)
    return vector / np.linalg.norm(vector)


def quaternion(axis: Array, angle: Array | float) -> Array:
    """Unit quaternions `(..., 4)` that turn by `angle` (radians, any shape) about the unit vector `axis`
    (3,)."""
    half = np.asarray(angle, dtype=np.float64)[..., None] / 2
    return np.concatenate([np.cos(half), np.sin(half) * axis], axis=-1)


def turned(a: Array, b: Array) -> Array:
    """Hamilton product of quaternions `(..., 4)`: first `b`, then `a`."""
    w1, x1, y1, z1 = np.moveaxis(np.broadcast_arrays(a, b)[0], -1, 0)
    w2, x2, y2, z2 = np.moveaxis(np.broadcast_arrays(a, b)[1], -1, 0)
    return np.stack([w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2, w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
                     w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2, w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2], axis=-1)


def matrices(q: Array) -> Array:
    """Rotation matrices `(..., 3, 3)` of unit quaternions `(..., 4)`; columns: thumb side, palm normal,
    fingers."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, axis=-1).reshape(*q.shape[:-1], 3, 3)


def _of_matrix(m: Array) -> Array:
    """Quaternion `(4,)` of one rotation matrix: the eigenvector of Bar-Itzhack's symmetric matrix (2000)."""
    k = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
        [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
        [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]]])
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    q = np.array([w, x, y, z])
    return q if w >= 0 else -q


@cache
def orientation(fingers: str, palm: str) -> Array:
    """Quaternion `(4,)` of the dominant hand. The palm is counted in eighths of a turn about the fingers'
    direction, from the palm towards the viewer (upwards where the fingers point at or away from the
    viewer)."""
    f = direction_vector(fingers)
    zero = np.array(_UP if abs(f[2]) > 0.9 else _OUT, dtype=np.float64)
    zero = zero - f * (zero @ f)
    zero /= np.linalg.norm(zero)
    angle = PALMS.index(palm) * np.pi / 4
    normal = zero * np.cos(angle) + np.cross(zero, f) * np.sin(angle)
    turn = _of_matrix(np.stack([np.cross(normal, f), normal, f], axis=1))
    turn.flags.writeable = False  # it is kept and shared
    return turn


# ---------------------------------------------------------------- poses and paths

def rest_pose(hanging: bool = False) -> Array:
    """Both hands `(2, 27)` before and after signing: in front of the belly or, `hanging`, beside the hips."""
    place = (-0.60, 1.32, 0.10) if hanging else (-0.16, 0.98, 0.34)
    turn = orientation("down", "left") if hanging else orientation("down-left", "back")
    relaxed = 0.55 * finger_angles("ceeall") + 0.3 * finger_angles("flat")
    hand = np.concatenate([place, turn, relaxed])
    return np.stack([hand, hand * np.where(np.arange(27) == 0, -1, 1)])


def centre(sign: Sign) -> Array:
    """Centre `(3,)` of the dominant hand's path."""
    y, z, width = LOCATIONS[sign.y]
    beside = 0.28 if sign.x.endswith("beside") else 0.0
    side = {"left": 1.0, "centre": 0.0, "right": -1.0}[sign.x.split()[0]]
    return np.array([side * (width + beside), y, z])


def _along_across(path: str, u: Array) -> tuple[Array, Array]:
    """Displacement along and across the direction of movement, in units of the path's size; each `(T,)`."""
    along, still = 2 * u - 1, np.zeros_like(u)
    if path == "arc":
        return along, 0.8 * np.sin(np.pi * u)
    if path == "circle":
        return np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)
    if path == "zigzag":
        return along, 0.45 * (2 * np.abs(2 * ((2.5 * u) % 1) - 1) - 1)
    if path == "wave":
        return along, 0.3 * np.sin(4 * np.pi * u)
    if path == "corner":
        return np.minimum(4 * u - 1, 1.0), np.maximum(4 * u - 2, 0.0) - 1
    if path == "tap":
        return 0.7 * np.cos(4 * np.pi * u) - 0.3, still
    return (along, still) if path == "line" else (still, still)


def _offset(sign: Sign, u: Array) -> Array:
    """Displacement `(T, 3)` of the dominant hand from the path's centre."""
    d = direction_vector(sign.direction)
    side = np.array([-d[1], d[0], 0.0]) if abs(d[2]) < 0.9 else np.array(_UP, dtype=np.float64)
    along, across = _along_across(sign.path, u)
    return sign.size * (along[:, None] * d + across[:, None] * side)


def _hand(sign: Sign, u: Array, offset: Array) -> Array:
    """The dominant hand `(T, 27)` at the path's phases `u`, moved by `offset` (T, 3) from its place."""
    turn = np.broadcast_to(orientation(sign.fingers, sign.palm), (len(u), 4))
    if sign.path == "shake":
        turn = turned(turn, quaternion(np.array([0.0, 0.0, 1.0]), 0.7 * np.cos(6 * np.pi * u)))
    start = finger_angles(sign.shape, sign.thumb, sign.bending)
    end = finger_angles(sign.shape_to, sign.thumb, sign.bending) if sign.shape_to else start
    bends = start + (end - start) * u[:, None]
    if sign.path == "wiggle":
        phase = 6 * np.pi * u[:, None] + np.arange(5) * 1.3
        bends = bends + np.repeat(0.35 * np.sin(phase), 4, axis=1) * np.tile([0, 1, 0.8, 0.4], 5)
    return np.concatenate([centre(sign) + offset, turn, bends], axis=1)


def _base_hand(sign: Sign, u: Array) -> Array:
    """The resting hand `(T, 27)` of a dominance sign, still written for the dominant side."""
    place = np.array([-0.05, min(max(LOCATIONS[sign.y][0] + 0.3, 0.35), 0.85), 0.42])
    shape = "flat" if sign.symmetry == "dominance flat" else sign.shape
    pose = np.concatenate([place, orientation("left-out", "front-right"), finger_angles(shape)])
    return np.broadcast_to(pose, (len(u), 27))


def _mirrored(hand: Array) -> Array:
    """The same hand `(T, 27)` on the other side. Only the place changes its sign: a rotation of the other
    hand is stored as its mirror image's, and the drawing mirrors it."""
    return hand * np.where(np.arange(27) == 0, -1.0, 1.0)


def stroke(sign: Sign, u: Array, rest: Array) -> Array:
    """Both hands `(T, 2, 27)` at the phases `u` (T,) of a sign's movement, 0 = its start, 1 = its end; a hand
    that takes no part stays at `rest` (2, 27)."""
    u = 1 - u if sign.backwards else u
    first = _hand(sign, u, _offset(sign, u))
    if sign.symmetry == "one-handed":
        return np.stack([first, np.broadcast_to(rest[1], first.shape)], axis=1)
    if sign.symmetry.startswith("dominance"):
        return np.stack([first, _mirrored(_base_hand(sign, u))], axis=1)
    later = (u + 0.5) % 1 if sign.path == "circle" else 1 - u
    phase = later if sign.symmetry.endswith("alternating") else u
    # in mirrored space a parallel movement is one whose sideways part is turned round
    flip = np.array([-1.0 if sign.symmetry.startswith("parallel") else 1.0,
                     -1.0 if sign.symmetry.endswith("opposed") else 1.0, 1.0])
    return np.stack([first, _mirrored(_hand(sign, phase, _offset(sign, phase) * flip))], axis=1)


def blend(a: Array, b: Array, s: Array) -> Array:
    """Poses `(T, 2, 27)` from `a` to `b` (both broadcast to it) with weights `s` (T,): 0 = a, 1 = b."""
    w = s[:, None, None]
    a, b = np.broadcast_arrays(a, b)
    same_side = np.where(np.sum(a[..., ROTATION] * b[..., ROTATION], axis=-1, keepdims=True) < 0, -1.0, 1.0)
    mixed = a + (b - a) * w
    turn = a[..., ROTATION] + (b[..., ROTATION] * same_side - a[..., ROTATION]) * w
    mixed[..., ROTATION] = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    return mixed


# ---------------------------------------------------------------- inventory

WORDS = tuple("""book drink computer before chair walk cousin help thin candy school mother father apple
bread water house garden weather rain snow wind cloud sun morning evening summer winter north south river
mountain street city train bicycle friend family brother sister child teacher doctor letter number question
answer music picture colour black white yellow green orange hot cold deaf hearing language hand finger year
week month minute forget remember like want need finish always never now later heute morgen regen schnee
wolke norden""".split())


def _word(i: int) -> str:
    """The i-th gloss: single words first, then two words, three, ... (never one of the demo's)."""
    base, text = len(WORDS), []
    i += 1
    while i > 0:
        i, digit = divmod(i - 1, base)
        text.append(WORDS[digit])
    return " ".join(reversed(text))


def _random_sign(rng: np.random.Generator) -> Sign:
    """A sign with parameters that go together: places in reach, finger directions that a wrist can take."""
    def pick(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    path, shape = pick(PATHS), pick(SHAPES)
    symmetry = "one-handed" if rng.random() < 0.5 else pick(SYMMETRIES[1:])
    two = symmetry.startswith(("mirror", "parallel"))  # the hands must not meet in the middle
    changes = path in ("line", "arc", "hold") and rng.random() < (1.0 if path == "hold" else 0.25)
    return Sign(
        "", shape, pick(THUMBS), pick(BENDINGS) if rng.random() < 0.4 else "none",
        pick(("up", "up-left", "left", "up-out", "left-out", "up-in", "left-in", "out")), pick(PALMS),
        pick(("right", "right beside") if two else ("left", "centre", "right", "right beside")),
        pick(("neutral", "chest", "stomach", "shoulders", "neck", "chin", "lips", "cheek", "eyes", "forehead",
              "ear")),
        path, pick(tuple(DIRECTIONS)[:9]), round(float(rng.uniform(0.26, 0.42)), 2), symmetry,
        pick(tuple(s for s in SHAPES if s != shape)) if changes else "", bool(rng.random() < 0.5))


def _course(sign: Sign, rest: Array) -> Array:
    """What a sign looks like: its hands at five moments `(270,)`, in steps that an eye can tell apart."""
    steps = np.concatenate([np.full(3, 0.12), np.full(4, 0.25), np.full(20, 0.4)])
    return (stroke(sign, np.array([0.0, 0.23, 0.5, 0.77, 1.0]), rest) / steps).ravel()


def inventory(n: int, seed: int = 42) -> list[Sign]:
    """The first `n` signs of the seed's inventory, no two of which look alike; the first ten are the demo's
    whatever the seed, and a shorter inventory is the beginning of a longer one."""
    rng, words, rest = np.random.default_rng([seed, 10]), (_word(i) for i in count()), rest_pose()
    signs = list(DEMO)
    courses = np.zeros((max(n, len(DEMO)), _course(DEMO[0], rest).size), dtype=np.float32)
    courses[: len(DEMO)] = [_course(sign, rest) for sign in DEMO]
    while len(signs) < n:
        sign = _random_sign(rng)
        courses[len(signs)] = _course(sign, rest)
        if np.abs(courses[: len(signs)] - courses[len(signs)]).max(axis=1).min() > 1:
            signs.append(replace(sign, gloss=next(words)))
    return signs[:n]
