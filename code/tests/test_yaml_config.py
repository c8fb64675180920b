"""HearAI's train_config.yml as an .ini: every documented key arrives, what is wrong is named, values survive."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import utils
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slr import paths
from slr.config import Config, parse_config
from slr.errors import Mistake
from slr.yaml_config import RULES, convert

# every key of the documentation, with values of its examples
DOCUMENTED = """
general_parameters:
    data_path: "/data/frames/pjm"
    ratio_train_test: 0.8
    workers: 0
    gpu: 0
    path_to_save: "saved_model.pth"
    seed: 1234
    neptune: True

augmentations_parameters:
    apply_resize: True
    apply_center_crop: True
    apply_random_erasing: False
    apply_random_rotation: True
    apply_color_jitter: True
    resize_size: 256
    center_crop_size: [224]
    random_erasing_probability: 0.5
    random_rotation_degree: 5
    color_jitter_brightness: 0.1
    color_jitter_contrast: [0.9, 1.2]
    color_jitter_saturation: 0.1
    color_jitter_hue: 0.05

train_parameters:
    classification_mode: "hamnosys"
    epochs: 10
    batch_size: 4
    lr: 1e-4
    num_segments: 8
    fast_dev_run: False
    pre_training: False
    landmarks: True
    time: 0.04
    warmup_steps: 20.0
    multiply_lr_step: 0.95

feature_extractor:
    name: "cnn_extractor"
    model_path: "efficientnet_b1"
    representation_size: 512

transformer:
    name: "sign_language_transformer"
    feedforward_size: 1024
    num_attention_heads: 4
    num_encoder_layers: 2
    output_size: 256
    dropout_rate: 0.2

heads:
    gloss:
        gloss:
            num_class: 2400
            loss_weight: 1
    hamnosys:
        symmetry_operator:
            num_class: 9
            loss_weight: 0.125
        hand_shape_base_form:
            num_class: 12
            loss_weight: 0.125

freeze_scheduler:
    model_params:
        feature_extractor: [True, False]
        transformer: [False, True]
    freeze_pattern_repeats: [10, 5]
    freeze_mode: "epoch"
    verbose: True
"""


def read(ini: str) -> Config:
    return parse_config(ini, paths.Experiment("SignTransformer", "pjm", "1"))


def changed(section: str, **keys: Any) -> str:
    """The documented example with these keys; None removes one."""
    plain = yaml.safe_load(DOCUMENTED)
    plain[section].update(keys)
    plain[section] = {key: value for key, value in plain[section].items() if value is not None}
    return yaml.safe_dump(plain)


def test_example_holds_every_key():
    plain = yaml.safe_load(DOCUMENTED)
    for section, rules in RULES.items():
        assert set(rules) - {"data_paths", "annotation_file", "separator"} == set(plain[section])


def test_documented_example():
    ini, notices = convert(DOCUMENTED)
    config = read(ini)
    assert config.experiment.task == "multihead" and config.experiment.seed == 1234
    assert (config.training.batch_size, config.training.update_per_step, config.training.max_epoch,
            config.training.fast_dev_run) == (4, 1, 10, False)
    rates = config.optimizer
    assert rates.backbone_init_lr == rates.classifier_init_lr == 1e-4 and rates.eps == 1e-8
    assert rates.backbone_weight_decay == rates.classifier_weight_decay == 0.01
    assert config.model_params.pretrained and (config.data.num_frames, config.data.workers) == (8, 0)
    keys = config.multihead
    assert keys.mode == "hamnosys" and keys.data_paths == ("/data/frames/pjm",) and keys.ratio_train_test == 0.8
    assert keys.landmarks == "right_hand left_hand pose face" and keys.time == 0.04 and not keys.pre_training
    sizes = config.augmentations
    assert (sizes.apply_resize, sizes.apply_center_crop, sizes.apply_random_erasing, sizes.apply_random_rotation,
            sizes.apply_color_jitter) == (True, True, False, True, True)
    assert (sizes.resize_size, sizes.center_crop_size, sizes.random_erasing_probability,
            sizes.random_rotation_degree) == (256, 224, 0.5, 5)
    assert (sizes.color_jitter_brightness, sizes.color_jitter_contrast, sizes.color_jitter_saturation,
            sizes.color_jitter_hue) == (0.1, (0.9, 1.2), 0.1, 0.05)
    assert vars(config.feature_extractor).items() >= {"name": "cnn_extractor", "model_path": "efficientnet_b1",
                                                      "representation_size": 512}.items()
    assert vars(config.transformer).items() >= {
        "name": "sign_language_transformer", "feedforward_size": 1024, "num_attention_heads": 4,
        "num_encoder_layers": 2, "output_size": 256, "dropout_rate": 0.2}.items()
    assert {name: head for name, head in vars(config.heads).items() if head} == {
        "symmetry_operator": (9, 0.125), "hand_shape_base_form": (12, 0.125)}
    assert vars(config.freeze_scheduler) == {
        "model_params": {"feature_extractor": (True, False), "transformer": (False, True)},
        "freeze_pattern_repeats": (10, 5), "freeze_mode": "epoch", "verbose": True}
    plan = config.scheduler
    assert (plan.type, plan.warmup_steps, plan.multiply_lr_step) == ("MultiplicativeLR", 20, 0.95)
    said = "\n".join(notices)
    assert "gpu = 0" in said and "--device" in said and "path_to_save = saved_model.pth" in said
    assert "neptune = True: wandb takes its place" in said and "gloss.gloss left out" in said and len(notices) == 4


def test_gloss_mode_and_what_is_not_given():
    text = ("general_parameters: {data_paths: [pjm, galex], annotation_file: test_gloss2.txt, separator: \"\\t\"}\n"
            "train_parameters: {classification_mode: gloss, epochs: 1, batch_size: 2, lr: 0.1, num_segments: 4,\n"
            "  time: null, landmarks: False}\n"
            "feature_extractor: {name: resnet50_extractor}\n"
            "heads: {gloss: {gloss: {num_class: 30, loss_weight: 1}}}\nfreeze_scheduler: None\n")
    ini, notices = convert(text)
    config = read(ini)
    assert config.multihead.mode == "gloss" and config.heads.gloss == (30, 1.0)
    assert (config.multihead.data_paths, config.multihead.annotation_file, config.multihead.separator) == (
        ("pjm", "galex"), "test_gloss2.txt", "\t")
    assert config.multihead.time == 0 and config.multihead.landmarks == "" and config.freeze_scheduler is None
    assert config.scheduler is None and "root" not in ini and "[augmentations]" not in ini
    assert notices == ["multihead.data_paths: pjm, galex is looked for in HEARAI of the data folder"]


@pytest.mark.parametrize(("section", "keys", "says"), [
    ("train_parameters", {"epoch": 3}, "did you mean epochs?"),
    ("augmentations_parameters", {"apply_rezise": True}, "did you mean apply_resize?"),
    ("train_parameters", {"batch_size": "four"}, "give a whole number"),
    ("train_parameters", {"batch_size": 2.5}, "give a whole number"),
    ("train_parameters", {"warmup_steps": 0.5}, "give a whole number"),
    ("train_parameters", {"lr": True}, "give a number"),
    ("train_parameters", {"lr": float("nan")}, "give a number"),
    ("train_parameters", {"fast_dev_run": "yes please"}, "give True or False"),
    ("train_parameters", {"classification_mode": "glosses"}, "give 'hamnosys' or 'gloss'"),
    ("train_parameters", {"epochs": None}, "add `epochs: …` to train_parameters"),
    ("general_parameters", {"data_paths": ["a"]}, "keep one of them"),
    ("general_parameters", {"data_path": []}, "give a text, or a list of them"),
    ("augmentations_parameters", {"color_jitter_hue": [1, 2, 3]}, "give a number, or two in a list"),
    ("heads", {"hamnosys": {"symetry_operator": {"num_class": 9, "loss_weight": 1}}}, "mean symmetry_operator?"),
    ("heads", {"hamnosys": {"symmetry_operator": {"num_class": 9}}}, "add `loss_weight: …`"),
    ("heads", {"hamnosys": None}, "add `hamnosys:`"),
    ("heads", {"hamnosis": {}}, "did you mean hamnosys?"),
    ("freeze_scheduler", {"model_params": {"transformer": [1]}}, "give True or False"),
    ("freeze_scheduler", {"freeze_pattern_repeats": 5}, "give a list"),
])
def test_mistakes_are_named(section, keys, says):
    with pytest.raises(Mistake) as caught:
        convert(changed(section, **keys), "mine.yml")
    assert says in str(caught.value) and str(caught.value).startswith("mine.yml: ") and caught.value.found


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "1", "heads: 2020-99-99", "train_parameters: 3", "? {a: 1}\n: 2"])
def test_no_config_at_all(text):
    with pytest.raises(Mistake):
        convert(text)


def test_yaml_is_data_only(tmp_path):
    with pytest.raises(Mistake, match="no YAML"):
        convert(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path}/x]]")
    assert not (tmp_path / "x").exists()


def test_without_pyyaml(monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "yaml":
            raise ImportError("No module named 'yaml'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Mistake, match="pip install pyyaml"):
        convert(DOCUMENTED)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from(" ;#'\"=%[]\\"),
                min_size=1, max_size=40)


@settings(max_examples=25)
@given(path=texts, separator=st.sampled_from([";", "#", "'", ",", "\t", " ", "%", "=", "|"]),
       rate=st.floats(0, 1e6), weight=st.floats(1e-6, 1e6), classes=st.integers(2, 10**6), seed=st.integers(0, 2**31),
       crop=st.integers(1, 256) | st.tuples(st.integers(1, 256), st.integers(1, 256)),
       pattern=st.lists(st.booleans(), min_size=1, max_size=9))
def test_values_survive(path, separator, rate, weight, classes, seed, crop, pattern):
    plain = yaml.safe_load(DOCUMENTED)
    plain["general_parameters"] |= {"data_path": "/" + path, "separator": separator, "seed": seed}
    plain["train_parameters"]["lr"] = rate
    plain["augmentations_parameters"]["center_crop_size"] = list(crop) if isinstance(crop, tuple) else crop
    plain["heads"]["hamnosys"] = {"hand_location_x": {"num_class": classes, "loss_weight": weight}}
    plain["freeze_scheduler"]["model_params"] = {"transformer": pattern}
    plain["freeze_scheduler"]["freeze_pattern_repeats"] = [1] * len(pattern)
    config = read(convert(yaml.safe_dump(plain, allow_unicode=True))[0])
    assert config.multihead.data_paths == ("/" + path,) and config.multihead.separator == separator
    assert config.optimizer.backbone_init_lr == rate and config.experiment.seed == seed
    assert config.heads.hand_location_x == (classes, weight) and config.augmentations.center_crop_size == crop
    assert config.freeze_scheduler.model_params == {"transformer": tuple(pattern)}


# --- the command --------------------------------------------------------------------------------------------

def test_command_prints_and_writes(tmp_path, capsys):
    source, target = tmp_path / "train_config.yml", tmp_path / "pjm_hamnosys" / "SignTransformer_007.ini"
    source.write_text(DOCUMENTED)
    assert utils.main(["convert", str(source)]) == 0
    printed = capsys.readouterr()
    assert printed.out == convert(DOCUMENTED, str(source))[0] and "notice: general_parameters.gpu" in printed.err
    assert utils.main(["convert", str(source), "--to", str(target)]) == 0
    assert target.read_text() == printed.out
    assert "training.py SignTransformer pjm_hamnosys 7" in capsys.readouterr().out
    with pytest.raises(Mistake, match="is there already"):
        utils.main(["convert", str(source), "--to", str(target)])


def test_command_knows_where_configfiles_are():
    name = Path("pjm_gloss") / "SignTransformer_901.ini"
    experiment, place = utils.named_by("configfiles" / name)
    assert place == paths.CONFIGS / name
    assert (experiment.name, experiment.split) == ("SignTransformer_901", "pjm_gloss")


@pytest.mark.parametrize("name", ["S3D_001.ini", "SignTransformer.ini", "SignTransformer_001.txt",
                                  "SignTransformer_x.ini"])
def test_command_refuses_other_names(tmp_path, name):
    with pytest.raises(Mistake, match="no name of a SignTransformer's"):
        utils.named_by(tmp_path / name)


def test_command_says_what_training_would_say(tmp_path):
    file = tmp_path / "train_config.yml"
    file.write_text(changed("transformer", name="bert"))
    with pytest.raises(Mistake, match="transformer.name has no such value"):
        utils.main(["convert", str(file)])
    with pytest.raises(Mistake, match="cannot be read"):
        utils.main(["convert", str(tmp_path / "none.yml")])
