"""Sentences: the prepared form, frames in folders, zips and videos, and preprocess.py from annotation to jsonl."""

import gzip
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import preprocess
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import level, write_video

from slr import paths
from slr.datasets import phoenix, sentences
from slr.datasets import sentences_pictures as pictures
from slr.datasets import sentences_prepare as prepare
from slr.datasets.phoenix import Entry
from slr.datasets.sentences import (
    Frames,
    Sentence,
    from_row,
    load_sentences,
    load_vocabulary,
    read_frames,
    read_images,
    steps_needed,
    time_steps,
    to_row,
)
from slr.errors import Mistake, NothingToTrainOn
from slr.video import VideoError

WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6).filter(
    lambda word: word.split() == [word])
FRAMES = st.none() | st.builds(Frames, st.just("folder"), st.just("features/train/a"), st.just("images%04d.png"),
                               st.integers(0, 99)) | st.just(Frames("video", "a/b.mp4"))
SENTENCE = st.builds(Sentence, id=WORD, set=st.sampled_from(paths.SETS), gloss=st.lists(WORD, max_size=5).map(tuple),
                     num_frames=st.integers(1, 500), frames=FRAMES, signer=WORD, text=st.text(max_size=9),
                     reference=st.none() | st.lists(WORD, max_size=3).map(tuple))


def image(number: int, width: int = 24, height: int = 30) -> bytes:
    """A png of one grey, 5 * number."""
    return cv2.imencode(".png", np.full((height, width, 3), 5 * number, np.uint8))[1].tobytes()


def grey(frames: np.ndarray) -> list[int]:
    return [int(frame.mean()) // 5 for frame in frames]


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(image(number))
    return folder


def numbered(pattern: str, count: int, first: int = 0) -> list[str]:
    return [pattern % (first + i) for i in range(count)]


SHEETS = {name: getattr(pictures, name) for name in ("contact_sheet", "statistics_sheet")}
CORPUS = {
    "train": [Entry("a_1", "train", "Signer01", ("A", "B"), "a b"), Entry("a_2", "train", "Signer02", ("B", "B", "C"))],
    "val": [Entry("b_1", "val", "Signer01", ("A", "D"), "a d")],
    "test": [Entry("c_1", "test", "Signer03", ("C",), "c")],
}


def write_corpus(folder: Path, corpus: dict[str, list[Entry]] = CORPUS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, entries in corpus.items():
        name = "dev" if part == "val" else part
        (folder / f"PHOENIX-2014-T.{name}.corpus.csv").write_text(phoenix.corpus_text(entries, translated=True))
    return folder


def write_frames(root: Path, corpus: dict[str, list[Entry]] = CORPUS, inner: str = "") -> Path:
    """root/<set>/<id>/images%04d.png from 1, 12 frames each."""
    for part, entries in corpus.items():
        for entry in entries:
            folder = root / ("dev" if part == "val" else part) / entry.id / inner
            write_images(folder, numbered("images%04d.png", 12, 1))
    return root


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder with a little PHOENIX-2014-T. Pictures, which take a second, are not drawn."""
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    for name in SHEETS:
        monkeypatch.setattr(pictures, name, lambda *_: None)
    write_corpus(tmp_path / "PHOENIX-2014-T" / "annotations" / "manual")
    write_frames(tmp_path / "PHOENIX-2014-T" / "features" / "fullFrame-210x260px")
    return tmp_path


def run(*words: str) -> dict:
    """preprocess.py's report."""
    preprocess.main([*words, "--workers", "0"])
    return json.loads((paths.sentences(paths.data_root(), "phoenix2014t") / "report.json").read_text())


# --- the prepared form --------------------------------------------------------------------------------------

@given(SENTENCE)
def test_a_sentence_comes_back(sentence):
    assert from_row(json.loads(json.dumps(to_row(sentence)))) == sentence


def test_a_row_is_small_and_readable():
    place = Frames("folder", "features/a-1", "images%04d.png", 1)
    assert json.dumps(to_row(Sentence("a-1", "train", ("A", "B"), 53, place, "Signer01", "a b"))) == (
        '{"id": "a-1", "set": "train", '
        '"frames": {"kind": "folder", "place": "features/a-1", "names": "images%04d.png", '
        '"first": 1}, "num_frames": 53, "signer": "Signer01", "gloss": ["A", "B"], "text": "a b"}')


@pytest.mark.parametrize("change", [
    {"set": "dev"}, {"id": 3}, {"gloss": "A B"}, {"gloss": ["A B"]}, {"gloss": [1]}, {"num_frames": -1},
    {"num_frames": 10**12}, {"num_frames": True}, {"num_frames": 0}, {"text": None}, {"frames": "x"},
    {"frames": {"kind": "folder", "place": "../a", "names": "%d.png"}},
    {"frames": {"kind": "folder", "place": "/a", "names": "%d.png"}},
    {"frames": {"kind": "folder", "place": "C:/a", "names": "%d.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "../%d.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "b/%d.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "%s.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "%999999999d.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "%d%d.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": "a.png"}},
    {"frames": {"kind": "folder", "place": "a", "names": ["1.png", "2.png"]}},
    {"frames": {"kind": "folder", "place": "a", "names": ["1.png", "2.png", "../3.png"]}},
    {"frames": {"kind": "folder", "place": "a", "names": ["1.png", "2.png", 3]}},
    {"frames": {"kind": "folder", "place": "a"}},
    {"frames": {"kind": "folder", "place": "a", "names": "%d.png", "first": -1}},
    {"frames": {"kind": "zip", "place": "a.zip", "names": "../%d.png"}},
    {"frames": {"kind": "video", "place": "a.mp4", "names": "%d.png"}},
    {"frames": {"kind": "pipe", "place": "a", "names": "%d.png"}},
])
def test_a_hostile_row_is_refused(tmp_path, change):
    row = {"id": "a", "set": "train", "frames": {"kind": "folder", "place": "a", "names": "%d.png"}, "num_frames": 3,
           "signer": "x", "gloss": ["A"], "text": ""}
    assert from_row(row).num_frames == 3
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'id': 'b', **change})}\n")
    with pytest.raises(Mistake, match="train.jsonl, line 2 is no sentence"):
        sentences.read_sentences(file, "train")


@pytest.mark.parametrize("line", ["", "[1]", "{", '"a"', "[" * 100_000, '{"id": "a"}', "null"])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "dev.jsonl"
    fine = json.dumps(to_row(Sentence("a", "val", ("A",))))
    file.write_text(f"{fine}\n{line}\n" if line else f"{fine}\n{fine}\n")
    with pytest.raises(Mistake, match="dev.jsonl, line 2"):
        sentences.read_sentences(file, "val")
    with pytest.raises(Mistake, match="line 1 .*\n?.*another set"):
        sentences.read_sentences(file, "test")


@given(st.lists(st.sampled_from("AB"), max_size=6))
def test_steps_needed_is_the_shortest_path(gloss):
    """The fewest time steps that CTC merges to `gloss`, found by trying all paths."""
    def merged(path: tuple[str, ...]) -> list[str]:
        return [label for label, _ in itertools.groupby(path) if label != "-"]

    lengths = (n for n in range(12) if n <= 7 and any(merged(p) == gloss for p in itertools.product("AB-", repeat=n)))
    found = next(lengths, None)
    assert found == steps_needed(gloss) if found is not None else steps_needed(gloss) > 7


def test_time_steps():
    assert [time_steps(n) for n in (0, 1, 4, 5, 53)] == [0, 1, 1, 2, 14] and time_steps(53, 1) == 53
    assert all(time_steps(n) == time_steps(time_steps(n, 2), 2) for n in range(500))


# --- frames -------------------------------------------------------------------------------------------------

@pytest.fixture
def three(tmp_path) -> dict[str, Sentence]:
    """The same 12 frames in a folder, a zip and a video."""
    names = numbered("images%04d.png", 12, 1)
    write_images(tmp_path / "f" / "a", names)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as pack:
        for name in names:
            pack.write(tmp_path / "f" / "a" / name, f"images/train/a/{name}")
    write_video(tmp_path / "a.mp4", 12)
    places = {"folder": Frames("folder", "f/a", "images%04d.png", 1), "video": Frames("video", "a.mp4"),
              "zip": Frames("zip", "f.zip", "images/train/a/images%04d.png", 1)}
    return {kind: Sentence("a", "train", ("A",), 12, place, root=tmp_path) for kind, place in places.items()}


@pytest.mark.parametrize("kind", ["folder", "zip", "video"])
def test_frames_from_everywhere(three, kind):
    for indices in (range(12), [0], [3, 3, 1], np.array([11, 0])):
        frames = read_frames(three[kind], indices)
        assert frames.dtype == np.uint8 and frames.shape[0] == len(indices) and frames.shape[3] == 3
        found = [level(f) for f in frames] if kind == "video" else grey(frames)
        assert found == list(indices)
    assert len(read_images(three[kind], [2, 2])) == 2
    for wrong in ([12], [-1], [], [[1]]):
        with pytest.raises(ValueError):
            read_frames(three[kind], wrong)


def test_names_one_by_one(three):
    odd = replace(three["folder"], num_frames=2, frames=Frames("folder", "f/a", ("images0003.png", "images0009.png")))
    assert grey(read_frames(odd, [1, 0])) == [8, 2]


def test_colours_are_rgb(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "0.png"), red)
    sentence = Sentence("a", "train", (), 1, Frames("folder", tmp_path.name, "%d.png"), root=tmp_path.parent)
    assert read_frames(sentence, [0])[0, 0, 0].tolist() == [255, 0, 0]


def test_a_missing_frame_is_named(three, tmp_path):
    (tmp_path / "f" / "a" / "images0006.png").unlink()
    with pytest.raises(VideoError, match="frame 5 of a cannot be read: .*f/a/images0006.png: No such file"):
        read_frames(three["folder"], range(12))
    longer = replace(three["zip"], num_frames=13)
    with pytest.raises(VideoError, match="frame 12 of a .*f.zip/images/train/a/images0013.png: it is not in the zip"):
        read_frames(longer, range(13))
    (tmp_path / "f" / "a" / "images0006.png").write_bytes(b"")
    with pytest.raises(VideoError, match="images0006.png: 0 bytes that are no image"):
        read_frames(three["folder"], [5])
    (tmp_path / "f" / "a" / "images0006.png").write_bytes(image(5, width=25))
    with pytest.raises(VideoError, match="2 sizes"):
        read_frames(three["folder"], range(12))
    with pytest.raises(VideoError, match="prepared with --no_frames"):
        read_frames(replace(three["folder"], frames=None), [0])
    with pytest.raises(VideoError, match="elsewhere"):
        read_frames(replace(three["zip"], root=tmp_path / "elsewhere"), [0])


def test_a_zip_that_is_none(three, tmp_path):
    (tmp_path / "g.zip").write_bytes(b"PK no zip at all")
    with pytest.raises(VideoError, match="g.zip"):
        read_frames(replace(three["zip"], frames=replace(three["zip"].frames, place="g.zip")), [0])
    data = bytearray((tmp_path / "f.zip").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "h.zip").write_bytes(data)
    with pytest.raises(VideoError, match="h.zip"):
        read_frames(replace(three["zip"], frames=replace(three["zip"].frames, place="h.zip")), [0])


def test_a_zip_bomb_stays_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("a/0.png", bytes(10_001))
    sentence = Sentence("a", "train", (), 1, Frames("zip", "b.zip", "a/%d.png"), root=tmp_path)
    with pytest.raises(VideoError, match="10001 bytes are no frame"):
        read_frames(sentence, [0])


def test_an_image_of_a_billion_pixels():
    data = bytearray(image(1))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(VideoError, match="cannot read x.png"):
        sentences.decode(bytes(data), "x.png")


def _read_in_child(sentence: Sentence, queue: multiprocessing.Queue) -> None:
    queue.put([grey(read_frames(sentence, range(12))) for _ in range(20)])


def test_a_zip_is_opened_once_in_every_process(three, monkeypatch):
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(sentences.zipfile, "ZipFile", lambda path: opened.append(path) or real(path))
    for _ in range(3):
        read_frames(three["zip"], range(12))
    assert len(opened) == 1
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_read_in_child, args=(three["zip"], queue)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [grey(read_frames(three["zip"], range(12)))] + queue.get(timeout=60) + queue.get(timeout=60)
    for child in children:
        child.join()
    assert all(answer == list(range(12)) for answer in answers) and len(opened) == 1


# --- names of frames ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("names, wanted", [
    (numbered("images%04d.png", 53, 1), ("images%04d.png", 1)), (numbered("%06d.jpg", 9), ("%06d.jpg", 0)),
    (numbered("01April_2010_heute.avi_pid0_fn%06d-0.png", 7), ("01April_2010_heute.avi_pid0_fn%06d-0.png", 0)),
    (numbered("frame%d.png", 12, 1), ("frame%d.png", 1)), (numbered("%04d.png", 5, 9998), ("%04d.png", 9998)),
    (numbered("a%02d.png", 12, 95), ("a%02d.png", 95)),
])
def test_numbered_names_become_a_pattern(names, wanted):
    assert prepare.compact(names) == (wanted, 0)
    assert [Frames("folder", "a", *wanted).name(i) for i in range(len(names))] == names


@pytest.mark.parametrize("names, gap", [
    (["a1.png", "a2.png", "a5.png"], 2), (["a.png", "b.png"], 0), (["a%1.png", "a%2.png"], 0),
    (["1.png", "2.jpg"], 0), (["a01.png", "a2.png"], 0),
])
def test_other_names_are_kept_one_by_one(names, gap):
    assert prepare.compact(names) == ((tuple(names), 0), gap)


@given(head=st.text("ab1_.-%", max_size=4), tail=st.text("ab1_.-%", max_size=4), first=st.integers(0, 1200),
       count=st.integers(1, 30), width=st.integers(1, 7))
def test_compact_names_come_back(head, tail, first, count, width):
    names = [f"{head}{first + i:0{width}d}{tail}.png" for i in range(count)]
    (found, start), gap = prepare.compact(names)
    frames = Frames("folder", "a", found, start)
    assert [frames.name(i) for i in range(count)] == names
    assert gap == 0 or tail[:1].isdigit() or head[-1:].isdigit()  # then 1 and 11 may be meant


# --- finding frames -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("layout", [
    "features/fullFrame-210x260px/{set}/{id}/1", "features/fullFrame-256x256px/{set}/{id}", "release/x/{set}/{id}/1",
    "{id}", "sentence_frames-512x512/{id}", "images/{set}/{id}"])
@pytest.mark.parametrize("packed", [False, True])
def test_frames_are_found_by_their_id(tmp_path, layout, packed):
    for entry in [e for entries in CORPUS.values() for e in entries]:
        place = layout.format(set="dev" if entry.set == "val" else entry.set, id=entry.id)
        write_images(tmp_path / "data" / place, numbered("images%04d.png", 12, 1))
    if packed:
        shutil.make_archive(str(tmp_path / "videos"), "zip", tmp_path / "data")
    source = prepare.read_source(write_corpus(tmp_path / "labels"))
    frames = tmp_path / ("videos.zip" if packed else "data")
    prepared = prepare.prepare("x", source, frames, workers=0, root=tmp_path)
    assert len(prepared.sentences) == 4, prepare.summary(prepared.report)
    for sentence in prepared.sentences:
        assert grey(read_frames(sentence, [0, 11])) == [0, 11]
        assert sentence.frames.kind == ("zip" if packed else "folder")
    told = ("videos.zip@" if packed else "") + layout + "/images%04d.png"
    again = prepare.prepare("x", source, frames.parent if packed else frames, layout=told, workers=0)
    assert [s.frames for s in again.sentences] == [s.frames for s in prepared.sentences]


def test_the_names_of_the_zip_of_phoenix_2014(tmp_path):
    """As SLRT packs it: the last part of its name is the broadcast's, not the sentence's."""
    names = ["fullFrame-210x260px/train/01April_2010_heute_default-0/1/01April_2010_heute"]
    rows = [{"name": names[0], "num_frames": 5, "folder": "01April_2010_heute_default-0/1/*.png", "signer": "Signer04",
             "gloss": "A  B"}]
    (tmp_path / "phoenix-2014.train").write_bytes(gzip.compress(pickle.dumps(rows)))
    with zipfile.ZipFile(tmp_path / "phoenix-2014-videos.zip", "w") as pack:
        for i in range(5):
            pack.writestr(f"{names[0]}.avi_pid0_fn{i:06d}-0.png", image(i))
        pack.writestr("../../evil/01April_2010_heute_default-0/1/a.png", image(0))
        pack.writestr("/etc/01April_2010_heute_default-0/1/a.png", image(0))
        pack.writestr("__MACOSX/01April_2010_heute_default-0/1/._a.png", b"junk")
    prepared = prepare.prepare("x", prepare.read_source(tmp_path), tmp_path, workers=0)
    sentence, = prepared.sentences
    assert sentence.frames == Frames("zip", "phoenix-2014-videos.zip", f"{names[0]}.avi_pid0_fn%06d-0.png", 0)
    assert grey(read_frames(sentence, range(5))) == list(range(5)) and sentence.gloss == ("A", "B")


def test_videos_are_found_too(tmp_path):
    source = prepare.read_source(write_corpus(tmp_path / "labels"))
    for entry in source.entries:
        write_video(tmp_path / "videos" / f"{entry.id}.mp4", 15)
    prepared = prepare.prepare("x", source, tmp_path / "videos", workers=0)
    assert {s.num_frames for s in prepared.sentences} == {15} and len(prepared.sentences) == 4
    assert read_frames(prepared.sentences[0], [14]).shape == (1, 48, 64, 3)
    assert prepared.report["same_frames"][0]["across_sets"]


def test_frames_in_several_places(root, capsys):
    copy = root / "PHOENIX-2014-T" / "features" / "fullFrame-256x256px"
    shutil.copytree(root / "PHOENIX-2014-T" / "features" / "fullFrame-210x260px", copy)
    shutil.copytree(copy, root / "PHOENIX-2014-T" / "features" / "trackedRightHand-92x132px")
    with pytest.raises(Mistake, match="several places: .*210x260px, .*256x256px"):
        run("-ds", "PHOENIX2014T")
    run("-ds", "PHOENIX2014T", "--frames", "features/fullFrame-256x256px/{set}/{id}/*.png")
    assert "256x256" in load_sentences(root, "phoenix2014t", "val")[0].frames.place
    shutil.rmtree(copy)
    run("-ds", "PHOENIX2014T", "--replace")
    assert "210x260" in load_sentences(root, "phoenix2014t", "val")[0].frames.place


@pytest.mark.parametrize("folder, name", [
    ("", "an_id"), ("x/1/*.png", "x"), ("x/*.png", "x"), ("train/x/1/*.png", "x"), ("train/x", "x"), ("x.mp4", "x"),
    ("fullFrame-210x260px/train/x_default-0/1/x", "x_default-0"), ("*.png", "an_id"),
])
def test_what_frames_are_called(folder, name):
    assert prepare.called(Entry("an_id", folder=folder)) == name


def test_an_annotation_may_name_another_folder(tmp_path):
    corpus = {"train": [Entry("a_1", gloss=("A",), folder="take7/1/*.png"),
                        Entry("a_2", gloss=("A",), folder="take8.mp4")]}
    source = prepare.read_source(write_corpus(tmp_path / "labels", corpus))
    write_images(tmp_path / "frames" / "train" / "take7" / "1", numbered("%d.png", 9))
    write_video(tmp_path / "frames" / "train" / "take8.mp4", 15)
    prepared = prepare.prepare("x", source, tmp_path / "frames", workers=1)  # in another process
    assert [(s.id, s.num_frames, s.frames.place) for s in prepared.sentences] == [
        ("a_1", 9, "train/take7/1"), ("a_2", 15, "train/take8.mp4")]


def test_sets_may_lie_apart(tmp_path):
    source = prepare.read_source(write_corpus(tmp_path / "labels"))
    for i, entry in enumerate(source.entries):
        write_images(tmp_path / "frames" / f"disk{i % 2}" / entry.id, numbered("%d.png", 9))
    assert len(prepare.prepare("x", source, tmp_path / "frames", workers=0).sentences) == 4


# --- judging ------------------------------------------------------------------------------------------------

def test_what_cannot_be_used_is_listed(root, capsys):
    data = root / "PHOENIX-2014-T"
    frames = data / "features" / "fullFrame-210x260px" / "train"
    entries = [Entry(name, "train", "Signer01", ("A",)) for name in ("gone", "empty", "broken", "short", "mute", "gap")]
    entries[3:5] = [replace(entries[3], gloss=("A", "A", "B")), replace(entries[4], gloss=())]
    write_corpus(data / "annotations" / "manual", {"train": [*CORPUS["train"], *entries, CORPUS["train"][0]],
                                                   "test": [*CORPUS["test"], Entry("c_2", "test", "x", ("A",) * 9)]})
    write_images(frames / "empty", [])
    write_images(frames / "broken", ["0.png"])
    (frames / "broken" / "0.png").write_bytes(b"no image")
    write_images(frames / "short", numbered("%d.png", 3))
    write_images(frames / "mute", numbered("%d.png", 3))
    write_images(frames / "gap", ["1.png", "2.png", "7.png", "8.png"])
    write_images(frames.parent / "test" / "c_2", ["1.png"])
    report = run("-ds", "PHOENIX2014T", "-ve")
    said = capsys.readouterr().out
    reasons = {row["id"]: row["reason"] for row in report["left_out"]}
    assert reasons == {"gone": "missing", "empty": "empty", "broken": "unreadable", "short": "infeasible",
                       "mute": "no_gloss", "a_1": "twice"}
    assert "left out: short (train): too few frames for its glosses: 3 frames for 3 glosses that need 4 steps" in said
    assert "left out: broken (train): a frame does not decode: cannot read 0.png: 8 bytes that are no image" in said
    assert report["gaps"] == [{"id": "gap", "set": "train", "numbers_left_out": 4}]
    assert report["kept"] == 6 and report["sets"]["train"]["sentences"] == 3
    infeasible = {row["id"]: (row["steps"], row["needed"]) for row in report["infeasible"]}
    assert infeasible == {"a_2": (3, 4), "c_2": (1, 17)}
    assert report["unknown_glosses"] == {"train": {}, "val": {"D": 1}, "test": {}}
    gap = next(s for s in load_sentences(root, "phoenix2014t", "train") if s.id == "gap")
    assert gap.frames.names == ("1.png", "2.png", "7.png", "8.png") and grey(read_frames(gap, [3])) == [3]


def test_every_frame_is_looked_at_if_asked(root):
    broken = root / "PHOENIX-2014-T" / "features" / "fullFrame-210x260px" / "train" / "a_1" / "images0002.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert run("-ds", "PHOENIX2014T")["kept"] == 4
    report = run("-ds", "PHOENIX2014T", "--verify")
    assert report["kept"] == 3 and "images0002.png" in report["left_out"][0]["detail"]


def test_a_gloss_dict_gives_its_own_order(root):
    folder = root / "PHOENIX-2014-T" / "preprocessed"
    folder.mkdir()
    np.save(folder / "gloss_dict.npy", {"B": [2, 9], "A": [1, 9], "D": [3, 1], "E": [4, 0]}, allow_pickle=True)
    report = run("-ds", "PHOENIX2014T")
    assert load_vocabulary(root, "phoenix2014t") == ["<blank>", "A", "B", "D", "E"]
    assert report["left_out"] == [{"id": "a_2", "set": "train", "reason": "unknown_gloss", "detail": "C"}]
    assert report["unknown_glosses"]["test"] == {"C": 1} and report["sets"]["test"]["with_unknown_glosses"] == 1


def test_the_training_glosses_are_the_vocabulary(root):
    run("-ds", "PHOENIX2014T")
    assert load_vocabulary(root, "phoenix2014t") == ["<blank>", "A", "B", "C"]


def test_forms_complete_each_other(tmp_path):
    """The csv leads; frames are counted by the npy, the STM is what the sentences are scored against."""
    write_corpus(tmp_path, CORPUS)
    (tmp_path / "x-groundtruth-train.stm").write_text(phoenix.stm_text([replace(CORPUS["train"][0], gloss=("A",))]))
    info = {0: {"fileid": "a_1", "label": "A B", "num_frames": 40}, 1: {"fileid": "z_9", "label": "A"}}
    np.save(tmp_path / "train_info.npy", info, allow_pickle=True)
    prepared = prepare.prepare("x", prepare.read_source(tmp_path), None)
    first, second = prepared.sentences[:2]
    assert (first.num_frames, first.gloss, first.reference) == (40, ("A", "B"), ("A",))
    assert (second.num_frames, second.reference, second.frames) == (0, None, None)
    differences = prepared.report["differences"]
    assert differences["npy"] == {"not_there": ["test/c_1", "train/a_2", "val/b_1"], "only_there": ["train/z_9"],
                                  "other_glosses": {}}
    assert differences["stm"]["other_glosses"] == {"train": 1}


# --- the command --------------------------------------------------------------------------------------------

def test_everything_is_written(root, capsys, monkeypatch):
    for name, draw in SHEETS.items():
        monkeypatch.setattr(pictures, name, draw)
    report = run("-as", "phoenix2014t")
    said = capsys.readouterr().out
    assert "4 of 4 sentences kept, a vocabulary of 3 glosses" in said
    folder = paths.sentences(root, "phoenix2014t")
    assert sorted(p.name for p in folder.iterdir()) == ["contact_sheet.png", "dev.jsonl", "report.json",
                                                        "statistics.png", "test.jsonl", "train.jsonl", "vocabulary.txt"]
    for name in ("contact_sheet.png", "statistics.png"):
        assert min(cv2.imread(str(folder / name)).shape[:2]) > 200
    val, = load_sentences(root, "phoenix2014t", "val")
    assert (val.set, val.text, val.num_frames, val.root) == ("val", "a d", 12, root / "PHOENIX-2014-T")
    assert report["frames"] == "PHOENIX-2014-T" and len(sentences.data_hash(root, "phoenix2014t")) == 64
    before = sentences.data_hash(root, "phoenix2014t")
    for name in SHEETS:
        monkeypatch.setattr(pictures, name, lambda *_: None)
    run("-ds", "PHOENIX2014T", "-as", "phoenix2014t")
    assert sentences.data_hash(root, "phoenix2014t") == before


def test_pictures_of_little_and_of_much(tmp_path):
    many = {part: [Entry(f"{part}{i}", part, f"Signer{i % 3}", tuple(f"G{j}" for j in range(i, i + 9)))
                   for i in range(60)] for part in paths.SETS}
    for name, corpus in (("little", CORPUS), ("much", many), ("test", {"test": CORPUS["test"]})):
        prepared = prepare.prepare(name, prepare.read_source(write_corpus(tmp_path / name, corpus)), None)
        for sheet, draw in SHEETS.items():
            draw(prepared, tmp_path / f"{name}.{sheet}.png")
            assert min(cv2.imread(str(tmp_path / f"{name}.{sheet}.png")).shape[:2]) > 200


def test_the_data_can_be_moved(root, tmp_path_factory):
    run("-ds", "PHOENIX2014T")
    there = tmp_path_factory.mktemp("moved") / "data"
    shutil.copytree(root, there)
    shutil.rmtree(root / "PHOENIX-2014-T")
    assert grey(read_frames(load_sentences(there, "phoenix2014t", "test")[0], [4])) == [4]
    small = load_sentences(there, "phoenix2014t", "test", frames=there / "PHOENIX-2014-T" / "features" / "..")
    assert grey(read_frames(small[0], [4])) == [4]


def test_any_folder_and_any_name(root, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_corpus(elsewhere / "labels")
    write_frames(elsewhere / "pictures", inner="1")
    preprocess.main(["-ds", "PHOENIX2014T", "-as", "mine", "--annotations", str(elsewhere / "labels"), "--videos",
                     str(elsewhere / "pictures"), "--workers", "0"])
    sentence = load_sentences(root, "mine", "train")[0]
    assert sentence.path == elsewhere / "pictures" / "train" / "a_1" / "1" and grey(read_frames(sentence, [7])) == [7]


def test_dry_run_limit_and_guards(root, capsys):
    preprocess.main(["-ds", "PHOENIX2014T", "--dry_run", "--workers", "0"])
    assert "4 of 4" in capsys.readouterr().out and not (root / "SENTENCES").exists()
    assert run("-ds", "PHOENIX2014T", "--limit", "1")["sentences"] == 3
    run("-ds", "PHOENIX2014T")
    for words, said in ((["--limit", "1"], "other sentences"), (["--no_frames"], "was made with frames")):
        with pytest.raises(Mistake, match=said):
            run("-ds", "PHOENIX2014T", *words)
    write_corpus(root / "PHOENIX-2014-T" / "annotations" / "manual", {"train": CORPUS["train"][:1]})
    with pytest.raises(Mistake, match="another annotation"):
        run("-ds", "PHOENIX2014T")
    assert run("-ds", "PHOENIX2014T", "--replace", "--no_frames")["sets"]["train"]["sentences"] == 1
    assert load_sentences(root, "phoenix2014t", "train")[0].frames is None


def test_nothing_left_keeps_what_is_there(root):
    before = run("-ds", "PHOENIX2014T")
    shutil.rmtree(root / "PHOENIX-2014-T" / "features" / "fullFrame-210x260px" / "train")
    with pytest.raises(NothingToTrainOn, match="2 missing"):
        run("-ds", "PHOENIX2014T")
    folder = paths.sentences(root, "phoenix2014t")
    assert json.loads((folder / "report.json").read_text()) == before


@pytest.mark.parametrize("words, said", [
    ([], "no SPLIT"), (["-as", "phoenix2014"], "no data for phoenix2014"),
    (["-as", "csl_daily"], "CSL-Daily is missing"),
    (["-ds", "PHOENIX2014T", "--store", "jpeg"], "no frame store"),
    (["-ds", "PHOENIX2014T", "--videos", "/nowhere"], "/nowhere is missing"),
    (["-ds", "PHOENIX2014T", "--frames", "a/*.png"], "no layout"),
    (["-ds", "PHOENIX2014T", "--frames", "../{id}/*.png"], "no layout"),
    (["-ds", "PHOENIX2014T", "--frames", "/{id}/*.png"], "no layout"),
    (["-ds", "PHOENIX2014T", "--frames", "{id}/*.png", "--no_frames"], "looks for no frames"),
    (["-as", "asl100", "--no_frames"], "are of sentences"),
    (["-as", "phoenix2014t", "--annotations", "/x"], "/x is missing"),
])
def test_mistakes(root, words, said):
    with pytest.raises(Mistake, match=said):
        preprocess.main([*words, "--workers", "0"])


def test_what_is_not_prepared_is_said(root):
    for load in (load_vocabulary, sentences.data_hash, lambda *where: load_sentences(*where, "train")):
        with pytest.raises(Mistake, match="run: python preprocess.py -as phoenix2014t"):
            load(root, "phoenix2014t")
    run("-ds", "PHOENIX2014T")
    folder = paths.sentences(root, "phoenix2014t")
    (folder / "vocabulary.txt").write_text("0\tA\n")
    with pytest.raises(Mistake, match="is no vocabulary"):
        load_vocabulary(root, "phoenix2014t")
    (folder / "report.json").write_text("[]")
    with pytest.raises(Mistake, match="is no report"):
        load_sentences(root, "phoenix2014t", "train")


# --- the real thing -----------------------------------------------------------------------------------------

@pytest.fixture
def real(shared, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    for name in SHEETS:
        monkeypatch.setattr(pictures, name, lambda *_: None)
    for name, folder in (("phoenix2014", "PHOENIX-2014"), ("phoenix2014T", "PHOENIX-2014-T")):
        os.symlink(shared / "phoenix" / name, tmp_path / folder)
    return tmp_path


def test_the_real_sequence(real, capsys):
    report = run("-as", "phoenix2014t", "--verify")
    sentence, = load_sentences(real, "phoenix2014t", "train")
    assert sentence.gloss == ("LIEB", "ZUSCHAUER", "ABEND") and sentence.text == "liebe zuschauer guten abend"
    assert sentence.frames == Frames(
        "folder", "features/fullFrame-210x260px/train/01April_2010_Thursday_heute-6694", "images%04d.png", 1)
    frames = read_frames(sentence, range(sentence.num_frames))
    assert frames.shape == (53, 260, 210, 3) and frames.dtype == np.uint8
    reference = cv2.imread(str(sentence.path / "images0053.png"))[..., ::-1]
    assert np.array_equal(frames[52], reference) and time_steps(53) == 14
    assert report["left_out_by_reason"]["missing"] == 8255 and report["vocabulary"] == 1115
    assert report["other_frame_counts"] == [{"id": "25October_2010_Monday_tagesschau-17", "set": "test",
                                             "annotated": 181, "found": 2}]


def test_the_real_phoenix_2014_without_frames(real, capsys):
    with pytest.raises(Mistake, match="no frames in"):
        preprocess.main(["-as", "phoenix2014", "--workers", "0"])
    preprocess.main(["-as", "phoenix2014", "--no_frames", "--workers", "0", "-ve"])
    said = capsys.readouterr().out
    lost = "13April_2011_Wednesday_tagesschau_default-14"
    assert f"left out: {lost} (train): too few frames for its glosses: 16 frames for 16 glosses that need 17" in said
    assert f"not in npy: train/{lost}" in said and "one number: <mask> = REGEN" in said
    parts = {part: load_sentences(real, "phoenix2014", part) for part in paths.SETS}
    assert {part: len(found) for part, found in parts.items()} == {"train": 5671, "val": 540, "test": 629}
    assert sum(len(s.gloss) for s in parts["val"]) == 5540 and sum(len(s.gloss) for s in parts["test"]) == 6504
    assert sum(s.num_frames for s in parts["train"]) == 798990
    vocabulary = load_vocabulary(real, "phoenix2014")
    assert len(vocabulary) == 1296 and vocabulary[:3] == ["<blank>", "A", "AACHEN"] and vocabulary[1295] == "qu-STEIGEN"
    assert sum(s.reference is not None for s in parts["train"]) == 4582 and not any(s.reference for s in parts["test"])
