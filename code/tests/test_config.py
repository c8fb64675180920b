"""The .ini reader: strict with today's files, kind to the old program's."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slr import config as configuration
from slr.catalogue import MODELS
from slr.config import SCHEDULER_KEYS, Config, config_from_dict, parse_config, read_config
from slr.errors import Mistake
from slr.paths import Experiment

HERE = Experiment("S3D", "asl100", "4")
FIVE = """
[training]
batch_size = 4
update_per_step = 2
max_epoch = 100

[optimizer]
eps = 1e-8
backbone_init_lr = 1e-4
backbone_weight_decay = 0
classifier_init_lr = 1e-3
classifier_weight_decay = 1e-4

[model_params]
drop_p = 0.3

[data]
num_frames = 32
frame_size = 224
"""


def parse(text: str, changes: dict[str, str] | None = None, model: str = "S3D") -> Config:
    return parse_config(text, Experiment(model, "asl100", "4"), changes)


def refused(text: str, changes: dict[str, str] | None = None, model: str = "S3D") -> str:
    with pytest.raises(Mistake) as caught:
        parse(text, changes, model)
    return str(caught.value)


# --- today's files ------------------------------------------------------------------------------------------

def test_five_sections_are_enough():
    config = parse(FIVE)
    assert config.training.batch_size == 4 and config.optimizer.eps == 1e-8 and config.model_params.drop_p == 0.3
    assert isinstance(config.optimizer.backbone_weight_decay, float)
    assert config.scheduler is None and config.early_stopping is None and not config.notices
    assert config.training.precision == "auto" and config.experiment.seed == 42 and config.data.hflip == 0


def test_old_file_as_its_user_wrote_it():
    config = parse(FIVE + """
[scheduler]
type = 'CosineAnnealingLR' ; as in the paper
tmax = 100 # epochs
eta_min = 1e-6
start_factor = 0.01
end_factor = 1.0
warmup_epochs = 5

; stop when nothing moves
[early_stopping]
metric = ('val', 'loss')
mode = 'min'
patience = 20
min_delta = 0.01
""")
    assert config.scheduler.type == "CosineAnnealingLR" and config.scheduler.tmax == 100
    assert config.scheduler.eta_min == 1e-6 and config.scheduler.warmup_epochs == 5
    assert config.early_stopping.metric == ("val", "loss") and config.early_stopping.min_delta == 0.01


@pytest.mark.parametrize(("keys", "kind"), [
    ("tmax = 100\neta_min = 0", "CosineAnnealingLR"),
    ("t0 = 10\ntmult = 2\neta_min = 0", "CosineAnnealingWarmRestarts"),
    ("t0 = 10\ntmult = 2\ntmax = 30", "CosineAnnealingWarmRestarts"),
])
def test_missing_type_follows_from_the_keys(keys, kind):
    config = parse(FIVE + f"[scheduler] \n{keys}\n")  # with the blank that such files have behind the bracket
    assert config.scheduler.type == kind
    assert any("no type" in notice for notice in config.notices)
    assert ("tmax" in str(config.notices)) == (kind != "CosineAnnealingLR" and "tmax" in keys)


def test_a_plan_by_ticks_has_its_own_keys():
    text = FIVE + ("[scheduler]\ntype = 'WarmupHoldDecay'\nwarmup_steps = 4\nhold_steps = 9\ntick_steps = 2\n"
                   "decay = 0.9\n")
    config = parse(text + "min_lr = 1e-6\n")
    keys = config.scheduler
    assert (keys.warmup_steps, keys.hold_steps, keys.tick_steps, keys.decay, keys.min_lr) == (4, 9, 2, 0.9, 1e-6)
    assert parse(config.as_ini()) == config and not config.notices
    idle = parse(text + "warmup_epochs = 3\nstart_factor = 0.1\nevery = 'step'\n")
    assert idle.notices == ("[scheduler] WarmupHoldDecay does not use start_factor, warmup_epochs, every",)
    assert idle.scheduler.warmup_epochs == 0


def test_early_stopping_as_a_dict_under_training():
    text = FIVE.replace("max_epoch = 100", "max_epoch = 100\nearly_stopping = {'metric': ('val', 'acc'), "
                        "'mode': 'max', 'patience': 3, 'min_delta': 0.1}")
    config = parse(text)
    assert config.early_stopping.metric == ("val", "acc") and config.early_stopping.patience == 3
    assert "training.early_stopping" in config.notices[0]
    assert "two places" in refused(text + "[early_stopping]\nmetric = ('val', 'loss')\n")
    assert "is no dict" in refused(FIVE.replace("max_epoch = 100", "max_epoch = 100\nearly_stopping = 5"))
    assert parse(FIVE.replace("max_epoch = 100", "max_epoch = 100\nearly_stopping = None")).early_stopping is None


def test_keys_that_the_old_program_knew():
    config = parse(FIVE + "frame_size_strategy = 'pad'\nspatial_aug = True\n")
    assert len(config.notices) == 2 and all("does nothing here" in notice for notice in config.notices)


def test_without_model_params():
    text = FIVE.replace("[model_params]\ndrop_p = 0.3\n", "")
    config = parse(text)
    assert config.model_params.drop_p == 0 and "drop_p" in config.notices[0]


@pytest.mark.parametrize(("written", "read"), [
    ("'a ;b'", "a ;b"), ('"a # b"', "a # b"), ("'#fff'", "#fff"), ("plain", "plain"), ("plain ; not this", "plain"),
    ("'it''s' ; x", "its"), ("'50%'", "50%"), ("%04d", "%04d"), ("%(root)s", "%(root)s"), ("2024", "2024"),
    ("a;b", "a;b"), ("C:/clips", "C:/clips"), ("a = b", "a = b"), ("don't ; panic", "don't"), ("", ""), ("; all", ""),
])
def test_texts_comments_and_quotes(written, read):
    assert parse(FIVE + f"root = {written}\n").data.root == read


@pytest.mark.parametrize("text", [
    "﻿" + FIVE, FIVE.replace("\n", "\r\n"), FIVE.replace(" = ", "="), FIVE.replace("batch_size", "Batch_Size"),
    FIVE.replace("= 4", "=    4   ; four"), "# a\n; b\n" + FIVE, FIVE.replace("\n[", "\n  \n["),
    FIVE.replace("[training]", "[training] ; the loop"),
], ids=range(8))
def test_spellings_of_the_same_file(text, tmp_path):
    file = tmp_path / "S3D_004.ini"
    file.write_bytes(text.encode())
    assert read_config(HERE, file=file) == parse(FIVE)


def test_a_tuple_over_two_lines():
    assert parse(FIVE + "jitter = (0.1, 0.1, ; first two\n    0.2, 0.0)\n").data.jitter == (0.1, 0.1, 0.2, 0.0)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("trainig.batch_size", "4", r"--set: there is no section \[trainig\]"),
    ("training.batch_sise", "4", r"--set: \[training\] has no key batch_sise\n  did you mean batch_size"),
    ("training.batch_size", "x", "--set: training.batch_size must be a whole number"),
    ("model_params.drop_p", "2", "--set: model_params.drop_p is out of range"),
])
def test_mistakes_of_the_command_line_name_it_and_not_the_file(name, value, said):
    with pytest.raises(Mistake, match=said):
        parse(FIVE, {name: value})


def test_overrides():
    config = parse(FIVE, {"training.batch_size": "16", "data.root": "a;b", "experiment.seed": "7",
                          "data.jitter": "(0, 0, 0, 0)", "training.compile": "true"})
    assert (config.training.batch_size, config.data.root, config.experiment.seed) == (16, "a;b", 7)
    assert config.data.jitter == (0, 0, 0, 0) and config.training.compile is True
    assert parse(FIVE, {"model_params.drop_path": "0.3"}, "Swin3D_T").model_params.drop_path == 0.3


# --- what is refused, and in which words --------------------------------------------------------------------

@pytest.mark.parametrize(("old", "new", "words"), [
    ("batch_size = 4", "batch_sise = 4", ["[training] has no key batch_sise", "did you mean batch_size?", "max_epoch"]),
    ("[data]", "[date]", ["no section [date]", "did you mean data?"]),
    ("[training]", "[DEFAULT]\nx = 1\n[training]", ["no section [DEFAULT]"]),
    ("batch_size = 4\n", "", ["[training] lacks batch_size", "add `batch_size"]),
    ("batch_size = 4", "batch_size = four", ["training.batch_size must be a whole number", "'four' is str"]),
    ("batch_size = 4", "batch_size = 4.0", ["training.batch_size must be a whole number"]),
    ("batch_size = 4", "batch_size = True", ["training.batch_size must be a whole number"]),
    ("batch_size = 4", "batch_size = 0", ["training.batch_size is out of range", "at least 1"]),
    ("batch_size = 4", "batch_size = '4'", ["training.batch_size must be a whole number", "quotes"]),
    ("batch_size = 4", "batch_size =", ["training.batch_size must be a whole number"]),
    ("batch_size = 4", "batch_size = 4\nbatch_size = 5", ["is no .ini file", "batch_size"]),
    ("batch_size = 4", "batch_size", ["is no .ini file"]),
    ("batch_size = 4", "batch_size = 4\nprecision = 'fp8'", ["training.precision has no such value", "bf16"]),
    ("eps = 1e-8", "eps = 0", ["optimizer.eps is out of range", "above 0"]),
    ("eps = 1e-8", "eps = 1e999", ["optimizer.eps is no finite number"]),
    ("eps = 1e-8", "eps = 1" + "0" * 400, ["optimizer.eps must be a number"]),
    ("eps = 1e-8", "eps = 1e-8\nbetas = (0.9, 1.0)", ["optimizer.betas out of range"]),
    ("eps = 1e-8", "eps = 1e-8\nbetas = 0.9", ["optimizer.betas must be 2 values in parentheses"]),
    ("drop_p = 0.3", "drop_p = 1.3", ["model_params.drop_p is out of range", "at most 1"]),
    ("drop_p = 0.3", "drop_p = 0\ndrop_path = 0.1", ["S3D has no stochastic depth", "leave the key out"]),
    ("frame_size = 224", "frame_size = 8", ["S3D cannot take such clips", "data.frame_size"]),
    ("num_frames = 32", "num_frames = 3", ["S3D cannot take such clips", "data.num_frames"]),
    ("frame_size = 224", "frame_size = 224\njitter = (0, 0, 0, 1)", ["data.jitter out of range", "hue"]),
    ("frame_size = 224", "frame_size = 224\njitter_length = (0.5, 1)", ["data.jitter_length is of sentences"]),
    ("frame_size = 224", "frame_size = 224\njitter_length = (0, 1)", ["data.jitter_length is no range"]),
    ("frame_size = 224", "frame_size = 224\njitter_length = (1, 0.9)", ["data.jitter_length is no range"]),
    ("frame_size = 224", "frame_size = 224\nstore = 'jpg'", ["data.store", "did you mean jpeg?"]),
])
def test_refusals_name_section_key_and_way_out(old, new, words):
    said = refused(FIVE.replace(old, new))
    for word in words:
        assert word in said


@pytest.mark.parametrize(("section", "words"), [
    ("type = 'Cosine'", ["scheduler.type has no such value", "CosineAnnealingLR"]),
    ("type = 'CosineAnnealingLR'", ["lacks tmax"]),
    ("type = 'CosineAnnealingWarmRestarts'\nt0 = 3", ["lacks tmult"]),
    ("type = 'WarmOnly'", ["lacks warmup_epochs"]),
    ("eta_min = 0", ["[scheduler] lacks type"]),
    ("type = 'WarmOnly'\nwarmup_epochs = 3\nstart_factor = 1\nend_factor = 0.5", ["warm-up goes down"]),
    ("type = 'ReduceLROnPlateau'\nfactor = 1", ["scheduler.factor is out of range"]),
    ("type = 'WarmupHoldDecay'\nhold_steps = 5", ["lacks tick_steps"]),
    ("type = 'WarmupHoldDecay'\ntick_steps = 5\ndecay = 0", ["scheduler.decay is out of range"]),
])
def test_impossible_schedulers(section, words):
    said = refused(FIVE + "[scheduler]\n" + section + "\n")
    for word in words:
        assert word in said


def test_other_impossible_combinations():
    stopping = "[early_stopping]\nmetric = ('{}', 'loss')\nmode = 'min'\npatience = 1\nmin_delta = 0\n"
    assert "early_stopping.metric cannot be" in refused(FIVE + stopping.format("test"))
    assert "Swin3D_T has no batch-norm" in refused(FIVE, {"model_params.bn_momentum": "0.1"}, "Swin3D_T")
    assert "the sections are" in refused(FIVE, {"trainig.batch_size": "2"})
    assert "there is no section []" in refused(FIVE, {".x": "2"})
    assert "clipped twice" in refused(FIVE, {"training.clip_norm": "1", "training.clip_value": "0.5"})


HEADS = FIVE.replace("drop_p = 0.3", "") + """
[experiment]
task = 'multihead'
[multihead]
landmarks = 'pose'
[feature_extractor]
name = 'gcn_extractor'
"""
SEEN = {"feature_extractor.name": "cnn_extractor", "feature_extractor.model_path": "resnet18"}


@pytest.mark.parametrize(("changes", "said"), [
    ({"multihead.landmarks": "pose nose"}, "has no such parts"),
    ({"multihead.landmarks": "''"}, "looks at landmarks, and there are none"),
    ({"heads.gloss": "(1, 1.0)"}, "too few classes"),
    ({"heads.gloss": "(9, 0.0)"}, "no head has a weight"),
    ({"data.hflip": "0.5"}, "data.hflip does nothing"),
    ({"model_params.pretrained": "True"}, "model_params.pretrained does nothing"),
    ({"augmentations.apply_color_jitter": "True"}, "apply_color_jitter does nothing"),
    ({"transformer.hidden_size": "64"}, "hidden_size does nothing"),
    ({"transformer.model_path": "x"}, "is of hubert_transformer"),
    ({"feature_extractor.model_path": "resnet18"}, "is of cnn_extractor"),
    ({"feature_extractor.name": "cnn_extractor"}, "needs feature_extractor.model_path"),
    (SEEN | {"augmentations.color_jitter_brightness": "(1.2, 0.8)"}, "is no range"),
    (SEEN | {"augmentations.color_jitter_hue": "-0.1"}, "is no range"),
    (SEEN | {"augmentations.apply_center_crop": "True"}, "lacks center_crop_size"),
    (SEEN | {"augmentations.apply_center_crop": "True", "augmentations.center_crop_size": "(300, 20)",
             "augmentations.resize_size": "100"}, "larger than the picture"),
    ({"freeze_scheduler.model_params": "{'heads': (True, False)}", "freeze_scheduler.freeze_pattern_repeats": "(3,)"},
     "of unequal length"),
    ({"freeze_scheduler.model_params": "{'heads': 3}", "freeze_scheduler.freeze_pattern_repeats": "(3,)"},
     "must be {name: values"),
    ({"scheduler.type": "OneCycleLR"}, "lacks tmax"),
    ({"scheduler.type": "WarmOnly", "scheduler.warmup_steps": "5", "scheduler.warmup_epochs": "2"}, "said twice"),
    ({"scheduler.type": "WarmOnly", "scheduler.warmup_steps": "5", "scheduler.start_factor": "0.5"},
     "does nothing beside"),
])
def test_what_several_heads_cannot_have(changes, said):
    assert said in refused(HEADS, changes, "SignTransformer")


def test_a_multihead_config_fills_in_what_follows():
    """SPLIT says set and mode; crops of raw lists and unfit values are refused as such, not fallen over."""
    here = Experiment("SignTransformer", "galex_gloss", "1")
    config = parse_config(HEADS, here)
    keys = config.multihead
    assert (keys.mode, keys.data_paths, keys.annotation_file) == ("gloss", ("galex",), "test_gloss.txt")
    assert config.heads.gloss == (2400, 1.0) and not config.heads.hand_location_x
    assert parse_config(HEADS, here, {"scheduler.type": "WarmOnly", "scheduler.warmup_steps": "5"}).scheduler
    for section, value in (("augmentations", "center_crop_size = ('a', 96)"), ("multihead", "mode = ['gloss']")):
        with pytest.raises(Mistake):
            parse_config(HEADS.replace("frame_size = 224", "") + f"[{section}]\napply_center_crop = True\n{value}\n"
                         if section == "augmentations" else HEADS.replace("landmarks =", f"{value}\nlandmarks ="), here)


RATES = '''
[training]
batch_size = 4
update_per_step = 1
max_epoch = 2
[optimizer]
eps = 1e-8
backbone_init_lr = 1e-4
backbone_weight_decay = 0.01
[experiment]
task = '''
OVER_TIME, OVER_TUBES = ("SpatioTemporal", "SpatioTemporalPretrain"), ("VideoMAE", "ViViT", "VideoMAEPretrain")


@pytest.mark.parametrize("model", configuration.OF_WORDS)
def test_published_sizes_and_one_rate_are_filled_in(model):
    config = parse(RATES + MODELS[model].task, model=model)
    there = {name for name in (*WORDY, "decoding") if getattr(config, name)}
    assert there == set(configuration.OF_WORDS[model]) and not config.notices
    assert config.optimizer.classifier_init_lr == 1e-4 and config.optimizer.classifier_weight_decay == 0.01
    assert config.model_params.pretrained == (model in OVER_TIME) and config.model_params.drop_p == 0
    assert config.data.num_frames == MODELS[model].default_frames
    sizes = config.encoder and (config.encoder.layers, config.encoder.heads, config.encoder.ffn, config.encoder.width)
    assert sizes == (None if model == "LanguageDecoder" else (6, 8, 2048, 768) if model in OVER_TIME
                     else (12, 12, 3072, 768))
    assert config.best_metric == {"VideoMAEPretrain": ("loss", "min"), "LanguageDecoder": ("loss", "min"),
                                  "SpatioTemporalPretrain": ("accuracy", "max")}.get(model, ("wer", "min"))


@pytest.mark.parametrize(("models", "changes", "said"), [
    (OVER_TUBES, {"data.num_frames": "20", "encoder.tubelet": "8"}, "num_frames is no multiple of encoder.tubelet"),
    (OVER_TUBES, {"data.num_frames": "18"}, "data.num_frames is no multiple of 4"),
    (OVER_TUBES, {"data.frame_size": "100"}, "data.frame_size is no multiple of encoder.patch: 100 and 16"),
    (OVER_TUBES, {"encoder.heads": "5"}, "encoder.width is no multiple of encoder.heads"),
    (OVER_TIME, {"encoder.heads": "5"}, "spatial.width is no multiple of encoder.heads and encoder.groups"),
    (OVER_TIME, {"encoder.groups": "7"}, "spatial.width is no multiple of encoder.heads and encoder.groups"),
    (OVER_TIME, {"model_params.pretrained": "False", "spatial.heads": "7"}, "spatial.width is no multiple of spatial"),
    (OVER_TIME, {"encoder.width": "384"}, "encoder.width does nothing"),
    (OVER_TIME, {"encoder.patch": "8"}, "encoder.patch does nothing to SpatioTemporal"),
    (OVER_TIME, {"encoder.tubelet": "4"}, "encoder.tubelet does nothing"),
    (OVER_TUBES, {"encoder.kernel": "9"}, "encoder.kernel does nothing"),
    (OVER_TUBES, {"encoder.layerdrop": "0.0"}, "encoder.layerdrop does nothing"),
    (("SpatioTemporal", "VideoMAE", "LanguageDecoder"), {"language_decoder.heads": "3"},
     "language_decoder.width is no multiple of language_decoder.heads"),
    (OVER_TIME, {"spatial.cache": "True", "data.hflip": "0.5"}, "data.hflip does nothing to frames that are kept"),
    (OVER_TIME, {"spatial.cache": "True", "data.rand_augment": "9"}, "data.rand_augment does nothing to frames"),
    (OVER_TIME[1:], {"encoder.mask_share": "0.2"}, "encoder.mask_share does nothing to SpatioTemporalPretrain"),
    (OVER_TIME[1:], {"pretraining.mask_ratio": "0.5"}, "pretraining.mask_ratio does nothing"),
    (OVER_TIME[1:], {"pretraining.code_dim": "7"}, "pretraining.code_dim is no multiple of pretraining.code_groups"),
    (OVER_TIME[1:], {"pretraining.temperature": "0.3"}, "pretraining.temperature rises: from 0.3 to 0.5"),
    (OVER_TUBES[2:], {"pretraining.codes": "8"}, "pretraining.codes does nothing"),
    (OVER_TUBES[2:], {"pretraining.decoder_heads": "5"}, "pretraining.decoder_width is no multiple of"),
    (OVER_TUBES[2:], {"pretraining.mask_ratio": "0.2", "data.frame_size": "32"}, "mask_ratio hides nothing: 0.2 of 4"),
    (OVER_TUBES[2:], {"pretraining.mask_ratio": "0"}, "pretraining.mask_ratio is out of range"),
    (configuration.OF_WORDS, {"training.mixup": "0.2"}, "sentences have no training.mixup"),
    (configuration.OF_WORDS, {"model_params.drop_p": "0.2"}, "model_params.drop_p does nothing"),
    (configuration.OF_WORDS, {"optimizer.layer_decay": "0.9"}, "optimizer.layer_decay does nothing"),
    (configuration.OF_WORDS, {"training.channels_last": "'on'"}, "training.channels_last does nothing"),
    (configuration.OF_WORDS, {"translation.beam_width": "3"}, "[translation] is of Gloss2Text"),
    (configuration.OF_WORDS, {"multihead.landmarks": "'pose'"}, "[multihead] is of SignTransformer"),
    (configuration.OF_WORDS, {"training.best_metric": "'acc'"}, "training.best_metric cannot be acc"),
    (OVER_TUBES[2:], {"training.best_metric": "'accuracy'"}, "training.best_metric cannot be accuracy"),
    (("SpatioTemporal", "VideoMAE", "ViViT"), {"decoding.beam_width": "3"}, "decoding.beam_width does nothing"),
    (("SpatioTemporal", "VideoMAE", "ViViT"), {"decoding.mirror": "True"}, "decoding.mirror does nothing"),
    (("LanguageDecoder", *OVER_TUBES), {"model_params.pretrained": "True"}, "there are no such weights"),
    (("LanguageDecoder",), {"model_params.weights": "a/folder"}, "there are no such weights of LanguageDecoder"),
    (("LanguageDecoder",), {"data.hflip": "0.5"}, "data.hflip does nothing to LanguageDecoder"),
    (("LanguageDecoder",), {"data.num_frames": "8"}, "data.num_frames does nothing to LanguageDecoder: 8"),
    (OVER_TIME, {"spatial.layers": "3"}, "spatial.layers does nothing to SpatioTemporal"),
    (OVER_TIME, {"spatial.dinov2": "x", "model_params.pretrained": "False"}, "spatial.dinov2 does nothing"),
    (("SpatioTemporalPretrain", "VideoMAEPretrain", "LanguageDecoder"), {"decoding.fps": "8"}, "[decoding] does noth"),
    (("LanguageDecoder",), {"encoder.layers": "2"}, "[encoder] does nothing to LanguageDecoder"),
    (("VideoMAE", "VideoMAEPretrain", "ViViT", "LanguageDecoder"), {"spatial.width": "8"}, "[spatial] does nothing"),
    (("SpatioTemporal", "VideoMAE", "LanguageDecoder"), {"pretraining.codes": "8"}, "[pretraining] does nothing"),
    (("SpatioTemporalPretrain", "LanguageDecoder"), {"transcription.smoothing": "0.1"}, "[transcription] does nothing"),
    (("SpatioTemporal",), {"transcription.ctc_share": "0.3"}, "a CTC that does not learn"),
])
def test_what_transcription_and_pretraining_cannot_have(models, changes, said):
    for model in models:
        assert said in " ".join(refused(RATES + MODELS[model].task, changes, model).split())


def test_other_models_have_no_sections_of_words():
    for name in ("spatial.width", "encoder.layers", "language_decoder.layers", "transcription.smoothing",
                 "pretraining.codes"):
        assert f"[{name.partition('.')[0]}] does nothing to S3D" in refused(FIVE, {name: "8" if name[-1] != "g" else
                                                                                   "0.1"})


def test_what_may_be_set_of_words():
    assert parse(RATES + "transcription", {"model_params.weights": "a/folder"}, "VideoMAE").model_params.weights
    both = {"model_params.weights": "a/folder", "spatial.cache": "True"}
    assert parse(RATES + "pretraining", both, "SpatioTemporalPretrain").spatial.cache
    small = {"model_params.pretrained": "False", "spatial.width": "32", "spatial.heads": "2", "encoder.heads": "2"}
    assert parse(RATES + "transcription", small, "SpatioTemporal").encoder.width == 32


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("slr.paths.CONFIGS", tmp_path)
    (tmp_path / "asl100").mkdir()
    for number in ("000", "003"):
        (tmp_path / "asl100" / f"S3D_{number}.ini").write_text(FIVE)
    with pytest.raises(Mistake, match=r"no experiment 4 for S3D on asl100: .*missing \(there is 000, 003"):
        read_config(HERE)
    with pytest.raises(Mistake, match="behind -c"):
        read_config(HERE, file=tmp_path / "none.ini")
    binary = tmp_path / "x.ini"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Mistake, match="cannot be read"):
        read_config(HERE, file=binary)
    assert read_config(Experiment("S3D", "asl100", "3.2")).exp_no == "3.2"  # an enumerated run shares the file


# --- every config reads back as itself ----------------------------------------------------------------------

def _value(hint, rules) -> st.SearchStrategy:
    if rules["choices"]:
        return st.sampled_from(rules["choices"])
    low = max(x for x in (rules["low"], rules["above"], -1e6) if x is not None)
    high = rules["high"] if rules["high"] is not None else 1e6
    floats = st.floats(low, high, allow_nan=False, exclude_min=rules["above"] is not None)
    return {int: st.integers(int(low), int(high)), float: floats, bool: st.booleans(),
            str: st.text(st.characters(codec="utf-8"), max_size=12),
            int | None: st.none() | st.integers(int(low), int(min(high, 1000))), float | None: st.none() | floats,
            tuple[float, float]: st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
            tuple[float, float, float, float]: st.tuples(*[st.floats(0, 0.5)] * 4),
            bool | None: st.none() | st.booleans(), tuple[float, ...]: st.lists(floats, max_size=4).map(tuple),
            tuple[int, ...]: st.lists(st.integers(max(0, int(low)), 20), max_size=4).map(tuple),
            tuple[str, ...]: st.lists(st.text("ab/_1", min_size=1, max_size=5), max_size=3).map(tuple),
            int | tuple[int, int] | None: st.none() | st.integers(1, 16) | st.tuples(*[st.integers(1, 16)] * 2),
            float | tuple[float, float]: st.floats(0, 0.5) | st.tuples(*[st.floats(0, 0.5)] * 2),
            tuple[int, float] | None: st.none() | st.tuples(st.integers(2, 40), st.floats(0.1, 2)),
            dict[str, tuple[bool, ...]]: st.dictionaries(st.text("ab._", min_size=1, max_size=5),
                                                         st.tuples(st.booleans(), st.booleans()), min_size=1),
            tuple[str, str]: st.tuples(st.sampled_from(["val", "train"]), st.sampled_from(["loss", "acc"]))}[hint]


@st.composite
def configs(draw) -> Config:
    sections = {}
    for name, cls in configuration.SECTIONS.items():
        hints = configuration.typing.get_type_hints(cls)
        if name not in configuration.OPTIONAL or draw(st.booleans()):
            sections[name] = cls(**{f.name: draw(_value(hints[f.name], f.metadata)) for f in dataclasses.fields(cls)})
        else:
            sections[name] = None
    assume(sections["data"].num_frames >= 5 and sections["data"].frame_size >= 17)
    sections["model_params"] = dataclasses.replace(sections["model_params"], drop_path=None)
    keys = sections["training"]
    sections["training"] = dataclasses.replace(keys, clip_value=0.0 if keys.clip_norm else keys.clip_value)
    sentences = "MambaSLR" if sections["mamba"] else "S3D_CTC"
    names = {"continuous": [sentences], "translation": ["Sign2Text"], "multihead": ["SignTransformer"]}
    names |= {task: [name for name, entry in MODELS.items() if entry.task == task] for task in configuration.WORDS}
    model = fitting(sections, draw(st.sampled_from(names.get(sections["experiment"].task, ["S3D"]))))
    plan = sections["scheduler"]
    if plan:
        idle = {f.name: f.default for f in dataclasses.fields(plan) if f.name not in SCHEDULER_KEYS[plan.type]}
        needed = {"tmax", "t0", "tmult", "warmup_epochs", "tick_steps"} & SCHEDULER_KEYS[plan.type]
        plan = dataclasses.replace(plan, **{k: getattr(plan, k) or 3 for k in needed}, warmup_steps=0)
        plan = dataclasses.replace(plan, start_factor=min(plan.start_factor, plan.end_factor))
        sections["scheduler"] = dataclasses.replace(plan, **idle)
    return Config(model, "asl100", "4", **sections)


WORDY = ("spatial", "encoder", "language_decoder", "transcription", "pretraining")


def fitting(sections: dict, model: str) -> str:
    """Changes what the task of these sections cannot have; the name of a model that does it."""
    def change(section: str, /, **keys: object) -> None:
        if sections[section]:
            sections[section] = dataclasses.replace(sections[section], **keys)

    low, more = sections["data"].jitter_length
    change("data", keypoints="", heatmap="none", jitter_length=(0.1 + abs(low), 0.1 + abs(low) + abs(more)))
    metric = "loss" if model == "VideoMAEPretrain" else configuration.METRICS[sections["experiment"].task][-1]
    if sections["training"].best_metric not in ("auto", "loss"):
        change("training", best_metric=metric)
    if model == "Sign2Text":
        change("translation", heads=2, width=16, freeze_gloss=False, sweep_beams=(1, 3), sweep_penalties=(0.5,))
        change("optimizer", layer_decay=1.0)
        change("decoding", mirror=False)
        sections["translation"] = sections["translation"] or configuration.TranslationSection()
    else:
        change("optimizer", mapper_init_lr=None, translator_init_lr=None, translator_weight_decay=None)
        sections["translation"] = None
    if model != "S3D_CTC":
        change("model_params", last_relu=None)
    if model in ("MambaSLR", "Sign2Text"):
        change("model_params", frozen_blocks=None, bn_momentum=None, pretrained=False, weights="")
    if model != "MambaSLR":
        sections["mamba"] = None
    if model == "SignTransformer":
        return fit_heads(sections, change)
    sections |= dict.fromkeys((*configuration.OF_MULTIHEAD, "freeze_scheduler"))
    fit_words(sections, model, change)
    if model == "S3D":
        change("data", frame_stride=1, short_first=0, jitter_length=(0.5, 1.5))
        change("model_params", frozen_blocks=None)
        sections["decoding"] = None
        return model
    change("training", mixup=0.0, label_smoothing=0.0)
    change("data", num_frames=4 * sections["data"].num_frames, store="video")
    change("scheduler", mode="min")
    change("early_stopping", metric=("val", metric), mode="max" if metric in configuration.RISING else "min")
    has = "decoding" in configuration.OF_WORDS.get(model, ("decoding",))
    sections["decoding"] = (sections["decoding"] or configuration.DecodingSection()) if has else None
    return model


def fit_words(sections: dict, model: str, change: Callable[..., None]) -> None:
    """The same of a model that transcribes or is pre-trained for it: its sections are there, sizes come out even, and
    what would do nothing is at its default; no other model has these sections."""
    own, sizes = configuration.OF_WORDS.get(model, ()), {"layers": 2, "heads": 2, "ffn": 8, "width": 16}
    sections |= dict.fromkeys(set(WORDY) - set(own))
    if not own:
        return
    for name in own:
        sections[name] = sections[name] or configuration.SECTIONS[name]()
    change("spatial", width=16, heads=2)
    change("encoder", **sizes, groups=2, patch=8, tubelet=2)
    change("language_decoder", width=16, heads=2)
    change("pretraining", code_dim=6, code_groups=2, decoder_width=8, decoder_heads=2, temperature=1.0,
           temperature_end=0.5, mask_ratio=0.5)
    change("data", frame_size=32)
    if sections["spatial"] and sections["spatial"].cache:
        change("data", hflip=0.0, rand_augment=0.0, erase_p=0.0)
    if not sections["spatial"]:
        change("model_params", pretrained=False)
    if not sections["encoder"]:  # it sees no frames: fitting makes 400 of these
        change("model_params", weights="")
        change("data", num_frames=100, frame_size=224)
    change("model_params", drop_p=0.0, frozen_blocks=None, bn_momentum=None)
    change("optimizer", layer_decay=1.0)
    change("training", channels_last="auto")
    change("decoding", beam_width=configuration.DecodingSection().beam_width, mirror=False)
    for name in configuration._idle_words(Config(model, "x", "1", **sections)):
        section, _, item = name.partition(".")
        default = {f.name: f.default for f in dataclasses.fields(sections[section])}[item]
        if default is not dataclasses.MISSING:
            change(section, **{item: default})


def fit_heads(sections: dict, change: Callable[..., None]) -> str:
    """The same of a SignTransformer: every section is there, and what would do nothing is not."""
    sections |= dict.fromkeys(WORDY)
    for name in configuration.OF_MULTIHEAD:
        sections[name] = sections[name] or configuration.SECTIONS[name]()
    idle = {f.name: f.default for f in dataclasses.fields(sections["data"])
            if f.name in configuration.IN_AUGMENTATIONS}
    change("data", **idle)
    change("training", mixup=0.0, label_smoothing=0.0, channels_last="auto")
    change("model_params", drop_p=0.0, weights="", frozen_blocks=None, bn_momentum=None)
    change("optimizer", layer_decay=1.0)
    change("multihead", landmarks="pose face", mode="gloss", annotation_file="a.txt", data_paths=("a", "b"),
           split_by="ratio")
    change("heads", gloss=(3, 0.5))
    change("feature_extractor", name="cnn_extractor", model_path="resnet18")
    change("augmentations", apply_center_crop=False, apply_resize=True, color_jitter_hue=(-0.1, 0.2),
           **{f"color_jitter_{name}": 0.1 for name in ("brightness", "contrast", "saturation")})
    change("transformer", model_path="", hidden_size=768)
    change("freeze_scheduler", freeze_pattern_repeats=(3, 1))
    change("early_stopping", metric=("val", "f1"), mode="max")
    sections["decoding"] = None
    return "SignTransformer"


@settings(max_examples=60, deadline=None)
@given(configs())
def test_as_ini_reads_back_as_the_same_config(config):
    again = parse_config(config.as_ini(), Experiment(config.model, "asl100", "4"))
    assert again == config and not again.notices
    assert config_from_dict(config.as_dict()) == config


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text("[]=;#'\"(){},\n abc1.-e%\\\t", max_size=200))
def test_no_text_makes_it_fall_over(text):
    for source in (text, FIVE + text, FIVE + "root = " + text.replace("\n", " ").replace("\r", " ")):
        try:
            parse(source)
        except Mistake as error:
            assert error.wrong and str(error)


def test_checkpoints_of_other_versions():
    plain = parse(FIVE).as_dict()
    plain["data"]["a_key_of_tomorrow"] = 1
    del plain["data"]["hflip"]
    assert config_from_dict(plain) == parse(FIVE)


def test_config_needs_no_torch():
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import slr.config\n"
            "print({'torch', 'numpy'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code, str(Path(configuration.__file__).parents[1])],
                          capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_every_config_of_the_project_reads():
    from slr.paths import CONFIGS, shown

    files = sorted(CONFIGS.glob("*/*.ini"))
    for file in files:
        model, _, number = file.stem.rpartition("_")
        config = read_config(Experiment(model, file.parent.name, number), file=file)
        assert not config.notices, shown(file)
