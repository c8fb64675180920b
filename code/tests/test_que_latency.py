"""The benchmark of the que runs, prints and leaves nothing behind, with so few jobs that its figures mean nothing."""

import json
import shutil
import subprocess
import sys

import pytest

from que.commands import ROOT

SCRIPT = [sys.executable, str(ROOT / "code" / "benchmarks" / "que_latency.py")]
FIGURES = {"help", "real", "create", "list", "limit", "dispatch", "testing", "next", "daemon"}


def test_help():
    done = subprocess.run([*SCRIPT, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "task-spooler" in done.stdout


@pytest.mark.slow
def test_few_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run([*SCRIPT, "--jobs", "3", "--rounds", "1", "--json", "out.json"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["words"]) == FIGURES and all(f"\n  {name}: " in done.stdout for name in FIGURES)
    found = {name for name, jobs, side, value in written["rows"] if side == "que" and jobs == 3 and value > 0}
    assert found >= FIGURES - {"limit"}
    assert ("que / tsp" in done.stdout) == (shutil.which("tsp") is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert not subprocess.getoutput(f"grep -lsF {tmp_path}/que-latency /proc/[0-9]*/environ")
