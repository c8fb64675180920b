"""que/gpus.py with a made-up NVML: any number of GPUs, lost ones, a driver that comes and goes; and learned peaks."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from que import disk, gpus
from que.errors import Mistake, Storage
from que.job import Job

GIB = 1 << 30


class Nvml(ModuleType):
    """As much of pynvml as the que asks. `cards`: dicts; `fail_memory` in one is the error that the question raises."""

    ERRORS = ("Uninitialized", "LibraryNotFound", "DriverNotLoaded", "GpuIsLost", "NotSupported", "FunctionNotFound",
              "NoPermission", "LibRmVersionMismatch")

    def __init__(self):
        super().__init__("pynvml")
        self.NVMLError = type("NVMLError", (Exception,), {})
        for name in self.ERRORS:
            setattr(self, f"NVMLError_{name}", type(name, (self.NVMLError,), {"__str__": lambda e: type(e).__name__}))
        self.cards, self.inits, self.init_error, self.gone = [], 0, "", ""

    def error(self, name):
        return getattr(self, f"NVMLError_{name}")()

    def nvmlInit(self):
        if self.init_error:
            raise self.error(self.init_error)
        self.inits += 1

    def _card(self, index, ask):
        if f"fail_{ask}" in self.cards[index]:
            raise self.error(self.cards[index][f"fail_{ask}"])
        return self.cards[index]

    def nvmlDeviceGetCount(self):
        if not self.inits or self.gone:
            raise self.error(self.gone or "Uninitialized")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        self._card(index, "handle")
        return index

    def nvmlDeviceGetUUID(self, handle):
        return self._card(handle, "uuid")["uuid"]

    def nvmlDeviceGetName(self, handle):
        return self._card(handle, "name").get("name", "NVIDIA H200")

    def nvmlDeviceGetMigMode(self, handle):
        return [self._card(handle, "mig").get("mig", 0)] * 2

    def nvmlDeviceGetMemoryInfo(self, handle):
        card = self._card(handle, "memory")
        return SimpleNamespace(total=card["total"], free=card["free"], used=card["total"] - card["free"])

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=size)
                for pid, size in self._card(handle, "processes").get("processes", {}).items()]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=self._card(handle, "rates").get("busy", 0), memory=0)


def cards(count):
    """NVML goes by the bus, CUDA by speed: here the uuids run against the indices."""
    return [{"uuid": f"GPU-{count - i}", "total": 24 * GIB, "free": (24 - i) * GIB, "busy": i} for i in range(count)]


@pytest.fixture
def nvml(monkeypatch):
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv(gpus.FAKE, raising=False)
    monkeypatch.setattr(gpus, "_ready", False)
    monkeypatch.setattr(gpus, "_missing", [])
    return module


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_every_gpu_comes_with_its_uuid_in_the_order_of_nvml(nvml, count):
    nvml.cards = cards(count)
    found = gpus.read_gpus()
    assert [g.index for g in found] == list(range(count))
    assert [g.uuid for g in found] == [f"GPU-{count - i}" for i in range(count)]
    assert [(g.free, g.utilization) for g in found] == [((24 - i) * GIB, i) for i in range(count)]
    assert gpus.lost() == []


def test_processes_and_their_memory_where_the_driver_tells_it(nvml):
    nvml.cards = [{**cards(1)[0], "processes": {41: 5 * GIB, 42: None}}]
    assert gpus.read_gpus()[0].used_by == {41: 5 * GIB, 42: 0}


@pytest.mark.parametrize("error", ["NotSupported", "FunctionNotFound", "NoPermission"])
def test_what_a_driver_does_not_tell_leaves_the_gpu_in(nvml, error):
    nvml.cards = [{**cards(1)[0], "fail_mig": error, "fail_processes": error, "fail_rates": error}]
    found = gpus.read_gpus()[0]
    assert (found.used_by, found.utilization, found.total) == ({}, None, 24 * GIB)


@pytest.mark.parametrize("ask", ["handle", "memory", "processes", "rates", "uuid"])
def test_a_lost_gpu_is_left_out_and_the_others_stay(nvml, ask):
    nvml.cards = cards(4)
    assert len(gpus.read_gpus()) == 4
    nvml.cards[1][f"fail_{ask}"] = "GpuIsLost"
    assert [g.index for g in gpus.read_gpus()] == [0, 2, 3]
    assert gpus.lost() == ["GPU 1: GpuIsLost"]
    del nvml.cards[1][f"fail_{ask}"]
    assert len(gpus.read_gpus()) == 4 and gpus.lost() == [] and nvml.inits == 1


def test_a_gpu_divided_by_mig_is_left_alone(nvml):
    nvml.cards = cards(2)
    nvml.cards[0]["mig"] = 1
    assert [g.index for g in gpus.read_gpus()] == [1]
    assert gpus.lost() == ["GPU 0: divided by MIG, which the que leaves alone"]


def test_a_driver_that_goes_is_no_machine_without_gpus(nvml):
    nvml.cards = cards(1)
    assert gpus.read_gpus()
    nvml.gone = "DriverNotLoaded"
    assert gpus.read_gpus() == [] and gpus.lost() == ["the NVIDIA driver: DriverNotLoaded"]
    nvml.gone = ""
    assert len(gpus.read_gpus()) == 1 and gpus.lost() == [] and nvml.inits == 1


@pytest.mark.parametrize(("error", "told"), [
    ("LibraryNotFound", []), ("DriverNotLoaded", []),
    ("LibRmVersionMismatch", ["the NVIDIA driver: LibRmVersionMismatch"])])
def test_no_driver_is_no_gpus_and_a_broken_one_is_told(nvml, error, told):
    nvml.init_error = error
    assert gpus.read_gpus() == [] and gpus.lost() == told
    nvml.init_error, nvml.cards = "", cards(1)
    assert len(gpus.read_gpus()) == 1 and gpus.lost() == []


def test_without_pynvml_there_are_no_gpus(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.read_gpus() == [] and gpus.lost() == []


def test_the_real_pynvml_has_every_name_that_is_asked_for():
    pynvml = pytest.importorskip("pynvml")
    asked = [name for name in vars(Nvml) if name.startswith("nvml")] + [f"NVMLError_{name}" for name in Nvml.ERRORS]
    assert [name for name in asked if not hasattr(pynvml, name)] == []


def test_neither_pynvml_nor_psutil_nor_rich_is_imported_along():
    code = ("import sys, que.gpus, que.plan\n"
            "sys.exit(any(name in sys.modules for name in ('pynvml', 'psutil', 'rich', 'torch')))")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(gpus.__file__).parents[1]).returncode == 0


# --- the fake


def test_fake_gpus_are_read_anew_each_time(nvml, monkeypatch, tmp_path):
    file = tmp_path / "gpus.json"
    monkeypatch.setenv(gpus.FAKE, str(file))
    file.write_text(json.dumps([{"uuid": "GPU-a", "total": 8 * GIB},
                                {"uuid": "GPU-b", "index": 5, "name": "x", "total": 9, "free": 3, "used_by": {"7": 6},
                                 "utilization": 80}]))
    assert gpus.read_gpus() == [gpus.Gpu("GPU-a", 0, "fake", 8 * GIB, 8 * GIB),
                                gpus.Gpu("GPU-b", 5, "x", 9, 3, {7: 6}, 80)]
    file.write_text(json.dumps([{"lost": "GPU is lost"}]))
    assert gpus.read_gpus() == [] and gpus.lost() == ["GPU 0: GPU is lost"]
    assert nvml.inits == 0


@pytest.mark.parametrize("text", [None, "", "{", "3", '{"uuid": 1}', '[{"uuid": "a"}]', '[{"total": 1}]', "[1]",
                                  '[{"uuid": "a", "total": 1, "colour": 2}]',
                                  '[{"uuid": "a", "total": 1, "used_by": 3}]'])
def test_a_bad_fake_is_a_mistake(monkeypatch, tmp_path, text):
    if text is not None:
        (tmp_path / "gpus.json").write_text(text)
    monkeypatch.setenv(gpus.FAKE, str(tmp_path / "gpus.json"))
    with pytest.raises(Mistake, match="names no list of GPUs"):
        gpus.read_gpus()


# --- peaks

FACTS = {"num_frames": 64, "frame_size": 224, "batch_size": 8, "precision": "bf16", "max_epoch": 100}


@pytest.fixture
def state(tmp_path):
    (tmp_path / "quarantine").mkdir()
    return tmp_path


def job(**given_):
    return Job(**{"model": "S3D", "split": "asl100", "exp_no": "1", "facts": FACTS, **given_})


def test_the_kind_of_a_run():
    assert gpus.key(job()) == "S3D num_frames=64 frame_size=224 batch_size=8 precision=bf16 gpus=1"
    assert gpus.key(job(gpus=2, facts={})) == "S3D num_frames=? frame_size=? batch_size=? precision=? gpus=2"
    assert gpus.key(job(split="asl300")) == gpus.key(job(gpus=1)) == gpus.key(job())


def test_a_batch_that_the_que_halved_is_another_kind():
    assert "batch_size=4" in gpus.key(job(changes={"training.batch_size": "4", "training.update_per_step": "2"}))


def test_learned_is_none_before_and_the_most_of_the_newest_runs_after(state):
    assert gpus.learned(state, job()) is None
    gpus.learn(state, job(), 9 * GIB)
    gpus.learn(state, job(), 7 * GIB)
    assert gpus.learned(state, job()) == 9 * GIB
    assert gpus.learned(state, job(gpus=2)) is None


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from([8, 16]), st.integers(1, 100)), max_size=9))
def test_peaks_against_a_plain_list(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("state")
    for batch, size in runs:
        gpus.learn(folder, job(facts=FACTS | {"batch_size": batch}), size)
    for batch in (8, 16):
        newest = [size for b, size in runs if b == batch][-gpus.NEWEST:]
        assert gpus.learned(folder, job(facts=FACTS | {"batch_size": batch})) == max(newest, default=None)


def test_eight_processes_that_learn_at_once_lose_nothing(state):
    def work(model):
        for n in range(4):
            gpus.learn(state, job(model=model), n + 1)
    children = [multiprocessing.get_context("fork").Process(target=work, args=(f"M{i}",)) for i in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(map(len, json.loads((state / "peaks.json").read_text()).values())) == [4] * 8


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"a": 3}', b'{"a": ["x"]}'])
def test_a_corrupt_file_goes_to_quarantine_with_a_warning(state, capsys, content):
    (state / "peaks.json").write_bytes(content)
    assert gpus.learned(state, job()) is None
    assert "peaks.json cannot be read" in capsys.readouterr().err
    assert [path.read_bytes() for path in (state / "quarantine").iterdir()] == [content]
    gpus.learn(state, job(), 3)
    assert gpus.learned(state, job()) == 3 and not capsys.readouterr().err


def test_a_corrupt_file_that_cannot_be_moved_is_told_and_no_crash(state, capsys):
    (state / "quarantine").rmdir()
    (state / "peaks.json").write_text("{")
    assert gpus.learned(state, job()) is None and "cannot be read" in capsys.readouterr().err


def test_a_full_disk_loses_nothing(state, monkeypatch):
    gpus.learn(state, job(), 3)

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(Storage, match="cannot write"):
        gpus.learn(state, job(), 4)
    assert gpus.learned(state, job()) == 3
