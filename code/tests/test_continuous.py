"""The task `continuous` from the drawn sentences to the files of a test, on a tiny split and the scripts themselves."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import preprocess
import pytest
import testing
import torch
from children import Child, interrupted_script, script
from hypothesis import given
from hypothesis import strategies as st
from inis import OPTIMIZER

from slr import checkpoint, engine
from slr.config import parse_config
from slr.datasets import sentence_clips, sentences
from slr.datasets import synthetic_sentences as drawn
from slr.datasets.sentence_clips import eval_indices, on_frame, train_indices
from slr.errors import Mistake
from slr.loading import EpochBatches
from slr.logbook import read_log
from slr.metrics import transcripts, wer
from slr.models.masked import Frames
from slr.models.sentence import GlossHead, SentenceModel
from slr.paths import Experiment
from slr.runtime import Runtime, generator
from slr.task import build_task
from slr.tasks.continuous import Continuous
from slr.transforms import Augment, draw, no_draw

SPLIT = "demo_continuous_tiny"
INI = f"""
[experiment]
task = 'continuous'
[training]
batch_size = 4
update_per_step = 1
max_epoch = 2
save_every = 1
{OPTIMIZER}[model_params]
drop_p = 0.1
pretrained = False
[data]
num_frames = 96
frame_size = 32
frame_stride = 2
workers = 0
eval_resize = 1.0
jitter_p = 0.5
subtract_clip_mean = True
[decoding]
fps = 16
beam_width = 4
"""
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with SPLIT, as preprocess.py makes it: 6, 3 and 3 sentences at 32 pixels."""
    root = tmp_path_factory.mktemp("sentences")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawn.SIZES, SPLIT, drawn.Size((6, 3, 3), (2, 1, 1), 32))
        assert preprocess.main(["-as", SPLIT, "--data", str(root), "--workers", "0"]) == 0
    return root


@pytest.fixture
def place(data, tmp_path, monkeypatch) -> Path:
    """`data` as $SLR_DATA, and a folder whose `runs` is $SLR_RUNS."""
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def a_task(**changes: object) -> Continuous:
    config = parse_config(INI, Experiment("S3D_CTC", SPLIT, "1"), {k.replace("__", "."): str(v) for k, v in
                                                                   changes.items()})
    task = build_task(config, Runtime.start("cpu", 3))
    assert isinstance(task, Continuous)
    return task


def batches(task: Continuous, part: str, train: bool, epoch: int = 0) -> list[dict]:
    loader = task.loader(part, train)
    loader.batch_sampler.start(epoch)
    return [task.prepare(batch, train) for batch in loader]


def rewritten(data: Path, root: Path, part: str, change) -> None:
    """A copy of the prepared split at `root` with other sentences in a set; the frames stay where they are."""
    for path in (data / "SENTENCES" / SPLIT).iterdir():
        target = root / "SENTENCES" / SPLIT / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    if not (root / "SYNTHETIC").exists():
        (root / "SYNTHETIC").symlink_to(data / "SYNTHETIC")
    found = sentences.load_sentences(data, SPLIT, part)
    sentences.write_sentences(root / "SENTENCES" / SPLIT / sentences.FILES[part], change(found))


# --- frames -------------------------------------------------------------------------------------------------

@given(st.integers(1, 900), st.sampled_from([4, 100, 400]), st.integers(1, 4))
def test_evaluation_sees_all_frames_up_to_the_middle_of_a_long_sentence(count, most, every):
    found = eval_indices(count, most, every)
    every_one = list(range(0, count, every))
    assert len(found) == min(len(every_one), most) == sentence_clips.longest(count, most, every)
    first = every_one.index(found[0])
    assert found.tolist() == every_one[first:first + most]
    assert abs((len(every_one) - first - len(found)) - first) <= 1


@given(st.integers(1, 900), st.sampled_from([4, 100, 400]), st.integers(1, 4), st.integers(0, 40),
       st.integers(0, 1000), st.sampled_from([(0.5, 1.5), (0.7, 1.1), (1.0, 1.0)]))
def test_training_sees_half_to_one_and_a_half_times_as_many_or_what_is_asked(count, most, every, least, seed, scale):
    found = train_indices(count, most, every, 4, least, generator(seed, 0, "x"), scale)
    assert found.tolist() == train_indices(count, most, every, 4, least, generator(seed, 0, "x"), scale).tolist()
    assert len(found) % 4 == 0 and len(found) <= most and (np.diff(found) >= 0).all()
    assert 0 <= found[0] and found[-1] < count and len(set(found % every)) == 1
    own = -(-count // every)
    low, high = scale
    assert min(most, max(least, int(low * (own - 1)))) <= len(found) <= min(most, max(least, high * own + 1) + 4)
    if len(found) > own:  # all of them, and repeats
        assert len(set(found.tolist())) >= count // every


def test_lengths_are_uniform():
    lengths = [len(train_indices(200, 400, 1, 4, 0, generator(1, epoch, "x"), (0.5, 1.5))) for epoch in range(400)]
    assert min(lengths) < 110 and max(lengths) > 290 and 190 < np.mean(lengths) < 214


@given(st.integers(2, 300), st.integers(2, 300), st.data())
def test_boxes_of_the_square_stay_on_the_frame(height, width, data):
    side = max(height, width)
    x0, y0 = (data.draw(st.integers(0, side - 1)) for _ in range(2))
    box = (x0, y0, data.draw(st.integers(x0 + 1, side)), data.draw(st.integers(y0 + 1, side)))
    left, top, right, bottom = on_frame(box, side, height, width)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert on_frame((0, 0, side, side), side, height, width) == (0, 0, width, height)


def test_a_sentence_looks_the_same_whatever_is_beside_it(place):
    """The draws come from (seed, epoch, id): batch size, order and worker change nothing; the epoch does."""
    def seen(size: int, epoch: int = 0, workers: int = 0) -> dict[str, tuple]:
        task, found = a_task(training__batch_size=size, data__workers=workers), {}
        for batch in batches(task, "train", True, epoch):
            for i, name in enumerate(batch["ids"]):
                found[name] = (batch["inputs"][i, :, :batch["lengths"][i]].numpy().tobytes(), batch["indices"][i])
        return found

    one, other = seen(1), seen(4)
    assert one == other and len(one) == 6
    assert seen(4, workers=1) == one
    later = seen(4, epoch=1)
    assert all(later[name][1] != one[name][1] for name in one)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 99))
def test_items_of_a_batch_are_of_about_one_length(items, size, epoch):
    lengths = generator(0, epoch, "lengths").integers(10, 200, items)
    batches = EpochBatches(items, size, shuffle=True, seed=3, lengths=lambda _: lengths.tolist())
    batches.start(epoch)
    found = [[key.item for key in batch] for batch in batches]
    assert sorted(sum(found, [])) == list(range(items)) and [len(batch) for batch in found] == batches.sizes()
    batches.start(epoch, 1)
    assert [[key.item for key in batch] for batch in batches] == found[1:]


def test_batches_by_length_are_hardly_padded():
    lengths = generator(0, 0, "lengths").integers(30, 210, 1200)

    def share(**options) -> float:
        found = [[key.item for key in batch] for batch in EpochBatches(1200, 8, shuffle=True, seed=3, **options)]
        return sum(lengths) / sum(len(batch) * max(lengths[batch]) for batch in found)

    assert share() < 0.66 and share(lengths=lambda _: lengths.tolist()) > 0.95


def test_the_lengths_that_are_sorted_by_are_those_that_come(place):
    loader = a_task().loader("train", True)
    loader.batch_sampler.start(2)
    told = loader.batch_sampler.lengths(2)
    names = [s.id for s in a_task().sentences("train")]
    for batch in loader:
        assert [told[names.index(name)] for name in batch["ids"]] == batch["lengths"].tolist()


def test_so_many_clips_have_other_colours():
    changed = [not np.array_equal(draw(generator(1, epoch, "x"), Augment(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.3)),
                                  no_draw()) for epoch in range(400)]
    assert 0.22 < np.mean(changed) < 0.38


# --- the model in the task ----------------------------------------------------------------------------------

def outputs(task: Continuous, part: str = "test") -> dict[str, torch.Tensor]:
    task.model.eval()
    found = {}
    with torch.no_grad():
        for batch in batches(task, part, False):
            logits, steps = task.forward(task.model, batch)
            for name, row, n in zip(batch["ids"], logits, steps.tolist(), strict=True):
                found[name] = row[:n]
    return found


def test_neither_batch_size_nor_padding_changes_an_output(place):
    task = a_task(training__batch_size=3)
    state = task.model.state_dict()
    alone = a_task(training__batch_size=1)
    alone.model.load_state_dict(state)
    together, single = outputs(task), outputs(alone)
    assert together.keys() == single.keys() and len({len(row) for row in together.values()}) > 1
    for name, row in together.items():
        torch.testing.assert_close(row, single[name], rtol=1e-5, atol=1e-5)


def test_figures_are_the_same_for_every_batch_size(place):
    found = []
    for size in (1, 3):
        task = a_task(training__batch_size=size)
        torch.manual_seed(0)
        for parameter in task.model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        task.model.eval()
        with torch.no_grad():
            parts = [task.losses(task.forward(task.model, b), b) for b in batches(task, "val", False)]
        found.append({name: (sum(float(p[name][0]) for p in parts), sum(p[name][1] for p in parts))
                      for name in ("loss", "wer")})
    assert found[0]["wer"] == found[1]["wer"] and found[0]["loss"][1] == found[1]["loss"][1] == 3
    assert found[0]["loss"][0] == pytest.approx(found[1]["loss"][0], rel=1e-5)


class Oracle(torch.nn.Module):
    """Says what it was told, a gloss every other time step; the labellings go by the sentences' lengths."""

    def __init__(self, said: dict[int, list[int]], classes: int):
        super().__init__()
        self.said, self.classes = said, classes

    def forward(self, clips: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = -(-lengths // 4)
        logits = torch.zeros(len(clips), int(steps.max()), self.classes)
        logits[:, :, 0] = 5
        for row, length in zip(logits, lengths.tolist(), strict=True):
            for k, label in enumerate(self.said[length]):
                row[2 * k + 1] = torch.nn.functional.one_hot(torch.tensor(label), self.classes) * 12.0
        return logits, steps


def oracle(task: Continuous, part: str, drop: int = 0) -> Continuous:
    """`task` with a model that knows the answers, but for the last `drop` glosses."""
    said = {len(batch["indices"][i]): targets[:len(targets) - drop] for batch in batches(task, part, False)
            for i, targets in enumerate(batch["targets"])}
    task.model = Oracle(said, len(task.classes))  # type: ignore[assignment]
    return task


@pytest.mark.parametrize("drop", [0, 1])
def test_who_knows_the_answer_makes_no_error(place, drop):
    task = oracle(a_task(), "test", drop)
    batch = next(iter(batches(task, "test", False)))
    output = task.forward(task.model, batch)
    errors, words = task.losses(output, batch)["wer"]
    records = task.decode(output, batch)
    total = sum(len(row["reference"]) for row in records)
    assert (errors, words) == (100 * drop * len(records), total)
    found = task.score(records)
    assert found["mode"] == "plain" and found["wer"] == pytest.approx(100 * drop * len(records) / total)
    assert found["greedy"]["plain"] == found["wer"] and set(found["modes"]) == set(wer.MODES)
    for row in records:
        assert row["posteriors"].shape == (1 + len(row["hypothesis"]), len(row["steps"]) - 1)
        assert row["hypothesis"] == row["greedy"] == row["reference"][:len(row["reference"]) - drop]
        for k, (gloss, first, stop, _) in enumerate(row["spans"]):
            assert gloss == row["hypothesis"][k] and (first, stop) == (8 * (2 * k + 1), 8 * (2 * k + 2))


def test_evaluation_may_look_at_the_mirrored_clip_as_well(place):
    """The mean of the probabilities of both; for a clip and its mirror image the same. Training looks once, and so do
    its validations."""
    first = a_task(decoding__mirror=True)
    task = build_task(first.config, first.runtime, first.meta())
    assert isinstance(task, Continuous)
    batch = batches(task, "val", False)[0]
    for _ in range(20):  # batch-norm has to have seen something, or all clips look alike
        task.forward(task.model.train(), {**batch, "train": True})
    plain = a_task()
    for untrained in (first, plain):
        untrained.model.load_state_dict(task.model.state_dict())
    other = {**batch, "inputs": batch["inputs"].flip(4)}
    with torch.no_grad():
        (here, steps), (there, _) = (plain.forward(plain.model.eval(), one) for one in (batch, other))
        found, same = task.forward(task.model.eval(), batch)
        mirrored, _ = task.forward(task.model, other)
        trained, _ = task.forward(task.model, {**batch, "train": True})
        validated, _ = first.forward(first.model.eval(), batch)
    assert torch.equal(steps, same) and torch.equal(trained, here) and torch.equal(validated, here)
    assert not torch.allclose(here, there, atol=1e-4)
    for i, count in enumerate(steps.tolist()):
        expected = (here[i, :count].softmax(1) + there[i, :count].softmax(1)) / 2
        torch.testing.assert_close(found[i, :count].exp(), expected)
        torch.testing.assert_close(mirrored[i, :count].exp(), expected)


def test_black_frames_tell_nothing(place):
    """What is left without the frames: their number. A random model's answers are one and the same sentence."""
    task = a_task()
    found = {}
    for batch in batches(task, "test", False):
        black = task.prepare({**batch, "frames": torch.zeros_like(batch["frames"])}, False)
        assert float(black["inputs"].abs().max()) == 0  # their mean over time taken away
        task.model.eval()
        with torch.no_grad():
            rows, steps = task.forward(task.model, black)
        found |= {name: row[4:n - 4] for name, row, n in zip(batch["ids"], rows, steps.tolist(), strict=True)}
    shortest = min(map(len, found.values()))
    first, *others = (row[:shortest] for row in found.values())
    assert all(torch.allclose(first, row, atol=1e-4) for row in others)


class Glance(SentenceModel):
    """Looks at 8 x 8 cells of each frame, the mean of four frames a step: learns a few sentences in seconds."""

    def __init__(self, classes: int):
        super().__init__(torch.nn.Linear(192, 64), GlossHead(64, classes, 64, 0.0), 4)

    def over_time(self, clips: torch.Tensor, frames: Frames) -> torch.Tensor:
        cells = torch.nn.functional.adaptive_avg_pool3d(frames.zero(clips, 2), (clips.shape[2], 8, 8))
        features = self.backbone(cells.movedim(2, 1).flatten(2)).relu().transpose(1, 2)
        return torch.nn.functional.avg_pool1d(features, 4, ceil_mode=True).transpose(1, 2)


def test_without_the_frames_nothing_is_known(place):
    """A model that has learnt six sentences by heart finds them in their frames, and not in black ones."""
    task = a_task(training__batch_size=6)
    torch.manual_seed(1)
    task.model = Glance(len(task.classes))  # type: ignore[assignment]
    (batch,) = batches(task, "train", False)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        task.losses(task.forward(task.model, batch), batch)["loss"][0].backward()
        optimizer.step()
    found = {}
    for black in (False, True):
        task.vary(black=black)
        found[black] = engine.evaluate(task, task.loader("train", False), task.runtime)[0]["wer"]
    assert found[False] < 10 and found[True] > 80, found


# --- what is left out, and what is refused ------------------------------------------------------------------

def test_useless_sentences_are_left_out_and_named(data, place, tmp_path, monkeypatch):
    def change(found):
        return [replace(found[0], gloss=()), replace(found[1], gloss=("NEVER-SEEN",)),
                replace(found[2], gloss=("GO",) * 20), *found[3:]]

    rewritten(data, tmp_path, "train", change)
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    task = a_task()
    reasons = list(task.left_out().values())
    assert task.size("train") == 3 and len(reasons) == 3
    assert [any(word in why for why in reasons) for word in ("no gloss", "NEVER-SEEN", "too few frames")] == [True] * 3


def test_what_cannot_be_aligned_has_no_loss_and_counts_in_the_wer(data, place, tmp_path, monkeypatch):
    def change(found):
        return [replace(found[0], gloss=()), replace(found[1], gloss=("NEVER-SEEN", "GO")), *found[2:]]

    rewritten(data, tmp_path, "val", change)
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    task = oracle(a_task(training__batch_size=1), "val")
    task.model.said = {length: [label for label in said if label] for length, said in task.model.said.items()}
    own = sorted(batches(task, "val", False), key=lambda batch: batch["ids"])
    parts = [task.losses(task.forward(task.model, batch), batch) for batch in own]
    assert [part["loss"][1] for part in parts] == [1, 0, 1]
    assert [(float(part["wer"][0]), part["wer"][1]) for part in parts[:2]] == [(0, 0), (100, 2)]


@pytest.mark.parametrize("count", [0, -3])
def test_a_sentence_without_frames_is_no_sentence(count, data, place, tmp_path, monkeypatch):
    rewritten(data, tmp_path, "val", lambda found: [replace(found[0], num_frames=count), *found[1:]])
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    with pytest.raises(Mistake, match=f"dev.jsonl, line 1 is no sentence: set 'val', {count} frames"):
        a_task().size("val")


def test_lengths_out_of_range_are_refused(place):
    """Before anything is computed of them: of padded frames and of packed ones."""
    task = a_task()
    for lengths in ([16, 0], [17, 8], [8], [-1, 8]):
        with pytest.raises(Mistake, match="the lengths") as caught:
            task.model(torch.zeros(2, 3, 16, 32, 32), torch.tensor(lengths))
        assert str(lengths) in str(caught.value)
        with pytest.raises(Mistake, match="do not fit the packed batch"):
            task.model.packed(torch.zeros(32, 3, 32, 32), torch.tensor(lengths))


def test_missing_frames_are_named(data, place, tmp_path, monkeypatch):
    rewritten(data, tmp_path, "test", lambda found: [*found[:2], replace(found[2], frames=sentences.Frames(
        "video", "features/gone.mp4"))])
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    with pytest.raises(Mistake, match="1 of 3 sentences of the test set") as caught:
        a_task().loader("test", False)
    assert "gone.mp4" in str(caught.value) and f"preprocess.py -as {SPLIT}" in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [
    (INI.replace("task = 'continuous'", ""), "does not do this task"),
    (INI.replace("num_frames = 96", "num_frames = 98"), "give 96"),
    (INI.replace("workers = 0", "workers = 0\nstore = 'jpeg'"), "data.store"),
    (INI.replace("max_epoch = 2", "max_epoch = 2\nmixup = 0.2"), "mixup"),
    (INI.replace("max_epoch = 2", "max_epoch = 2\nbest_metric = 'acc'"), "best_metric"),
    (INI + "[early_stopping]\nmetric = ('train', 'wer')\nmode = 'min'\npatience = 1\nmin_delta = 0", "only of val"),
    (INI + "[scheduler]\ntype = 'ReduceLROnPlateau'\nmode = 'max'", "no accuracy"),
], ids=["task", "multiple", "store", "mixup", "metric", "stopping", "plateau"])
def test_settings_that_sentences_cannot_have(text, words):
    with pytest.raises(Mistake) as caught:
        parse_config(text, Experiment("S3D_CTC", SPLIT, "1"))
    assert words in str(caught.value)


@pytest.mark.parametrize(("split", "cleanup", "mode"), [("phoenix2014", "phoenix2014", "official"), (
    "phoenix2014t", "phoenix2014t", "official"), ("csl_daily", "none", "plain")])
def test_the_wer_that_counts(split, cleanup, mode, place, data, tmp_path, monkeypatch):
    rewritten(data, tmp_path, "val", lambda found: found)
    (tmp_path / "SENTENCES" / SPLIT).rename(tmp_path / "SENTENCES" / split)
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    task = build_task(parse_config(INI, Experiment("S3D_CTC", split, "1")), Runtime.start("cpu", 3))
    assert (task.cleanup, wer.headline(task.cleanup)) == (cleanup, mode)
    assert task.config.best_metric == ("wer", "min")


# --- the scripts --------------------------------------------------------------------------------------------

def train(data: Path, place: Path, *words: str, interrupt: int = 0, code: int = 0) -> str:
    """training.py in a process of its own, its runs below `place`; what it said. `interrupt`: in which step."""
    (place / "x.ini").write_text(INI)
    target, first = (interrupted_script, (interrupt,)) if interrupt else (script, ())
    child = Child(target, *first, "training", "S3D_CTC", SPLIT, "1", *words, "-c", str(place / "x.ini"), "-na", *CPU,
                  log=place / "said", SLR_DATA=str(data), SLR_RUNS=str(place / "runs"), WANDB_MODE="disabled")
    assert child.wait() == code, child.said()
    return child.said()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, str]:
    """(A run of two epochs, uninterrupted; what was said)."""
    place = tmp_path_factory.mktemp("trained")
    said = train(data, place)
    return place / "runs" / SPLIT / "S3D_CTC_001", said


def test_a_run(trained):
    folder, said = trained
    rows = read_log(folder / "log.jsonl")
    assert [set(row["val"]) for row in rows] == [{"loss", "wer"}] * 2 and set(rows[0]["train"]) == {"loss"}
    best = checkpoint.load(folder / "checkpoints" / "best.pth")
    assert best["model"] == "S3D_CTC" and best["task"] == "continuous" and best["meta"]["classes"][0] == "<blank>"
    assert best["metrics"]["val"]["wer"] == min(row["val"]["wer"] for row in rows)
    assert json.loads((folder / "status.json").read_text())["best"]["metric"] == "wer"
    assert "wer" in said and "Traceback" not in said


def test_resume_is_bit_identical(trained, data, place):
    """Interrupted in the first step of the second epoch: batches by length, clips that change, dropout."""
    whole, _ = trained
    folder = place / "runs" / SPLIT / "S3D_CTC_001"
    assert "epoch 2, step 1 of 2" in train(data, place, interrupt=3, code=75)
    train(data, place, "-r")
    for name in ("checkpoint_002.pth", "best.pth"):
        one, other = (checkpoint.load(path / "checkpoints" / name)["model_state_dict"] for path in (whole, folder))
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    assert [(r["train"], r["val"]) for r in read_log(whole / "log.jsonl")] == [
        (r["train"], r["val"]) for r in read_log(folder / "log.jsonl")]


def test_the_files_of_a_test_say_the_same(trained, place, capsys):
    folder, _ = trained
    out = place / "out"
    file = folder / "checkpoints" / "best.pth"
    assert testing.main(["full", "--checkpoint", str(file), "--out", str(out), *CPU]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err and "WER" in said.out
    result = json.loads((out / "best_val_loss.json").read_text())
    assert list(result) == ["check_name", "best_val_wer", "best_val_loss", "test", "val", "test_black"]
    assert result["test_black"]["modes"]["plain"]["ref_words"] == result["test"]["modes"]["plain"]["ref_words"]
    assert "test_black: 3 sentences" in said.out
    assert result["val"]["greedy"]["plain"] == pytest.approx(result["best_val_wer"])
    counts = result["test"]["modes"]["plain"]
    lines = [json.loads(line) for line in (out / "best_test-predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{SPLIT}-{number:05d}" for number in (10, 11, 12)]
    assert sum(line["errors"] for line in lines) == counts["err"]
    with (out / "best_test-glosses.csv").open(newline="") as table:
        assert sum(int(row["ref_words"]) for row in csv.DictReader(table)) == counts["ref_words"]
    for ending in ("alignment.png", "bargraph.png", "details.json"):
        assert (out / f"best_test-{ending}").stat().st_size > 200


def test_every_file_of_a_good_answer(place, tmp_path):
    """The report where something is said: times in the CTM, confusions, and a picture of spans."""
    task = oracle(a_task(), "test", drop=1)
    batch = next(iter(batches(task, "test", False)))
    records = task.decode(task.forward(task.model, batch), batch)
    made = task.report(records, tmp_path / "r", "x", graphs=("alignment",))
    assert {path.name for path in made} == {"x-predictions.jsonl", "x-hypothesis.ctm", "x-reference.stm",
                                            "x-glosses.csv", "x-details.json", "x-alignment.png"}
    pair = transcripts.read_pair(tmp_path / "r" / "x-reference.stm", tmp_path / "r" / "x-hypothesis.ctm")
    scored = wer.score(pair.refs, pair.hyps, "none", mark_empty=pair.mark_empty)
    for mode, row in task.score(records)["modes"].items():
        assert [scored[mode][key] for key in ("sub", "del", "ins")] == [row[key] for key in ("sub", "del", "ins")]
    words = transcripts.read_ctm(tmp_path / "r" / "x-hypothesis.ctm")
    assert len(words) == sum(len(row["hypothesis"]) for row in records)
    assert (words[0].start, words[0].duration) == (8 / 16, 8 / 16)
    details = json.loads((tmp_path / "r" / "x-details.json").read_text())
    assert sum(row["times"] for row in details["omitted"]) == len(records) and not details["confused"]
    assert details["signature"].startswith("wer.1|mode:plain")


def test_the_board_has_a_table_of_sentences(trained, place, monkeypatch, capsys):
    folder, _ = trained
    monkeypatch.setenv("SLR_RUNS", str(folder.parents[1]))
    assert testing.main(["full", "S3D_CTC", SPLIT, "1", *CPU]) == 0
    capsys.readouterr()
    assert testing.main(["board", "--csv", str(place / "board.csv")]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["split", "run", "wer", "mode"] and row.split()[:2] == [SPLIT, "S3D_CTC_001"]
    with (place / "board.csv").open(newline="") as table:
        (found,) = csv.DictReader(table)
    assert found["mode"] == "plain" and float(found["wer"]) > 0 and float(found["black_wer"]) > 0


def test_one_set_and_its_alignment(trained, place, capsys):
    file = trained[0] / "checkpoints" / "best.pth"
    words = ["partial", "--checkpoint", str(file), "val", "--out", str(place / "out"), "-al", "-se", *CPU]
    assert testing.main(words) == 0
    assert {path.name for path in (place / "out").iterdir()} >= {"best_val-wer.json", "best_val-alignment.png"}
    with pytest.raises(Mistake, match="shuffled"):
        testing.main([*words, "-sf"])
    assert testing.main([*words, "-bf"]) == 0
    assert {path.name for path in (place / "out").iterdir()} >= {"best_val-wer_black.json",
                                                                 "best_val_black-details.json"}
    before = sorted((place / "out").iterdir())
    with pytest.raises(Mistake, match="no such graph"):
        testing.main([*words, "-bf", "-cm", "-cn", "other"])
    assert sorted((place / "out").iterdir()) == before


def test_two_runs_are_compared(place, tmp_path, capsys):
    """Sentence by sentence, from the files that a test writes: one run knows all but a gloss of each, the other all."""
    for name, drop in (("a", 1), ("b", 0)):
        task = oracle(a_task(), "test", drop)
        batch = next(iter(batches(task, "test", False)))
        task.report(task.decode(task.forward(task.model, batch), batch), tmp_path / name, "best_test", graphs=())
    words = sum(len(reference) for reference in batch["reference"])
    capsys.readouterr()
    runs = [str(tmp_path / name) for name in "ab"]
    assert testing.main(["compare", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sentences"], found["ref_words"], found["errors_a"], found["errors_b"]) == (3, words, 3, 0)
    assert (found["fewer_a"], found["fewer_b"], found["p_value"]) == (0, 3, 2 / 8)
    assert found["difference"] == pytest.approx(300 / words) and "mode:plain" in found["signature"]
    assert testing.main(["compare", *reversed(runs)]) == 0
    said = capsys.readouterr()
    assert f"difference -{300 / words:.2f} points" in said.out and "p = 0.25 (exact sign flips)" in said.out
    file = tmp_path / "a" / "best_test-predictions.jsonl"
    details = file.with_name("best_test-details.json")
    details.write_text(details.read_text().replace("mode:plain", "mode:official"))
    with pytest.raises(Mistake, match="not counted alike"):
        testing.main(["compare", *runs])
    details.unlink()
    assert testing.main(["compare", *runs]) == 0 and "is not known" in capsys.readouterr().err
    file.write_text('{"id": "x"}\n')
    with pytest.raises(Mistake, match="line 1: no results of sentences: KeyError: 'errors'"):
        testing.main(["compare", *runs])
    other = tmp_path / "best_test-predictions.csv"
    other.write_text("clip,signer,true,rank\n")
    with pytest.raises(Mistake, match="signs and sentences"):
        testing.main(["compare", str(tmp_path), runs[1]])


def test_what_is_left_out_is_said(data, place, tmp_path):
    """By the script, each with its reason; where nothing is left to train on, it says so, and why."""
    odd: list[tuple[str, ...]] = [(), ("NEVER-SEEN",), ("GO",) * 20]
    rewritten(data, tmp_path, "train", lambda found: [*(replace(s, gloss=g) for s, g in zip(found, odd, strict=False)),
                                                      *found[3:]])
    said = train(tmp_path, place, "--set", "training.max_epoch=1")
    facts = json.loads((place / "runs" / SPLIT / "S3D_CTC_001" / "data_info.json").read_text())
    reasons = list(facts["left_out"].values())
    assert "3 training items are left out" in said and all(why in said for why in reasons)
    assert [why[:14] for why in reasons] == ["no gloss", "glosses that t", "too few frames"]
    rewritten(data, tmp_path, "train", lambda found: [replace(sentence, gloss=()) for sentence in found])
    said = train(tmp_path, place, "-ee", code=78)
    assert "the training set is empty: 6 are left out, such as" in said and "Traceback" not in said


def test_frames_that_went_missing_are_named_by_the_script(data, place, tmp_path):
    """A video that is shorter than it was: known only when it is read, in a worker."""
    rewritten(data, tmp_path, "train", lambda found: [replace(found[0], num_frames=500), *found[1:]])
    said = train(tmp_path, place, "--set", "data.workers=1", code=2)
    assert ".mp4 is too short: frame" in said and "preprocess.py" in said and "Traceback" not in said


def test_an_isolated_checkpoint_starts_the_backbone(place):
    from slr.catalogue import builder_of

    torch.manual_seed(5)
    sign = builder_of("S3D")(3, frames=8, size=32)
    path = place / "sign.pth"
    checkpoint.save(path, {"model": "S3D", "meta": {"classes": list("abc")}, "model_state_dict": sign.state_dict()})
    task = a_task(model_params__init_from=path)
    own = task.model.state_dict()
    backbone = [key for key in own if key.startswith("backbone.")]
    assert backbone and all(torch.equal(own[key], sign.state_dict()[key]) for key in backbone)
    assert isinstance(task.model, SentenceModel) and task.model.frozen_blocks == 1
    content = {"model": "R3D_18", "meta": {"classes": []}, "model_state_dict": {}}
    checkpoint.save(path, content)
    with pytest.raises(Mistake, match="is of another model") as caught:
        a_task(model_params__init_from=path)
    assert "S3D_CTC or S3D" in str(caught.value)


def test_a_sentence_checkpoint_hands_on_its_head(place):
    path = place / "first.pth"
    first = a_task()
    checkpoint.save(path, {"model": "S3D_CTC", "meta": first.meta(), "model_state_dict": first.model.state_dict()})
    second = a_task(model_params__init_from=path, experiment__seed=9)
    assert all(torch.equal(value, second.model.state_dict()[key]) for key, value in first.model.state_dict().items())


def test_overfit_takes_the_first_sentences(place):
    task = a_task()
    task.keep_first_items(2)
    assert task.sentences("train") == task.sentences("val") and task.size("val") == 2


def test_the_wer_of_no_validation_set_cannot_be_watched(data, place, tmp_path, monkeypatch):
    rewritten(data, tmp_path, "val", lambda found: [])
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    text = INI + "[early_stopping]\nmetric = ('val', 'wer')\nmode = 'min'\npatience = 1\nmin_delta = 0"
    task = build_task(parse_config(text, Experiment("S3D_CTC", SPLIT, "1")), Runtime.start("cpu", 3))
    with pytest.raises(Mistake, match="cannot watch the WER"):
        task.groups()


def test_a_validation_set_without_glosses_is_refused(data, place, tmp_path, monkeypatch):
    rewritten(data, tmp_path, "val", lambda found: [replace(sentence, gloss=()) for sentence in found])
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    with pytest.raises(Mistake, match="no sentence of the validation set has a loss: no gloss"):
        a_task().groups()


def test_an_unknown_built_in_split_is_named(tmp_path):
    with pytest.raises(Mistake, match="no such built-in sentences"):
        preprocess.main(["-as", "demo_continuous_huge", "--data", str(tmp_path)])


def test_a_split_that_is_not_prepared_is_named(place):
    config = parse_config(INI, Experiment("S3D_CTC", "nowhere", "1"))
    with pytest.raises(Mistake, match="nowhere is not prepared"):
        build_task(config, Runtime.start("cpu", 3))


def test_a_real_sentence_of_phoenix(shared, tmp_path, monkeypatch):
    """53 frames of 210 x 260 pixels and three glosses; the test sentence has lost all but two of its frames."""
    place = str(shared / "phoenix" / "phoenix2014T")
    words = ["-ds", "PHOENIX2014T", "--annotations", place, "--videos", place, "--workers", "0"]
    assert preprocess.main([*words, "--data", str(tmp_path)]) == 0
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    config = parse_config(INI.replace("frame_stride = 2", ""), Experiment("S3D_CTC", "phoenix2014t", "1"))
    task = build_task(config, Runtime.start("cpu", 3))
    assert (task.size("train"), task.size("val"), task.size("test")) == (1, 0, 1)
    (batch,), (short,) = batches(task, "train", False), batches(task, "test", False)
    assert batch["inputs"].shape == (1, 3, 53, 32, 32) and len(batch["targets"][0]) == 3
    task.model.eval()
    with torch.no_grad():
        output, tight = (task.forward(task.model, part) for part in (batch, short))
        assert output[1].tolist() == [14] and output[0].shape == (1, 14, len(task.classes))
        assert 0 < float(task.losses(output, batch)["loss"][0]) < 1000
        found = task.losses(tight, short)
    assert found["loss"][1] == 0 and found["wer"][1] == 11
    (record,) = task.decode(tight, short)
    assert record["reference"][:2] == ["REGEN", "SCHNEE"] and task.score([record])["mode"] == "official"
