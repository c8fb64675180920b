"""Clips with words to them in both forms, prepared sentences and long videos; what a frozen net has seen of them."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import little_footage
import numpy as np
import pytest
from little_videos import level, write_video

from slr import paths
from slr.datasets import bundestag, footage, sentences
from slr.datasets.bundestag import METADATA
from slr.datasets.features import from_bytes
from slr.datasets.footage import SeenCache
from slr.datasets.sentence_clips import SeenDataset, SentenceDataset
from slr.datasets.sentences import Frames, Sentence
from slr.errors import Mistake
from slr.loading import Key
from slr.video import VideoError, read_frames

HEADER = "VideoID,SubtitleLine,StartFrame,EndFrame\n"
MADE = {"eye": "a hash", "frame_size": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with the prepared split `words` and the long videos `talks`; `talks` has one that is missing."""
    root = tmp_path_factory.mktemp("footage")
    little_footage.prepare(root, "words")
    folder = little_footage.write_long(root, "talks", videos=5)
    with (folder / METADATA).open("a") as table:
        table.write("gone,RAIN,0,3\nv1,SUN,90,5000\n")
    return root


# --- two forms of the same ----------------------------------------------------------------------------------

def test_prepared_sentences_are_those_of_preprocess(root):
    for part, texts in little_footage.SAID.items():
        found = footage.load(root, "words", part)
        assert found == sentences.load_sentences(root, "words", part)
        assert [" ".join(sentence.gloss) for sentence in found] == list(texts)
    assert not footage.has_subtitles(root, "words") and footage.left_out(root, "words") == {}
    assert footage.data_hash(root, "words") == sentences.data_hash(root, "words")


def test_subtitles_are_sentences_of_their_words(root):
    sets = {part: footage.load(root, "talks", part) for part in paths.SETS}
    assert footage.has_subtitles(root, "talks") and {part: len(own) for part, own in sets.items()} == {
        "train": 12, "val": 4, "test": 4}
    for part, found in sets.items():
        for sentence in found:
            video, _, span = sentence.id.partition("/")
            start, end = map(int, span.split("-"))
            assert sentence.set == part and sentence.signer == video and sentence.gloss == tuple(sentence.text.split())
            assert sentence.frames == Frames("video", f"videos/{video}.mp4", first=start)
            assert sentence.num_frames == end - start + 1 and sentence.reference is None
            assert sentence.path == paths.bundestag(root, "talks") / "videos" / f"{video}.mp4"
    of = [{sentence.signer for sentence in found} for found in sets.values()]
    assert sum(map(len, of)) == len(set().union(*of)) == 5


def test_its_frames_are_those_of_the_video_from_its_start_on(root):
    for sentence in footage.load(root, "talks", "train")[3:6]:
        assert sentence.frames and sentence.frames.first > 0 or sentence.id.partition("/")[2].startswith("0-")
        wanted = np.array([0, 1, 1, sentence.num_frames - 1])
        whole = read_frames(sentence.path, sentence.frames.first + wanted)
        assert np.array_equal(sentences.read_frames(sentence, wanted), whole)
        for outside in (-1, sentence.num_frames):
            with pytest.raises(ValueError, match="has frames 0 to"):
                sentences.read_images(sentence, [outside])


def test_a_subtitle_shows_its_own_glosses(root):
    """The frames of the signs that are said, not those of the black ones between two sentences."""
    sentence = next(s for s in footage.load(root, "talks", "train") if s.gloss == ("RAIN", "SUN"))
    first, last = sentences.read_frames(sentence, [0, sentence.num_frames - 1]).astype(int)
    for frame, own, other in ((first, "RAIN", "SUN"), (last, "SUN", "RAIN")):
        off = [np.abs(frame - little_footage.pattern(gloss)).mean() for gloss in (own, other)]
        assert off[0] < 40 < off[1]


def test_what_is_left_out_is_named(root):
    found = footage.left_out(root, "talks")
    assert list(found) == ["gone/0-3", "v1/90-5000"]
    assert "gone.mp4 is missing" in found["gone/0-3"] and "none of number 5000" in found["v1/90-5000"]
    assert not {"gone/0-3", "v1/90-5000"} & {s.id for part in paths.SETS for s in footage.load(root, "talks", part)}


def test_other_words_have_another_hash(tmp_path):
    folder = little_footage.write_long(tmp_path, "talks", videos=3)
    before = footage.data_hash(tmp_path, "talks")
    assert footage.data_hash(tmp_path, "talks") == before
    text = (folder / METADATA).read_text()
    (folder / METADATA).write_text(text.replace("RAIN SUN", "RAIN WIND"))
    assert footage.data_hash(tmp_path, "talks") != before


def test_prepared_sentences_come_before_videos_of_that_name(tmp_path):
    little_footage.write_long(tmp_path, "both", videos=3)
    little_footage.prepare(tmp_path, "both")
    assert not footage.has_subtitles(tmp_path, "both")
    assert [s.id for s in footage.load(tmp_path, "both", "val")] == ["val-0", "val-1"]


def test_what_is_in_neither_form_is_named(tmp_path):
    with pytest.raises(Mistake, match="nowhere is not prepared"):
        footage.load(tmp_path, "nowhere", "train")
    folder = paths.bundestag(tmp_path, "talks")
    write_video(folder / "videos" / "a.mp4", 4)
    with pytest.raises(Mistake, match=r"cannot read .*metadata.csv"):
        footage.load(tmp_path, "talks", "train")
    (folder / METADATA).write_text(HEADER + "a,ja,0,3\n")
    with pytest.raises(Mistake, match="1 videos are too few for 3 sets"):
        footage.load(tmp_path, "talks", "train")


# --- as a data set ------------------------------------------------------------------------------------------

def talk(folder: Path, start: int, count: int) -> Sentence:
    """Frames start to start + count - 1 of a video in which frame i is of level i."""
    video = write_video(folder / "videos" / "a.mp4", 40)
    return Sentence(f"a/{start}-{start + count - 1}", "train", ("JA",), count,
                    Frames("video", f"videos/{video.name}", first=start), root=folder)


def test_whole_frames_are_stretched_in_evaluation(tmp_path):
    """Red on the left and blue on the right stay; stride before cut, from the subtitle's own first frame on."""
    data = SentenceDataset([talk(tmp_path, 5, 20)], {"JA": 4}, num_frames=4, frame_size=32, frame_stride=2)
    item = data[Key(0, 0)]
    assert item["frames"].shape == (4, 32, 32, 3) and item["frames"].dtype == np.uint8
    assert item["indices"].tolist() == [6, 8, 10, 12]  # the middle four of 0, 2, … 18
    assert [level(frame) for frame in item["frames"]] == [11, 13, 15, 17]
    frame = item["frames"][0]
    assert frame[:, :2, 0].min() > 150 and frame[:, -2:, 2].min() > 150 and frame[:, :2, 2].max() < 100
    assert (item["targets"], item["reference"], item["lengths"], item["epoch"]) == ([4], ["JA"], 4, 0)


def test_a_video_shorter_than_its_header_is_named(tmp_path, monkeypatch):
    for name in "abc":
        write_video(paths.bundestag(tmp_path, "short") / "videos" / f"{name}.mp4", 20)
    (paths.bundestag(tmp_path, "short") / METADATA).write_text(HEADER + "a,x,5,30\nb,x,5,30\nc,x,5,30\n")
    monkeypatch.setattr(bundestag, "header_frames", lambda file: 100)
    (late,) = footage.load(tmp_path, "short", "train")
    with pytest.raises(VideoError, match=r"\.mp4 is too short"):
        SentenceDataset([late], {}, num_frames=32, frame_size=16)[Key(0, 0)]


def test_what_was_seen_takes_the_place_of_frames(root):
    """The rows of the frames that an item looks at, in training the drawn ones."""
    found = footage.load(root, "words", "train")
    seen = {s.id: np.arange(s.num_frames, dtype=np.float32)[:, None] + np.array([0, 0.5], np.float32) for s in found}
    data = SeenDataset(found, {}, lambda s: seen[s.id], num_frames=8, frame_size=16, frame_stride=2, seed=1)
    frames = SentenceDataset(found, {}, num_frames=8, frame_size=16, frame_stride=2, seed=1)
    for i in range(len(found)):
        item, other = data[Key(3, i)], frames[Key(3, i)]
        assert "frames" not in item and item["features"].dtype == np.float32
        assert item["indices"].tolist() == other["indices"].tolist() == item["features"][:, 0].astype(int).tolist()
        assert all(item[name] == other[name] for name in ("ids", "set", "targets", "reference", "lengths", "epoch"))


# --- what was seen, on the disk -----------------------------------------------------------------------------

def some(sentence: Sentence, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(sentence.num_frames, 6)).astype(np.float32)


def test_the_cache_gives_back_what_it_was_given(root, tmp_path):
    found, cache = footage.load(root, "words", "train"), SeenCache(tmp_path, MADE, root)
    assert cache.missing(found) == found
    for number, sentence in enumerate(found):
        cache.add(sentence, some(sentence, number).astype(np.float64))
    assert cache.missing(found) == []
    again = SeenCache(tmp_path, dict(reversed(MADE.items())), root)
    assert again.missing(found) == []
    for number, sentence in enumerate(found):
        assert np.array_equal(again.read(sentence), some(sentence, number)) and again.read(sentence).dtype == np.float32
    assert sorted(path.name for path in (tmp_path / cache.hash / "train").iterdir()) == sorted(
        f"{s.id}.safetensors" for s in found)


def test_the_hash_is_of_what_it_was_made_with(root, tmp_path):
    hashes = {SeenCache(tmp_path, MADE | change, root).hash for change in
              ({}, {"eye": "another hash"}, {"frame_size": 32}, {"eval_resize": 1.0})}
    assert len(hashes) == 4
    sentence = footage.load(root, "words", "val")[0]
    SeenCache(tmp_path, MADE, root).add(sentence, some(sentence))
    assert SeenCache(tmp_path, MADE | {"frame_size": 32}, root).missing([sentence]) == [sentence]


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:9], lambda data: data[:-1], lambda data: data + b"\0",
    lambda data: b"\xff" * 40,
    lambda data: data.replace(b'"seen"', b'"sewn"'), lambda data: (3).to_bytes(8, "little") + b"[]\n",
    lambda data: data.replace(b"val-0", b"val-1"),
], ids=["empty", "header", "cut", "longer", "noise", "name", "list", "another's"])
def test_damaged_files_are_seen_anew(root, tmp_path, damage):
    sentence, cache = footage.load(root, "words", "val")[0], SeenCache(tmp_path, MADE, root)
    cache.add(sentence, some(sentence))
    file = cache.file(sentence)
    assert damage(file.read_bytes()) != file.read_bytes()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.missing([sentence]) == [sentence]
    cache.add(sentence, some(sentence))
    assert cache.missing([sentence]) == [] and np.array_equal(cache.read(sentence), some(sentence))


def test_other_frames_are_seen_anew(root, tmp_path):
    sentence, cache = footage.load(root, "talks", "val")[0], SeenCache(tmp_path, MADE, root)
    cache.add(sentence, some(sentence))
    frames = sentence.frames
    assert frames and cache.missing([sentence]) == []
    for other in (replace(sentence, num_frames=sentence.num_frames - 1),
                  replace(sentence, frames=replace(frames, first=frames.first + 1)),
                  replace(sentence, frames=replace(frames, place="videos/other.mp4"))):
        assert cache.missing([other]) == [other]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(root / "BUNDESTAG", elsewhere / "BUNDESTAG")  # with the times of its files
    moved, there = SeenCache(tmp_path, MADE, elsewhere), replace(sentence, root=elsewhere / "BUNDESTAG" / "talks")
    assert moved.missing([there]) == []
    os.utime(there.path, ns=(0, 1))
    assert moved.missing([there]) == [there]


def test_a_file_that_is_not_there_or_holds_something_else(root, tmp_path):
    sentence, cache = footage.load(root, "words", "val")[0], SeenCache(tmp_path, MADE, root)
    with pytest.raises(Mistake, match="cannot be read"):
        cache.read(sentence)
    cache.add(sentence, some(sentence))
    cache.file(sentence).write_bytes(b"nothing")
    with pytest.raises(Mistake, match="holds no features"):
        cache.read(sentence)
    place = tmp_path / "a file"
    place.write_text("")
    with pytest.raises(Mistake, match="cannot be written") as caught:
        SeenCache(place, MADE, root).add(sentence, some(sentence))
    assert "spatial.cache" in caught.value.do


def _fill(folder: Path, root: Path, names: int) -> None:
    cache = SeenCache(folder, MADE, root)
    for _ in range(8):
        for number, sentence in enumerate(footage.load(root, "words", "train")[:names]):
            cache.add(sentence, some(sentence, number))


def test_two_writers_of_one_cache(root, tmp_path):
    """At no moment is a file half there, and nothing is left aside."""
    others = [multiprocessing.get_context("fork").Process(target=_fill, args=(tmp_path, root, 3)) for _ in range(2)]
    for other in others:
        other.start()
    cache, found = SeenCache(tmp_path, MADE, root), footage.load(root, "words", "train")[:3]
    while any(other.is_alive() for other in others):
        for number, sentence in enumerate(found):
            if sentence not in cache.missing([sentence]):
                assert np.array_equal(cache.read(sentence), some(sentence, number))
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert cache.missing(found) == [] and len(list((cache.folder / "train").iterdir())) == 3
    arrays, about = from_bytes(cache.file(found[0]).read_bytes(), "safetensors", cache.file(found[0]))
    assert set(arrays) == {footage.ARRAY} and json.loads(json.dumps(about))["id"] == found[0].id
