"""testing.py: what it tests, what it prints, and what it writes, on a model with random weights."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import preprocess
import pytest
import testing
import torch
from inis import OPTIMIZER

from slr import checkpoint, paths
from slr.config import parse_config
from slr.errors import Mistake, OutOfMemory
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task
from slr.tasks.isolated import Isolated
from slr.video import read_frames, sample_indices

INI = f"""
[training]
batch_size = 3
update_per_step = 1
max_epoch = 1
{OPTIMIZER}[model_params]
drop_p = 0.5
pretrained = False
[data]
num_frames = 8
frame_size = 32
workers = 0
"""
CPU = ("--device", "cpu")


def make_run(exp_no: str = "7", split: str = "little", seed: int = 1, metrics: dict | None = None,
             ini: str = INI) -> Path:
    """A run folder with a best.pth of random weights, as training.py leaves it; no .ini of that number exists."""
    experiment = Experiment("S3D", split, exp_no)
    config = parse_config(ini, experiment)
    task = build_task(config, Runtime.start("cpu", seed))
    path = experiment.checkpoints / "best.pth"
    checkpoint.save(path, {"model": "S3D", "split": split, "task": "isolated", "meta": task.meta(), "epoch": 1,
                           "config": config.as_dict(), "metrics": metrics or {}, "versions": checkpoint.versions(),
                           "model_state_dict": task.model.state_dict()})
    return path


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures(text: str) -> dict:
    """The TypedDict that is printed at the end of the output."""
    return json.loads(text[text.index("\n{"):text.rindex("\n}") + 2])


def test_full_has_the_shape_and_the_names_of_the_seed(little, capsys):
    results = make_run().parents[1] / "results"
    assert testing.main(["full", "S3D", "little", "7", *CPU]) == 0
    result = json.loads((results / "best_val_loss.json").read_text())
    assert figures(capsys.readouterr().out) == result
    assert list(result) == ["check_name", "best_val_acc", "best_val_loss", "test", "val", "test_shuff"]
    assert result["check_name"] == "best_val" and result["best_val_acc"] is None
    for name in ("test", "val", "test_shuff"):
        assert set(result[name]["top_k_per_instance_acc"]) == {"top1", "top5", "top10"}
        assert result[name]["top_k_average_per_class_acc"]["top5"] == 1  # of three classes
        assert result[name]["average_loss"] > 0
    assert sorted(result["test_shuff"]["perm"]) == list(range(8)) and result["test_shuff"]["shannon_entropy"] > 0
    for ending in ("bargraph.png", "confmat.png", "heatmap.png", "predictions.csv", "details.json"):
        assert (results / f"best_test-{ending}").stat().st_size > 100


def test_the_set_asked_for_is_the_set_tested(little, capsys):
    results = make_run().parents[1] / "results"
    for part, count in (("train", 9), ("val", 7), ("test", 4)):
        assert testing.main(["partial", "S3D", "little", "7", part, "-se", *CPU]) == 0
        rows = rows_of(results / f"best_{part}-predictions.csv")
        assert sorted(row["clip"] for row in rows) == sorted(f"little_{part}_{i}" for i in range(count))
        found = figures(capsys.readouterr().out)
        assert json.loads((results / f"best_{part}-top-k.json").read_text()) == found
        file = results.parent / "checkpoints" / "best.pth"
        assert testing.main(["partial", "--checkpoint", str(file), part, *CPU]) == 0
        assert figures(capsys.readouterr().out) == found


def test_the_batch_size_changes_nothing(little, tmp_path):
    make_run()
    tables = []
    for size in (1, 2, 7):
        out = tmp_path / f"out{size}"
        words = ["partial", "S3D", "little", "7", "val", "-se", "--batch_size", str(size), "--out", str(out)]
        testing.main([*words, *CPU])
        tables.append([{**row, "p1": float(row["p1"])} for row in rows_of(out / "best_val-predictions.csv")])
    for table in tables[1:]:
        for row, first in zip(table, tables[0], strict=True):
            assert all(row[key] == first[key] for key in ("clip", "true", "rank", "gloss1", "gloss2", "gloss3"))
            assert row["p1"] == pytest.approx(first["p1"], abs=2e-6)


def test_shuffling_is_one_permutation_of_the_frames(little):
    path = make_run()
    results = path.parents[1] / "results"
    testing.main(["partial", "S3D", "little", "7", "test", "-sf", "-se", "--seed", "5", *CPU])
    result = json.loads((results / "best_test-top-k_shuffled.json").read_text())
    row = rows_of(results / "best_test_shuffled-predictions.csv")[0]
    assert float(row["p1"]) == pytest.approx(forward(path, row["clip"], result["perm"]).max(), abs=1e-5)
    assert float(row["p1"]) != pytest.approx(forward(path, row["clip"], list(range(8))).max(), abs=1e-7)


def forward(path: Path, clip: str, order: list[int]) -> np.ndarray:
    """Softmax of one clip by hand: decode, centre crop, resize, normalise, permute."""
    import cv2

    content = checkpoint.load(path)
    task = build_task(parse_config(INI, Experiment("S3D", "little", "7")), Runtime.start("cpu"), content["meta"])
    task.model.load_state_dict(content["model_state_dict"])
    video = paths.wlasl_videos(paths.data_root()) / f"{clip}.mp4"
    frames = read_frames(video, sample_indices(next(c for c in task.clips("test") if c.id == clip).stop, 8))
    side = round(48 / 1.143)
    y, x = (48 - side) // 2, (64 - side) // 2
    part = np.stack([cv2.resize(frame[y:y + side, x:x + side], (32, 32)) for frame in frames])[order]
    inputs = (torch.from_numpy(part).double() / 255 - torch.tensor(content["meta"]["mean"])) / torch.tensor(
        content["meta"]["std"])
    with torch.no_grad():
        return task.model.eval().double()(inputs.permute(3, 0, 1, 2)[None]).softmax(1)[0].numpy()


def test_a_checkpoint_alone_is_enough_and_classes_go_by_gloss(little, little_data, tmp_path):
    """Labels that count the classes in another order give the same result."""
    path = make_run()
    moved = tmp_path / "alone.pth"
    moved.write_bytes(path.read_bytes())
    old = paths.labels(paths.data_root(), "little")
    turned = tmp_path / "labels"
    turned.mkdir()
    names = [line.split("\t")[1] for line in (old / "class_list.txt").read_text().splitlines()]
    (turned / "class_list.txt").write_text("".join(f"{i}\t{name}\n" for i, name in enumerate(reversed(names))))
    for part in paths.SETS:
        entries = json.loads((old / f"{part}_instances.json").read_text())
        for entry in entries:
            entry["label_num"] = len(names) - 1 - entry["label_num"]
        (turned / f"{part}_instances.json").write_text(json.dumps(entries))
    for labels, out in ((old, tmp_path / "a"), (turned, tmp_path / "b")):
        words = ["full", "--checkpoint", str(moved), "--set_dir", str(labels), "--out", str(out)]
        assert testing.main([*words, *CPU]) == 0
    assert (tmp_path / "a" / "alone.json").read_text() == (tmp_path / "b" / "alone.json").read_text()


def test_labels_by_path_find_the_frame_store_by_the_split_s_name(little, little_data, tmp_path, monkeypatch, capsys):
    """--set_dir with a run that was trained from a frame store; the labels may have been moved."""
    root = tmp_path / "data"
    shutil.copytree(little_data, root)
    monkeypatch.setenv("SLR_DATA", str(root))
    preprocess.main(["-as", "little", "--store", "jpeg", "--workers", "0"])
    make_run(ini=f"{INI}store = 'jpeg'")
    moved = shutil.copytree(paths.labels(root, "little"), tmp_path / "moved")
    answers = []
    for words in ([], ["--set_dir", str(paths.labels(root, "little"))], ["--set_dir", str(moved)]):
        capsys.readouterr()
        assert testing.main(["partial", "S3D", "little", "7", "test", *words, *CPU]) == 0
        answers.append(figures(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]


def test_another_test_leaves_the_run_s_own_results(little, little_data, capsys):
    """-nf, -fs, --set_dir and --set stand in the file names; with --out they need not."""
    results = make_run().parents[1] / "results"
    testing.main(["full", "S3D", "little", "7", *CPU])
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    testing.main(["full", "S3D", "little", "7", "-nf", "10", *CPU])
    labels = paths.labels(little_data, "noval")
    for words in (["-fs", "40"], ["--set_dir", str(labels)], ["--set", "data.eval_resize=1.5"]):
        testing.main(["partial", "S3D", "little", "7", "test", "-se", *words, *CPU])
    assert {name: (results / name).read_bytes() for name in before} == before
    for name in ("best_nf10_val_loss.json", "best_nf10_test-predictions.csv", "best_nf10_test-confmat.png",
                 "best_fs40_test-top-k.json", "best_noval_test-predictions.csv",
                 "best_data.eval_resize-1.5_test-details.json"):
        assert (results / name).is_file(), name
    testing.main(["partial", "S3D", "little", "7", "test", "-se", "-nf", "10", "--out", str(little / "out"), *CPU])
    assert (little / "out" / "best_test-predictions.csv").is_file()
    capsys.readouterr()
    testing.main(["board"])
    assert capsys.readouterr().out.count("S3D_007") == 1


def test_no_memory_is_explained(little, monkeypatch):
    make_run()

    def full_up(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match="--batch_size") as caught:
        patch.setattr(Isolated, "prepare", full_up)
        testing.main(["partial", "S3D", "little", "7", "test", *CPU])
    assert caught.value.code == 76
    monkeypatch.setattr(Isolated, "load", full_up)
    with pytest.raises(OutOfMemory, match="--batch_size"):
        testing.main(["full", "S3D", "little", "7", *CPU])


def test_without_a_validation_set_val_is_null(little, capsys):
    results = make_run(split="noval").parents[1] / "results"
    testing.main(["full", "S3D", "noval", "7", *CPU])
    assert json.loads((results / "best_val_loss.json").read_text())["val"] is None
    assert "no validation set" in capsys.readouterr().err
    with pytest.raises(Mistake, match="val set is empty"):
        testing.main(["partial", "S3D", "noval", "7", "val", *CPU])


@pytest.mark.parametrize("off, warns", [(0.0, False), (0.5, True)])
def test_training_and_testing_are_compared(little, capsys, off, warns):
    make_run()
    testing.main(["partial", "S3D", "little", "7", "val", *CPU])
    found = figures(capsys.readouterr().out)
    make_run(metrics={"val": {"loss": found["average_loss"] + off,
                              "acc": found["top_k_per_instance_acc"]["top1"]}})
    testing.main(["full", "S3D", "little", "7", *CPU])
    said = capsys.readouterr()
    assert ("warning: training reported" in said.err) == warns
    assert figures(said.out)["best_val_acc"] == pytest.approx(100 * found["top_k_per_instance_acc"]["top1"])


def test_the_old_program_s_run_folder(little, tmp_path, monkeypatch, capsys):
    """MODEL_expNNN with a bare state_dict under the old names, its size in data_info.json, its settings in the .ini."""
    content = checkpoint.load(make_run())
    old = {}
    for key, value in content["model_state_dict"].items():
        if key.startswith("backbone.features."):
            old["backbone.0." + key.removeprefix("backbone.features.")] = value
            old[key.removeprefix("backbone.")] = value
        else:
            old[key] = value
    run = paths.runs_root() / "little" / "S3D_exp008"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(old, run / "checkpoints" / "best.pth")
    torch.save({"epoch": 3, "model_state_dict": old}, run / "checkpoints" / "checkpoint_003.pth")
    (run / "data_info.json").write_text('{"num_frames": 8, "frame_size": 32}')
    ini = tmp_path / "configs" / "little" / "S3D_008.ini"
    ini.parent.mkdir(parents=True)
    ini.write_text(INI.replace("num_frames = 8", "num_frames = 16"))
    monkeypatch.setattr(paths, "CONFIGS", tmp_path / "configs")
    answers = []
    for words in (["7", "val"], ["8", "val"], ["8", "val", "-cn", "checkpoint_003.pth"]):
        testing.main(["partial", "S3D", "little", *words, *CPU])
        answers.append(figures(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    testing.main(["partial", "S3D", "little", "8", "val", "-nf", "10", "-fs", "40", *CPU])
    assert figures(capsys.readouterr().out) != answers[0]


def test_graphs_of_a_partial_test(little, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    results = make_run().parents[1] / "results"
    testing.main(["partial", "S3D", "little", "7", "test", "-cm", "-dy", *CPU])
    made = {path.name for path in results.glob("*.png")}
    assert "best_test-confmat.png" in made and not made & {"best_test-heatmap.png", "best_test-bargraph.png"}
    assert "display" in capsys.readouterr().out
    assert not [*results.glob("*.csv"), *results.glob("*.json")]  # tables are written with -se


def test_compare_and_board(little, capsys, tmp_path):
    make_run("7", seed=1)
    make_run("9", seed=2)
    for number in ("7", "9"):
        testing.main(["full", "S3D", "little", number, *CPU])
    capsys.readouterr()
    testing.main(["compare", "S3D/little/7", "S3D/little/9", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 4 and 0 <= found["p_value"] <= 1
    assert found["difference"] == pytest.approx(found["acc_a"] - found["acc_b"])
    testing.main(["board", "--csv", str(tmp_path / "board.csv")])
    assert {row["run"] for row in rows_of(tmp_path / "board.csv")} == {"S3D_007", "S3D_009"}
    assert "S3D_009" in capsys.readouterr().out
    for number, text in enumerate(('{"test": {', "[]", '{"test": null}', '{"best_val_acc": 1}', "\udcff")):
        odd = paths.runs_root() / "little" / f"S3D_1{number:02d}" / "results" / "best_val_loss.json"
        odd.parent.mkdir(parents=True)
        odd.write_bytes(text.encode(errors="surrogateescape"))
    testing.main(["board"])
    said = capsys.readouterr()
    assert "S3D_007" in said.out and "S3D_1" not in said.out
    assert all(f"S3D_10{number}" in said.err for number in range(5))


@pytest.mark.parametrize("words, said", [
    (["full", "S3D", "little", "55"], "checkpoint is missing"),
    (["full", "S4D", "little", "7"], "Did you mean S3D"),
    (["full", "S3D"], "MODEL SPLIT EXP_NO"),
    (["full", "S3D", "little", "seven"], "no experiment number"),
    (["full", "--checkpoint", "nowhere.pth"], "checkpoint is missing"),
    (["compare", "S3D/little/1", "S3D/little/2"], "no predictions"),
    (["board", "nosplit"], "no results"),
    (["partial", "S3D", "little", "7"], "which set"),
])
def test_mistakes(little, words, said):
    with pytest.raises(Mistake, match=said):
        testing.main(words)


def test_weights_that_do_not_fit_are_named(little):
    path = make_run()
    content = checkpoint.load(path)
    content["model_state_dict"]["classifier.1.bias"] = torch.zeros(99)
    checkpoint.save(path, content)
    with pytest.raises(Mistake, match="classifier.1.bias"):
        testing.main(["full", "S3D", "little", "7", *CPU])


def test_missing_videos_are_named(little, tmp_path, monkeypatch):
    path = make_run()
    monkeypatch.setenv("SLR_DATA", str(tmp_path / "moved"))
    with pytest.raises(Mistake, match="is not prepared"):
        testing.main(["full", "--checkpoint", str(path), *CPU])
