"""The task `transcription` from frames to the files of a test: what it learns, where it starts from, what it says."""

import csv
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import little_footage
import pytest
import torch
from little_words import (
    CPU,
    SMALL,
    a_task,
    as_trained,
    batches,
    config_of,
    evaluated,
    fit,
    interrupted,
    kept,
    learn,
    saved,
    still,
)

from slr import checkpoint, decoding, paths
from slr.catalogue import MODELS
from slr.config import parse_config
from slr.datasets import sentences
from slr.datasets.footage import SeenCache
from slr.errors import Mistake
from slr.logbook import Logbook, read_log
from slr.losses import ctc
from slr.metrics import transcripts, wer
from slr.models.language_decoder import LanguageDecoder
from slr.models.spatio_temporal import SpatioTemporalEncoder
from slr.models.transcriber import Transcriber
from slr.paths import Experiment
from slr.task import build_task
from slr.tasks import transcription_report
from slr.tasks.transcription import decoder_of, targets, words_of
from slr.text import WordVocabulary
from slr.trained import rebuild

pytest.importorskip("transformers", reason="transformers is not installed")
THREE = ("SpatioTemporal", "VideoMAE", "ViViT")
CLOSE = {"rel": 1e-5, "abs": 1e-6}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with the prepared split `words` and the long videos `talks`."""
    root = tmp_path_factory.mktemp("transcription")
    little_footage.prepare(root, "words")
    little_footage.write_long(root, "talks")
    return root


@pytest.fixture(autouse=True)
def place(data, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    return tmp_path


def stirred(task, size: float = 0.3):
    """Weights that make the items differ."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in task.model.parameters():
            weight += size * torch.randn_like(weight)
    return task


def rewritten(data: Path, root: Path, part: str, change) -> Path:
    """A copy of `words` at `root` with other sentences in a set; the frames stay where they are."""
    target = paths.sentences(root, "words")
    target.mkdir(parents=True)
    for path in paths.sentences(data, "words").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (root / "FRAMES").symlink_to(data / "FRAMES")
    sentences.write_sentences(target / sentences.FILES[part], change(sentences.load_sentences(data, "words", part)))
    return root


# --- what it learns -----------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["attention", "joint"])
def test_it_knows_four_sentences_by_heart(weight):
    """Greedily generated: with joint CTC its best path says them, too. In black frames they are not to be seen."""
    task = a_task("SpatioTemporal", seed=4, training__batch_size=4, spatial__cache=True,
                  transcription__ctc_weight=weight, **still("SpatioTemporal"))
    losses = learn(task, 100)  # by then the sentences are known, and not yet which is which
    assert losses[0] > 3
    means, records = evaluated(task, "train", quick=True)
    for _ in range(8):
        if means["loss"] > 0.05 or means.get("ctc", 0.0) > 0.1:
            learn(task, 100)
            means, records = evaluated(task, "train", quick=True)
    assert means["loss"] < 0.1
    assert task.validation(means, records)["wer"] == 0 and means["teacher_forced_wer"] == 0
    assert [" ".join(row["hypothesis"]) for row in sorted(records, key=lambda row: row["id"])] == list(
        little_footage.SAID["train"])
    if weight:
        assert task.score(records)["ctc_wer"] == 0 and means["ctc"] < 0.15
    task.vary(black=True)
    means, black = evaluated(task, "train", quick=True)
    assert task.validation(means, black)["wer"] > 20  # how long a clip is still tells something


@pytest.mark.parametrize("model", THREE)
def test_every_weight_learns_and_the_loss_falls(model):
    task = a_task(model, transcription__ctc_weight=0.3, **still(model))
    before = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
    losses = learn(task, 6)
    assert losses[-1] < losses[0] - 0.5
    after = dict(task.model.named_parameters())
    same = [name for name, weight in before.items() if torch.equal(weight, after[name])]
    assert same == [name for name in before if name.endswith("mask_vector")]  # nothing is masked here


def test_all_weights_are_in_one_group(place):
    for model in THREE:
        task = a_task(model, transcription__ctc_weight=0.3)
        groups = {group["name"]: group for group in task.groups()}
        assert list(groups) == ["backbone", "backbone_bare", "classifier", "classifier_bare"]
        held = [id(weight) for group in groups.values() for weight in group["params"]]
        assert sorted(held) == sorted(map(id, task.model.parameters())) and len(set(held)) == len(held)
        assert all(weight.ndim < 2 for weight in groups["classifier_bare"]["params"])


# --- batches ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", THREE)
def test_neither_batch_size_nor_padding_changes_a_figure(model):
    found = []
    for size in (1, 4):
        task = stirred(a_task(model, training__batch_size=size, transcription__ctc_weight=0.3))
        means, records = evaluated(task, "train")
        found.append((means, {row["id"]: row for row in records}))
    (one, rows), (other, others) = found
    assert one.keys() == other.keys() == {"loss", "ctc", "teacher_forced_wer"}
    for name, value in one.items():
        assert value == pytest.approx(other[name], **CLOSE)
    assert rows.keys() == others.keys() and len({round(row["score"], 3) for row in rows.values()}) > 1
    for name, row in rows.items():
        assert row["score"] == pytest.approx(others[name].pop("score"), rel=1e-4)
        row.pop("score")
        assert row == others[name]


@pytest.mark.parametrize("model", THREE)
def test_neither_changes_a_loss_of_training(model):
    """SpecAugment's masks among it: they come from the items' own numbers."""
    masks = {"encoder__mask_share": 0.4, "encoder__mask_length": 2} if model == "SpatioTemporal" else {}
    quiet = {name: value for name, value in still(model).items() if "mask" not in name and "data" not in name}
    found = []
    for size in (1, 4):
        task = stirred(a_task(model, training__batch_size=size, **quiet, **masks))
        parts = [task.losses(task.forward(task.model, batch), batch)["loss"] for batch in
                 batches(task, "train", train=True, epoch=2)]
        found.append((sum(float(total.detach()) for total, _ in parts), sum(count for _, count in parts)))
    assert found[0][1] == found[1][1] == 11 + 4 and found[0][0] == pytest.approx(found[1][0], rel=1e-5)


def test_what_is_kept_of_frames_is_what_is_seen_of_them(data):
    plain, kept_ = (stirred(a_task("SpatioTemporal", spatial__cache=cache, data__frame_stride=2))
                    for cache in (False, True))
    (means, rows), (others, same) = (evaluated(task, "val") for task in (plain, kept_))
    assert "features" in next(iter(kept_.loader("val", False))) and len(list(kept_.cache.folder.glob("val/*"))) == 2
    for name, value in means.items():
        assert value == pytest.approx(others[name], **CLOSE)
    assert [row["hypothesis"] for row in rows] == [row["hypothesis"] for row in same]
    for one, other in zip(batches(plain, "val"), batches(kept_, "val"), strict=True):
        torch.testing.assert_close(one["inputs"], other["inputs"], rtol=1e-5, atol=1e-5)
    again = a_task("SpatioTemporal", spatial__cache=True)
    assert again.cache.missing(again.sentences("val")) == []
    other = a_task("SpatioTemporal", spatial__cache=True, spatial__seed=1)
    assert other.cache.hash != again.cache.hash


def test_several_processes_share_the_looking(monkeypatch):
    """Each sees its share, whatever another has seen meanwhile: nothing is left out, and nothing seen twice."""
    tasks = [a_task("SpatioTemporal", spatial__cache=True, spatial__seed=7) for _ in range(2)]
    found, added = tasks[0].sentences("train"), list[str]()
    real, barrier = SeenCache.add, threading.Barrier(2)
    monkeypatch.setattr(type(CPU), "wait", lambda self: barrier.wait(timeout=60))
    monkeypatch.setattr(SeenCache, "add", lambda self, one, seen: (added.append(one.id), real(self, one, seen)))
    for rank, task in enumerate(tasks):
        task.runtime = replace(task.runtime, rank=rank, world=2)
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda task: task._fill_cache(found, "train"), tasks))
    assert sorted(added) == sorted(sentence.id for sentence in found) and tasks[0].cache.missing(found) == []


def test_black_frames_are_as_many_and_tell_nothing():
    for model in THREE:
        task = a_task(model, **({"spatial__cache": True} if model == "SpatioTemporal" else {}))
        lengths = [batch["lengths"].tolist() for batch in batches(task, "train")]
        task.vary(black=True)
        black = batches(task, "train")
        assert [batch["lengths"].tolist() for batch in black] == lengths and "frames" in black[0]
        first = torch.cat([batch["inputs"][:, 0] if model == "SpatioTemporal" else batch["inputs"][:, :, 0]
                           for batch in black])
        torch.testing.assert_close(first, first[:1].expand_as(first))
        task.vary()
        assert not torch.equal(batches(task, "train")[0]["inputs"], black[0]["inputs"])
        with pytest.raises(Mistake, match="shuffled"):
            task.vary(shuffle=True)


def test_a_clip_shorter_than_a_tubelet_stands_still(data, tmp_path, monkeypatch):
    """In training it is left out, and named; in a test its last frame stays."""
    def short(found):
        return [replace(found[0], num_frames=3), *found[1:]]

    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path / "val", "val", short)))
    task = a_task("VideoMAE", encoder__tubelet=4, training__batch_size=1)
    (batch,) = [batch for batch in batches(task, "val") if batch["ids"] == ["val-0"]]
    assert batch["lengths"].tolist() == [4] and torch.equal(batch["inputs"][:, :, 3], batch["inputs"][:, :, 2])
    assert evaluated(task, "val")[0]["loss"] > 0
    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path / "train", "train", short)))
    task = a_task("VideoMAE", encoder__tubelet=4)
    assert task.left_out() == {"train-0": "3 frames are too few"} and task.size("train") == 3


# --- losses and figures -------------------------------------------------------------------------------------

def test_the_loss_is_of_every_word_and_the_end():
    """Against a sum over the tokens by hand; the decoder sees the start and what was said before, and no more."""
    task = stirred(a_task("VideoMAE", training__batch_size=4))
    (batch,) = batches(task, "train")
    with torch.no_grad():
        said = task.forward(task.model, batch)
    total, count = task.losses(said, batch)["loss"]
    by_hand = 0.0
    for row, own in enumerate(batch["targets"]):
        assert batch["tokens_in"][row, :len(own) + 1].tolist() == [task.tokenizer.start, *own]
        assert batch["tokens_out"][row, :len(own) + 1].tolist() == [*own, task.tokenizer.end]
        for at, token in enumerate([*own, task.tokenizer.end]):
            by_hand -= float(said.logits[row, at].log_softmax(0)[token])
    assert count == 15 and float(total) == pytest.approx(by_hand, rel=1e-5)
    smoothed = a_task("VideoMAE", training__batch_size=4, transcription__smoothing=0.2)
    assert float(smoothed.losses(said, batch)["loss"][0]) == pytest.approx(by_hand, rel=1e-5)  # not in evaluation
    assert float(smoothed.losses(said, {**batch, "train": True})["loss"][0]) != pytest.approx(by_hand, rel=1e-3)


def test_words_that_training_lacks_are_unknown_and_count(data, tmp_path, monkeypatch):
    def change(found):
        return [replace(found[0], gloss=("NEVER", "SUN")), replace(found[1], gloss=())]

    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path, "val", change)))
    task = a_task("VideoMAE", transcription__ctc_weight=0.5)
    assert task.tokenizer.words == ("SUN", "CLOUD", "RAIN", "WIND", "NORTH", "SNOW")  # by frequency, then alphabet
    assert task.numbers == {word: task.tokenizer.encode(word)[0] for word in task.tokenizer.words}
    made = targets([[0, 4], []], task.tokenizer, torch.device("cpu"))
    assert made["tokens_in"].tolist() == [[1, 3, 4], [1, 0, 0]]
    assert made["tokens_out"].tolist() == [[3, 4, 2], [2, 0, 0]]
    means, records = evaluated(stirred(task), "val")
    assert task.score(records)["modes"]["plain"]["ref_words"] == 2
    assert all("<unk>" not in row["hypothesis"] for row in records) and all(map(math.isfinite, means.values()))


def test_a_set_that_ctc_cannot_align_has_no_figure_of_it(data, tmp_path, monkeypatch):
    """Three steps of VideoMAE for four and more glosses: the run goes on, by the words alone."""
    def change(found):
        return [replace(found[0], gloss=("RAIN", "SUN", "RAIN", "SUN"))]

    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path, "val", change)))
    task = a_task("VideoMAE", transcription__ctc_weight=0.5, encoder__tubelet=8)
    assert set(evaluated(task, "val")[0]) == {"loss", "teacher_forced_wer"}
    for batch in batches(task, "train", train=True):
        total, _ = task.losses(task.forward(task.model, batch), batch)["ctc"]
        assert total.isfinite()


class Parrot(torch.nn.Module):
    """Says the right next word whatever it is given, or begins with a wrong one: which never is what it was told."""

    def __init__(self, inner: Transcriber, said: dict[int, list[int]]):
        super().__init__()
        self.inner, self.said, self.decoder = inner, said, inner.decoder

    def forward(self, inputs, lengths, tokens, rngs=None):
        said = self.inner(inputs, lengths, tokens, rngs)
        logits = torch.zeros_like(said.logits)
        for row, length in zip(logits, lengths.tolist(), strict=True):
            for at, token in enumerate(self.said[length][:len(row)]):
                row[at, token] = 20.0
        return said._replace(logits=logits)


def test_the_wer_is_of_what_is_generated():
    """Teacher-forced figures are perfect where the model is told the answers; what it says by itself is not."""
    task = stirred(a_task("VideoMAE", training__batch_size=4))
    (batch,) = batches(task, "train")
    told = {int(length): [*own, task.tokenizer.end] for length, own in
            zip(batch["lengths"], batch["targets"], strict=True)}
    assert len(told) == 4
    parrot = Parrot(task.model, told)
    with torch.no_grad():
        output = task.forward(parrot, batch)
        errors, words = task.losses(output, batch)["teacher_forced_wer"]
        records = task.decode(output, batch, quick=True)
    assert (float(errors), words) == (0, 11)
    figures = task.validation({"loss": 1.0, "teacher_forced_wer": 0.0}, records)
    by_hand = wer.score({row["id"]: row["reference"] for row in records}, {row["id"]: row["greedy"] for row in records},
                        "none", "x")["plain"]["wer"]
    assert figures == {"loss": 1.0, "teacher_forced_wer": 0.0, "wer": by_hand} and by_hand > 50
    told[int(batch["lengths"][0])][0] = told[int(batch["lengths"][0])][0] % 6 + 4
    errors, _ = task.losses(task.forward(parrot, batch), batch)["teacher_forced_wer"]
    assert float(errors) == 100


def test_a_beam_finds_what_is_no_less_likely():
    task = a_task("VideoMAE", **still("VideoMAE"))
    learn(task, 12)
    for batch in batches(task, "test"):
        with torch.no_grad():
            output = task.forward(task.model, batch)
            greedy, best = task.decode(output, batch, quick=True), task.decode(output, batch)
            for one, other, row in zip(greedy, best, range(len(best)), strict=True):
                assert one["hypothesis"] == one["greedy"] == other["greedy"] and other["score"] >= one["score"] - 1e-6
                said = [*(task.numbers[word] for word in other["hypothesis"]), task.tokenizer.end]
                tokens = torch.tensor([[task.tokenizer.start, *said[:-1]]])
                log_probs = task.model.decoder(output.vectors[row:row + 1], output.lengths[row:row + 1], tokens)[0]
                likely = log_probs.log_softmax(1)[range(len(said)), said].sum() / len(said)
                assert other["score"] == pytest.approx(float(likely), abs=1e-4)
    assert task.score(best)["search"] == {"beam_width": 5, "length_penalty": 1.0, "max_length": 100,
                                         "ctc_share": 0.0}


def test_joint_search_weighs_both_ends():
    """Of each sentence p by CTC and by the decoder, in the shares asked for; all of CTC is its own prefix search."""
    found = {}
    for share in (0.0, 0.4, 1.0):
        task = stirred(a_task("VideoMAE", transcription__ctc_weight=0.5, transcription__ctc_share=share,
                              transcription__beam_width=40, transcription__length_penalty=0.0))
        (batch,) = batches(task, "test")
        with torch.no_grad():
            output = task.forward(task.model, batch)
            found[share] = task.decode(output, batch)
    for row in range(len(found[0.4])):
        said = [task.numbers[word] for word in found[0.4][row]["hypothesis"]]
        tokens = torch.tensor([[task.tokenizer.start, *said]])
        logits = task.model.decoder(output.vectors[row:row + 1], output.lengths[row:row + 1], tokens)[0].detach()
        by_decoder = float(logits.log_softmax(1)[range(len(said) + 1), [*said, task.tokenizer.end]].sum())
        frames, steps = output.ctc.log_softmax(2)[row:row + 1], output.steps[row:row + 1]
        by_ctc = -float(ctc(frames, steps, torch.tensor([said or [1]]), torch.tensor([len(said)]))[0])
        assert found[0.4][row]["score"] == pytest.approx(0.6 * by_decoder + 0.4 * by_ctc, abs=1e-3)
    assert found[0.0] != found[1.0]
    alone = decoding.beam_search(output.ctc.log_softmax(2), output.steps, 200)
    for row, best in zip(found[1.0], alone, strict=True):
        allowed = next(x for x in best if not {0, 1, 2, 3} & {*x.labels})
        assert [task.numbers[word] for word in row["hypothesis"]] == list(allowed.labels)


def test_no_sentence_is_longer_than_it_may_be():
    task = stirred(a_task("VideoMAE", transcription__max_length=3))
    with torch.no_grad():
        task.model.decoder.embedding.weight[task.tokenizer.end] = 0  # it would never end
    assert {len(row["hypothesis"]) for row in evaluated(task, "val")[1]} <= {0, 1, 2, 3}
    long = stirred(a_task("VideoMAE"))
    assert max(len(row["hypothesis"]) for row in evaluated(long, "val")[1]) <= 15  # language_decoder.positions


# --- where it starts from -----------------------------------------------------------------------------------

def test_it_starts_from_a_language_model_and_a_pretrained_encoder(place):
    """Both parts' weights are those of before; the words and their numbers are the language model's."""
    language = a_task("LanguageDecoder", "talks", seed=11)
    language.tokenizer = WordVocabulary([*reversed(language.tokenizer.words), "MORE"])
    language.model = decoder_of(language.config, language.tokenizer, cross_attention=False)
    spoken = saved(language, place / "spoken.pth")
    for model in ("SpatioTemporal", "VideoMAE"):
        before = a_task(f"{model}Pretrain", "talks", seed=12)
        seen = saved(before, place / f"{model}.pth")
        task = a_task(model, model_params__init_from=f"{spoken}, {seen}")
        own = task.model.state_dict()
        encoder = {name: value for name, value in before.model.state_dict().items() if name.startswith("encoder.")}
        assert encoder and all(torch.equal(own[name.replace("encoder.", "encoder.net.", 1)], value)
                               for name, value in encoder.items())
        decoder = language.model.state_dict()
        assert all(torch.equal(own[f"decoder.{name}"], value) for name, value in decoder.items())
        fresh = {name.removeprefix("decoder.") for name in own if name.startswith("decoder.")} - set(decoder)
        assert fresh and all(".cross" in name for name in fresh)
        assert task.tokenizer.words == language.tokenizer.words and task.numbers["MORE"] == 4 + 6
        assert a_task(model).tokenizer.words != task.tokenizer.words


def test_it_starts_from_itself(place):
    first = a_task("ViViT", transcription__ctc_weight=0.5, seed=11)
    file = saved(first, place / "first.pth")
    second = a_task("ViViT", "talks", transcription__ctc_weight=0.5, model_params__init_from=file)
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in first.model.state_dict().items())
    assert second.tokenizer.words == first.tokenizer.words


@pytest.mark.parametrize(("kind", "own", "changes", "words"), [
    ("VideoMAEPretrain", "SpatioTemporal", {}, "SpatioTemporal does not start from"),
    ("SpatioTemporalPretrain", "VideoMAE", {}, "at most one of each of VideoMAE, VideoMAEPretrain, LanguageDecoder"),
    ("VideoMAEPretrain", "ViViT", {}, "at most one of each of ViViT, LanguageDecoder"),
    ("VideoMAEPretrain", "VideoMAE", {"encoder__heads": 4}, "has other sizes: encoder, heads: 4, here 2"),
    ("VideoMAEPretrain", "VideoMAE", {"encoder__layers": 2}, "has other sizes: encoder, layers: 2, here 1"),
    ("SpatioTemporalPretrain", "SpatioTemporal", {"encoder__kernel": 3}, "encoder, kernel: 3, here 4"),
    ("LanguageDecoder", "VideoMAE", {"language_decoder__heads": 4}, "language_decoder, heads: 4, here 2"),
    ("LanguageDecoder", "VideoMAE", {"language_decoder__positions": 20}, "language_decoder, positions: 20, here 16"),
])
def test_checkpoints_that_do_not_serve(place, kind, own, changes, words):
    file = saved(a_task(kind, **changes), place / "other.pth")
    with pytest.raises(Mistake) as caught:
        a_task(own, model_params__init_from=file)
    assert words in " ".join(str(caught.value).split())


def test_other_checkpoints_that_do_not_serve(place):
    language = saved(a_task("LanguageDecoder"), place / "a.pth")
    (place / "b.pth").write_bytes(language.read_bytes())
    with pytest.raises(Mistake, match="it is of LanguageDecoder, as another one is"):
        a_task("VideoMAE", model_params__init_from=f"{language}, {place / 'b.pth'}")
    checkpoint.save(place / "c.pth", {"model_state_dict": {}})
    with pytest.raises(Mistake, match="it is of an unknown model"):
        a_task("VideoMAE", model_params__init_from=place / "c.pth")
    with pytest.raises(Mistake):
        a_task("VideoMAE", model_params__init_from=place / "gone.pth")


def test_how_long_and_large_the_clips_were_does_not_matter(place):
    file = saved(a_task("VideoMAEPretrain", data__num_frames=8, data__frame_size=32), place / "seen.pth")
    assert a_task("VideoMAE", model_params__init_from=file).model.encoder.net.sizes.frames == 24


def test_a_folder_of_transformers_says_the_sizes(place):
    from slr.models.video_mae import Sizes, VideoMAE

    net = VideoMAE(Sizes(frames=24, size=16, patch=8, width=24, layers=2, heads=3, ffn=40), norm=False)
    net.to_folder(place / "mae")
    task = a_task("VideoMAE", model_params__weights=place / "mae")
    keys = task.config.encoder
    assert (keys.layers, keys.heads, keys.ffn, keys.width, keys.patch) == (2, 3, 40, 24, 8)
    own = task.model.encoder.net.state_dict()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in own.items())
    found, _ = rebuild(as_trained(saved(task, place / "x.pth")), "cpu", 0)
    assert found.model.encoder.net.norm is None
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in task.model.state_dict().items())
    with pytest.raises(Mistake, match="looks at other clips") as caught:
        a_task("VideoMAE", model_params__weights=place / "mae", data__num_frames=16)
    assert "set data.num_frames = 24" in caught.value.do


# --- runs ---------------------------------------------------------------------------------------------------

def test_testing_finds_what_training_said(place):
    """From best.pth alone: no split is read for it but the one that is tested, and every file of a test is there."""
    task = a_task("SpatioTemporal", transcription__ctc_weight=0.5, spatial__cache=True, training__max_epoch=1)
    fit(task, place / "run")
    (row,) = read_log(place / "run" / "log.jsonl")
    assert set(row["train"]) == {"loss", "ctc"} and set(row["val"]) == {"loss", "ctc", "teacher_forced_wer", "wer"}
    found, _ = rebuild(as_trained(place / "run" / "best.pth"), "cpu", 0)
    assert found.tokenizer.words == task.tokenizer.words and found.model.head is not None
    means, records = evaluated(found, "val")
    for name, value in found.validation(means, records).items():
        assert value == pytest.approx(row["val"][name], **CLOSE)
    made = found.report(records, place / "out", "best_val")
    assert {path.name for path in made} == {f"best_val-{ending}" for ending in (
        "predictions.jsonl", "reference.trn", "hypothesis.trn", "glosses.csv", "samples.md", "details.json",
        "bargraph.png")}
    pair = transcripts.read_pair(place / "out" / "best_val-reference.trn", place / "out" / "best_val-hypothesis.trn")
    counts = found.score(records)["modes"]["plain"]
    assert wer.score(pair.refs, pair.hyps, "none", mark_empty=pair.mark_empty)["plain"]["wer"] == counts["wer"]
    lines = [json.loads(line) for line in (place / "out" / "best_val-predictions.jsonl").read_text().splitlines()]
    assert sum(line["errors"] for line in lines) == counts["err"] and len(lines) == 2
    with (place / "out" / "best_val-glosses.csv").open(newline="") as table:
        assert sum(int(line["ref_words"]) for line in csv.DictReader(table)) == counts["ref_words"] == 4
    assert "WER" in found.summary(records) and "joint CTC's best path" in found.summary(records)
    assert found.report(records, place / "none", "x", graphs=(), tables=False) == []


def test_resume_is_bit_identical_and_keeps_its_samples(place, monkeypatch):
    """Interrupted in the second step of the second epoch, behind a validation: dropout, masks, clips that change."""
    changes = {"transcription__ctc_weight": 0.5, "spatial__cache": True, "training__validate_every": 1}
    fit(a_task("SpatioTemporal", **changes), place / "whole")
    with interrupted(4):
        fit(a_task("SpatioTemporal", **changes), place / "parts")
    fit(a_task("SpatioTemporal", meta=kept(a_task("SpatioTemporal", **changes))["meta"], seed=8, **changes),
        place / "parts", "resume.pth")
    for name in ("checkpoint_002.pth", "best.pth"):
        one, other = (checkpoint.load(place / part / name)["model_state_dict"] for part in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    logs = [[(row["train"], row["val"]) for row in read_log(place / part / "log.jsonl")] for part in ("whole", "parts")]
    assert logs[0] == logs[1]
    whole, parts = (read_log(place / part / "samples.jsonl") for part in ("whole", "parts"))
    assert whole == parts and [(row["epoch"], row["step"]) for row in whole] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [row["reference"] for row in whole[0]["samples"]] == list(little_footage.SAID["val"])


def test_samples_are_kept_and_cut(tmp_path):
    """As many as were said up to the step that a run goes on from; the same step again replaces them."""
    book = Logbook(tmp_path, 3)
    for epoch, step in ((1, 2), (1, 4), (2, 2), (2, 4)):
        book.samples(epoch, step, "raw", [{"id": "a|b", "reference": "X", "hypothesis": f"{epoch} {step}"}])
    book.samples(2, 4, "ema", [{"id": "c", "reference": "X", "hypothesis": "Y"}])
    book.samples(3, 1, "raw", [])
    text = (tmp_path / "samples.md").read_text()
    assert text.startswith("## Epoch 2, step 4, weights: ema\n\n| id | reference | hypothesis |\n| --- | --- | --- |\n")
    assert "| a\\|b | X | 1 2 |" in text and text.index("step 4") < text.index("Epoch 1, step 2")
    book.keep_until(1, 2)
    assert [(row["epoch"], row["step"]) for row in read_log(tmp_path / "samples.jsonl")] == [(1, 2), (1, 4), (2, 2)]
    book.samples(2, 2, "raw", [{"id": "d", "reference": "X", "hypothesis": "new"}])
    rows = read_log(tmp_path / "samples.jsonl")
    assert len(rows) == 3 and rows[-1]["samples"][0]["hypothesis"] == "new"
    book.keep_until(1)
    assert len(read_log(tmp_path / "samples.jsonl")) == 2 and "new" not in (tmp_path / "samples.md").read_text()


def test_samples_are_from_all_over_a_set():
    records = [{"id": str(i), "reference": ["A"], "hypothesis": ["A", "B"]} for i in range(30)]
    chosen = transcription_report.samples(records)
    assert [row["id"] for row in chosen] == ["0", "4", "8", "12", "17", "21", "25", "29"]
    assert chosen[0] == {"id": "0", "reference": "A", "hypothesis": "A B"}
    assert transcription_report.samples([]) == [] and len(transcription_report.samples(records[:3])) == 3
    assert len(transcription_report.samples(records[:1])) == 1


# --- data ---------------------------------------------------------------------------------------------------

def test_useless_sentences_are_left_out_and_named(data, tmp_path, monkeypatch):
    def change(found):
        return [replace(found[0], gloss=()), replace(found[1], gloss=("SUN",) * 16), *found[2:]]

    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path, "train", change)))
    task = a_task("VideoMAE")
    assert task.left_out() == {"train-0": "no gloss",
                               "train-1": "16 glosses are more than language_decoder.positions allows"}
    assert task.size("train") == 2
    task.keep_first_items(1)
    assert task.sentences("train") == task.sentences("val") and task.size("val") == 1


def test_sets_without_frames_are_refused(data, tmp_path, monkeypatch):
    def change(found):
        return [replace(sentence, frames=None) for sentence in found]

    monkeypatch.setenv("SLR_DATA", str(rewritten(data, tmp_path, "val", change)))
    with pytest.raises(Mistake, match="the val set of words has no frames"):
        a_task("VideoMAE").loader("val", False)


def test_the_words_are_of_the_training_set():
    config = config_of("VideoMAE", "talks")
    assert set(words_of(config, None).words) == set(little_footage.GLOSSES)


# --- at full size -------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), [("SpatioTemporal", 37.8), ("VideoMAE", 86.2)])
def test_parameters_at_the_published_sizes(data, tmp_path, monkeypatch, model, count):
    """As an .ini without sizes has them; the decoder has 1297 words, special ones included."""
    words = tuple(f"W{number}" for number in range(1297 - 4))
    root = rewritten(data, tmp_path, "train", lambda found: [replace(found[0], gloss=words[:700]),
                                                             replace(found[1], gloss=words[700:])])
    monkeypatch.setenv("SLR_DATA", str(root))
    text = ("[training]\nbatch_size = 1\nupdate_per_step = 1\nmax_epoch = 1\n[optimizer]\neps = 1e-8\n"
            "backbone_init_lr = 1e-4\nbackbone_weight_decay = 0.0\n[experiment]\ntask = 'transcription'\n")
    few = {name: value for name, value in SMALL[model].items() if name.startswith("model_params")}
    few |= {"spatial.layers": "1"} if model == "SpatioTemporal" else {}  # it is frozen, and 768 wide
    task = build_task(parse_config(text, Experiment(model, "words", "1"), few), CPU)

    def millions(part: torch.nn.Module) -> float:
        return round(sum(weight.numel() for weight in part.parameters()) / 1e6, 1)

    assert task.tokenizer.size == 1297 and MODELS[model].default_frames == task.config.data.num_frames
    assert millions(task.model.encoder.net) == count and millions(task.model.decoder) == 9.8
    assert isinstance(task.model.decoder, LanguageDecoder) and task.model.decoder.positions == 1024
    assert isinstance(task.model.encoder.net, SpatioTemporalEncoder) == (model == "SpatioTemporal")
