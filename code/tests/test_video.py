"""Decoding, sampling, and the frame store: what is read is what was written, whatever moment a kill chose."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import grey_frames, level, write_video

from slr import video as video_module
from slr.errors import Mistake
from slr.video import (
    FrameStore,
    StoredFrames,
    StoreSettings,
    StoreWriter,
    VideoError,
    VideoFolder,
    file_sha256,
    find_video,
    open_source,
    probe,
    read_frames,
    sample_indices,
)

CODE = Path(__file__).parents[1]
RAW = StoreSettings("raw")
sizes = st.integers(1, 300)


@dataclass(frozen=True)
class Sign:
    id: str
    start: int = 0
    stop: int | None = None
    box: tuple[int, int, int, int] | None = None

    @property
    def stem(self) -> str:
        return self.id


# --- sampling -----------------------------------------------------------------------------------------------

@given(length=sizes, n=sizes, seed=st.none() | st.integers(0, 2**32))
def test_samples_are_sorted_in_range_and_hold_first_and_last(length, n, seed):
    indices = sample_indices(length, n, None if seed is None else np.random.default_rng(seed))
    assert indices.shape == (n,) and indices.dtype == np.int64
    assert (np.diff(indices) >= 0).all() and indices[0] >= 0 and indices[-1] < length
    if n > 1:
        assert indices[0] == 0 and indices[-1] == length - 1


@given(length=sizes, n=sizes)
def test_even_samples_have_even_gaps_and_short_clips_repeat_evenly(length, n):
    indices = sample_indices(length, n)
    gaps = np.diff(indices)
    assert n < 2 or gaps.max() - gaps.min() <= 1
    if length <= n:
        repeats = np.bincount(indices, minlength=length)
        assert repeats.max() - repeats.min() <= 1
    else:
        assert len(set(indices.tolist())) == n


@given(length=st.integers(3, 300), n=st.integers(3, 64), seed=st.integers(0, 2**32))
def test_jitter_stays_inside_its_segment(length, n, seed):
    inner = sample_indices(length, n, np.random.default_rng(seed))[1:-1]
    steps = np.arange(1, n - 1)
    assert (inner >= np.floor(steps * length / n)).all() and (inner <= (steps + 1) * length / n).all()


def test_samples_by_hand():
    assert sample_indices(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert sample_indices(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert sample_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert sample_indices(9, 1).tolist() == [4]
    drawn = {tuple(sample_indices(90, 8, np.random.default_rng(seed))) for seed in range(20)}
    assert len(drawn) == 20
    for length, n in ((0, 4), (4, 0)):
        with pytest.raises(ValueError):
            sample_indices(length, n)


# --- decoding -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "grey.mp4", 40)


def test_probe_counts(video):
    info = probe(video)
    assert (info.frames, info.width, info.height, info.fps, info.header_frames) == (40, 64, 48, 25.0, 40)


def test_frames_come_as_asked_for_in_rgb(video):
    frames = read_frames(video, [7, 0, 39, 7])
    assert frames.shape == (4, 48, 64, 3) and frames.dtype == np.uint8
    assert [level(frame) for frame in frames] == [7, 0, 39, 7]
    assert frames[0, 24, 2].argmax() == 0 and frames[0, 24, -3].argmax() == 2


def test_crop_and_short_side(video):
    assert read_frames(video, [3], (8, 4, 40, 28)).shape == (1, 24, 32, 3)
    assert read_frames(video, [3], (-5, -5, 40, 28)).shape == (1, 28, 40, 3)
    assert read_frames(video, [3], short_side=24).shape == (1, 24, 32, 3)
    assert read_frames(video, [3], short_side=100).shape == (1, 48, 64, 3)
    with pytest.raises(ValueError, match="outside"):
        read_frames(video, [3], (64, 0, 80, 48))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
@pytest.mark.parametrize("right", [None, False])
def test_what_comes_late_is_the_same_sought_or_counted(tmp_path, monkeypatch, name, codec, right):
    path = write_video(tmp_path / name, 300, codec=codec)
    whole = read_frames(path, range(300))
    monkeypatch.setattr(video_module, "FAR", 110)
    sought = []
    if right is None:
        seeks = video_module._seeks_right
        monkeypatch.setattr(video_module, "_seeks_right", lambda *file: sought.append(seeks(*file)) or sought[-1])
    else:
        monkeypatch.setattr(video_module, "_seeks_right", lambda *file: False)
    for indices in ([109], [110], [299, 140, 140], range(200, 300, 7), [5, 250]):
        assert np.array_equal(read_frames(path, indices), whole[list(indices)])
    assert sought == ([True] * 3 if right is None else [])
    with pytest.raises(VideoError, match="too short"):
        read_frames(path, [299, 300])


def test_a_short_or_odd_video_is_not_sought(tmp_path):
    state = video_module._state(write_video(tmp_path / "a.mp4", 60))
    assert not video_module._seeks_right(tmp_path / "a.mp4", *state)


def test_wrong_indices(video):
    with pytest.raises(VideoError, match="grey.mp4 is too short: frame 40"):
        read_frames(video, [0, 40])
    for indices in ([], [-1], [[1]]):
        with pytest.raises(ValueError):
            read_frames(video, indices)


def test_header_that_lies(tmp_path):
    path = write_video(tmp_path / "cut.avi", 40, codec="MJPG")
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])
    info = probe(path)
    assert 0 < info.frames < 40
    assert level(read_frames(path, [info.frames - 1])[0]) == info.frames - 1
    with pytest.raises(VideoError, match="too short"):
        read_frames(path, [39])


def test_what_is_no_video(tmp_path, video):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html>not found</html>" * 99)
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:2000])
    (tmp_path / "folder").mkdir()
    for name in ("empty.mp4", "page.mp4", "half.mp4", "folder", "nowhere.mp4"):
        for read in (probe, lambda path: read_frames(path, [0])):
            with pytest.raises(VideoError, match=name) as caught:
                read(tmp_path / name)
            assert caught.value.code == 2
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_bad_videos_are_silent(shared):
    program = ("import sys; from slr import video\n"
               "for path in sys.argv[1:]:\n"
               " try: video.probe(path)\n except video.VideoError: print('refused')")
    files = [str(path) for path in sorted((shared / "corrupt").glob("*.mp4"))]
    command = [sys.executable, "-c", program, *files]
    done = subprocess.run(command, cwd=CODE, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n" * 2, "")


def test_frame_folder(tmp_path):
    for i in (1, 2, 10, 11):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), np.full((20, 30, 3), i, np.uint8))
    (tmp_path / "notes.txt").touch()
    assert (probe(tmp_path).frames, probe(tmp_path).width, probe(tmp_path).fps) == (4, 30, 0.0)
    assert read_frames(tmp_path, [3, 0, 2])[:, 0, 0, 0].tolist() == [11, 1, 10]
    before = file_sha256(tmp_path)
    cv2.imwrite(str(tmp_path / "frame2.png"), np.full((21, 30, 3), 2, np.uint8))
    assert file_sha256(tmp_path) != before
    with pytest.raises(VideoError, match="size"):
        read_frames(tmp_path, [0, 1])
    with pytest.raises(VideoError, match="too short"):
        read_frames(tmp_path, [4])


def test_find_video(tmp_path):
    write_video(tmp_path / "a.avi", 2, codec="MJPG")
    (tmp_path / "b").mkdir()
    assert find_video(tmp_path, "a").name == "a.avi" and find_video(tmp_path, "b").is_dir()
    for stem in ("c", ""):
        with pytest.raises(VideoError, match="there is no such file"):
            find_video(tmp_path, stem)


def test_real_headers(shared):
    known = json.loads((shared / "wlasl_real" / "probe.json").read_text())
    lying = [name for name, facts in known.items() if facts["header_frames"] != facts["decoded_frames"]]
    small = [name for name in lying if known[name]["width"] <= 320][:8]
    for name in small:
        info = probe(shared / "wlasl_real" / "videos" / f"{name}.mp4")
        assert info.frames == known[name]["decoded_frames"] != info.header_frames
        assert (info.width, info.height) == (known[name]["width"], known[name]["height"])


# --- the frame store ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_store_round_trip(tmp_path, kind):
    clips = {"a": grey_frames(12), "b/..": grey_frames(30, 33, 21), "ahoj ž": grey_frames(1)}
    with StoreWriter(tmp_path, StoreSettings(kind)) as writer:
        for name, frames in clips.items():
            writer.add(name, frames, {"made": name})
    store = pickle.loads(pickle.dumps(FrameStore.open(tmp_path)))
    assert len(store) == 3 and store.check() == {} and store.settings.kind == kind
    assert all(path.parent == tmp_path / "clips" for path in tmp_path.rglob("*.raw"))
    for name, frames in clips.items():
        asked = [len(frames) - 1, 0, len(frames) // 2, 0]
        read = store.read(name, asked)
        assert name in store and store.frames(name) == len(frames)
        difference = np.abs(read.astype(int) - frames[asked])
        assert difference.max() == 0 if kind == "raw" else np.median(difference) <= 1


def test_store_reads_refuse(tmp_path):
    with pytest.raises(VideoError, match="preprocess.py"):
        FrameStore.open(tmp_path)
    with StoreWriter(tmp_path, RAW) as writer:
        writer.add("a", grey_frames(4), {})
    store = FrameStore.open(tmp_path)
    with pytest.raises(VideoError, match="frame 4 was asked for, it has 4"):
        store.read("a", [4])
    with pytest.raises(VideoError, match="clip b is not in"):
        store.read("b", [0])
    with pytest.raises(ValueError):
        store.read("a", [-1])


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_damage_is_found_and_mended(tmp_path, kind):
    frames = grey_frames(6)
    with StoreWriter(tmp_path, StoreSettings(kind)) as writer:
        for name in "abc":
            writer.add(name, frames, {"of": name})
    store = FrameStore.open(tmp_path)
    flipped, cut, gone = (tmp_path / store.clips[name].file for name in "abc")
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-900])
    gone.unlink()
    assert list(store.check()) == ["a", "b", "c"]
    for name in "bc":
        with pytest.raises(VideoError, match=r"preprocess\.py"):
            store.read(name, [5])
    with StoreWriter(tmp_path, StoreSettings(kind)) as writer:
        assert [writer.holds(name, {"of": name}) for name in "abc"] == [True, False, False]
        for name in "abc":
            if not writer.holds(name, {"of": name}, hashed=True):
                writer.add(name, frames, {"of": name})
        assert writer.check() == {}


def test_changed_source_is_written_anew(tmp_path):
    with StoreWriter(tmp_path, RAW) as writer:
        writer.add("a", grey_frames(4), {"box": (0, 0, 9, 9)})
        assert writer.holds("a", {"box": (0, 0, 9, 9)}) and not writer.holds("a", {"box": (0, 0, 9, 8)})
        writer.add("a", grey_frames(7), {"box": (0, 0, 9, 8)})
    assert FrameStore.open(tmp_path).frames("a") == 7
    assert len(list((tmp_path / "clips").iterdir())) == 1


def test_other_settings_and_second_writers_are_refused(tmp_path):
    with StoreWriter(tmp_path, RAW):
        with pytest.raises(Mistake, match="by another process"):
            StoreWriter(tmp_path, RAW)
    with pytest.raises(Mistake, match="short_side 256.*asked for.*short_side 128"):
        StoreWriter(tmp_path, StoreSettings("raw", short_side=128))
    StoreWriter(tmp_path, RAW).close()
    with pytest.raises(ValueError):
        StoreSettings("png")


def test_index_cut_anywhere_loses_only_what_it_cut(tmp_path):
    whole = tmp_path / "whole"
    clips = {name: grey_frames(2, 8, 8) for name in "abc"}
    with StoreWriter(whole, RAW) as writer:
        for name, frames in clips.items():
            writer.add(name, frames, {})
    index = (whole / "index.jsonl").read_bytes()
    for cut in range(0, len(index), 29):
        folder = tmp_path / str(cut)
        shutil.copytree(whole, folder)
        (folder / "index.jsonl").write_bytes(index[:cut])
        (folder / "clips" / "d.raw.123.tmp").touch()
        survivors = max(index[:cut].count(b"\n") - 1, 0)
        with StoreWriter(folder, RAW) as writer:
            assert len(writer) == survivors == len(list((folder / "clips").iterdir()))
            for name, frames in clips.items():
                if not writer.holds(name, {}):
                    writer.add(name, frames, {})
        assert (folder / "index.jsonl").read_bytes() == index
        assert FrameStore.open(folder).check() == {}


def test_kill_and_go_on(tmp_path):
    program = ("import sys, numpy as np; from pathlib import Path; from slr.video import *\n"
               "with StoreWriter(Path(sys.argv[1]), StoreSettings('raw')) as store:\n"
               " for i in range(2000):\n"
               "  frames = np.full((3, 16, 16, 3), i % 256, np.uint8)\n"
               "  if not store.holds(str(i), {}): store.add(str(i), frames, {})\n")
    before = 0
    for _ in range(3):
        running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=CODE)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and running.poll() is None:
            index = tmp_path / "index.jsonl"
            if index.exists() and index.read_bytes().count(b"\n") > before + 20:
                break
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        store = FrameStore.open(tmp_path)
        assert len(store) > before and store.check() == {}
        assert all(store.read(name, [2])[0, 0, 0, 0] == int(name) % 256 for name in store.clips)
        before = len(store)


# --- one way to read all three ------------------------------------------------------------------------------

def test_three_sources_agree(tmp_path):
    videos = tmp_path / "videos"
    write_video(videos / "a.mp4", 40)
    sign = Sign("a", 5, 25, (8, 4, 56, 44))
    for kind in ("raw", "jpeg"):
        with StoreWriter(tmp_path / kind, StoreSettings(kind)) as writer:
            writer.add("a", read_frames(videos / "a.mp4", range(5, 25), sign.box, 256), {})
    found = {kind: open_source(kind, videos, tmp_path / kind, "box") for kind in ("video", "raw", "jpeg")}
    read = {kind: source.read(sign, [0, 19]) for kind, source in found.items()}
    assert [source.length(sign) for source in found.values()] == [20, 20, 20]
    assert np.array_equal(read["video"], read["raw"]) and read["jpeg"].shape == (2, 40, 48, 3)
    assert [level(frame) for frame in read["raw"]] == [5, 24]
    assert all(source.missing([sign, Sign("b")]) == ["b"] for source in found.values())
    assert open_source("video", videos, tmp_path).read(sign, [0]).shape == (1, 48, 64, 3)
    assert VideoFolder(videos).length(Sign("a", 5)) == 35


def test_source_refuses_what_does_not_fit(tmp_path):
    with StoreWriter(tmp_path, RAW) as writer:
        writer.add("a", grey_frames(4), {})
    assert isinstance(open_source("raw", tmp_path, tmp_path), StoredFrames)
    for kind, crop in (("jpeg", ""), ("raw", "frame")):
        with pytest.raises(Mistake, match="is not what was asked for"):
            open_source(kind, tmp_path, tmp_path, crop)
    with pytest.raises(VideoError, match="4 frames, the labels say 9"):
        open_source("raw", tmp_path, tmp_path).length(Sign("a", 0, 9))
