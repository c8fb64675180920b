"""Videos to frames, key frames, cuts and landmarks: what is chosen, what is kept, what is skipped and why."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import preprocess
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import level, write_video

from slr.datasets import hearai_tools as tools
from slr.errors import Mistake
from slr.hamnosys import PARTS
from slr.video import VideoError, read_frames

MOVES = [0] * 10 + [1, 2, 3, 4, 5] + [5] * 6 + [6, 7, 8, 9, 10] + [10] * 10  # still, move, hold, move, still


def write_moves(folder: Path, places: list[int] = MOVES) -> Path:
    """Frames of a white square that stands at these places, with some noise of the camera."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i, place in enumerate(places):
        image = rng.normal(60, 2, (96, 128, 3))
        image[30:60, 8 * place:8 * place + 30] = 220
        cv2.imwrite(str(folder / f"{folder.name}_{i}.jpg"), image.clip(0, 255).astype(np.uint8))
    return folder


def properties(folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{folder.name}_properties.json").read_text())


# --- frames -------------------------------------------------------------------------------------------------

def test_videos_to_frames(tmp_path, capsys):
    videos, out = tmp_path / "videos", tmp_path / "out"
    for name, count in (("one", 7), ("two", 3)):
        write_video(videos / f"{name}.mp4", count)
    (videos / "bad.mp4").write_text("<html>gone</html>")
    (videos / "notes.txt").write_text("no video")
    assert preprocess.main(["--to_frames", str(videos), str(out)]) == 0
    said = capsys.readouterr().out
    assert "skipped: bad: cannot read" in said and "2 written, 0 were there, 1 skipped" in said
    assert sorted(p.name for p in out.iterdir()) == ["one", "two"]
    assert {p.name for p in (out / "one").iterdir()} == {*(f"one_{i}.jpg" for i in range(7)), "one_properties.json"}
    assert [level(frame) for frame in read_frames(out / "one", range(7))] == list(range(7))
    assert properties(out / "one") == {"File": str(videos / "one.mp4"), "Codec": "FMP4", "Frames": 7, "FPS": 25.0,
                                       "Width": 64, "Height": 48}


def test_frames_go_on_where_they_stopped(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "one.mp4", 5)
    write_video(videos / "two.mp4", 5)
    tools.to_frames(videos / "one.mp4", out)
    (out / ".two.part").mkdir()  # of a run that was killed
    (out / ".two.part" / "two_99.jpg").write_bytes(b"")
    done = tools.to_frames(videos, out)
    assert (done.written, done.kept, done.failed) == (["two"], ["one"], {})
    assert sorted(p.name for p in out.iterdir()) == ["one", "two"] and not (out / "two" / "two_99.jpg").exists()
    (out / "one" / "one_4.jpg").unlink()
    assert tools.to_frames(videos, out).written == ["one"]


def test_what_others_made_stays(tmp_path):
    write_video(tmp_path / "one.mp4", 5)
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "one" / "one_0.jpg").write_bytes(b"mine")
    done = tools.to_frames(tmp_path / "one.mp4", tmp_path / "out")
    assert "made from something else" in done.failed["one"]
    assert (tmp_path / "out" / "one" / "one_0.jpg").read_bytes() == b"mine"
    shutil.rmtree(tmp_path / "out")
    tools.to_frames(tmp_path / "one.mp4", tmp_path / "out")
    (tmp_path / "out" / "one" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "one" / "one_0.jpg").unlink()
    assert "notes.txt" in tools.to_frames(tmp_path / "one.mp4", tmp_path / "out").failed["one"]


@pytest.mark.parametrize("tool", ["to_frames", "key_frames", "cut_movement"])
def test_wrong_places(tmp_path, tool):
    file = tmp_path / "file"
    file.write_text("x")
    write_video(tmp_path / "bad" / "a.mp4", 2)
    (tmp_path / "bad" / "a.mp4").write_text("x")
    write_video(tmp_path / "twice" / "a.mp4", 2)
    shutil.copy(tmp_path / "twice" / "a.mp4", tmp_path / "twice" / "a.mov")
    write_moves(tmp_path / "set" / "b", [0, 1, 2])
    for source, output, says in ((tmp_path / "none", tmp_path / "o", "does not exist"),
                                 (tmp_path, tmp_path / "o", "no videos and no frames in"),
                                 (tmp_path / "twice", tmp_path / "o", "two clips are called a"),
                                 (tmp_path / "bad", file, "OUTPUT_DIR is no folder"),
                                 (tmp_path / "bad", tmp_path / "o", "nothing could be made"),
                                 (tmp_path / "set", tmp_path / "set", "where the frames come from")):
        with pytest.raises(Mistake, match=says) as caught:
            preprocess.main([f"--{tool}", str(source), str(output)])
        assert caught.value.code == 2 and caught.value.found and caught.value.do


def test_options_of_other_modes(tmp_path):
    with pytest.raises(Mistake, match="--limit does nothing with --to_frames"):
        preprocess.main(["--to_frames", str(tmp_path), str(tmp_path), "--limit", "3"])
    with pytest.raises(Mistake, match="--stats does nothing with|--to_frames does nothing with"):
        preprocess.main(["--to_frames", "a", "b", "--stats", "c", "d"])
    with pytest.raises(SystemExit) as caught:
        preprocess.main(["--to_frames", "a"])
    assert caught.value.code == 2


# --- motion -------------------------------------------------------------------------------------------------

def test_motion_is_the_mean_difference():
    frames = [np.full((64, 80, 3), grey, np.uint8) for grey in (10, 14, 14, 4)]
    assert tools.motion(frames).tolist() == [4, 0, 10]
    with pytest.raises(VideoError, match="not of one size"):
        tools.motion([np.zeros((64, 64, 3), np.uint8), np.zeros((64, 90, 3), np.uint8)])


def test_cut_to_the_movement(tmp_path):
    write_moves(tmp_path / "set" / "sign")
    (tmp_path / "set" / "sign_properties.json").write_text(json.dumps({"FPS": 30.0, "Codec": "avc1"}))
    write_moves(tmp_path / "set" / "still", [3] * 6)
    done = tools.cut_movement(tmp_path / "set", tmp_path / "out")
    assert done.written == ["sign", "still"] and done.notices == {"still": "nothing moves: it is kept whole"}
    first, last = 9 - tools.MARGIN, 26 - 1 + tools.MARGIN  # the square leaves from frame 9 and rests from frame 25 on
    assert (tmp_path / "out" / "movement.txt").read_text() == f"name start end\nsign {first} {last}\nstill 0 5\n"
    out = tmp_path / "out" / "sign"
    count = last - first + 1
    assert {p.name for p in out.glob("*.jpg")} == {f"sign_{i}.jpg" for i in range(count)}
    source = tmp_path / "set" / "sign" / f"sign_{first}.jpg"
    assert (out / "sign_0.jpg").read_bytes() == source.read_bytes()  # no second compression
    assert properties(out).items() >= {"Frames": count, "FPS": 30.0, "Codec": "avc1", "Width": 128}.items()
    assert properties(tmp_path / "out" / "still")["FPS"] is None
    again = tools.cut_movement(tmp_path / "set", tmp_path / "out")
    assert again.kept == ["sign", "still"] and "sign 7 27" in (tmp_path / "out" / "movement.txt").read_text()


def test_key_frames_are_holds(tmp_path):
    write_moves(tmp_path / "set" / "sign")
    write_moves(tmp_path / "set" / "once", [0] * 8 + [1, 2, 3, 4, 5, 6] + [6] * 8)
    write_moves(tmp_path / "set" / "still", [3] * 7)
    done = tools.key_frames(tmp_path / "set", tmp_path / "out")
    assert "nothing moves" in done.notices["still"]
    lines = (tmp_path / "out" / "key_frames.txt").read_text().splitlines()
    assert lines[0] == "name frames" and lines[1] == "once 7 13" and lines[3] == "still 3"
    name, frame = lines[2].split()
    assert name == "sign" and 14 < int(frame) < 20  # the square rests from frame 14 to 20
    assert sorted(p.name for p in (tmp_path / "out" / "once").glob("*.jpg")) == ["once_0.jpg", "once_1.jpg"]


def test_foreign_table_stays(tmp_path):
    write_moves(tmp_path / "set" / "a", [0, 1, 2, 3])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "key_frames.txt").write_text("mine\n")
    with pytest.raises(Mistake, match="is of something else"):
        tools.key_frames(tmp_path / "set", tmp_path / "out")


def test_one_frame_is_enough(tmp_path):
    write_moves(tmp_path / "set" / "a", [4])
    assert tools.key_frames(tmp_path / "set", tmp_path / "k").written == ["a"]
    assert tools.cut_movement(tmp_path / "set", tmp_path / "c").written == ["a"]
    assert (tmp_path / "c" / "movement.txt").read_text() == "name start end\na 0 0\n"


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(0.1, 50))
def test_valleys_are_deep(curve, depth):
    found = tools.valleys(curve, depth)
    assert found == sorted(set(found))
    for before, here, after in zip([0, *found], found, [*found[1:], len(curve)], strict=False):
        assert max(curve[before:here]) >= curve[here] + depth * (1 - 1e-9)
        assert max(curve[here:after]) >= curve[here] + depth * (1 - 1e-9)


@given(st.lists(st.floats(0, 100), max_size=60))
def test_movement_lies_inside(moved):
    found = tools.movement(np.array(moved))
    assert found is None or 0 <= found[0] < found[1] <= len(moved)
    assert all(0 <= frame <= len(moved) for frame in tools.choose_key_frames(np.array(moved)))


def test_real_sign_without_its_rest(shared):
    """80003: the hands rest, rise to the face, hold, and go back."""
    from slr.video import playing
    with playing(shared / "slovak_mit" / "videos" / "80003.mp4") as (_, frames):
        moved = tools.motion(frames)
    first, last = tools.movement(moved)
    assert 20 < first < 30 and 65 < last < 75
    assert len(keys := tools.choose_key_frames(moved)) == 1 and 40 < keys[0] < 52


# --- landmarks ----------------------------------------------------------------------------------------------

def seen_in(file: Path) -> tuple[list[tools.Seen], dict[str, np.ndarray]]:
    """The points of HearAI's file as if MediaPipe had just seen them in square pictures, and the file's arrays."""
    with np.load(file) as found:
        arrays = {part: found[part].reshape(len(found[part]), count, 8) for part, count in PARTS.items()}
    return [{part: None if frame[i, 0, 3] else frame[i, :, :3] for part, frame in arrays.items()}
            for i in range(len(arrays["pose"]))], arrays


def test_arrays_are_those_of_the_real_file(shared):
    """Shoulders one apart, each point's neighbour, the angles, the face's 128 points: all as HearAI wrote them."""
    seen, expected = seen_in(shared / "hearai_sample_input" / "10" / "10.npz")
    made = tools.as_arrays(seen, 1, 1)
    for part, count in PARTS.items():
        ours, theirs = made[part].reshape(-1, count, 8), expected[part]
        assert made[part].dtype == np.float32 and np.array_equal(ours[..., 3:5], theirs[..., 3:5])
        there = theirs[:, 0, 3] == 0
        np.testing.assert_allclose(ours[there], theirs[there], atol=1e-6)
        assert np.isnan(ours).any() == np.isnan(theirs).any()


def points(count: int, start: float, form: str) -> Any:
    found = [SimpleNamespace(x=start + 0.01 * k, y=0.5 + 0.001 * k * k, z=-0.1 * k) for k in range(count)]
    return SimpleNamespace(landmark=found) if form == "old" else found


def result(frame: int, form: str) -> Any:
    """A hand is seen in frames 1 and 3, the other one never."""
    nothing = None if form == "old" else []
    return SimpleNamespace(
        pose_landmarks=points(33, 0.1, form), face_landmarks=points(468 if form == "old" else 478, 0.2, form),
        left_hand_landmarks=points(21, 0.1 * frame, form) if frame in (1, 3) else nothing, right_hand_landmarks=nothing)


class Watcher:
    """Stands for Holistic and for HolisticLandmarker."""

    def __init__(self, form: str, calls: list[Any]):
        self.form, self.calls = form, calls

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("closed")

    def process(self, frame: np.ndarray) -> Any:
        self.calls.append(frame.shape)
        return result(level(frame), self.form)

    def detect_for_video(self, image: Any, time: int) -> Any:
        self.calls.append(time)
        return result(level(image.data), self.form)


def fake_mediapipe(form: str, calls: list[Any]) -> ModuleType:
    module: Any = ModuleType("mediapipe")
    if form == "old":
        module.solutions = SimpleNamespace(holistic=SimpleNamespace(Holistic=lambda **_: Watcher(form, calls)))
        return module
    module.Image, module.ImageFormat = SimpleNamespace, SimpleNamespace(SRGB="srgb")
    landmarker = SimpleNamespace(create_from_options=lambda options: Watcher(form, calls))
    module.tasks = SimpleNamespace(BaseOptions=SimpleNamespace, vision=SimpleNamespace(
        HolisticLandmarkerOptions=SimpleNamespace, HolisticLandmarker=landmarker,
        RunningMode=SimpleNamespace(VIDEO="video")))
    return module


@pytest.mark.parametrize("form", ["old", "new"])
def test_landmarks_of_a_video(tmp_path, monkeypatch, form, capsys):
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe(form, calls))
    write_video(tmp_path / "set" / "one.mp4", 5)
    (tmp_path / "model.task").write_bytes(b"x")
    words = ["--landmarks", str(tmp_path / "set"), str(tmp_path / "out"),
             "--landmark_model", str(tmp_path / "model.task")]
    preprocess.main(words)
    with np.load(tmp_path / "out" / "one" / "one.npz") as found:
        arrays = {part: found[part] for part in found}
    assert {part: array.shape for part, array in arrays.items()} == {part: (5, 8 * n) for part, n in PARTS.items()}
    asked = [(48, 64, 3)] * 5 if form == "old" else [0, 40, 80, 120, 160]  # milliseconds, of 25 frames a second
    assert calls == [*asked, "closed"]
    left = arrays["left_hand"].reshape(5, 21, 8)
    assert left[:, 0, 3].tolist() == left[:, 0, 4].tolist() == [1, 0, 1, 0, 1]
    shoulder = np.hypot(0.01 * 64, (0.001 * (144 - 121)) * 48)
    shoulder = np.hypot(shoulder, 0.1 * 64)
    np.testing.assert_allclose(left[:, 0, 0], np.array([0.1, 0.1, 0.2, 0.3, 0.3]) * 64 / shoulder, rtol=1e-5)
    right = arrays["right_hand"].reshape(5, 21, 8)
    assert np.isnan(right[..., [0, 1, 2, 5, 6, 7]]).all() and (right[..., 3:5] == 1).all()
    face = arrays["face"].reshape(5, 128, 8)
    np.testing.assert_allclose(face[0, :, 0], (0.2 + 0.01 * np.array(tools.FACE)) * 64 / shoulder, rtol=1e-5)
    preprocess.main(words)
    assert "0 written, 1 were there" in capsys.readouterr().out


def test_landmarks_read_back_as_training_reads_them(tmp_path, monkeypatch):
    from slr.datasets.hearai import load_landmarks
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("old", []))
    tools.landmarks(write_video(tmp_path / "one.mp4", 5), tmp_path)
    read = load_landmarks(tmp_path / "one" / "one.npz", ("right_hand", "pose"), 1, 3)
    assert read.shape == (3, 8 * (21 + 33)) and np.isfinite(read).all()


def test_landmarks_need_someone_and_keep_others_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("old", []))
    monkeypatch.setattr(sys.modules[__name__], "result", lambda *_: SimpleNamespace(
        pose_landmarks=None, face_landmarks=None, left_hand_landmarks=None, right_hand_landmarks=None))
    video = write_video(tmp_path / "one.mp4", 2)
    assert "nobody is seen" in tools.landmarks(video, tmp_path / "out").failed["one"]
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "one" / "one.npz").write_bytes(b"mine")
    assert "holds no landmarks" in tools.landmarks(video, tmp_path / "out").failed["one"]
    with pytest.raises(VideoError, match="other points than expected"):
        tools.points_seen(SimpleNamespace(right_hand_landmarks=[SimpleNamespace(x=0, y=0, z=0)]))


def test_without_mediapipe(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    video = write_video(tmp_path / "one.mp4", 2)
    with pytest.raises(Mistake, match="pip install mediapipe") as caught:
        preprocess.main(["--landmarks", str(video), str(tmp_path / "out")])
    assert caught.value.code == 2 and caught.value.found and caught.value.do
    monkeypatch.setitem(sys.modules, "mediapipe", fake_mediapipe("new", []))
    with pytest.raises(Mistake, match="--landmark_model FILE"):
        preprocess.main(["--landmarks", str(video), str(tmp_path / "out")])
    with pytest.raises(Mistake, match="--landmark_model does nothing without --landmarks"):
        preprocess.main(["-as", "demo", "--landmark_model", "x"])


def test_the_face_is_the_contours():
    assert len(tools.FACE) == PARTS["face"] and all(len(tools.NEIGHBOURS[part]) == n for part, n in PARTS.items())
    fingers = [[0, 1, 2, 3], [0, 5, 6, 7], [5, 9, 10, 11], [9, 13, 14, 15], [0, 17, 18, 19]]
    assert tools.NEIGHBOURS["right_hand"].tolist() == [1, *sum(fingers, [])]
