"""Where everything lies, whatever the working directory is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slr import paths
from slr.errors import Mistake
from slr.paths import Experiment


def test_roots_move(monkeypatch, tmp_path):
    monkeypatch.delenv("SLR_DATA", raising=False)
    monkeypatch.delenv("SLR_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.data_root() == paths.ROOT / "data" and paths.runs_root() == paths.ROOT / "runs"
    assert paths.data_root("other") == paths.ROOT / "other"
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    monkeypatch.setenv("SLR_RUNS", "here")
    assert paths.data_root() == tmp_path and paths.data_root("/x") == Path("/x")
    assert paths.runs_root() == paths.ROOT / "here"
    monkeypatch.setenv("SLR_DATA", "~/clips")
    assert paths.data_root() == Path.home() / "clips"


def test_names_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setenv("SLR_RUNS", str(tmp_path))
    run = Experiment("S3D", "asl100", "4")
    assert run.config_file == paths.ROOT / "configfiles" / "asl100" / "S3D_004.ini"
    assert run.run == tmp_path / "asl100" / "S3D_004" and run.checkpoints == run.run / "checkpoints"
    assert run.old_run == tmp_path / "asl100" / "S3D_exp004"
    assert Experiment("S3D", "asl100", "004") .run == run.run
    again = Experiment("S3D", "asl100", "4.1", checkpoint_set=2)
    assert again.run == tmp_path / "asl100" / "S3D_004.1" and again.checkpoints.name == "checkpoints.2"
    assert again.results.name == "results.2"


@pytest.mark.parametrize("number", ["", "x", "4.", ".4", "-1", "4.1.2", "1e3", "../4", "4 "])
def test_no_number(number):
    with pytest.raises(Mistake, match="EXP_NO"):
        Experiment("S3D", "asl100", number)


@pytest.mark.parametrize("split", ["", "a/b", "..", "a b"])
def test_no_split(split):
    with pytest.raises(Mistake, match="SPLIT"):
        Experiment("S3D", split, "4")


@given(st.integers(0, 9999), st.none() | st.integers(0, 99))
def test_a_number_is_found_again_in_its_name(whole, part):
    exp_no = str(whole) if part is None else f"{whole}.{part}"
    number = Experiment("S3D", "asl100", exp_no).number
    assert float(number) == float(exp_no) if part is None else number.split(".") == [f"{whole:03d}", str(part)]
    assert Experiment("S3D", "asl100", number).number == number


def test_enumerated_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("SLR_RUNS", str(tmp_path))
    run = Experiment("R(2+1)D_18", "asl100", "4")
    assert run.enumerated().exp_no == "4.1"
    for name in ("R(2+1)D_18_004", "R(2+1)D_18_004.1", "R(2+1)D_18_004.9", "R(2+1)D_18_004.10", "R(2+1)D_18_004.x"):
        (tmp_path / "asl100" / name).mkdir(parents=True)
    assert run.enumerated().exp_no == "4.11" == Experiment("R(2+1)D_18", "asl100", "4.9").enumerated().exp_no
    for name in ("checkpoints", "checkpoints.2", "checkpoints.10"):
        (run.run / name).mkdir()
    assert run.enumerated_checkpoints().checkpoints.name == "checkpoints.11"
    assert run.newest_checkpoints().checkpoints.name == "checkpoints.10"
    assert Experiment("S3D", "asl100", "4").newest_checkpoints().checkpoints.name == "checkpoints"


def test_an_enumerated_run_may_have_its_own_config(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CONFIGS", tmp_path)
    (tmp_path / "asl100").mkdir()
    assert Experiment("S3D", "asl100", "4.1").config_file.name == "S3D_004.ini"
    (tmp_path / "asl100" / "S3D_004.1.ini").touch()
    assert Experiment("S3D", "asl100", "4.1").config_file.name == "S3D_004.1.ini"
    assert paths.existing_experiments("S3D", "asl100") == "there is none"
    (tmp_path / "asl100" / "S3D_012.ini").touch()
    assert paths.existing_experiments("S3D", "asl100") == "there is 012"


def test_places_of_the_data(tmp_path):
    assert paths.split_file(tmp_path, "asl100") == tmp_path / "WLASL" / "splits" / "asl100.json"
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "asl100.json").touch()
    assert paths.split_file(tmp_path, "asl100") == tmp_path / "splits" / "asl100.json"
    (tmp_path / "WLASL2000").mkdir()
    assert paths.wlasl_videos(tmp_path) == tmp_path / "WLASL2000"


def test_shown_as_typed_at_the_root():
    assert paths.shown(paths.ROOT / "runs" / "x") == "runs/x" and paths.shown("/elsewhere/x") == "/elsewhere/x"
