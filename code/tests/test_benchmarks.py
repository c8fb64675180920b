"""The benchmarks run and print ratios, at settings so small that the figures mean nothing; none is asserted."""

import json
import re
import subprocess
import sys

import pytest

from slr.paths import ROOT

LITTLE = ("--repeats", "1", "--threads", "1", "--clips", "2")


def run(tmp_path, script: str, *words: str) -> tuple[str, dict]:
    """Its output, and what it wrote with --json. Started elsewhere than in the project."""
    command = [sys.executable, str(ROOT / "code" / "benchmarks" / script), *LITTLE, *words, "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "out.json").read_text())


def ratios(printed: str) -> list[float]:
    return [float(found) for found in re.findall(r"([\d.]+) x  \(rounds", printed)]


SMALL_CLIPS = ("--frames", "8", "--size", "56", "--batch", "2")


@pytest.mark.slow
def test_loader(tmp_path):
    printed, written = run(tmp_path, "loader.py", *SMALL_CLIPS, "--length", "10", "--data", "drawn")
    assert len(ratios(printed)) == 11  # three stores alone, the transform twice, three stores together, twice
    assert all(ratio > 0 for ratio in ratios(printed))
    rows = written["results"]["drawn"]
    assert {(row["part"], row["way"]) for row in rows if row["floor"]} == {("together", "jpeg"), ("together", "raw")}
    assert written["machine"]["threads"] == 1 and written["settings"]["frames"] == "8"
    assert all(row["items_per_s"] > 0 and len(row["seconds"]) == 1 for row in rows)


@pytest.mark.slow
def test_loader_on_real_clips(tmp_path, shared):
    printed, written = run(tmp_path, "loader.py", *SMALL_CLIPS, "--data", "small")
    assert len(ratios(printed)) == 11 and len(written["results"]["small"]) == 14


def test_loader_without_real_clips(tmp_path):
    printed, written = run(tmp_path, "loader.py", *SMALL_CLIPS, "--data", "real", "--real", str(tmp_path))
    assert "skipped" in printed and written["results"] == {}


@pytest.mark.slow
def test_train_step(tmp_path):
    printed, written = run(tmp_path, "train_step.py", "--frames", "8", "--size", "32", "--batch", "2", "--wait",
                           "--workers", "0")
    assert len(ratios(printed)) == 3 and "waiting for the loader" in printed
    floors = {row["way"]: row["floor"] for row in written["results"]["S3D"]}
    assert floors == {"old": None, "ours": 1.25, "ours, bf16": 3.0, "ours, fp32": None}
    assert 0 <= written["wait"]["S3D"]["share"] < 1


@pytest.mark.slow
def test_transcription(tmp_path):
    command = [sys.executable, str(ROOT / "code" / "benchmarks" / "transcription.py"), "--repeats", "1", "--threads",
               "1", "--frames", "4", "--size", "28", "--width", "16", "--layers", "1", "--heads", "2", "--words", "4",
               "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(ratios(done.stdout)) == 2 and all(ratio > 0 for ratio in ratios(done.stdout))
    rows = json.loads((tmp_path / "out.json").read_text())["results"]["transcription"]
    assert [row["way"] for row in rows] == ["anew", "kept", "whole sentence", "kept keys"]


@pytest.mark.parametrize(("words", "found"), [(["--models", "S3E"], "Did you mean S3D"), (["--clock", "sun"], "wall")])
def test_mistakes(tmp_path, words, found):
    command = [sys.executable, str(ROOT / "code" / "benchmarks" / "train_step.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and found in done.stderr and "Traceback" not in done.stderr


def test_the_nearest_training_clip_names_itself(little, capsys, monkeypatch):
    from benchmarks import nearest

    clips = nearest.wlasl.load_clips
    monkeypatch.setattr(nearest.wlasl, "load_clips", lambda root, split, part: clips(root, split, "train"))
    assert nearest.main(["little", "--frames", "4", "--size", "8"]) == 0
    assert "top-1 100.0 %" in capsys.readouterr().out
