"""Chains of the que: `--extract`, the stage after testing, and `--init_from parents`; a real daemon, real workers."""

import json

import pytest
from que_project import Project, make_home, script, weights_after

from que import commands


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def night(tmp_path, home):
    project = Project(tmp_path, home)
    yield project
    project.close()
    assert not list(project.runs.rglob("TWICE")), project.said()


def causes(job) -> list[str]:
    return [f"{attempt['stage']} {attempt['cause']}" for attempt in job.attempts]


def features(night: Project, number: int = 1) -> list[list[str]]:
    """(Sentence, pid of who extracted it), in order."""
    file = night.run(number) / "features.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def done(job, night: Project) -> None:
    """Filed once, trained once, every sentence extracted once."""
    assert job.state == "old_runs" and job.stage == "extract", night.said()
    assert night.state(int(job.exp_no))["weights"] == weights_after(3)
    assert [number for number, _ in features(night, int(job.exp_no))] == ["0", "1", "2"]
    assert len(list(night.store.folder.glob(f"*/{job.id}.json"))) == 1
    assert not job.claim and not job.request and all("ended" in attempt for attempt in job.attempts)


@pytest.mark.parametrize(("words", "stages", "reason"), [
    (["--extract"], ["train trained", "test tested", "extract done"], "trained, tested and extracted"),
    (["--extract", "--no_test"], ["train trained", "extract done"], "trained and extracted")])
def test_stages_in_order(night, words, stages, reason):
    """By the job's own snapshot, with the device that training had."""
    night.que("create", "S3D", "demo", "1", "--device", "cpu", *words)
    night.daemon()
    job = night.ended("j1")
    done(job, night)
    assert causes(job) == stages and job.reason == reason and job.last["epochs"] == 3
    assert (night.run() / "results.json").exists() == ("--no_test" not in words)
    assert commands.read_json(night.run() / "features.json")["args"] == {
        "model": "S3D", "split": "demo", "exp_no": "1", "device": "cpu", "batch_size": None}
    times = [time for attempt in job.attempts for time in (attempt["started"], attempt["ended"])]
    assert times == sorted(times)


def test_code_as_it_was(tmp_path, night):
    night.home = make_home(tmp_path / "home")
    night.que("create", "S3D", "demo", "1", "--extract")
    script(night.home, "extract_features", version="2")
    night.daemon()
    done(night.ended("j1"), night)
    assert commands.read_json(night.run() / "features.json")["version"] == "1"


@pytest.mark.parametrize("whom", ["extraction", "worker", "everybody"])
def test_killed_extraction_goes_on(night, whom):
    """What is there is not extracted again, and nothing is trained or tested twice."""
    job = night.job(stay=True, job={"extract": True})
    night.daemon()
    night.until(lambda: len(features(night)) == 2)
    victims = {"extraction": night.processes("extract_features.py"), "worker": [night.store.find(job).claim["pid"]],
               "everybody": night.processes()}[whom]
    night.kill(*victims)
    if whom == "everybody":
        assert night.store.find(job).state == "cur_run"
        night.daemon()
    night.until(lambda: len(night.store.find(job).attempts) == 4)
    (night.run() / "on").touch()
    ended = night.ended(job)
    done(ended, night)
    first = "crashes" if whom == "extraction" else "interrupts"
    assert causes(ended) == ["train trained", "test tested", f"extract {first}", "extract done"]
    assert len({pid for _, pid in features(night)}) == 2 and " -r" not in night.said().partition("extract, att")[2]


def test_paused_extraction_goes_on(night):
    job = night.job(stay=True, job={"extract": True})
    night.daemon()
    night.until(lambda: len(features(night)) == 2)
    assert "extracting" in night.que("list", "cur")
    night.que("pause", job, "--wait")
    paused = night.store.find(job)
    assert (paused.state, paused.stage, paused.recover) == ("held", "extract", False)
    (night.run() / "on").touch()
    night.que("resume", job)
    ended = night.until(lambda: night.resting(job, "old_runs"))
    done(ended, night)
    assert causes(ended) == ["train trained", "test tested", "extract pause", "extract done"] and not ended.tries


def test_its_worker_dies_between_two_stages(night):
    job = night.job(test_time=0.5, job={"extract": True})
    night.daemon()
    night.until(lambda: night.processes("testing.py"))
    night.kill(night.store.find(job).claim["pid"])
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended) == ["train trained", "test interrupts", "test tested", "extract done"]


def test_an_extraction_that_fails(night):
    """At once, with its words; who waits for the features waits on, and `recover` extracts, no more than that."""
    job = night.job(extract=2, job={"extract": True})
    night.que("create", "S3D", "demo", "2", "--after", job)
    night.daemon()
    failed = night.ended(job)
    assert (failed.state, failed.stage) == ("fail_runs", "extract")
    assert failed.reason == "error: 1 of 3 sentences is left out: b (no frames)"
    assert causes(failed) == ["train trained", "test tested", "extract hopeless"]
    rows = {row["id"]: row for row in json.loads(night.que("list", "--json"))["jobs"]}
    assert rows["j2"]["reason"] == "j1 failed: recover it, or remove this one" and rows["j1"]["stage"] == "extract"
    ini = night.run() / "config.ini"
    ini.write_text(ini.read_text().replace("extract = 2", "extract = 0"))
    night.que("recover", job)
    ended = night.until(lambda: night.resting(job, "old_runs"))
    done(ended, night)
    assert causes(ended)[3:] == ["extract done"]
    night.until(lambda: night.resting("j2", "old_runs"))


def test_an_extraction_without_memory(night):
    """Its batch is halved until it fits; the job's settings of training stay."""
    job = night.job(holds=2, job={"extract": True})
    night.daemon()
    ended = night.ended(job)
    done(ended, night)
    assert causes(ended)[2:] == ["extract ooms", "extract ooms", "extract done"]
    assert [attempt["batch_size"] for attempt in ended.attempts[2:]] == [8, 4, 2]
    assert (ended.extract_batch, ended.changes, ended.tries) == (2, {}, {"ooms": 2})
    assert commands.read_json(night.run() / "features.json")["args"]["batch_size"] == 2


def test_a_chain_of_four(night):
    """Features are there before the job that waits for them starts; it starts from both of its parents."""
    night.settings(slots=3)
    for words in (["1", "--extract"], ["2"], ["3", "--after", "j1,j2", "--init_from", "parents"],
                  ["4", "--after", "j1,j2", "--init_from", "parent"]):
        night.que("create", "S3D", "demo", *words, *(["--set", "play.sentence=0.2"] if words[0] == "1" else []),
                  *(["--set", "training.max_epoch=2"] if words[0] == "2" else []))
    night.daemon()
    first, second, both, last = night.ended("j1", "j2", "j3", "j4")
    done(first, night)
    assert [job.state for job in (second, both, last)] == ["old_runs"] * 3, night.said()
    assert first.attempts[-1]["ended"] <= min(job.attempts[0]["started"] for job in (both, last))
    assert night.state(3)["weights"] == weights_after(3, weights=weights_after(3) + weights_after(2))
    assert night.state(4)["weights"] == weights_after(3, weights=weights_after(2))
