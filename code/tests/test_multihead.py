"""The task `multihead` from the drawn signs to the files of a test, on a tiny split and the scripts themselves."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import preprocess
import pytest
import torch
from children import Child, free_port, interrupted_script, script
from inis import OPTIMIZER

from slr import checkpoint, engine, hamnosys
from slr.config import parse_config
from slr.errors import Mistake
from slr.logbook import read_log
from slr.losses import over_heads
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.schedules import FreezePlan
from slr.task import build_task
from slr.tasks.multihead import Multihead

SPLIT = "demo_multihead_small"
HERE = Experiment("SignTransformer", SPLIT, "1")
INI = f"""
[experiment]
task = 'multihead'
[training]
batch_size = 16
update_per_step = 1
max_epoch = 2
save_every = 1
{OPTIMIZER}[data]
num_frames = 5
frame_size = 32
workers = 0
[multihead]
data_paths = ('{SPLIT}/train',)
val_paths = ('{SPLIT}/val',)
test_paths = ('{SPLIT}/test',)
landmarks = 'right_hand left_hand pose'
[feature_extractor]
name = 'landmark_extractor'
representation_size = 32
[transformer]
feedforward_size = 32
num_attention_heads = 1
num_encoder_layers = 1
output_size = 32
dropout_rate = 0.2
"""
FRAMES = {"feature_extractor.name": "cnn_extractor", "feature_extractor.model_path": "test_resnet",
          "model_params.pretrained": "False"}
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with SPLIT, as preprocess.py draws it."""
    root = tmp_path_factory.mktemp("signs")
    assert preprocess.main(["-as", SPLIT, "--data", str(root), "--workers", "0"]) == 0
    return root


@pytest.fixture
def place(data, tmp_path, monkeypatch) -> Path:
    """`data` as $SLR_DATA, and a folder whose `runs` is $SLR_RUNS."""
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def a_task(changes: dict[str, str] | None = None, text: str = INI) -> Multihead:
    task = build_task(parse_config(text, HERE, changes), Runtime.start("cpu", 3))
    assert isinstance(task, Multihead)
    return task


def evaluated(task: Multihead, part: str = "val") -> tuple[dict, list]:
    loader = task.loader(part, train=False)
    try:
        return engine.evaluate(task, loader, task.runtime, decode=True)
    finally:
        loader.close()


# --- what it is made of -------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    {}, FRAMES | {"multihead.landmarks": "''"}, FRAMES,
    {"feature_extractor.name": "r2plus1d_extractor", "model_params.pretrained": "False", "multihead.landmarks": "''",
     "training.batch_size": "4"},
    {"feature_extractor.name": "gcn_extractor", "multihead.landmarks": "'right_hand left_hand pose face'"},
], ids=("points", "frames", "both", "r2plus1d", "gcn"))
def test_one_step_from_landmarks_from_frames_and_from_both(place, changes):
    """The loss is finite, every weight gets a gradient, and a step makes the same batch's loss smaller."""
    task = a_task({**changes, "transformer.dropout_rate": "0"})
    loader = task.loader("train", train=True)
    loader.batch_sampler.start(0)
    batch = task.prepare(next(iter(loader)), train=True)
    loader.close()
    assert ("pictures" in batch) == ("model_params.pretrained" in changes)
    assert ("landmarks" in batch) == (changes.get("multihead.landmarks") != "''")
    task.model.train()
    optimizer = torch.optim.SGD(task.model.parameters(), 0.01)
    found = []
    for _ in range(3):
        total, count = task.losses(task.forward(task.model, batch), batch)["loss"]
        optimizer.zero_grad()
        (total / count).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())
        optimizer.step()
        found.append(float(total.detach()) / count)
    assert found[-1] < found[0]


def test_figures_are_the_same_for_every_batch_size_and_padding(place):
    """Longer padding too: each sign has fewer frames than the 40 that it is padded to."""
    figures, scores = [], []
    for size, frames in ((1, 40), (7, 40), (16, 40)):
        torch.manual_seed(0)
        task = a_task({"training.batch_size": str(size), "data.num_frames": str(frames)})
        task.model.load_state_dict(scores[0][1].model.state_dict() if scores else task.model.state_dict())
        means, records = evaluated(task)
        figures.append(means["loss"])
        scores.append((records, task))
    assert figures == pytest.approx([figures[0]] * 3, rel=1e-5)
    for one, other in zip(scores[0][0], scores[2][0], strict=True):
        for head in one["scores"]:
            assert one["scores"][head] == pytest.approx(other["scores"][head], abs=1e-4)


def test_subtracting_the_mean_counts_no_padding(place):
    task = a_task(FRAMES | {"multihead.landmarks": "''", "data.subtract_clip_mean": "True", "data.num_frames": "40"})
    batch = next(iter(task.loader("val", train=False)))
    ready = task.prepare(batch, train=False)["pictures"]
    for clip, length in zip(ready, batch["length"].tolist(), strict=True):
        assert length < 40 and clip[:, :length].mean(1).abs().max() < 1e-5


def test_a_missing_label_is_no_label(place, data, tmp_path, monkeypatch):
    """Without one column of symbols its head learns nothing, and the other heads' loss is as before."""
    task = a_task()
    means, records = evaluated(task)
    labels = torch.tensor([[row["labels"][head] for head in task.heads] for row in records])
    logits = [torch.stack([torch.from_numpy(row["scores"][head]) for row in records]) for head in task.heads]
    weights = [weight for _, weight in task.heads.values()]
    assert means["loss"] == pytest.approx(float(over_heads(logits, labels, weights)[0]) / len(labels), rel=1e-5)
    table = data / "HEARAI" / SPLIT / "val" / "test_hamnosys.txt"
    rows = [line.split() for line in table.read_text().splitlines()]
    (table.parent / "some.txt").write_text("\n".join(" ".join([*row[:4], *row[5:]]) for row in rows))
    (table.parents[1] / "train" / "some.txt").write_text((table.parents[1] / "train" / table.name).read_text())
    (table.parents[1] / "test" / "some.txt").write_text((table.parents[1] / "test" / table.name).read_text())
    other = a_task({"multihead.annotation_file": "some.txt"})
    other.model.load_state_dict(task.model.state_dict())
    fewer, records = evaluated(other)
    head = list(task.heads)[1]
    assert all(head not in row["labels"] for row in records) and other.score(records)["heads_without_labels"] == [head]
    weights[1] = 0.0
    assert fewer["loss"] == pytest.approx(float(over_heads(logits, labels, weights)[0]) / len(labels), rel=1e-5)


def test_rare_labels_weigh_more_where_that_is_asked_for(place):
    weighted = a_task({"multihead.class_weights": "True"})._rare(torch.device("cpu"))
    labels = torch.tensor([sample.labels["symmetry_operator"] for sample in a_task().samples("train")])
    counts = torch.bincount(labels, minlength=9)
    seen = int((counts > 0).sum())
    assert (weighted[0] * counts)[counts > 0].tolist() == pytest.approx([len(labels) / seen] * seen)
    assert all(row is None for row in a_task()._rare(torch.device("cpu")))


# --- sets ---------------------------------------------------------------------------------------------------

def test_several_data_sets_are_shared_out(place):
    """Two paths together; the set without paths of its own gets the rest; by signer nobody is in two."""
    both = {"multihead.data_paths": f"('{SPLIT}/train', '{SPLIT}/val')", "multihead.val_paths": "()",
            "multihead.ratio_train_test": "0.7"}
    for by in ("ratio", "signer", "stratified"):
        task = a_task(both | {"multihead.split_by": by})
        ids = {part: {sample.id for sample in task.samples(part)} for part in ("train", "val", "test")}
        alone = a_task()
        assert len(ids["train"] | ids["val"]) == alone.size("train") + alone.size("val") and ids["val"]
        assert not ids["train"] & ids["val"] and len(ids["test"]) == alone.size("test")
        if by == "signer":
            signers = [{sample.signer for sample in task.samples(part)} for part in ("train", "val")]
            assert not signers[0] & signers[1]


def test_a_sign_is_in_one_set_only(place):
    with pytest.raises(Mistake, match="a sign is in two sets"):
        a_task({"multihead.test_paths": f"('{SPLIT}/val',)"}).meta()


def test_signs_without_their_files_are_left_out_and_named(place, data):
    gone = next((data / "HEARAI" / SPLIT / "train").glob("*/*.npz"))
    gone.rename(gone.with_suffix(".away"))
    try:
        left = a_task().left_out()
    finally:
        gone.with_suffix(".away").rename(gone)
    assert len(left) == 1 and gone.parent.name in next(iter(left))


def test_what_is_not_there_is_said(place):
    with pytest.raises(Mistake):
        a_task({"multihead.data_paths": "('nowhere',)"}).samples("train")


# --- the scripts --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Trained and tested by the scripts; its folder of runs."""
    place = tmp_path_factory.mktemp("trained")
    (place / "a.ini").write_text(INI)
    run_script(place, data, "training", "SignTransformer", SPLIT, "1", "-c", str(place / "a.ini"))
    run_script(place, data, "testing", "full", "SignTransformer", SPLIT, "1")
    return place


def run_script(place: Path, data: Path, name: str, *words: str, code: int = 0) -> str:
    ending = ("-na", "--no_wandb") if name == "training" else ()
    child = Child(script, name, *words, *CPU, *ending, log=place / f"{name}.log", SLR_DATA=str(data),
                  SLR_RUNS=str(place / "runs"))
    assert child.wait() == code, child.said()
    return child.said()


def test_the_files_of_a_test(trained):
    run = trained / "runs" / SPLIT / "SignTransformer_001"
    content = checkpoint.load(run / "checkpoints" / "best.pth")
    assert content["task"] == "multihead" and content["meta"]["heads"] == hamnosys.HEADS
    rows = read_log(run / "log.jsonl")
    assert set(rows[-1]["val"]) == {"loss", "acc", "f1", "exact"}
    result = json.loads((run / "results" / "best_val_loss.json").read_text())
    assert result["best_val_f1"] == pytest.approx(100 * content["metrics"]["val"]["f1"])
    assert result["test"]["heads"].keys() == hamnosys.HEADS.keys() and result["test"]["lookup"]
    made = {path.name for path in (run / "results").iterdir()}
    assert {f"best_test-{head}-confmat.{end}" for head in hamnosys.HEADS for end in ("png", "csv")} <= made
    with (run / "results" / "best_test-predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == result["test"]["clips"]


def test_a_folder_of_signs_can_be_tested(trained, data):
    said = run_script(trained, data, "testing", "partial", "SignTransformer", SPLIT, "1", "test", "--set_dir",
                      str(data / "HEARAI" / SPLIT / "val"))
    assert "macro-F1" in said


def test_resuming_is_bit_identical(data, tmp_path):
    """Interrupted inside an epoch, with a part that is frozen for a step and a half of an epoch."""
    text = INI + """
[freeze_scheduler]
model_params = {'feature_extractor': (True, False), 'transformer': (False, True)}
freeze_pattern_repeats = (3, 4)
freeze_mode = 'step'
[scheduler]
type = 'MultiplicativeLR'
warmup_steps = 4
multiply_lr_step = 0.95
"""
    (tmp_path / "a.ini").write_text(text)
    env = {"SLR_DATA": str(data), "SLR_RUNS": str(tmp_path / "runs")}
    words = ["SignTransformer", SPLIT, "1", "-c", str(tmp_path / "a.ini"), "-na", "--no_wandb", *CPU]
    whole = Child(script, "training", *words, log=tmp_path / "whole", **env)
    assert whole.wait() == 0, whole.said()
    assert "feature_extractor stay as they are" in whole.said() and "everything trains" in whole.said()
    (tmp_path / "runs").rename(tmp_path / "first")
    stopped = Child(interrupted_script, 2, "training", *words, log=tmp_path / "stopped", **env)
    assert stopped.wait() == 75, stopped.said()
    again = Child(script, "training", *words, "-r", log=tmp_path / "again", **env)
    assert again.wait() == 0, again.said()
    states = [checkpoint.load(tmp_path / place / SPLIT / "SignTransformer_001" / "checkpoints" / "best.pth")
              for place in ("first", "runs")]
    assert states[0]["metrics"] == states[1]["metrics"]
    for name, value in states[0]["model_state_dict"].items():
        assert torch.equal(value, states[1]["model_state_dict"][name]), name


def test_overfit_validates_on_what_it_trains_on(trained, data):
    said = run_script(trained, data, "training", "SignTransformer", SPLIT, "4", "-c", str(trained / "a.ini"),
                      "--overfit", "3", "--set", "training.max_epoch=1")
    assert "checkpoints:" in said


def test_a_checkpoint_needs_no_folder_of_weights(place, tmp_path):
    """Hubert's configuration is in it."""
    import transformers
    folder = tmp_path / "hubert"
    transformers.HubertModel(transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).save_pretrained(folder)
    task = a_task({"transformer.name": "hubert_transformer", "transformer.model_path": str(folder)})
    folder.rename(tmp_path / "elsewhere")
    again = build_task(task.config, task.runtime, task.meta())
    again.load(task.model.state_dict(), "the same")
    for one, other in zip(evaluated(task)[1], evaluated(again)[1], strict=True):
        assert all(one["scores"][head] == pytest.approx(other["scores"][head], abs=1e-6) for head in one["scores"])


def test_binary_loss_trains_what_it_decodes(place):
    task = a_task({"multihead.loss": "bce"})
    means, records = evaluated(task)
    assert 0 < means["loss"] < 2
    for row in records:
        for scores in row["scores"].values():
            assert float(torch.from_numpy(scores).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_fast_dev_run_writes_nothing(data, tmp_path):
    (tmp_path / "a.ini").write_text(INI)
    said = run_script(tmp_path, data, "training", "SignTransformer", SPLIT, "1", "-c", str(tmp_path / "a.ini"), "--set",
                      "training.fast_dev_run=True")
    assert "nothing was written" in said and not (tmp_path / "runs").exists()


def test_pre_training_is_taken_over(trained, data):
    """The extractor learns with the heads alone; the main stage starts from its weights, and from no other."""
    ini = str(trained / "a.ini")
    run_script(trained, data, "training", "SignTransformer", SPLIT, "2", "-c", ini, "--set",
               "multihead.pre_training=True")
    file = trained / "runs" / SPLIT / "SignTransformer_002" / "checkpoints" / "best.pth"
    state = checkpoint.load(file)["model_state_dict"]
    assert not any(name.startswith("transformer.") for name in state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLR_DATA", str(data))
        task = a_task({"model_params.init_from": str(file)})
        own = task.model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in state.items() if name.startswith("feature_ext"))
        with pytest.raises(Mistake, match="feature extractor is another one"):
            a_task({"model_params.init_from": str(file), "feature_extractor.representation_size": "16"})
        whole = trained / "runs" / SPLIT / "SignTransformer_001" / "checkpoints" / "best.pth"
        other = a_task({"model_params.init_from": str(whole), "heads.symmetry_operator": "(10, 1.0)",
                        "heads.hand_location_x": "(5, 1.0)"}, INI)
        theirs, head = checkpoint.load(whole)["model_state_dict"], "heads.hand_location_x.weight"
        assert torch.equal(other.model.state_dict()[head], theirs[head])
        assert len(other.model.state_dict()["heads.symmetry_operator.bias"]) == 10


def test_a_gloss_head(data, tmp_path):
    text = INI.replace("[multihead]", "[multihead]\nmode = 'gloss'") + "[heads]\ngloss = (48, 1.0)\n"
    (tmp_path / "a.ini").write_text(text)
    run_script(tmp_path, data, "training", "SignTransformer", SPLIT, "3", "-c", str(tmp_path / "a.ini"))
    said = run_script(tmp_path, data, "testing", "full", "SignTransformer", SPLIT, "3")
    assert "gloss" in said and "top5" in said.replace("-", "").lower()


def test_mistakes_are_told_without_a_traceback(trained, data):
    for change, told in (("multihead.data_paths=('nowhere',)", "nowhere"), ("feature_extractor.name=cnn", "no such"),
                         ("heads.gloss=(1, 1.0)", "too few classes")):
        said = run_script(trained, data, "training", "SignTransformer", SPLIT, "9", "-c", str(trained / "a.ini"),
                          "--set", change, code=2)
        assert told in said and "Traceback" not in said


def test_two_processes_equal_one(trained, data, tmp_path):
    """With dropout off, and a part frozen for the first steps."""
    text = INI.replace("dropout_rate = 0.2", "dropout_rate = 0.0") + """
[freeze_scheduler]
model_params = {'feature_extractor': (True,)}
freeze_pattern_repeats = (3,)
freeze_mode = 'step'
"""
    (tmp_path / "a.ini").write_text(text)
    words = ["SignTransformer", SPLIT, "1", "-c", str(tmp_path / "a.ini"), "-na", "--no_wandb", *CPU]
    env = {"SLR_DATA": str(data), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2",
           "SLR_RUNS": str(tmp_path / "two")}
    ranks = [Child(script, "training", *words, log=tmp_path / f"{rank}.log", RANK=rank, LOCAL_RANK=rank, **env)
             for rank in ("0", "1")]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said() + ranks[1].said()
    one = Child(script, "training", *words, log=tmp_path / "one.log", SLR_DATA=str(data),
                SLR_RUNS=str(tmp_path / "one"))
    assert one.wait() == 0, one.said()
    logs = [read_log(tmp_path / place / SPLIT / "SignTransformer_001" / "log.jsonl") for place in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 2
    for a, b, near in zip(*logs, (1e-5, 1e-4), strict=True):  # AdamW makes steps of what is rounding
        for part in ("train", "val"):
            assert a[part]["loss"] == pytest.approx(b[part]["loss"], rel=near, abs=near)


# --- a sign alone, and runs beside one another --------------------------------------------------------------

def test_a_sign_is_read_as_a_test_reads_it(trained, data, tmp_path):
    """From its folder, with the annotation's frames; landmarks that are not there are missed."""
    with (trained / "runs" / SPLIT / "SignTransformer_001" / "results" / "best_test-predictions.csv").open() as file:
        row = next(csv.DictReader(file))
    folder = data / "HEARAI" / row["id"]
    lines = (folder.parent / "test_hamnosys.txt").read_text().splitlines()
    start, end = next(line.split()[1:3] for line in lines if line.split()[0] == folder.name)
    said = run_script(trained, data, "predict", "SignTransformer", SPLIT, "1", str(folder), "--first",
                      str(int(start) + 1), "--last", str(int(end) + 1), "--json")
    found = json.loads(said)[0]
    for head in hamnosys.HEADS:
        best = found["heads"][head][0]
        assert best["symbol"].split()[0] == row[f"{head}_predicted"]
        assert best["probability"] == pytest.approx(float(row[f"{head}_p"]), abs=1e-4)
    assert len(found["glosses"]) == 5 and found["glosses"][0].keys() == {"gloss", "name", "log_probability", "apart"}
    bare = tmp_path / "bare"
    bare.mkdir()
    for picture in folder.glob("*.jpg"):
        (bare / picture.name).write_bytes(picture.read_bytes())
    said = run_script(trained, data, "predict", "SignTransformer", SPLIT, "1", str(bare), code=2)
    assert "has no landmarks" in said and "Traceback" not in said


def test_runs_are_compared_and_listed(trained, data):
    run = f"SignTransformer/{SPLIT}/1"
    said = Child(script, "testing", "compare", run, run, log=trained / "compare.log", SLR_RUNS=str(trained / "runs"))
    assert said.wait() == 0, said.said()
    assert "difference +0.0 points" in said.said() and "exact McNemar" in said.said()
    board = Child(script, "testing", "board", log=trained / "board.log", SLR_RUNS=str(trained / "runs"))
    assert board.wait() == 0, board.said()
    assert "macro_f1" in board.said() and "SignTransformer_001" in board.said()


# --- freezing -----------------------------------------------------------------------------------------------

def test_frozen_weights_stay_and_then_train(place):
    task = a_task()
    plan = engine.FitPlan(epochs=3, freezing=FreezePlan({"feature_extractor": (True,), "heads": (False,)}, (1,),
                                                        verbose=False))
    training = engine.start(task, plan, task.runtime)
    loader = task.loader("train", train=True)
    loader.batch_sampler.start(0)
    batch = next(iter(loader))
    training.steps = 1

    def moved() -> dict[str, bool]:
        before = {name: value.clone() for name, value in task.model.named_parameters()}
        engine.optimise(training, [batch], [len(batch["ids"])])
        parts = {name.partition(".")[0] for name in before}
        return {part: any(not torch.equal(value, before[name]) for name, value in task.model.named_parameters()
                          if name.startswith(part)) for part in parts}

    assert moved() == {"feature_extractor": False, "transformer": True, "heads": True}
    training.epoch = 1
    assert moved() == {"feature_extractor": True, "transformer": True, "heads": True}


def test_a_frozen_part_stays_as_it_is_with_its_batch_norm(place):
    """And learns statistics again when it is freed; validation in between changes nothing about it."""
    task = a_task(FRAMES | {"multihead.landmarks": "''"})
    training = engine.start(task, engine.FitPlan(epochs=3, freezing=FreezePlan({"feature_extractor": (True,)}, (2,),
                                                                               verbose=False)), task.runtime)
    loader = task.loader("train", train=True)
    loader.batch_sampler.start(0)
    batch, training.steps = next(iter(loader)), 1
    task.model.train()
    before = {name: value.clone() for name, value in task.model.feature_extractor.named_buffers()}
    assert before
    for training.epoch in (0, 1):
        engine.optimise(training, [batch], [len(batch["ids"])])
        task.model.train()  # as after a validation
    now = dict(task.model.feature_extractor.named_buffers())
    assert all(torch.equal(now[name], value) for name, value in before.items())
    training.epoch = 2
    engine.optimise(training, [batch], [len(batch["ids"])])
    now = dict(task.model.feature_extractor.named_buffers())
    assert any(not torch.equal(now[name], value) for name, value in before.items())


def test_freezing_everything_is_refused(place):
    task = a_task()
    frozen = FreezePlan({part: (False, True) for part in ("feature_extractor", "transformer", "heads")}, (1, 1))
    with pytest.raises(Mistake, match="leaves nothing that trains"):
        engine.start(task, engine.FitPlan(epochs=1, freezing=frozen), task.runtime)


def test_a_name_that_no_weight_has_is_refused(place):
    task = a_task()
    plan = replace(engine.FitPlan(epochs=1), freezing=FreezePlan({"featureextractor": (True,)}, (1,)))
    with pytest.raises(Mistake, match="names no weight of this model"):
        engine.start(task, plan, task.runtime)
