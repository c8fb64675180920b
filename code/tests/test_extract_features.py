"""extract_features.py on a tiny split: whatever stops it, the same files come out; and who shares a folder."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import extract_features
import numpy as np
import pytest
import torch
from children import Child, script
from test_continuous import INI, SPLIT, data, place, rewritten  # noqa: F401

from slr import checkpoint, errors
from slr.config import parse_config
from slr.datasets import features, sentences
from slr.datasets.features import read_features, read_index
from slr.datasets.sentences import Frames
from slr.errors import Mistake
from slr.loading import Key
from slr.models import mamba
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task

RUN = ("S3D_CTC", SPLIT, "1", "--device", "cpu")
COUNTS = {"train": 6, "val": 3, "test": 3}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def content(data) -> dict[str, Any]:  # noqa: F811
    """A checkpoint of S3D_CTC as it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLR_DATA", str(data))
        config = parse_config(INI, Experiment("S3D_CTC", SPLIT, "1"), {"data.frame_stride": "8"})
        task = build_task(config, Runtime.start("cpu", 3))
        return {"model": "S3D_CTC", "task": "continuous", "meta": task.meta(), "config": config.as_dict(), "epoch": 1,
                "metrics": {}, "model_state_dict": task.model.state_dict()}


@pytest.fixture
def run(place, content) -> Path:  # noqa: F811
    """The run folder of that checkpoint."""
    folder = Experiment("S3D_CTC", SPLIT, "1").run
    checkpoint.save(folder / "checkpoints" / "best.pth", content)
    return folder


def extract(*words: str) -> int:
    return extract_features.main([*RUN, *words])


def folder_of(out: Path) -> Path:
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


# --- what is written ----------------------------------------------------------------------------------------

def test_every_sentence_gets_what_the_model_sees(run, data, tmp_path, capsys):  # noqa: F811
    def cut(found):  # training leaves both out
        return [sentences.replace(found[0], gloss=()), sentences.replace(found[1], num_frames=2), *found[2:]]

    rewritten(data, tmp_path / "data", "train", cut)
    os.environ["SLR_DATA"] = str(tmp_path / "data")  # the fixture puts it back
    assert extract("--name", "logits", "head_rgb_input", "gloss_feature", "--batch_size", "4") == 0
    said = capsys.readouterr().out
    assert "train: 6 sentences: 6 extracted, 0 were there, 0 left out" in said and "12 sentences in " in said
    trained = extract_features.find_trained("S3D_CTC", SPLIT, "1", None)
    task, _ = extract_features.rebuild(trained, "cpu", 1)
    task.model.eval()
    for part, count in COUNTS.items():
        found = {name: read_features(run, part, name) for name in features.NAMES}
        whole = sentences.load_sentences(tmp_path / "data", SPLIT, part)
        index = read_index(folder_of(run / "features") / f"{part}.json")
        assert len(whole) == count and index["complete"]
        dataset = task.dataset(whole, train=False)
        for number, sentence in enumerate(whole):
            item = dataset[Key(0, number)]
            entry = index["items"][sentence.id]
            assert entry["frames"] == len(item["indices"]) and entry["steps"] == -(-entry["frames"] // 4)
            one = task.prepare(extract_features.gathered([item]), train=False)
            with torch.no_grad():
                seen, steps = task.model.features(one["inputs"], one["lengths"])
                logits, _ = task.model(one["inputs"], one["lengths"])
            torch.testing.assert_close(found["head_rgb_input"][sentence.id], seen[0], **CLOSE)
            torch.testing.assert_close(found["logits"][sentence.id], logits[0], **CLOSE)
            assert found["gloss_feature"][sentence.id].shape == (int(steps), 512) and seen.shape[2] == 832


def test_batches_and_workers_change_nothing(run, tmp_path):
    outs = []
    for number, words in enumerate((("--batch_size", "1"), ("--batch_size", "5", "--set", "data.workers=1"))):
        outs.append(tmp_path / str(number))
        assert extract("--out", str(outs[-1]), "--sets", "train", *words) == 0
    a, b = (read_features(out, "train") for out in outs)
    assert list(a) == list(b) and folder_of(outs[0]).name == folder_of(outs[1]).name
    for name in a:
        torch.testing.assert_close(a[name], b[name], **CLOSE)


def test_npz(run, tmp_path):
    assert extract("--out", str(tmp_path / "npz"), "--sets", "val", "--format", "npz") == 0
    first = next(folder_of(tmp_path / "npz").glob("val/*.npz"))
    with np.load(first) as file:
        assert file["head_rgb_input"].shape[1] == 832


# --- stopped and started again ------------------------------------------------------------------------------

def test_finished_it_does_nothing(run, monkeypatch, capsys):
    assert extract("--sets", "val", "test") == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(extract_features, "rebuild", None)  # there is no model to build
    assert extract("--sets", "val", "test") == 0
    assert "nothing to do: all 6 sentences are in" in capsys.readouterr().out
    assert extract("--sets", "val", "test", "--check") == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.fixture
def one_thread():
    """As a Child has: with another number of threads a convolution rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_it_goes_on(run, tmp_path, capsys, number, one_thread):
    words = ("--batch_size", "1", "--sets", "train", "test")
    env = {name: os.environ[name] for name in ("SLR_DATA", "SLR_RUNS")}
    child = Child(script, "extract_features", *RUN, *words, log=tmp_path / "log", **env)
    code = child.signal_when(lambda: len(list(run.glob("features/*/train/*.safetensors"))) >= 2, number)
    assert code == (errors.INTERRUPTED if number == signal.SIGINT else -number), child.said()
    there = files(run / "features")
    kept = len([name for name in there if name.endswith(".safetensors") and not name.split("/")[2].startswith(".")])
    assert 2 <= kept < 9
    with pytest.raises(Mistake, match=f"the features of {9 - kept} sentences are not right"):
        extract(*words, "--check")
    capsys.readouterr()
    assert extract(*words, "--list") == 0 and "(not complete)" in capsys.readouterr().out
    assert extract(*words) == 0
    assert f"{9 - kept} extracted, {kept} were there, 0 left out" in capsys.readouterr().out
    assert extract(*words, "--out", str(tmp_path / "whole")) == 0
    assert files(run / "features") == files(tmp_path / "whole")


def test_damaged_files_are_written_anew(run, capsys):
    assert extract("--sets", "test") == 0
    before = files(run / "features")
    first, second, _ = sorted(run.glob("features/*/test/*"))
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    second.unlink()
    with pytest.raises(Mistake, match=r"of 2 sentences are not right: \S+ \(damaged .+\), \S+ \(missing\)"):
        extract("--sets", "test", "--check")
    assert extract("--sets", "test", "--batch_size", "1") == 0
    assert "2 extracted, 1 were there" in capsys.readouterr().out and files(run / "features").keys() == before.keys()


def test_missing_frames_are_named_and_the_others_written(run, data, tmp_path, monkeypatch, capsys):  # noqa: F811
    def lose(found):
        return [found[0], sentences.replace(found[1], frames=Frames("video", "gone.mp4")),
                sentences.replace(found[2], frames=None)]

    rewritten(data, tmp_path / "data", "val", lose)
    monkeypatch.setenv("SLR_DATA", str(tmp_path / "data"))
    with pytest.raises(Mistake, match="2 of 6 sentences are left out: .*gone.mp4.*has no frames") as caught:
        extract("--sets", "val", "test")
    assert caught.value.code == 2
    assert "val: 3 sentences: 1 extracted, 0 were there, 2 left out" in capsys.readouterr().out
    index = read_index(folder_of(run / "features") / "val.json")
    assert index["complete"] and len(index["items"]) == 1 and len(index["left_out"]) == 2
    assert len(read_features(run, "val")) == 1 and len(read_features(run, "test")) == 3
    rewritten(data, tmp_path / "data", "val", lambda found: found)
    assert extract("--sets", "val", "test") == 0
    assert "2 extracted, 4 were there, 0 left out" in capsys.readouterr().out and len(read_features(run, "val")) == 3


# --- the hash -----------------------------------------------------------------------------------------------

def the_hash(content: dict[str, Any], place: Path, *words: str) -> str:  # noqa: F811
    file = place / "some.pth"
    checkpoint.save(file, content)
    args = extract_features.parse_arguments(["--checkpoint", str(file), *words])
    return extract_features.facts_of(extract_features.find_subject(args), args.names, args.format)["hash"]


def test_what_the_hash_is_of(content, place):  # noqa: F811
    first = the_hash(content, place)
    assert len(first) == 16
    for words in (("--batch_size", "3"), ("--set", "data.workers=2"), ("--set", "data.jitter_p=0"),
                  ("--device", "cuda"), ("--sets", "val"), ("--set", "training.precision=fp32")):
        assert the_hash(content, place, *words) == first, words
    assert the_hash({**content, "epoch": 9, "metrics": {"val": {"loss": 1.0}}}, place) == first
    weights = {name: value.clone() for name, value in content["model_state_dict"].items()}
    weights["classifier.gloss.bias"][0] += 1e-3
    others = [the_hash({**content, "model_state_dict": weights}, place)]
    for words in (("--set", "data.frame_size=48"), ("--set", "data.frame_stride=1"), ("--set", "data.num_frames=40"),
                  ("--set", "data.eval_resize=1.2"), ("--set", "data.subtract_clip_mean=False"),
                  ("--name", "logits"), ("--format", "npz"), ("--set", "training.precision=bf16")):
        others.append(the_hash(content, place, *words))
    assert len({first, *others}) == 1 + len(others)


def test_the_manifest_says_what_the_hash_is_of(run):
    assert extract("--sets", "val", "--name", "logits") == 0
    index = json.loads((folder_of(run / "features") / "val.json").read_text())
    assert index["of"]["settings"]["data.frame_size"] == 32 and index["of"]["settings"]["data.frame_stride"] == 8
    assert index["checkpoint"].endswith("best.pth") and index["names"] == ["logits"]
    assert index["classes"][0] == "<blank>" and len(index["classes"]) > 2


# --- other models, and mistakes -----------------------------------------------------------------------------

def test_mamba_has_features_too():
    model = mamba.build(5, dim=16, depth=2, headdim=8, spatial_state=2, temporal_state=4, attn_layers=(1,),
                        attn_heads=2, stem_depth=1, downsample=(1,), padded=True).eval()
    clips, lengths = torch.randn(2, 3, 7, 16, 16), torch.tensor([7, 4])
    with torch.no_grad():
        found, steps = model.features(clips, lengths)
        logits, same = model(clips, lengths)
        alone, _ = model.features(clips[1:, :, :4], lengths[1:])
    assert found.shape == (2, 4, 32) and steps.tolist() == same.tolist() == [4, 2]
    torch.testing.assert_close(model.classifier(found)[0], logits[0])
    torch.testing.assert_close(found[1, :2], alone[0], **CLOSE)
    assert not found[1, 2:].any() and not hasattr(model.classifier, "gloss_features")


def test_mistakes_are_said(run, content, place, tmp_path, monkeypatch):  # noqa: F811
    ini = INI.replace("'continuous'", "'isolated'").replace("frame_stride = 2", "").partition("[decoding]")[0]
    config = parse_config(ini, Experiment("S3D", "little", "1"))
    checkpoint.save(tmp_path / "s.pth", {**content, "model": "S3D", "config": config.as_dict()})
    with pytest.raises(Mistake, match="only models of sentences have features over time: S3D"):
        extract_features.main(["--checkpoint", str(tmp_path / "s.pth")])
    with pytest.raises(Mistake, match="which experiment"):
        extract_features.main([])
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="nothing can be written to"):
        extract("--sets", "val", "--out", str(tmp_path / "file"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Mistake, match="features are extracted by one process"):
        extract()


def test_features_that_are_not_finite_are_left_out(run, content):
    state = {name: value.clone() for name, value in content["model_state_dict"].items()}
    state["backbone.features.0.0.0.weight"][:] = float("nan")
    checkpoint.save(run / "checkpoints" / "best.pth", {**content, "model_state_dict": state})
    with pytest.raises(Mistake, match="3 of 3 sentences are left out: .*its features are not finite"):
        extract("--sets", "val")
