"""The task `translation` in both directions, on a few sentences and the smallest of models, and the scripts on it."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import extract_features
import numpy as np
import predict
import pytest
import testing
import torch
import training
from inis import OPTIMIZER
from little_mbart import SIZES, little_mbart
from little_videos import write_video
from little_words import fit, kept
from torch import nn

from slr import checkpoint, engine, paths, plots
from slr.catalogue import MODELS, builder_of
from slr.config import Config, config_from_dict, parse_config
from slr.datasets import sentences
from slr.datasets.features import Shelf
from slr.datasets.sentences import Frames, Sentence
from slr.datasets.translations import glosses_in_rows
from slr.errors import Interrupted, Mistake, run
from slr.logbook import Logbook, read_log
from slr.losses import ctc
from slr.models.gloss_table import TABLE, write_gloss_table
from slr.models.masked import Frames as Valid
from slr.models.sentence import GlossHead, SentenceModel
from slr.models.sign2text import FeatureHead
from slr.paths import Experiment
from slr.runtime import Runtime, generator
from slr.task import build_task
from slr.tasks import speech, translators
from slr.tasks.gloss2text import GlossToText
from slr.tasks.sign2text import SignToText

SPLIT = "little_texts"
WHAT, WHERE = ("RAIN", "SNOW", "SUN"), ("NORTH", "SOUTH")
GLOSSES = (*WHERE, *WHAT, "NIGHT")
CPU = ("--device", "cpu")
GLOSS2TEXT = """
[experiment]
task = 'translation'
[training]
batch_size = 8
update_per_step = 1
max_epoch = 30
[optimizer]
eps = 1e-8
translator_init_lr = 2e-2
translator_weight_decay = 0
[translation]
width = 16
layers = 1
heads = 2
ffn = 32
dropout = 0.05
smoothing = 0.1
beam_width = 2
max_length = 12
[data]
workers = 0
"""
SIGN2TEXT = f"""
[experiment]
task = 'translation'
[training]
batch_size = 4
update_per_step = 1
max_epoch = 1
{OPTIMIZER}mapper_init_lr = 2e-3
translator_init_lr = 1e-5
[translation]
width = 16
layers = 1
heads = 2
ffn = 32
max_length = 12
[data]
num_frames = 24
frame_size = 32
workers = 0
"""


# --- a prepared split ---------------------------------------------------------------------------------------

def a_sentence(number: int, part: str, night: bool = False) -> Sentence:
    """The `number`-th combination of what, where and when, of 20 frames."""
    where, what = WHERE[number % 2], WHAT[number % 3]
    said = f"there is {what} in the {where}{' at night' if night else ''}".lower()
    return Sentence(f"{part}-{number}", part, (*["NIGHT"] * night, where, what), 20, Frames("video", "all.mp4"), "me",
                    said.capitalize() + ".")


def sentences_of(part: str) -> list[Sentence]:
    """24 of training, of which every combination is three times; six of each of the others."""
    night = {"train": lambda n: n % 4 > 1, "val": lambda n: n < 3, "test": lambda n: n > 3}[part]
    return [a_sentence(n, part, night(n)) for n in range(24 if part == "train" else 6)]


def prepare(root: Path, change: Callable[[list[Sentence]], list[Sentence]] = lambda found: found,
            glosses: tuple[str, ...] = GLOSSES) -> None:
    """The split as preprocess.py leaves it, its sets changed."""
    folder = root / "SENTENCES" / SPLIT
    folder.mkdir(parents=True)
    (folder / "report.json").write_text('{"frames": "videos"}')
    (folder / "vocabulary.txt").write_text("".join(f"{n}\t{g}\n" for n, g in enumerate(("<blank>", *glosses))))
    for part, name in sentences.FILES.items():
        sentences.write_sentences(folder / name, change(sentences_of(part)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    prepare(root)
    write_video(root / "videos" / "all.mp4", 20)
    return root


@pytest.fixture
def place(data, tmp_path, monkeypatch) -> Path:
    """`data` as $SLR_DATA, and a folder whose `runs` is $SLR_RUNS."""
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Callable[..., None]:
    """Another prepared split of the same name as $SLR_DATA."""
    def there(*args: Any) -> None:
        prepare(tmp_path / "other", *args)
        monkeypatch.setenv("SLR_DATA", str(tmp_path / "other"))

    return there


# --- a model that looks, as small as they come ---------------------------------------------------------------

CHANNELS = 12


class Eye(SentenceModel):
    """In S3D_CTC's place: the mean brightness of four frames at a time, in twelve cells."""

    def __init__(self, classes: int, width: int, drop_p: float):
        super().__init__(nn.Linear(CHANNELS, CHANNELS), GlossHead(CHANNELS, classes, width, drop_p), 4)

    def over_time(self, clips: torch.Tensor, frames: Valid) -> torch.Tensor:
        cells = nn.functional.adaptive_avg_pool3d(frames.zero(clips, 2), (clips.shape[2], 2, 2)).movedim(2, 1)
        return nn.functional.avg_pool1d(self.backbone(cells.flatten(2)).transpose(1, 2), 4,
                                        ceil_mode=True).transpose(1, 2)


def an_eye(num_classes: int, *, drop_p: float = 0.1, width: int = 16, **_: Any) -> Eye:
    return Eye(num_classes, width, drop_p)


def look_with(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(MODELS, "S3D_CTC", replace(MODELS["S3D_CTC"], builder=f"{__name__}:an_eye"))


@pytest.fixture
def eye(monkeypatch) -> None:
    look_with(monkeypatch)


# --- runs ---------------------------------------------------------------------------------------------------

def config_of(ini: str, model: str, changes: dict[str, Any]) -> Config:
    return parse_config(ini, Experiment(model, SPLIT, "1"), {k.replace("__", "."): str(v) for k, v in changes.items()})


def gloss2text(seed: int = 3, ini: str = GLOSS2TEXT, meta: dict[str, Any] | None = None, **changes: Any) -> GlossToText:
    return cast(GlossToText, build_task(config_of(ini, "Gloss2Text", changes), Runtime.start("cpu", seed), meta))


def sign2text(seed: int = 3, ini: str = SIGN2TEXT, meta: dict[str, Any] | None = None, **changes: Any) -> SignToText:
    return cast(SignToText, build_task(config_of(ini, "Sign2Text", changes), Runtime.start("cpu", seed), meta))


def batches(task: Any, part: str, train: bool = False) -> list[dict[str, Any]]:
    task.model.train(train)
    return [task.prepare(batch, train) for batch in task.loader(part, train)]


def records(task: Any, part: str, **search: Any) -> dict[str, dict[str, Any]]:
    """{id: record} of a set."""
    found = engine.evaluate(task, task.loader(part, train=False), task.runtime, decode=True, **search)[1]
    return {row["id"]: row for row in found}


def translations(task: Any, part: str) -> dict[str, str]:
    return {name: row["translation"] for name, row in records(task, part).items()}


def script(module: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a script with these words, as a shell would see it; a bug raises."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    with pytest.raises(SystemExit) as ended:
        run(module.main)
    return cast(int, ended.value.code)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The run folder of Gloss2Text SPLIT 1, by training.py."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLR_DATA", str(data))
        patch.setenv("SLR_RUNS", str(place / "runs"))
        patch.setattr(plots, "curves", lambda log, path, title, best=None: path)
        (place / "x.ini").write_text(GLOSS2TEXT)
        words = ("Gloss2Text", SPLIT, "1", "-c", str(place / "x.ini"), "-na", "--no_wandb", *CPU)
        assert script(training, patch, *words) == 0
    return place / "runs" / SPLIT / "Gloss2Text_001"


@pytest.fixture(scope="module")
def told(trained) -> dict[str, Any]:
    """The content of its best.pth."""
    return checkpoint.load(trained / "checkpoints" / "best.pth")


def rebuilt(content: dict[str, Any], **changes: Any) -> GlossToText:
    """The task of a Gloss2Text checkpoint, from that alone."""
    task = gloss2text(seed=99, meta=content["meta"], **changes)
    task.load(content["model_state_dict"], "best.pth")
    return task


# --- settings -----------------------------------------------------------------------------------------------

def test_what_an_ini_need_not_say():
    config = config_of(GLOSS2TEXT, "Gloss2Text", {})
    rates = config.optimizer
    assert rates.backbone_init_lr == rates.classifier_init_lr == rates.translator_init_lr == 2e-2
    assert rates.backbone_weight_decay == rates.classifier_weight_decay == 0 and not config.model_params.pretrained
    assert config.best_metric == ("bleu4", "max") and config.decoding and config.data.num_frames == 400
    config = config_of(SIGN2TEXT, "Sign2Text", {})
    assert (config.optimizer.classifier_init_lr, config.optimizer.translator_init_lr) == (1e-3, 1e-5)
    bare = "[training]\nbatch_size = 1\nupdate_per_step = 1\nmax_epoch = 1\n[experiment]\ntask = 'translation'\n"
    with pytest.raises(Mistake, match=r"\[optimizer\] lacks translator_init_lr"):
        config_of(bare, "Gloss2Text", {})
    config = config_of(bare + "[optimizer]\neps = 1e-8\nclassifier_init_lr = 1\nclassifier_weight_decay = 0",
                       "Gloss2Text", {})
    assert config.translation and config.translation.translator == "small"


@pytest.mark.parametrize("changes", [{}, {"translation__translator": "mbart"}])
def test_only_mbart_is_pretrained_by_default(changes):
    config = config_of(GLOSS2TEXT, "Gloss2Text", changes)
    assert config.model_params.pretrained is bool(changes)
    config = config_of(GLOSS2TEXT, "Gloss2Text", {**changes, "model_params__pretrained": False})
    assert config.model_params.pretrained is False


@pytest.mark.parametrize(("ini", "model"), [(GLOSS2TEXT, "Gloss2Text"), (SIGN2TEXT, "Sign2Text")])
def test_what_is_written_reads_back(ini, model):
    config = config_of(ini, model, {"translation__sweep_beams": "(1, 4)", "translation__sweep_penalties": "(0.5, 1)"})
    assert parse_config(config.as_ini(), Experiment(model, SPLIT, "1")) == config
    assert config_from_dict(config.as_dict()) == config


REFUSED = [
    ("Gloss2Text", {"translation__mapper": "embedding"}, "translation.mapper does nothing to Gloss2Text"),
    ("Gloss2Text", {"translation__features": "x"}, "translation.features does nothing to Gloss2Text"),
    ("Gloss2Text", {"translation__scratch": True}, "translation.scratch does nothing"),
    ("Gloss2Text", {"translation__ctc_weight": 2}, "translation.ctc_weight does nothing"),
    ("Gloss2Text", {"translation__freeze_text": True}, "translation.freeze_text does nothing"),
    ("Sign2Text", {"translation__freeze_gloss": True}, "translation.freeze_gloss does nothing to Sign2Text"),
    ("Gloss2Text", {"optimizer__layer_decay": 0.5}, "optimizer.layer_decay does nothing"),
    ("Sign2Text", {"decoding__mirror": True}, "decoding.mirror does nothing to Sign2Text"),
    ("Gloss2Text", {"translation__width": 18}, "no multiple of twice its heads: 18, 2\n  give 16"),
    ("Gloss2Text", {"translation__sweep_beams": "(1, 2)"}, "sweep_beams and sweep_penalties belong together"),
    ("Gloss2Text", {"translation__sweep_beams": "(0,)"}, "translation.sweep_beams is out of range: 0"),
    ("Gloss2Text", {"model_params__pretrained": True}, "no pretrained weights of Gloss2Text"),
    ("Sign2Text", {"model_params__frozen_blocks": 1}, "Sign2Text has no blocks that can be frozen"),
    ("Gloss2Text", {"training__best_metric": "wer"}, "best_metric cannot be wer"),
]


@pytest.mark.parametrize(("model", "changes", "words"), REFUSED)
def test_settings_that_cannot_be(model, changes, words):
    with pytest.raises(Mistake, match=words):
        config_of(GLOSS2TEXT if model == "Gloss2Text" else SIGN2TEXT, model, changes)


def test_sections_and_rates_of_translations_are_theirs_alone():
    ini = "[experiment]\ntask = 'continuous'\n[training]\nbatch_size = 1\nupdate_per_step = 1\nmax_epoch = 1\n{}" \
          "[model_params]\ndrop_p = 0\npretrained = False\n[data]\nnum_frames = 24\nframe_size = 32\n{}"
    for form, words in (((OPTIMIZER, "[translation]\n"), r"\[translation\] is of Gloss2Text and Sign2Text"),
                        ((OPTIMIZER + "mapper_init_lr = 1\n", ""), "optimizer.mapper_init_lr is of Gloss2Text")):
        with pytest.raises(Mistake, match=words):
            config_of(ini.format(*form), "S3D_CTC", {})
    with pytest.raises(Mistake, match="S3D_CTC does not do this task"):
        config_of(SIGN2TEXT, "S3D_CTC", {"model_params__pretrained": False})


def test_the_searches_of_a_sweep(place):
    task = gloss2text(translation__sweep_beams="(1, 3)", translation__sweep_penalties="(0.5, 2)",
                      translation__length_penalty=0.7)
    assert task.sweep() == [{"beam_width": 1, "length_penalty": 0.7}, {"beam_width": 3, "length_penalty": 0.5},
                            {"beam_width": 3, "length_penalty": 2.0}]
    task.use_search(beam_width=3, length_penalty=2.0)
    assert task.speech.search == {"beam_width": 3, "length_penalty": 2.0, "max_length": 12}
    assert gloss2text().sweep() == []


@pytest.mark.parametrize(("split", "names", "level"), [("phoenix2014t", ("de_DE", "de_DGS"), "word"), (
    "csl_daily", ("zh_CN", "zh_CSL"), "char"), ("demo_translation", ("en_XX", "en_ASL"), "word")])
def test_the_language_goes_with_the_split(split, names, level):
    keys = config_of(GLOSS2TEXT, "Gloss2Text", {}).translation
    assert keys and speech.languages(keys, split) == names
    assert speech.languages(replace(keys, language="cs_CZ"), split) == ("cs_CZ", names[1])
    assert speech.Speech(keys, names[0], None).level == level


# --- glosses to text: training ------------------------------------------------------------------------------

def test_a_handful_is_learnt_by_heart(trained, told, place):
    """And the file of the best epoch is that of the highest BLEU, of equals that of the lower loss."""
    rows = read_log(trained / "log.jsonl")
    assert [set(row["val"]) for row in rows] == [{"loss", "bleu4"}] * 30 and set(rows[0]["train"]) == {"loss"}
    assert rows[0]["lr"] == {"translator": 2e-2}
    best = max(rows, key=lambda row: (row["val"]["bleu4"], -row["val"]["loss"]))
    assert told["epoch"] == best["epoch"] and told["metrics"]["val"] == best["val"]
    assert best["val"]["bleu4"] == pytest.approx(100) and rows[0]["val"]["bleu4"] < 50
    task = rebuilt(told)
    for part in ("train", "val", "test"):
        for row in records(task, part).values():
            assert row["translation"] == row["greedy_translation"] == row["text"]
    expected = {f"train-{n}": s.text.lower().replace(".", " .") for n, s in enumerate(sentences_of("train"))}
    assert translations(task, "train") == expected


def test_the_best_epoch_is_chosen_by_bleu(place):
    """Of a run in which the loss falls and BLEU does not follow."""
    task, scores = gloss2text(training__max_epoch=3), iter([20.0, 50.0, 40.0])
    task.validation = lambda means, found: means | {"bleu4": next(scores)}  # type: ignore[method-assign]
    finished = fit(task, place / "run")
    rows = read_log(place / "run" / "log.jsonl")
    assert rows[2]["val"]["loss"] < rows[1]["val"]["loss"] and finished.best and finished.best["epoch"] == 2
    assert checkpoint.load(place / "run" / "best.pth")["epoch"] == 2


def test_resume_is_bit_identical(place, monkeypatch):
    """Interrupted inside the second epoch: dropout, an average of the weights, generation after each epoch."""
    changes = {"training__max_epoch": 3, "training__ema": 0.8, "translation__dropout": 0.3}
    fit(gloss2text(**changes), place / "whole")
    real, steps = engine.optimise, iter(range(100))

    def interrupted(*given: Any) -> Any:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(engine, "optimise", interrupted)
        fit(gloss2text(**changes), place / "cut")
    meta = checkpoint.load(place / "cut" / "resume.pth")["meta"]
    fit(gloss2text(seed=77, meta=meta, **changes), place / "cut", "resume.pth")
    for name in ("checkpoint_003.pth", "best.pth"):
        one, other = (checkpoint.load(place / run / name)["model_state_dict"] for run in ("whole", "cut"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    one, other = (read_log(place / run / "log.jsonl") for run in ("whole", "cut"))
    assert [(r["train"], r["val"], r["val_ema"]) for r in one] == [(r["train"], r["val"], r["val_ema"]) for r in other]


def test_validation_generates_with_the_weights_that_it_scores(told, place, monkeypatch):
    """An average that knows the texts, of weights that know nothing."""
    task = gloss2text(training__ema=0.9)
    going = engine.start(task, training.plan_of(task.config, task.runtime), task.runtime)
    assert going.ema
    going.ema.module.load_state_dict(told["model_state_dict"])
    book = Logbook(place / "run", 1)
    with engine.StopFlag() as stop:
        found = engine._validate(going, task.loader("val", False), stop, book, engine.Keeper(place, {}))
    assert found["ema"]["bleu4"] == pytest.approx(100) and found["raw"]["bleu4"] < 20
    assert found["ema"]["loss"] == pytest.approx(told["metrics"]["val"]["loss"], rel=1e-4)


def test_a_checkpoint_says_all(told, place, monkeypatch):
    """The task without data, and with other settings than the model's own."""
    before = translations(rebuilt(told), "test")
    with pytest.raises(Mistake, match="translation.width cannot change"):
        rebuilt(told, translation__width=32)
    again = rebuilt(told, translation__tokens="char")
    assert translations(again, "test") == before
    monkeypatch.setenv("SLR_DATA", str(place / "nothing"))
    assert rebuilt(told).translate([("NORTH", "SUN")]) == ["there is sun in the north ."]
    with pytest.raises(Mistake, match="do not fit this model"):
        gloss2text(meta={**told["meta"], "classes": told["meta"]["classes"][:-1]}).load(told["model_state_dict"], "x")


def test_another_run_hands_on_its_tokens_and_glosses(told, trained, elsewhere):
    elsewhere(lambda found: found, ("SUN", "FOG", *WHERE, "RAIN"))
    task = gloss2text(model_params__init_from=trained / "checkpoints" / "best.pth")
    old, new = told["model_state_dict"]["gloss_embedding.weight"], task.model.gloss_embedding.weight
    names = told["meta"]["classes"]
    for number, gloss in enumerate(task.classes):
        assert torch.equal(new[number], old[names.index(gloss)]) if gloss in names else gloss == "FOG"
    assert task.speech.tokenizer.plain() == told["meta"]["tokenizer"]
    own = translators.part_of(told["model_state_dict"], "translator.")
    assert all(torch.equal(value, own[name]) for name, value in task.model.translator.state_dict().items())
    checkpoint.save(trained.parents[1] / "other.pth", {"model": "S3D", "model_state_dict": {}})
    with pytest.raises(Mistake, match="other.pth is of another model: S3D, this is Gloss2Text"):
        gloss2text(model_params__init_from=trained.parents[1] / "other.pth")


# --- glosses to text: the items -----------------------------------------------------------------------------

def test_neither_batch_size_nor_order_changes_a_translation(place):
    """Of random weights, whose texts are of all lengths."""
    found = []
    for size in (6, 1, 4):
        task = gloss2text(training__batch_size=size)
        if size == 4:
            task.sentences("test").reverse()
        task.load(stirred(task.model), "x")
        found.append({name: (row["translation"], row["greedy_translation"])
                      for name, row in records(task, "test").items()})
    assert found[0] == found[1] == found[2] and len(set(found[0].values())) > 2
    assert list(found[2]) != list(found[1])


def test_shuffled_each_is_given_anothers_glosses(told, place):
    task = rebuilt(told)
    own = records(task, "test")
    task.vary(shuffle=True, seed=5)
    others = records(task, "test")
    assert all((row["reference"], row["text"]) == (own[name]["reference"], own[name]["text"])
               for name, row in others.items())
    assert sorted(row["translation"] for row in others.values()) == sorted(row["translation"] for row in own.values())
    assert all(row["translation"] != row["text"] for row in others.values())  # each text comes once
    assert task.score(list(others.values()))["bleu4"] < 80
    task.vary()
    assert records(task, "test") == own
    with pytest.raises(Mistake, match="no test with black frames"):
        task.vary(black=True)


def test_an_ensemble_has_no_first_one(told, place):
    """Its friends read with embeddings of their own; it says what neither says alone."""
    both = [rebuilt(told) for _ in range(2)]
    both[1].load(stirred(both[1].model), "x")
    alone = [translations(task, "test") for task in both]
    found = []
    for task, friend in (both, both[::-1]):
        task.join([friend])
        found.append(translations(task, "test"))
        task.friends = []
    assert found[0] == found[1] and alone[0] != alone[1] and found[0] != alone[1]


def test_what_cannot_be_learnt_from_is_left_out_and_named(elsewhere):
    def lose(found):
        return [replace(found[0], text=""), replace(found[1], gloss=()), *found[2:]]

    elsewhere(lose)
    task = gloss2text()
    assert task.left_out() == {"train-0": "no text", "train-1": "no gloss"}
    assert [task.size(part) for part in ("train", "val", "test")] == [22, 4, 4]
    assert "train-0" not in records(task, "train")
    with pytest.raises(Mistake, match="no such test|no test with"):
        task.vary(black=True)


def test_a_split_without_texts_is_refused(elsewhere):
    elsewhere(lambda found: [replace(sentence, text="") for sentence in found])
    with pytest.raises(Mistake, match="there is nothing to translate to"):
        gloss2text()


@pytest.mark.parametrize("model", ["Gloss2Text", "Sign2Text"])
def test_bleu_of_no_validation_set_cannot_be_watched(model, elsewhere, tmp_path):
    elsewhere(lambda found: [sentence for sentence in found if sentence.set != "val"])
    stopping = "[early_stopping]\nmetric = ('val', 'bleu4')\nmode = 'max'\npatience = 1\nmin_delta = 0\n"
    shelve(tmp_path / "features")
    task: Any = gloss2text(ini=GLOSS2TEXT + stopping) if model == "Gloss2Text" else sign2text(
        ini=SIGN2TEXT + stopping, translation__scratch=True, translation__features=tmp_path / "features")
    with pytest.raises(Mistake, match="early stopping cannot watch the BLEU4: there is no validation set"):
        task.groups()


def test_unknown_glosses_count_as_such(told, place):
    task = rebuilt(told)
    (batch,) = [task.prepare(b, False) for b in [glosses_in_rows([{"ids": "a", "glosses": [0, 3], "tokens": [4],
                                                                  "ghost": False}])]]
    assert batch["glosses"].tolist() == [[0, 3]]
    found = task.translate([("NORTH", "FOG"), ("NORTH", "HAIL"), ("NORTH", "SUN")])
    assert found[0] == found[1] and found[2] == "there is sun in the north ."
    assert task.translate([("NORTH", "SUN")])[0] == found[2]
    assert "FOG" not in task.numbers and task.numbers["NORTH"] == 1 and 0 not in task.numbers.values()


def test_loss_of_the_texts(place):
    """Against the Kullback-Leibler divergence from whole distributions; in evaluation nothing is smoothed."""
    for per_token in (False, True):
        task = gloss2text(translation__dropout=0, translation__smoothing=0.3, translation__per_token=per_token)
        for train in (True, False):
            batch = batches(task, "val", train)[0]
            output = task.forward(task.model, batch)
            total, count = task.losses(output, batch)["loss"]
            expected = divergences(output.text, batch["tokens_out"], 0.3 if train else 0.0)
            lengths = (batch["tokens_out"] != 0).sum(1)
            assert count == 6 and lengths.min() < lengths.max()
            expected = expected / lengths if per_token else expected
            assert float(total.detach()) == pytest.approx(float(expected.sum()), rel=1e-5)
        assert batch["tokens_in"][:, 0].eq(task.speech.tokenizer.start).all()
        assert torch.equal(batch["tokens_in"][:, 1:][lengths == lengths.max()],
                           batch["tokens_out"][:, :-1][lengths == lengths.max()])


def divergences(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(N,), by the definition: 1 - smoothing on the target, the rest even over all but it and the padding, 0."""
    found = torch.zeros(len(targets))
    for item, (rows, tokens) in enumerate(zip(logits.double().log_softmax(2), targets.tolist(), strict=True)):
        for row, token in zip(rows, tokens, strict=True):
            if token:
                wanted = torch.full_like(row, smoothing / (len(row) - 2))
                wanted[0], wanted[token] = 0.0, 1 - smoothing
                there = wanted > 0
                found[item] += float((wanted[there] * (wanted[there].log() - row[there])).sum().detach())
    return found


def test_random_gloss_embeddings_do_not_stay_so(place):
    with pytest.raises(Mistake, match="freeze_gloss would freeze random embeddings"):
        gloss2text(translation__freeze_gloss=True)


@pytest.mark.slow
def test_mbart(place, eye):
    """Its folder with embeddings of glosses, which stay as they are; a run that goes on without the folder, says texts
    that are no longer than it has positions, and that a model of signing starts from."""
    table = {gloss.lower(): torch.randn(SIZES["d_model"]) for gloss in GLOSSES[1:]}
    write_gloss_table(little_mbart(place / "mbart") / TABLE, table)
    changes = {"translation__translator": "mbart", "translation__mbart": place / "mbart", "training__max_epoch": 1,
               "translation__freeze_gloss": True, "translation__freeze_text": True, "translation__max_length": 100}
    task = gloss2text(**changes)
    assert task.translator["kind"] == task.speech.tokenizer.plain()["kind"] == "mbart"
    rows = {gloss: task.model.gloss_embedding.weight[number].clone() for number, gloss in enumerate(task.classes)}
    assert all(torch.equal(rows[gloss], table[gloss.lower()]) for gloss in GLOSSES[1:])
    (group,) = task.groups()
    assert len(list(task.model.parameters())) - len(group["params"]) == 2
    text = task.model.translator.model.model.shared.weight.clone()
    fit(task, place / "run")
    (place / "mbart").rename(place / "gone")
    content = checkpoint.load(place / "run" / "best.pth")
    again = gloss2text(seed=9, meta=content["meta"], **{**changes, "training__max_epoch": 2})
    going = fit(again, place / "run", "checkpoint_001.pth")
    assert going.epoch == 2 and torch.equal(again.model.translator.model.model.shared.weight, text)
    assert torch.equal(again.model.gloss_embedding.weight[2], rows[again.classes[2]])
    assert going.best and going.best["epoch"] == 2
    best = rebuilt(checkpoint.load(place / "run" / "best.pth"), **changes)
    assert translations(best, "val") == translations(again, "val")
    head = a_head()
    checkpoint.save(place / "head.pth", head)
    shelve(place / "features", checkpoint.weights_hash(head["model_state_dict"]))
    signing = sign2text(model_params__init_from=f"{place / 'head.pth'}, {place / 'run' / 'best.pth'}",
                        translation__features=place / "features", translation__mapper="embedding")
    own = best.model.translator.state_dict()
    assert all(torch.equal(own[name], value) for name, value in signing.model.translator.state_dict().items())
    assert torch.equal(signing.model.mapper.embedding[2], rows[signing.classes[2]])
    assert set(translations(signing, "val")) == {f"val-{n}" for n in range(6)}


# --- signing to text: how a model begins --------------------------------------------------------------------

SEES = f"""
[experiment]
task = 'continuous'
[training]
batch_size = 4
update_per_step = 1
max_epoch = 1
{OPTIMIZER}[model_params]
drop_p = 0.1
pretrained = False
[data]
num_frames = 24
frame_size = 20
eval_resize = 1.0
workers = 0
[decoding]
fps = 25
beam_width = 3
"""


def a_head(classes: tuple[str, ...] = GLOSSES, seed: int = 5) -> dict[str, Any]:
    """A checkpoint of sentences, its weights random, its statistics of batch-norm not those that it began with."""
    torch.manual_seed(seed)
    model = builder_of("S3D_CTC")(len(classes) + 1, frames=24, size=20, width=16)
    model.classifier.norm.running_mean.normal_()
    return {"model": "S3D_CTC", "split": SPLIT, "task": "continuous", "meta": {"classes": ["<blank>", *classes]},
            "config": config_of(SEES, "S3D_CTC", {}).as_dict(), "epoch": 1, "metrics": {},
            "model_state_dict": model.state_dict()}


def shelve(folder: Path, weights: str = "", width: int = CHANNELS, without: str = "", tag: str = "0123",
           parts: tuple[str, ...] = ("train", "val", "test")) -> None:
    """Features as extract_features.py leaves them, five time steps a sentence, made with the `weights` of this hash."""
    root = paths.data_root()
    for part in parts:
        facts = {"hash": tag, "names": ["head_rgb_input"], "format": "safetensors", "of": {"weights": weights}}
        found = sentences.load_sentences(root, SPLIT, part)
        shelf = Shelf.open(folder / tag, part, facts, root)
        for sentence in found:
            if sentence.id == without:
                shelf.leave_out(sentence.id, "no frames")
            else:
                row = generator(1, 0, "".join(sentence.gloss)).normal(size=(5, width)).astype(np.float32)
                shelf.add(sentence, {"head_rgb_input": row}, 20)
        shelf.save(found)


@pytest.fixture
def pieces(eye, trained, place) -> dict[str, str]:
    """What a Sign2Text model begins with: paths of a head's checkpoint, of Gloss2Text's, and of the head's features."""
    head = a_head()
    checkpoint.save(place / "head.pth", head)
    shelve(place / "features", checkpoint.weights_hash(head["model_state_dict"]))
    both = f"{place / 'head.pth'}, {trained / 'checkpoints' / 'best.pth'}"
    return {"model_params__init_from": both, "translation__features": str(place / "features")}


def test_it_refuses_to_begin_without_both(pieces, place):
    head, _, text = pieces["model_params__init_from"].partition(", ")
    both = "a checkpoint of sentences (S3D_CTC, …)", "a checkpoint of Gloss2Text"
    for where, lacking in (("", " and ".join(both)), (head, both[1]), (text, both[0])):
        with pytest.raises(Mistake) as caught:
            sign2text(**pieces | {"model_params__init_from": where})
        said = str(caught.value)
        assert f"nothing to start from: {lacking} missing" in said and "translation.scratch = True" in said
    with pytest.raises(Mistake, match="the checkpoint is missing: .*gone.pth"):
        sign2text(**pieces | {"model_params__init_from": f"{head}, {place / 'gone.pth'}"})


def test_it_refuses_to_begin_with_what_is_not_its_own(pieces, place):
    head, _, text = pieces["model_params__init_from"].partition(", ")
    bare = {"model_state_dict": {"x": torch.zeros(1)}}
    for name, content in (("sign", {"model": "S3D", "meta": {}}), ("old", {}), ("mamba", a_head() | {
            "config": a_head()["config"] | {"model": "MambaSLR"}}), ("whole", {"model": "Sign2Text", "meta": {}})):
        checkpoint.save(place / f"{name}.pth", {**bare, **content, **bare})
    for names, words in ((("sign.pth",), "cannot start from .*sign.pth: it is of S3D\n"),
                         (("old.pth",), "it is of no model of ours"),
                         (("head.pth", "head.pth"), "it is of S3D_CTC, and so is another"),
                         (("head.pth", "whole.pth"), "starts from one of its own, or from parts"),
                         (("mamba.pth", text), "MambaSLR has no gloss features that a mapper could read")):
        with pytest.raises(Mistake, match=words):
            sign2text(**pieces | {"model_params__init_from": ", ".join(str(place / name) for name in names)})
    assert head and Path(head).is_file()


@pytest.mark.parametrize("mapper", ["projection", "embedding"])
def test_it_begins_with_the_weights_of_both(pieces, told, place, elsewhere, mapper):
    """Of other glosses in another order those that each knows, by name."""
    glosses = ("SUN", "FOG", *WHERE, "RAIN", "NIGHT")
    elsewhere(lambda found: found, glosses)
    task = sign2text(translation__mapper=mapper, translation__width=64, **pieces)
    own, head, text = task.model.state_dict(), a_head()["model_state_dict"], told["model_state_dict"]
    for name, value in head.items():
        if not name.startswith("classifier.gloss."):
            assert torch.equal(own[f"visual.{name}"], value), name
    for name in (name for name in text if name.startswith("translator.")):
        assert torch.equal(own[name], text[name]), name
    olds = ["<blank>", *GLOSSES]
    for number, gloss in enumerate(task.classes):
        if gloss in olds:
            row = head["classifier.gloss.weight"][olds.index(gloss)]
            assert torch.equal(own["visual.classifier.gloss.weight"][number], row)
        if mapper == "embedding" and gloss in olds[1:]:
            row = text["gloss_embedding.weight"][told["meta"]["classes"].index(gloss)]
            assert torch.equal(own["mapper.embedding"][number], row)
    if mapper == "embedding":
        assert not own["mapper.embedding"][0].any() and own["mapper.embedding"][2].any()
    assert task.speech.tokenizer.plain() == told["meta"]["tokenizer"]
    assert (task.config.data.frame_size, task.config.data.eval_resize, task.decoding.fps) == (20, 1.0, 25)
    again = sign2text(seed=9, meta=task.meta(), translation__mapper=mapper, **pieces)
    again.load(own, "x")
    assert again.visual == task.visual and translations(again, "val") == translations(task, "val")


def test_it_may_begin_at_random(place):
    shelve(place / "features")
    task = sign2text(translation__scratch=True, translation__features=place / "features")
    assert isinstance(task.model.visual, FeatureHead) and task.visual["channels"] == CHANNELS
    assert task.speech.tokenizer.size > 8 and task.model.translator.width == 16
    with pytest.raises(Mistake, match="this model cannot see videos: it has no backbone"):
        sign2text(meta=task.meta(), translation__scratch=True)
    for changes, words in (({"translation__features": place / "features", "translation__visual": "S3D"}, "S3D\n"),
                           ({"translation__visual": "MambaSLR"}, "MambaSLR\n")):
        with pytest.raises(Mistake, match=f"translation.visual is no model that a mapper could read: {words}"):
            sign2text(translation__scratch=True, **changes)


def test_one_of_its_own_goes_on(pieces, place):
    first = sign2text(**pieces)
    checkpoint.save(place / "first.pth", kept(first))
    second = sign2text(seed=8, **pieces | {"model_params__init_from": place / "first.pth"})
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in first.model.state_dict().items())


# --- signing to text: features ------------------------------------------------------------------------------

def test_features_of_other_weights_are_refused(pieces, place):
    """In any of the sets."""
    own = checkpoint.weights_hash(a_head()["model_state_dict"])
    shelve(place / "others", "another")
    shelve(place / "mixed", own, parts=("train", "test"))
    shelve(place / "mixed", "another", parts=("val",), tag="4567")
    for name, part in (("others", "train"), ("mixed", "val")):
        task = sign2text(**pieces | {"translation__features": place / name})
        with pytest.raises(Mistake, match="are not of the model that Sign2Text starts from: .*other weights"):
            task.features(part)
        with pytest.raises(Mistake, match="are not of the model"):
            engine.start(task, training.plan_of(task.config, task.runtime), task.runtime)


def test_features_of_another_width_are_refused(pieces, place):
    own = checkpoint.weights_hash(a_head()["model_state_dict"])
    shelve(place / "narrow", own, width=7)
    with pytest.raises(Mistake, match="of another model: 7 numbers a time step in .*narrow, the gloss head takes 12"):
        sign2text(**pieces | {"translation__features": place / "narrow"}).size("train")


def test_missing_features_are_named(pieces, place):
    own = checkpoint.weights_hash(a_head()["model_state_dict"])
    shelve(place / "train", own, without="train-3")
    task = sign2text(**pieces | {"translation__features": place / "train"})
    assert task.left_out() == {"train-3": "no features"} and task.size("train") == 23
    shelve(place / "val", own, without="val-2")
    task = sign2text(**pieces | {"translation__features": place / "val"})
    with pytest.raises(Mistake, match="1 of 6 sentences of the val set have no features: val-2"):
        task.loader("val", False)
    with pytest.raises(Mistake, match="there is no folder of features"):
        sign2text(**pieces | {"translation__features": place / "nowhere"}).size("train")


def test_what_cannot_train_is_left_out_and_named(pieces, place, elsewhere):
    def lose(found):
        if found[0].set != "train":
            return found
        return [replace(found[0], text=""), replace(found[1], gloss=()), replace(found[2], gloss=("FOG",)),
                replace(found[3], gloss=("SUN",) * 4), *found[4:]]

    elsewhere(lose)
    assert sign2text(**pieces).left_out() == {
        "train-0": "no text", "train-1": "no gloss", "train-2": "glosses that the vocabulary lacks: FOG",
        "train-3": "too few time steps for its glosses: 5 for SUN SUN SUN SUN"}


def test_the_first_ones_can_be_learnt_by_heart(pieces):
    """--overfit validates on sentences of the training set, which has features of its own."""
    task = sign2text(**pieces)
    task.keep_first_items(5)
    assert task.size("val") == 5 and set(translations(task, "val")) == {f"train-{n}" for n in range(5)}


# --- signing to text: training ------------------------------------------------------------------------------

@pytest.mark.parametrize(("mapper", "video"), [("projection", False), ("embedding", False), ("projection", True)])
def test_a_step_of_each_mapper(pieces, place, mapper, video):
    changes = pieces | ({"translation__features": ""} if video else {}) | {"translation__mapper": mapper}
    task = sign2text(**changes, optimizer__backbone_init_lr=3e-3, optimizer__translator_weight_decay=0.5)
    rates = {"backbone": (3e-3, 1e-3), "classifier": (1e-3, 1e-3), "mapper": (2e-3, 1e-3), "translator": (1e-5, 0.5)}
    if not video:
        del rates["backbone"]
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in task.groups()} == rates
    learn = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    assert sorted(map(id, learn)) == sorted(id(p) for group in task.groups() for p in group["params"])
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    finished = fit(task, place / "run")
    assert set(finished.metrics["val"]) == {"loss", "ctc", "text", "wer", "bleu4"}
    after = task.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    still = {name for name in before if name.startswith("visual.backbone.")} if not video else set()
    assert {name for name, _ in task.model.named_parameters()} - still <= changed and not changed & still


def test_loss_of_both(pieces):
    """CTC and the texts as they are weighed; training smooths, and its steps weigh them so, too."""
    task = sign2text(translation__ctc_weight=0.5, translation__text_weight=2, translation__dropout=0,
                     model_params__drop_p=0, **pieces)
    assert task.weights == {"ctc": 0.5, "text": 2.0}
    for train in (False, True):
        batch = batches(task, "val", train)[0]
        output = task.forward(task.model, batch)
        found = task.losses(output, batch)
        labels = [torch.tensor(row) for row in batch["targets"]]
        aligned, infeasible = ctc(output.glosses.log_softmax(2), output.steps, nn.utils.rnn.pad_sequence(labels, True),
                                  torch.tensor([len(row) for row in labels]))
        text = divergences(output.text, batch["tokens_out"], 0.2 if train else 0.0).sum()
        assert not infeasible and [found[name][1] for name in ("loss", "ctc", "text")] == [4, 4, 4]
        assert float(found["ctc"][0].detach()) == pytest.approx(float(aligned.detach()), rel=1e-5)
        assert float(found["text"][0].detach()) == pytest.approx(float(text), rel=1e-5)
        assert float(found["loss"][0]) == pytest.approx(0.5 * float(aligned.detach()) + 2 * float(text), rel=1e-5)
        assert ("wer" in found) is not train and not found["loss"][0].requires_grad
    task.model.train()
    going = engine.start(task, training.plan_of(task.config, task.runtime), task.runtime)
    gradients: list[torch.Tensor] = []
    going.optimizer.step = lambda: gradients.extend(  # type: ignore[method-assign]
        p.grad.clone() for p in task.model.mapper.parameters())
    engine.optimise(going, [{**batch, "ghost": False}], [4])
    (found["ctc"][0] * 0.5 / 4 + found["text"][0] * 2 / 4).backward()
    for gradient, parameter in zip(gradients, task.model.mapper.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_records_scores_and_files(pieces, place):
    task = sign2text(**pieces)
    found = list(records(task, "test").values())
    expected = {f"test-{n}": sentence for n, sentence in enumerate(sentences_of("test"))}
    for row in found:
        assert set(row) == {"id", "set", "reference", "hypothesis", "greedy", "score", "spans", "steps", "posteriors",
                            "text", "translation", "greedy_translation"}
        assert tuple(row["reference"]) == expected[row["id"]].gloss and row["text"].endswith(" .")
        assert row["steps"] == [0, 4, 8, 12, 16, 20]
    quick = engine.evaluate(task, task.loader("test", False), task.runtime, decode=True, quick=True)[1]
    assert [set(row) for row in quick] == [{"id", "set", "text", "translation", "greedy_translation"}] * 6
    assert [row["greedy_translation"] for row in quick] == [row["greedy_translation"] for row in found]
    scores = task.score(found)
    assert set(scores) == {"bleu1", "bleu2", "bleu3", "bleu4", "chrf", "rouge_l", "sentences", "ref_tokens",
                           "hyp_tokens", "signatures", "greedy_bleu4", "search", "glosses"}
    assert scores["glosses"]["wer"] > 0 and scores["search"]["beam_width"] == 5 and scores["sentences"] == 6
    said = task.summary(found)
    assert "6 sentences, BLEU-4" in said and "glosses: " in said and "WER" in said
    made = task.report(found, place / "out", "best_test", graphs=())
    names = {f"best_test-{ending}" for ending in ("predictions.jsonl", "reference.txt", "hypothesis.txt", "examples.md",
                                                  "details.json")}
    names |= {f"best_test_glosses-{ending}" for ending in ("predictions.jsonl", "hypothesis.ctm", "reference.stm",
                                                           "glosses.csv", "details.json")}
    assert {path.name for path in made} == names == {path.name for path in (place / "out").iterdir()}
    lines = (place / "out" / "best_test-hypothesis.txt").read_text().split("\n")
    assert lines[:-1] == [row["translation"] for row in found] and lines[-1] == ""
    rows = [json.loads(line) for line in (place / "out" / "best_test-predictions.jsonl").read_text().splitlines()]
    for line, row in zip(rows, found, strict=True):
        assert all(line[key] == row[key] for key in ("id", "reference", "hypothesis", "text", "translation"))
    table = (place / "out" / "best_test-examples.md").read_text().splitlines()
    assert len(table) == 2 + 6 and all(row["text"] in "".join(table) for row in found)
    details = json.loads((place / "out" / "best_test-details.json").read_text())
    assert details["interval"][0] <= details["bleu4"] <= details["interval"][1]


def test_shuffled_each_is_given_anothers_signing(pieces):
    task = sign2text(**pieces)
    task.load(stirred(task.model), "x")
    own = records(task, "test")
    task.vary(shuffle=True, seed=1)
    others = records(task, "test")
    assert sorted(row["translation"] for row in others.values()) == sorted(row["translation"] for row in own.values())
    assert any(others[name]["translation"] != row["translation"] for name, row in own.items())
    assert all(row["reference"] == others[name]["reference"] for name, row in own.items())
    with pytest.raises(Mistake, match="there are no frames to blacken"):
        task.vary(black=True)


def stirred(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights with which inputs make a difference."""
    torch.manual_seed(2)
    return {name: value + torch.randn_like(value) if value.is_floating_point() and "running" not in name else value
            for name, value in model.state_dict().items()}


def test_models_that_look_at_other_things_are_no_ensemble(pieces, told):
    task, video = sign2text(**pieces), sign2text(**pieces | {"translation__features": ""})
    with pytest.raises(Mistake, match="these models do not look at the same thing: videos and .*features"):
        task.join([video])
    other = sign2text(**pieces, meta=task.meta() | {"tokenizer": other_tokens(told)})
    with pytest.raises(Mistake, match="do not speak in the same tokens"):
        task.join([other])
    task.join([sign2text(**pieces)])
    assert not any(friend.model.training for friend in task.friends)


def other_tokens(told: dict[str, Any]) -> dict[str, Any]:
    """As many, in another order."""
    tokens = told["meta"]["tokenizer"]
    return {**tokens, "words": tokens["words"][::-1]}


@pytest.mark.slow
def test_from_the_video_with_the_real_backbone(place):
    """S3D: a step of training, then what it says of the sentences."""
    task = sign2text(translation__scratch=True)
    assert [group["name"] for group in task.groups()] == ["backbone", "classifier", "mapper", "translator"]
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    task.keep_first_items(4)
    fit(task, place / "run")
    assert all(not torch.equal(before[name], value) for name, value in task.model.named_parameters()
               if value.requires_grad and not name.endswith("bias"))
    found = records(task, "test")
    assert len(found) == 6 and all(isinstance(row["translation"], str) for row in found.values())
    assert len({row["translation"] for row in found.values()}) == 1  # of one and the same video


# --- the scripts --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def runs(trained, data) -> Path:
    """The runs folder with Gloss2Text and S3D_CTC SPLIT 1, and Sign2Text SPLIT 1, which was trained from both on the
    features that extract_features.py had written."""
    root = trained.parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLR_DATA", str(data))
        patch.setenv("SLR_RUNS", str(root))
        patch.setattr(plots, "curves", lambda log, path, title, best=None: path)
        look_with(patch)
        checkpoint.save(root / SPLIT / "S3D_CTC_001" / "checkpoints" / "best.pth", a_head())
        assert extract_features.main(["S3D_CTC", SPLIT, "1", *CPU]) == 0
        (root / "x.ini").write_text(SIGN2TEXT)
        words = ("--set", f"model_params.init_from=S3D_CTC/{SPLIT}/1, Gloss2Text/{SPLIT}/1",
                 "--set", f"translation.features=S3D_CTC/{SPLIT}/1", "-na", "--no_wandb", *CPU)
        assert script(training, patch, "Sign2Text", SPLIT, "1", "-c", str(root / "x.ini"), *words) == 0
    return root


@pytest.fixture
def there(runs, eye, data, monkeypatch) -> Path:
    monkeypatch.setenv("SLR_DATA", str(data))
    monkeypatch.setenv("SLR_RUNS", str(runs))
    return runs


def figures(text: str) -> dict[str, Any]:
    """The result that is printed at the end of the output."""
    return json.loads(text[text.index("\n{"):text.rindex("\n}") + 2])


def test_a_full_test_with_a_sweep(there, tmp_path, capsys):
    words = ["full", "Gloss2Text", SPLIT, "1", "--out", str(tmp_path), *CPU, "--set", "translation.sweep_beams=(1, 3)",
             "--set", "translation.sweep_penalties=(0.5, 1.5)"]
    assert testing.main(words) == 0
    said = capsys.readouterr()
    result = json.loads((tmp_path / "best_val_loss.json").read_text())
    assert "warning" not in said.err and figures(said.out) == result
    assert list(result) == ["check_name", "best_val_bleu4", "best_val_loss", "searches", "test", "val", "test_shuffled"]
    assert [(row["beam_width"], row["length_penalty"]) for row in result["searches"]] == [(1, 1.0), (3, 0.5), (3, 1.5)]
    best = max(result["searches"], key=lambda row: row["bleu4"])
    for name in ("test", "val", "test_shuffled"):
        assert {key: result[name]["search"][key] for key in ("beam_width", "length_penalty")} == {
            key: best[key] for key in ("beam_width", "length_penalty")}
    assert result["val"]["bleu4"] == best["bleu4"] and result["best_val_bleu4"] == pytest.approx(100)
    assert result["test"]["bleu4"] == pytest.approx(100) and result["test_shuffled"]["bleu4"] < 80
    assert {path.name for path in tmp_path.iterdir()} == {"best_val_loss.json"} | {
        f"best_{part}-{ending}" for part in ("test", "val") for ending in
        ("predictions.jsonl", "reference.txt", "hypothesis.txt", "examples.md", "details.json")}


def test_runs_on_the_board_and_compared(there, tmp_path, capsys):
    for model in ("Gloss2Text", "Sign2Text"):
        assert testing.main(["full", model, SPLIT, "1", *CPU]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    result = json.loads((there / SPLIT / "Sign2Text_001" / "results" / "best_val_loss.json").read_text())
    assert "searches" not in result and result["test"]["glosses"]["wer"] > 0
    assert testing.main(["board", "--csv", str(tmp_path / "board.csv")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["split", "run", "bleu4", "bleu1", "chrf", "rouge_l", "val_bleu4", "shuffled_bleu4",
                            "gloss_wer"]
    assert first.split()[:3] == [SPLIT, "Gloss2Text_001", "100.00"] and first.split()[-1] == "-"
    assert second.split()[:2] == [SPLIT, "Sign2Text_001"] and float(second.split()[-1]) > 0
    assert len((tmp_path / "board.csv").read_text().splitlines()) == 3
    both = [f"Gloss2Text/{SPLIT}/1", f"Sign2Text/{SPLIT}/1"]
    assert testing.main(["compare", *both, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sentences"] == 6 and found["bleu4_a"] == pytest.approx(100) and found["difference"] > 0
    assert found["p_value"] < 0.1 and testing.main(["compare", *both]) == 0
    assert f"{both[0]}: 100.00   {both[1]}: {found['bleu4_b']:.2f}" in capsys.readouterr().out
    glosses = there / SPLIT / "Sign2Text_001" / "results" / "best_test_glosses-predictions.jsonl"
    with pytest.raises(Mistake, match="texts and sentences are not compared"):
        testing.main(["compare", both[0], str(glosses)])
    copy = tmp_path / "best_test-predictions.jsonl"
    copy.write_text('{"id": "a", "translation": "x"}\n')
    with pytest.raises(Mistake, match="line 1: no results of translation: KeyError: 'text'"):
        testing.main(["compare", str(copy), both[0]])
    lines = (there / SPLIT / "Gloss2Text_001" / "results" / copy.name).read_text()
    copy.write_text(lines)
    (tmp_path / "best_test-details.json").write_text('{"signatures": {"bleu": "bleu|level:char|set:x"}}')
    with pytest.raises(Mistake, match="not of the same tokens: char and word"):
        testing.main(["compare", str(tmp_path), both[0]])
    (tmp_path / "best_test-details.json").write_text("{}")
    with pytest.raises(Mistake, match="best_test-details.json does not say how texts were scored"):
        testing.main(["compare", str(tmp_path), both[0]])


def test_one_set_shuffled(there, tmp_path, capsys):
    words = ["partial", "Gloss2Text", SPLIT, "1", "test", "-sf", "-se", "--out", str(tmp_path), *CPU]
    assert testing.main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"best_test-bleu_shuffled.json",
                                                          "best_test_shuffled-predictions.jsonl"}
    assert json.loads((tmp_path / "best_test-bleu_shuffled.json").read_text())["bleu4"] < 80
    with pytest.raises(Mistake, match="no such graph"):
        testing.main([*words, "-al"])


@pytest.mark.parametrize("model", ["Gloss2Text", "Sign2Text"])
def test_a_run_with_itself_is_itself(there, tmp_path, capsys, model):
    """Nothing is dropped out of a friend; its results have a name of their own."""
    own = f"{model}/{SPLIT}/1"
    found = []
    for friends in ((), ("--ensemble", own, own)):
        words = ["partial", model, SPLIT, "1", "test", "-se", *CPU, "--set", "translation.beam_width=3", *friends]
        assert testing.main(words) == 0
        name = "best" + f"_with-{own.replace('/', '-')}" * 2 * bool(friends) + "_translation.beam_width-3_test"
        file = there / SPLIT / f"{model}_001" / "results" / f"{name}-predictions.jsonl"
        found.append([json.loads(line) for line in file.read_text().splitlines()])
    assert found[0] == found[1] and len(found[0]) == 6


def test_ensembles_that_cannot_be(there, told, tmp_path):
    words = ["partial", "Gloss2Text", SPLIT, "1", "test", *CPU, "--ensemble"]
    with pytest.raises(Mistake, match="only translations have ensembles: S3D_CTC"):
        testing.main(["partial", "S3D_CTC", SPLIT, "1", "test", *CPU, "--ensemble", f"S3D_CTC/{SPLIT}/1"])
    with pytest.raises(Mistake, match="an ensemble is of one MODEL: Gloss2Text and Sign2Text"):
        testing.main([*words, f"Sign2Text/{SPLIT}/1"])
    with pytest.raises(Mistake, match="--ensemble takes MODEL/SPLIT/EXP_NO: 'best.pth'"):
        testing.main([*words, "best.pth"])
    for number, (meta, said) in enumerate((({"tokenizer": other_tokens(told)}, "do not speak in the same tokens"), (
            {"classes": told["meta"]["classes"][::-1]}, "do not read the same glosses"))):
        other = there / SPLIT / f"Gloss2Text_01{number}" / "checkpoints" / "best.pth"
        checkpoint.save(other, told | {"meta": told["meta"] | meta})
        with pytest.raises(Mistake, match=said):
            testing.main([*words, f"Gloss2Text/{SPLIT}/1{number}"])


def test_glosses_in_words(there, monkeypatch, capsys):
    run = ("Gloss2Text", SPLIT, "1")
    assert predict.main([*run, "NORTH SUN", "NIGHT  SOUTH RAIN FOG", *CPU]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:3] == ["NORTH SUN", "  there is sun in the north .", "NIGHT SOUTH RAIN FOG"]
    assert "note: the model does not know FOG" in said.err
    file = there / SPLIT / "Gloss2Text_001" / "checkpoints" / "best.pth"
    assert predict.main(["--checkpoint", str(file), *CPU, "--json", "NORTH SUN"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"glosses": ["NORTH", "SUN"], "text": "there is sun in the north ."}]
    for words, wrong in ((("",), "a sentence has no gloss"), (("SUN", "--fps", "3"), "--fps has no meaning for glos"),
                         (("SUN", "-k", "2"), "--top has no meaning"), (("SUN", "--stream"), "--stream has no meaning"),
                         (("SUN", "--box", "0", "0", "1", "1"), "--box has no meaning")):
        assert script(predict, monkeypatch, *run, *words, *CPU) == 2
        said = capsys.readouterr()
        assert wrong in said.err and "Traceback" not in said.err and not said.out


def test_a_video_in_words(there, data, monkeypatch, capsys):
    """As evaluation has them: every sentence of the split is that video, though by way of extracted features."""
    run, video = ("Sign2Text", SPLIT, "1"), data / "videos" / "all.mp4"
    assert predict.main([*run, str(video), *CPU]) == 0
    said = capsys.readouterr().out.splitlines()
    assert predict.main([*run, str(video), *CPU, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert said[0] == str(video) and said[-1] == f"  {found['text'] or 'no text'}"
    assert said[-2] == f"  {' '.join(found['sentence']) or 'no gloss'}"
    assert [gloss["gloss"] for gloss in found["glosses"]] == found["sentence"] and found["fps"] == 25
    assert testing.main(["partial", *run, "test", "-se", *CPU]) == 0
    file = there / SPLIT / "Sign2Text_001" / "results" / "best_test-predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(row["translation"], *row["hypothesis"]) for row in rows} == {(found["text"], *found["sentence"])}
    capsys.readouterr()
    assert script(predict, monkeypatch, *run, str(data / "gone.mp4"), *CPU) == 2
    assert "there is no such video" in capsys.readouterr().err
    assert script(predict, monkeypatch, *run, str(video), "-k", "3", *CPU) == 2
    assert "--top has no meaning for a model of sentences" in capsys.readouterr().err


def test_what_was_trained_without_a_backbone_reads_no_video(place, data, monkeypatch, capsys):
    shelve(place / "features")
    task = sign2text(translation__scratch=True, translation__features=place / "features")
    checkpoint.save(place / "bare.pth", kept(task))
    words = ("--checkpoint", str(place / "bare.pth"), str(data / "videos" / "all.mp4"), *CPU)
    assert script(predict, monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert "this model cannot see videos" in said.err and "Traceback" not in said.err


def test_mistakes_of_training_end_without_a_traceback(place, monkeypatch, capsys):
    (place / "x.ini").write_text(SIGN2TEXT)
    words = ("Sign2Text", SPLIT, "1", "-c", str(place / "x.ini"), "-na", "--no_wandb", *CPU)
    assert script(training, monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert "Sign2Text has nothing to start from" in said.err and "Traceback" not in said.err
    status = json.loads((place / "runs" / SPLIT / "Sign2Text_001" / "status.json").read_text())
    assert status["exit_code"] == 2 and "nothing to start from" in status["reason"]


# --- what a cold review found -------------------------------------------------------------------------------

def test_mbarts_forms_of_chinese_are_the_references():
    """mBART says half-width forms alone; a translation that is right is so in either."""
    keys = config_of(GLOSS2TEXT, "Gloss2Text", {}).translation
    chinese = speech.Speech(keys, "zh_CN", None)
    reference = chinese.clean("今天 要比昨天冷，你好吗？")
    assert reference == "今天要比昨天冷,你好吗?" == chinese.written("今天要比昨天冷，你 好吗？")
    record = [{"text": reference, "translation": chinese.written("今天要比昨天冷,你好吗?"), "greedy": ""}]
    assert chinese.bleu4(record, "translation") == pytest.approx(100)


@pytest.mark.parametrize(("said", "written"), [("es regnet.", "es regnet ."), ("es regnet .", "es regnet ."),
                                               ("es  regnet", "es regnet"), (".", "."), ("", ""), ("ja ..", "ja ..")])
def test_a_final_dot_stands_alone_and_none_is_given_away(said, written):
    keys = config_of(GLOSS2TEXT, "Gloss2Text", {}).translation
    assert speech.Speech(keys, "de_DE", None).written(said) == written


def test_chinese_is_spelled_by_default():
    keys = config_of(GLOSS2TEXT, "Gloss2Text", {}).translation
    texts = ["今天冷", "明天热"]
    assert translators.chosen(keys, "zh_CN", None, texts).encode("今天热")
    sizes = [translators.chosen(replace(keys, tokens=tokens), "zh_CN", None, texts).size for tokens in ("char", "auto")]
    assert sizes[0] == sizes[1] == 4 + 5


def test_rates_that_are_needed_are_asked_for():
    bare = SIGN2TEXT.replace(OPTIMIZER, "[optimizer]\neps = 1e-8\n")
    with pytest.raises(Mistake, match=r"\[optimizer\] lacks"):
        parse_config(bare, Experiment("Sign2Text", SPLIT, "1"))
    over = bare.replace("mapper_init_lr", "classifier_init_lr = 1e-3\nclassifier_weight_decay = 0\nmapper_init_lr")
    with pytest.raises(Mistake, match="backbone_init_lr"):
        parse_config(over, Experiment("Sign2Text", SPLIT, "1"))
    over = over.replace("[translation]", "[translation]\nfeatures = 'somewhere'")
    assert parse_config(over, Experiment("Sign2Text", SPLIT, "1")).optimizer.backbone_init_lr == 1e-3


def test_bleu_is_to_rise():
    text = GLOSS2TEXT + "[early_stopping]\nmetric = ('val', 'bleu4')\nmode = 'min'\npatience = 1\nmin_delta = 0"
    with pytest.raises(Mistake, match="mode cannot be min"):
        parse_config(text, Experiment("Gloss2Text", SPLIT, "1"))


def test_unknown_glosses_begin_as_zeros(place):
    assert not gloss2text().model.gloss_embedding.weight[0].any()


def test_the_language_follows_the_corpus_of_the_split():
    keys = config_of(GLOSS2TEXT, "Gloss2Text", {}).translation
    assert speech.languages(keys, "phoenix2014t_mine")[0] == "de_DE" and speech.languages(keys, "mine")[0] == "en_XX"


def test_features_of_other_frames_are_refused(pieces, elsewhere):
    """The same ids, drawn anew: what was extracted is not of them any more."""
    elsewhere(lambda found: [replace(sentence, num_frames=21) for sentence in found])
    task = sign2text(**pieces)
    with pytest.raises(Mistake, match="24 of 24 sentences of the train set are of other frames"):
        task.check_inputs(task.sentences("train"), "train")


def test_what_a_checkpoint_says_of_the_translator_is_what_is_written(told, trained, place):
    task = gloss2text(model_params__init_from=trained / "checkpoints" / "best.pth", translation__width=64)
    assert task.config.translation.width == told["meta"]["translator"]["width"] == 16


def test_no_known_gloss_is_a_mistake(trained, place, monkeypatch, capsys):
    words = ("predict.py", "--checkpoint", str(trained / "checkpoints" / "best.pth"), "north sun", *CPU)
    assert script(predict, monkeypatch, *words[1:]) == 2
    assert "knows none of these glosses" in capsys.readouterr().err
