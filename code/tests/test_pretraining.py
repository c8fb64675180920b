"""The task `pretraining`, each of its three: what is learnt without labels, and that its figures are what they say."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import little_footage
import numpy as np
import pytest
import torch
from little_words import a_task, as_trained, batches, evaluated, fit, interrupted, kept, learn, saved, still
from PIL import Image

from slr import checkpoint, paths
from slr.datasets import sentences
from slr.errors import Mistake
from slr.logbook import read_log
from slr.models.video_mae import cut, split
from slr.tasks import pretraining_report, reconstruction_pictures
from slr.tasks.contrastive import ContrastivePretraining, annealed
from slr.tasks.language_model import LanguageModel
from slr.tasks.pretraining import KINDS
from slr.tasks.reconstruction import Reconstruction
from slr.trained import rebuild

CONTRAST, DRAW, SPEAK = "SpatioTemporalPretrain", "VideoMAEPretrain", "LanguageDecoder"
CLOSE = {"rel": 1e-5, "abs": 1e-6}
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with the prepared splits `words` and `beats` and the long videos `talks`."""
    root = tmp_path_factory.mktemp("pretraining")
    little_footage.prepare(root, "words")
    little_footage.write_long(root, "talks")
    every = " ".join(little_footage.GLOSSES)
    little_footage.prepare(root, "beats", {"train": [every] * 6, "val": [every] * 2})
    return root


@pytest.fixture(autouse=True)
def place(data, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    return tmp_path


def with_val(data: Path, root: Path, glosses: list[tuple[str, ...]]) -> Path:
    """A copy of `words` at `root` whose validation sentences are these; the frames stay where they are."""
    target = paths.sentences(root, "words")
    target.mkdir(parents=True)
    for path in paths.sentences(data, "words").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (root / "FRAMES").symlink_to(data / "FRAMES")
    found = sentences.load_sentences(data, "words", "val")
    sentences.write_sentences(target / sentences.FILES["val"],
                              [replace(s, gloss=own) for s, own in zip(found, glosses, strict=True)])
    return root


def test_the_model_says_which_of_the_three():
    for model, kind in ((CONTRAST, ContrastivePretraining), (DRAW, Reconstruction), (SPEAK, LanguageModel)):
        task = a_task(model)
        assert type(task) is kind is KINDS[model]
        assert task.config.best_metric == (("accuracy", "max") if model == CONTRAST else ("loss", "min"))
        held = [id(weight) for group in task.groups() for weight in group["params"]]
        assert sorted(held) == sorted(map(id, task.model.parameters())) and len(set(held)) == len(held)


# --- what they learn ----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_frames_are_told_from_others():
    """Five kinds of frames, always in the same order: a hidden one follows from its neighbours. By chance not even
    every fifth is right."""
    task = a_task(CONTRAST, "beats", training__batch_size=6, spatial__cache=True, spatial__seed=9,
                  pretraining__temperature_decay=0.98, pretraining__diversity=1.0, **still(CONTRAST))
    kinds = np.random.default_rng(0).normal(size=(5, 32))
    for part in ("train", "val"):
        for number, sentence in enumerate(task.sentences(part)):
            noise = 0.1 * np.random.default_rng(number).normal(size=(sentence.num_frames, 32))
            task.cache.add(sentence, kinds[(np.arange(sentence.num_frames) + number) % 5] + noise)
    before = task.score(evaluated(task, "train")[1])
    losses = learn(task, 80, anew=True)
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]
    for part in ("train", "val"):
        after = task.score(evaluated(task, part)[1])
        assert after["accuracy"] > 0.5 > 0.35 > before["accuracy"] and 8 < after["perplexity"] <= after["codes"] == 12


@pytest.mark.slow
def test_hidden_tubes_are_drawn():
    task = a_task(DRAW, training__batch_size=4, **still(DRAW))
    losses = learn(task, 120)
    assert losses[0] > 0.9 and losses[-1] < 0.7 * losses[0]
    assert task.score(evaluated(task, "train")[1])["loss"] < 0.75 * losses[0]


def test_sentences_are_known_by_heart():
    """Nothing is left to guess but which of the two sentences begins: ln 2, once each."""
    task = a_task(SPEAK, **still(SPEAK))
    task.keep_first_items(2)  # RAIN SUN, WIND RAIN SNOW
    losses = learn(task, 150, rate=1e-2)
    found = task.score(evaluated(task, "train")[1])
    assert losses[0] > 2 and found["tokens"] == 7
    assert found["loss"] == pytest.approx(2 * math.log(2) / 7, abs=0.05) and found["accuracy"] >= 6 / 7 - 1e-6
    assert set(task.likeliest()[:2]) == {"RAIN SUN", "WIND RAIN SNOW"}
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"])) and found["perplexity"] < 1.4
    assert found["unigram_perplexity"] > 4


# --- figures ------------------------------------------------------------------------------------------------

def figures(model: str, size: int) -> tuple[dict[str, float], dict[str, dict], dict[str, float]]:
    """(Means of the losses, records by id, score) of the training set in evaluation; of batches of this size."""
    task = a_task(model, training__batch_size=size)
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in task.model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    means, records = evaluated(task, "train")
    return means, {row["id"]: row for row in records}, task.score(records)


@pytest.mark.parametrize("model", [CONTRAST, DRAW, SPEAK])
def test_masks_and_figures_are_the_same_every_time_and_for_every_batch_size(model):
    """But for diversity and perplexity, which are about a batch as a whole; of all records perplexity is the same."""
    (one, rows, scored), (again, _, _), (other, others, scored_too) = (figures(model, size) for size in (1, 1, 4))
    assert one == again
    of_a_batch = {"diversity", "perplexity"} | ({"loss"} if model == CONTRAST else set())
    assert set(one) == {CONTRAST: {"loss", "contrastive", "diversity", "perplexity", "accuracy"}, DRAW: {"loss"},
                        SPEAK: {"loss", "accuracy"}}[model]
    for name in set(one) - of_a_batch:
        assert one[name] == pytest.approx(other[name], **CLOSE)
    assert rows.keys() == others.keys() == {f"train-{k}" for k in range(4)}
    for name, row in rows.items():
        for key in ("masked", "hidden", "tokens"):
            assert row.get(key) == others[name].get(key)
        assert row["loss"] == pytest.approx(others[name]["loss"], **CLOSE)
    for name, value in scored.items():
        assert value == (pytest.approx(scored_too[name], **CLOSE) if isinstance(value, float) else scored_too[name])


@pytest.mark.parametrize("model", [CONTRAST, DRAW, SPEAK])
def test_the_score_is_the_mean_of_the_losses(model):
    means, rows, scored = figures(model, 3)
    assert scored["loss"] == pytest.approx(means["contrastive" if model == CONTRAST else "loss"], **CLOSE)
    if model != DRAW:
        assert scored["accuracy"] == pytest.approx(means["accuracy"], **CLOSE)
    weight = {CONTRAST: "masked", DRAW: "hidden", SPEAK: "tokens"}[model]
    total = sum(row[weight] for row in rows.values())
    assert scored[weight] == total > 0
    assert scored["loss"] == pytest.approx(sum(row["loss"] * row[weight] for row in rows.values()) / total)


def test_means_weigh():
    rows = [{"loss": 1.0, "n": 1}, {"loss": 4.0, "n": 2}, {"loss": 9.0, "n": 0}]
    assert pretraining_report.means(rows, "n", ("loss",)) == {"loss": 3.0}
    assert pretraining_report.means([], "n", ("loss",)) == pretraining_report.means(rows[2:], "n", ("loss",)) == {
        "loss": 0.0}


@pytest.mark.parametrize("model", [CONTRAST, DRAW])
def test_training_masks_otherwise_in_every_epoch_and_as_the_item_says(model):
    def masks(size: int, epoch: int) -> dict[str, list]:
        task, found = a_task(model, training__batch_size=size), {}
        for batch in batches(task, "train", train=True, epoch=epoch):
            masked = batch["masked"].mask if model == CONTRAST else batch["masked"]
            for name, row, length in zip(batch["ids"], masked, batch["lengths"].tolist(), strict=True):
                found[name] = row[:length].tolist() if model == CONTRAST else row.tolist()
        return found

    one, other, later = masks(1, 0), masks(4, 0), masks(1, 1)
    assert one == other and sum(one[name] != later[name] for name in one) >= 2
    if model == DRAW:
        assert {sum(row) for row in one.values()} == {2}  # half of four tubes


def test_the_loss_of_contrast_is_the_sum_with_diversity():
    for weight in (0.0, 0.5):
        task = a_task(CONTRAST, pretraining__diversity=weight)
        (batch, *_) = batches(task, "train", train=True)
        parts = task.losses(task.forward(task.model, batch), batch)
        sums = {name: float(total.detach()) for name, (total, _) in parts.items()}
        assert sums["loss"] == pytest.approx(sums["contrastive"] + weight * sums["diversity"], rel=1e-5)
        assert len({count for _, count in parts.values()}) == 1 and "temperature" in parts


def test_the_unigram_perplexity_is_a_count(data, tmp_path, monkeypatch):
    """Of words and ends, one added to each of them and to the unknown word, which has its own share."""
    said = [("SUN", "NEVER", "SEEN"), ("RAIN",)]
    monkeypatch.setenv("SLR_DATA", str(with_val(data, tmp_path, said)))
    task = a_task(SPEAK)
    records = evaluated(task, "val")[1]
    assert sorted(row["glosses"] for row in records) == ["RAIN", "SUN <unk> <unk>"]
    counts = Counter(word for text in little_footage.SAID["train"] for word in [*text.split(), "</s>"])
    total = sum(counts.values()) + 6 + 1 + 1  # six words, the end, the unknown one
    shares = [(counts[word] + 1) / total for row in said for word in [*row, "</s>"]]
    scored = task.score(records)
    assert scored["tokens"] == len(shares) == 6
    assert scored["unigram_perplexity"] == pytest.approx(math.exp(-sum(map(math.log, shares)) / len(shares)))
    every = {word: (counts[word] + 1) / total for word in (*little_footage.GLOSSES, "</s>", "<unk>")}
    assert sum(every.values()) == pytest.approx(1)


# --- temperature --------------------------------------------------------------------------------------------

def test_the_temperature_falls_by_steps_and_not_below_its_end():
    keys = a_task(CONTRAST, pretraining__temperature=2.0, pretraining__temperature_end=0.5,
                  pretraining__temperature_decay=0.9).config.pretraining
    assert [annealed(keys, done) for done in (0, 1, 2)] == pytest.approx([2.0, 1.8, 1.62])
    assert annealed(keys, 13) == pytest.approx(2 * 0.9 ** 13) and annealed(keys, 14) == annealed(keys, 10**6) == 0.5


def test_temperature_and_weights_are_the_same_after_a_resume(place, monkeypatch):
    """Interrupted in the first step of the second epoch: masks, Gumbel noise, dropout, layers left out."""
    changes = {"pretraining__temperature_decay": 0.9, "spatial__cache": True}
    fit(a_task(CONTRAST, **changes), place / "whole")
    rows = read_log(place / "whole" / "log.jsonl")
    first, second = ([2 * 0.9 ** done for done in steps] for steps in ((0, 1), (2, 3)))
    for row, steps in zip(rows, (first, second), strict=True):
        assert min(steps) <= row["train"]["temperature"] <= max(steps)  # a mean over masked frames
    with interrupted(3):
        fit(a_task(CONTRAST, **changes), place / "parts")
    fit(a_task(CONTRAST, seed=8, **changes), place / "parts", "resume.pth")
    one, other = (checkpoint.load(place / part / "checkpoint_002.pth")["model_state_dict"]
                  for part in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    again = read_log(place / "parts" / "log.jsonl")
    assert [(row["train"], row["val"]) for row in rows] == [(row["train"], row["val"]) for row in again]


# --- checkpoints --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", [CONTRAST, DRAW, SPEAK])
def test_testing_finds_what_training_said(place, model):
    task = a_task(model, training__max_epoch=1)
    fit(task, place / "run")
    (row,) = read_log(place / "run" / "log.jsonl")
    found, _ = rebuild(as_trained(place / "run" / "best.pth"), "cpu", 0)
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in task.model.state_dict().items())
    means, records = evaluated(found, "val")
    assert means.keys() == row["val"].keys() and found.headline[0] in means
    for name, value in means.items():
        assert value == pytest.approx(row["val"][name], **CLOSE)
    made = found.report(records, place / "out", "best_val")
    endings = {"items.csv", "details.json"} | ({"reconstruction.png"} if model == DRAW else set())
    assert {path.name for path in made} == {f"best_val-{ending}" for ending in endings}
    with (place / "out" / "best_val-items.csv").open(newline="") as table:
        lines = list(csv.DictReader(table))
    assert {line["id"] for line in lines} == {"val-0", "val-1"}
    by_id = {record["id"]: record for record in records}
    assert all(float(line["loss"]) == pytest.approx(by_id[line["id"]]["loss"]) for line in lines)
    details = json.loads((place / "out" / "best_val-details.json").read_text())
    scored = found.score(records)
    assert {name: details[name] for name in scored} == scored and ("likeliest" in details) == (model == SPEAK)
    assert f"{len(records)} " in found.summary(records)
    assert found.report(records, place / "none", "x", graphs=(), tables=False) == []


@pytest.mark.parametrize("model", [CONTRAST, DRAW])
def test_from_long_videos_to_sentences_to_transcription(place, model):
    """Each starts where the one before it ended: pre-training on talks, on the sentences, then with words."""
    first = a_task(model, "talks", seed=11)
    learn(first, 2)
    second = a_task(model, "words", seed=12, model_params__init_from=saved(first, place / "a.pth"))
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in first.model.state_dict().items())
    learn(second, 2)
    language = a_task(SPEAK, seed=13)
    files = f"{saved(second, place / 'b.pth')},{saved(language, place / 'c.pth')}"
    third = a_task(model.removesuffix("Pretrain"), model_params__init_from=files)
    own, before = third.model.state_dict(), second.model.state_dict()
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder and all(torch.equal(before[name], own[name.replace("encoder.", "encoder.net.", 1)])
                           for name in encoder)
    assert not all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    assert torch.equal(own["decoder.embedding.weight"], language.model.embedding.weight)
    assert math.isfinite(learn(third, 1)[0])


@pytest.mark.parametrize(("model", "changes", "words"), [
    (CONTRAST, {"pretraining__codes": 8}, "pretraining, codes: 8, here 6"),
    (CONTRAST, {"encoder__ffn": 32}, "encoder, ffn: 32, here 64"),
    (DRAW, {"pretraining__decoder_heads": 4}, "pretraining, heads: 4, here 2"),
    (SPEAK, {"language_decoder__heads": 4}, "language_decoder, heads: 4, here 2")])
def test_checkpoints_of_other_sizes_are_refused(place, model, changes, words):
    file = saved(a_task(model, **changes), place / "other.pth")
    with pytest.raises(Mistake, match="has other sizes") as caught:
        a_task(model, model_params__init_from=file)
    assert words in caught.value.found


def test_another_dinov2_is_refused(place):
    file = saved(a_task(CONTRAST), place / "x.pth")
    found = as_trained(file)
    found.content["meta"]["spatial"]["seed"] = 5
    with pytest.raises(Mistake, match="the weights of DINOv2 are others than in training"):
        rebuild(found, "cpu", 0)
    with pytest.raises(Mistake, match=f"{DRAW} does not start from"):
        a_task(DRAW, model_params__init_from=file)


def test_words_come_from_the_model_that_it_starts_from(place):
    first = a_task(SPEAK, "talks", seed=11)
    second = a_task(SPEAK, model_params__init_from=saved(first, place / "a.pth"))
    assert second.tokenizer.words == first.tokenizer.words
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in first.model.state_dict().items())
    assert kept(second)["meta"]["tokenizer"] == first.tokenizer.plain()


def test_clips_that_are_too_short_are_left_out():
    """Two spans have to fit beside one another, of what is seen at this stride."""
    long = a_task(CONTRAST, pretraining__mask_length=6)
    frames = {s.id: s.num_frames for s in long.sentences("train")}
    short = set(long.left_out())
    assert short and frames and min(frames.values()) >= 12
    strided = a_task(CONTRAST, pretraining__mask_length=2, data__frame_stride=4)
    assert all(s.num_frames > 12 for s in strided.sentences("train")) and strided.left_out()
    assert a_task(CONTRAST).left_out() == {}


# --- pictures -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("subtract", [False, True])
def test_what_is_drawn_of_a_clip(place, subtract):
    """Its visible tubelets as they are, to the last bit; grey, or what was predicted, in the hidden ones."""
    task = a_task(DRAW, training__batch_size=1, data__subtract_clip_mean=subtract)
    for batch, raw in zip(batches(task, "val"), task.loader("val", False), strict=True):
        with torch.no_grad():
            output = task.forward(task.model, batch)
        (record,) = task.decode(output, batch)
        clip, seen, drawn = record["pictures"]
        steps = int(output.steps[0])
        assert clip.shape == seen.shape == drawn.shape == (2 * steps, 16, 16, 3) and clip.dtype == np.uint8
        if not subtract:
            assert np.array_equal(clip, raw["frames"][:2 * steps].numpy())
        visible = np.zeros(4, bool)
        visible[split(batch["masked"])[0][0].numpy()] = True
        cells = np.kron(visible.reshape(2, 2), np.ones((8, 8), bool))
        for picture in (seen, drawn):
            assert np.array_equal(picture[:, cells], clip[:, cells])
        assert (seen[:, ~cells] == reconstruction_pictures.GREY).all()
        assert not np.array_equal(drawn[:, ~cells], clip[:, ~cells])
        perfect = output._replace(predicted=task.model.targets(batch["inputs"], batch["masked"]))
        (row,) = task.decode(perfect, batch)
        assert row["loss"] == pytest.approx(0, abs=1e-6)
        assert np.abs(row["pictures"][2].astype(int) - clip).max() <= 1
        assert "pictures" not in task.decode(output, batch, quick=True)[0]
    path = reconstruction_pictures.draw([record, record], place / "x.png", "two")
    assert Image.open(path).size[0] > 500


def test_targets_have_the_colours_that_training_looks_at():
    """Pixels as the model is given them, brought back to 0..1: each tubelet's colours by their own mean."""
    task = a_task(DRAW, training__batch_size=1)
    batch, raw = batches(task, "val")[0], next(iter(task.loader("val", False)))
    frames = raw["frames"].movedim(3, 0)[None].float() / 255
    pixels = cut(frames, task.model.encoder.sizes).movedim(3, -1).flatten(3, 5)  # (1, T', cells, n, 3)
    wanted = (pixels - pixels.mean(3, keepdim=True)) / (pixels.std(3, keepdim=True) + 1e-6)
    hidden = split(batch["masked"])[1][0]
    found = task.model.targets(batch["inputs"], batch["masked"])[0].unflatten(2, (-1, 3))
    torch.testing.assert_close(found, wanted[0][:, hidden], rtol=1e-3, atol=1e-3)
