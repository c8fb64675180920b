"""The symbols of a sign as heads of a classifier, and the landmarks that a sign is seen by. No torch in here.

Heads and their order are those of HearAI's annotation files (https://www.hearai.pl); the notation is HamNoSys (Hanke
2004, "HamNoSys - representing sign language data in language resources and language processing contexts").
"""

# name -> number of classes, in the order of an annotation's columns
HEADS = {"symmetry_operator": 9, "hand_shape_base_form": 12, "hand_shape_thumb_position": 4,
         "hand_shape_bending": 6, "hand_position_finger_direction": 18, "hand_position_palm_orientation": 8,
         "hand_location_x": 5, "hand_location_y": 37}
DISTANCE = "hand_location_distance"  # a ninth column that some files have; how many classes it has is not settled
COLUMNS = (*HEADS, DISTANCE)
GLOSS = "gloss"
GLOSSES = 2400  # classes of HearAI's gloss head

# MediaPipe's landmarks: points of each part (of the face HearAI keeps 128), and the numbers that each point has:
# x, y, z, missing, missing, r, theta / pi, phi / pi
PARTS = {"right_hand": 21, "left_hand": 21, "pose": 33, "face": 128}
VALUES = 8
FLAGS = slice(3, 5)  # 1 where the point was not seen

_HAND = tuple((k - 1, k) for k in range(1, 21) if k % 4 != 1) + ((0, 1), (0, 5), (5, 9), (9, 13), (13, 17), (0, 17))
_POSE = ((0, 1), (1, 2), (2, 3), (3, 7), (0, 4), (4, 5), (5, 6), (6, 8), (9, 10), (11, 12), (11, 13), (13, 15),
         (15, 17), (15, 19), (15, 21), (17, 19), (12, 14), (14, 16), (16, 18), (16, 20), (16, 22), (18, 20), (11, 23),
         (12, 24), (23, 24), (23, 25), (25, 27), (27, 29), (29, 31), (27, 31), (24, 26), (26, 28), (28, 30), (30, 32),
         (28, 32))
# Bones between the points of a part. The face's 128 points are those of MediaPipe's contours; which of them belong
# together is learned.
EDGES: dict[str, tuple[tuple[int, int], ...]] = {"right_hand": _HAND, "left_hand": _HAND, "pose": _POSE, "face": ()}


def landmark_size(parts: tuple[str, ...]) -> int:
    """Numbers a frame of these parts."""
    return VALUES * sum(PARTS[part] for part in parts)
