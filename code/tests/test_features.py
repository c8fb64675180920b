"""Features on the disk: names, files, the index, and reading them back, ours and SLRT's."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slr.datasets import features
from slr.datasets.features import FORMATS, Shelf, file_name, from_bytes, read_features, read_index, to_bytes
from slr.datasets.sentences import Frames, Sentence
from slr.errors import Mistake

SENTENCES = [Sentence(name, "val", ("A",), 8 + i, Frames("folder", f"place/{i}", "%04d.png"), root=Path("/data/frames"))
             for i, name in enumerate(["a", "dev/b 1", "../ü"])]
DATA = Path("/data")
CODE = Path(__file__).resolve().parents[1]


def array(seed: int, steps: int = 3, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random((steps, width), np.float32)


def shelf_of(folder: Path, form: str = "safetensors", name: str = "head_rgb_input", tag: str = "0123") -> Shelf:
    return Shelf.open(folder / tag, "val", {"hash": tag, "names": [name], "format": form}, DATA)


def filled(folder: Path, form: str = "safetensors", name: str = "head_rgb_input", tag: str = "0123",
           width: int = 4) -> Shelf:
    shelf = shelf_of(folder, form, name, tag)
    for number, sentence in enumerate(SENTENCES):
        shelf.add(sentence, {name: array(number, number + 2, width)}, sentence.num_frames)
    shelf.save(SENTENCES)
    return shelf


# --- files --------------------------------------------------------------------------------------------------

@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True), st.sampled_from(FORMATS))
def test_ids_become_names_that_stay_in_their_folder(ids, form):
    names = [file_name(name, form) for name in ids]
    assert names[0] != names[1]
    for name in names:
        assert name.isascii() and "/" not in name and not name.startswith(".") and len(name) < 200


def test_plain_ids_stay_what_they_are():
    assert file_name("01April_2010_Thursday_heute_default-0", "npz") == "01April_2010_Thursday_heute_default-0.npz"
    assert file_name("train/a", "npz") == "train%2Fa.npz" and file_name("..", "npz") == "%2E..npz"
    long = [file_name("ü" * 300 + end, "npz") for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 160


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_back_what_it_took(form):
    arrays, about = {"head_rgb_input": array(1), "logits": array(2, 3, 7)}, {"id": "ü/1", "frames": 9, "b": 1}
    data = to_bytes(arrays, about, form)
    assert data == to_bytes(arrays, about, form)
    found, told = from_bytes(data, form, Path("x"))
    assert told == about and set(found) == set(arrays)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_are_none_are_named(form):
    whole = to_bytes({"logits": array(1)}, {}, form)
    bad = [b"", b"x", whole[:-1], whole[:40], pickle.dumps([1]), b"\xff" + whole[1:],
           to_bytes({"logits": array(1).astype(np.float64)}, {}, form), to_bytes({}, {}, form),
           to_bytes({"a": array(1), "b": array(1, 2)}, {}, form), to_bytes({"a": array(1)}, [], form)]
    for data in bad:
        with pytest.raises(Mistake, match="some/file holds no features"):
            from_bytes(data, form, Path("some/file"))


def test_an_npz_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", about=np.array("{}"), logits=np.array([print], dtype=object))
    with pytest.raises(Mistake, match="holds no features: Object arrays cannot be loaded"):
        from_bytes((tmp_path / "a.npz").read_bytes(), "npz", tmp_path / "a.npz")


# --- one set ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", FORMATS)
def test_a_shelf_knows_what_it_has(tmp_path, form):
    shelf = filled(tmp_path, form)
    again = shelf_of(tmp_path, form)
    assert all(again.has(sentence) for sentence in SENTENCES) and again.items == shelf.items
    entry = again.items["../ü"]
    assert (entry["frames"], entry["steps"], entry["file"]) == (10, 4, f"val/%2E.%2F%C3%BC.{form}")
    before = again.index.stat()
    again.save(SENTENCES)
    assert again.index.stat().st_mtime_ns == before.st_mtime_ns
    elsewhere = Frames("folder", "elsewhere", "%d.png")
    assert not again.has(replace(SENTENCES[0], frames=elsewhere))
    assert not again.has(replace(SENTENCES[0], num_frames=99))
    again.file("dev/b 1").write_bytes(again.file("a").read_bytes())
    again.file("a").unlink()
    assert [again.has(sentence) for sentence in SENTENCES] == [False, False, True]


def test_without_an_index_the_files_speak(tmp_path):
    shelf = filled(tmp_path)
    shelf.index.unlink()
    shelf.file("a").write_bytes(b"half")
    os.replace(shelf.file("../ü"), shelf.file("dev/b 1"))  # another sentence's
    again = shelf_of(tmp_path)
    assert not any(again.has(sentence) for sentence in SENTENCES)
    again.add(SENTENCES[0], {"head_rgb_input": array(0, 2)}, 8)
    third = shelf_of(tmp_path)
    assert third.has(SENTENCES[0]) and third.items["a"] == shelf.items["a"]
    assert not shelf_of(tmp_path, tag="0123", name="logits").has(SENTENCES[0])


def test_what_is_left_out_comes_back(tmp_path):
    shelf = shelf_of(tmp_path)
    shelf.add(SENTENCES[0], {"head_rgb_input": array(0)}, 8)
    shelf.save(SENTENCES)
    assert not read_index(shelf.index)["complete"]
    for sentence in SENTENCES[1:]:
        shelf.leave_out(sentence.id, "no frames")
    shelf.save(SENTENCES)
    index = read_index(shelf.index)
    assert index["complete"] and list(index["items"]) == ["a"] and list(index["left_out"]) == ["dev/b 1", "../ü"]
    assert list(read_features(tmp_path, "val")) == ["a"]
    again = shelf_of(tmp_path)
    again.add(SENTENCES[2], {"head_rgb_input": array(2)}, 8)
    again.save(SENTENCES)
    assert list(read_features(tmp_path, "val")) == ["a", "../ü"]


HOLD = """
import sys, time
from pathlib import Path
from slr.datasets.features import Shelf
with Shelf(Path(sys.argv[1]), "val", {}, Path()).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_a_set(tmp_path):
    """And a kill ends its claim."""
    shelf = shelf_of(tmp_path)
    words = [sys.executable, "-c", HOLD, str(shelf.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(CODE)}) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(Mistake, match="another process writes the features of the val set"), shelf.held():
            pass
        other.kill()
    (shelf.folder / "val" / ".a.safetensors.7").write_text("half")
    with shelf.held():
        assert not list((shelf.folder / "val").iterdir())


def test_no_place_to_write(tmp_path):
    (tmp_path / "0123").write_text("a file")
    with pytest.raises(Mistake, match="nothing can be written to"), shelf_of(tmp_path).held():
        pass


# --- reading them back --------------------------------------------------------------------------------------

def test_a_run_gives_its_features(tmp_path, monkeypatch):
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    run = tmp_path / "runs" / "phoenix2014t" / "S3D_CTC_001"
    filled(run / "features")
    filled(run / "features", "npz", "gloss_feature", "4567", 6)
    for where in (run, run / "features", run / "features" / "0123", "S3D_CTC/phoenix2014t/1"):
        found = read_features(where, "val")
        assert list(found) == ["a", "dev/b 1", "../ü"]
        for number, value in enumerate(found.values()):
            assert value.dtype == torch.float32 and np.array_equal(value.numpy(), array(number, number + 2))
    assert read_features(run, "val", "gloss_feature")["a"].shape == (2, 6)


def refused(said: str, where: Path | str, part: str = "val", name: str = "head_rgb_input") -> None:
    with pytest.raises(Mistake, match=said):
        read_features(where, part, name)


def test_what_cannot_be_told_is_asked(tmp_path):
    refused("there is no folder of features", tmp_path / "none")
    refused("there is no head_rgb_input of the val set in .*: no features at all", tmp_path)
    shelf = filled(tmp_path)
    refused("there is no logits of the val set in .*: 0123: head_rgb_input", tmp_path, name="logits")
    refused("there is no head_rgb_input of the train set", tmp_path, "train")
    filled(tmp_path, tag="4567")
    refused("there are several features of the val set in .*: 0123, 4567", tmp_path)
    shelf.file("a").write_bytes(b"")
    refused("a.safetensors is damaged: its SHA-256", shelf.folder)
    shelf.file("a").unlink()
    refused("cannot read .*a.safetensors", shelf.folder)
    for text in ("", "[]", "{}", json.dumps({**read_index(shelf.index), "items": {"a": {"sha256": 1}}})):
        shelf.index.write_text(text)
        refused("val.json is no index of features", shelf.folder)


def test_widths_belong_together(tmp_path):
    shelf = filled(tmp_path)
    shelf.add(SENTENCES[0], {"head_rgb_input": array(0, 2, 5)}, 8)
    shelf.save(SENTENCES)
    refused(r"do not belong together: widths \[4, 5\]", tmp_path)


def test_slrt_pickles(tmp_path):
    folder = tmp_path / "head_rgb_input"
    folder.mkdir()
    values = torch.randn(2, 14, 832)
    rows = [{"name": f"dev/{name}", "gloss": "A", "text": "a .", "num_frames": 53, "sign": values[i]}
            for i, name in enumerate("ab")]
    (folder / "dev.pkl").write_bytes(gzip.compress(pickle.dumps(rows)))
    found = read_features(folder, "val")
    assert list(found) == ["a", "b"] and torch.equal(found["b"], values[1])
    refused("holds no logits: SLRT's pickles hold one array each", folder, name="logits")
    refused("no features at all", folder, "test")
    (folder / "dev.pkl").write_bytes(gzip.compress(pickle.dumps([print])))
    refused("it names builtins.print", folder)


def test_torch_is_not_imported():
    """Scripts explain themselves without it."""
    assert "torch" not in vars(features)
