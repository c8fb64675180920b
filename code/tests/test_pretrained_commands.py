"""preprocess.py --prune_mbart and --import_published, on a handful of sentences and files made up in SLRT's form."""

import gzip
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import preprocess
import pytest
import test_published as slrt
import testing
import torch
from little_mbart import TEXTS, little_mbart
from torch import Tensor
from torch.nn import functional as F

from slr import checkpoint, paths
from slr.config import read_config
from slr.datasets import sentences
from slr.datasets.sentences import Sentence
from slr.errors import Mistake, run
from slr.models import published, s3d_ctc
from slr.models.mbart import LANGUAGES, MBartText, load_model
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.task import build_task
from slr.tasks import importing
from slr.tasks.translators import part_of
from slr.trained import find_trained, rebuild

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
CLASSES = ["<blank>", "NORD", "REGEN", "WIND"]  # WIND is none of theirs
WIDTH, POSITIONS = 512, 90  # of S3D_CTC's head, of mBART
ROWS = ["<s>", "<pad>", "</s>", "<unk>", "de_DE", "zh_CN", "de_DGS", "zh_CSL", "regen", "nord", "wind", "schnee"]
# In the place of the last layer: what the head gives is what goes into it.
SEE_THROUGH = {"gloss_output_layer.weight": torch.eye(WIDTH), "gloss_output_layer.bias": torch.zeros(WIDTH)}
SIGNED = {"phoenix2014t": "de_DGS", "csl_daily": "zh_CSL"}


def prepared(root: Path, split: str, texts: list[str]) -> None:
    """Two sentences a set, without frames."""
    folder = paths.sentences(root, split)
    folder.mkdir(parents=True)
    for number, (part, name) in enumerate(sentences.FILES.items()):
        said = [Sentence(f"{part}{i}", part, ("REGEN", "NORD")[:2 - i], text=text)
                for i, text in enumerate(texts[2 * number:2 * number + 2])]
        sentences.write_sentences(folder / name, said)
    (folder / "report.json").write_text(json.dumps({"frames": "nowhere"}))
    (folder / "vocabulary.txt").write_text("".join(f"{i}\t{gloss}\n" for i, gloss in enumerate(CLASSES)))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data folder with three splits of six sentences; those of `phoenix2014` have no text."""
    root = tmp_path_factory.mktemp("data")
    for split in SIGNED:
        prepared(root, split, TEXTS)
    prepared(root, "phoenix2014", [""] * 6)
    return root


def pickled(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


def saved(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def published_mbart(folder: Path) -> dict[str, Tensor]:
    """mBart_de as SLRT has it, without its weights; those of a trained one under SLRT's names."""
    whole = MBartText.load(little_mbart(folder, max_position_embeddings=POSITIONS), "de_DE")
    first = [0, 1, 2, 3, *range(whole.whole_size - len(LANGUAGES) - 1, whole.whole_size)]
    kept = {old: new for new, old in enumerate([*first, *range(40, 4, -1)])}
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(kept)}
    (folder / "config.json").write_text(json.dumps(config))
    pickled(folder / "map_ids.pkl", kept)
    pickled(folder / "gloss2ids.pkl", {name: number for number, name in enumerate(ROWS)})
    sizes = {"vocab_size": len(kept), "max_position_embeddings": POSITIONS}
    state = load_model(little_mbart(folder.parent / "other", seed=3, **sizes)).state_dict()
    return {f"translation_network.model.{name}": value for name, value in state.items()} | {
        "translation_network.gloss_embedding.weight": torch.randn(len(ROWS), config["d_model"])}


def mapper(kind: str, width: int) -> dict[str, Tensor]:
    if kind == "embedding":
        return {"vl_mapper.mapping.weight": torch.randn(width, slrt.COUNT)}
    shapes = {"0.weight": (width, WIDTH), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    return {f"vl_mapper.mapping.{name}": torch.randn(*shape) / 20 for name, shape in shapes.items()}


def features(part: str) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(len(part))
    return [{"name": f"{part}{i}", "gloss": "x", "text": "x", "sign": torch.randn(8 + i, slrt.CHANNELS, generator=draw)}
            for i in range(2)]


@pytest.fixture(scope="module")
def net():
    return slrt.random_s3d()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, net) -> Path:
    """SLRT's folders: pretrained_models with all stages of PHOENIX-2014T, data with the numbers of its classes."""
    folder = tmp_path_factory.mktemp("slrt")
    models, stage = folder / "pretrained_models", "phoenix-2014t_{}/ckpts/best.ckpt"
    base = slrt.as_published(net, "", 16)
    saved(models / "s3ds_actioncls_ckpt/S3D_kinetics400.pt", {f"module.{name}": value for name, value in base.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slrt, "WIDTH", WIDTH)
        seen = slrt.s2g(net)
    saved(models / stage.format("s2g"), seen)
    spoken = published_mbart(models / "mBart_de")
    saved(models / stage.format("g2t"), {"model_state": spoken})
    head = {name: value for name, value in seen["model_state"].items() if "visual_head" in name}
    width = spoken["translation_network.gloss_embedding.weight"].shape[1]
    saved(models / stage.format("s2t"), {"model_state": head | mapper("projection", width) | spoken})
    saved(folder / "csl/csl-daily_s2t/ckpts/best.ckpt", {"model_state": head | mapper("embedding", width) | spoken})
    shutil.copytree(models / "mBart_de", folder / "csl/mBart_zh")
    for part in ("train", "dev", "test"):
        path = models / f"phoenix-2014t_s2g/extract_feature/head_rgb_input/{part}.pkl"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(gzip.compress(pickle.dumps(features(part.replace("dev", "val")))))
    pickled(folder / "data/phoenix-2014t/gloss2ids_old.pkl", slrt.GLOSSES)
    pickled(folder / "data/phoenix-2014t/gloss2ids.pkl", {**slrt.GLOSSES, "wind": 6})
    pickled(folder / "data/csl-daily/gloss2ids.pkl", slrt.GLOSSES)
    return folder


def imported(root: Path, *words: object) -> int:
    return preprocess.main([*map(str, words), "--data", str(root)])


@pytest.fixture(scope="module")
def ours(root, theirs, tmp_path_factory) -> Path:
    """What the command makes of PHOENIX-2014T."""
    folder = tmp_path_factory.mktemp("ours")
    assert imported(root, "-as", "phoenix2014t", "--import_published", theirs / "pretrained_models", theirs / "data",
                    "--to", folder) == 0
    return folder


def task_of(file: Path) -> Any:
    return rebuild(find_trained(None, None, None, file), "cpu", 0)[0]


def weights(theirs: Path, stage: str, folder: str = "pretrained_models/phoenix-2014t") -> dict[str, Tensor]:
    return published.read(theirs / f"{folder}_{stage}/ckpts/best.ckpt")["model_state"]


def head_says(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """SLRT's own head, of our width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slrt, "WIDTH", WIDTH)
        return slrt.published_head(state, features)


# --- import -------------------------------------------------------------------------------------------------

def test_what_was_written_and_said(root, theirs, ours, capsys):
    assert sorted(path.name for path in ours.iterdir()) == ["Gloss2Text.pth", "S3D_CTC.pth", "S3D_actions.pth",
                                                            "Sign2Text.pth"]
    before = {path: path.read_bytes() for path in ours.iterdir()}
    words = ("-as", "phoenix2014t", "--import_published", theirs / "pretrained_models", theirs / "data", "--to", ours)
    assert imported(root, *words) == 0
    said = capsys.readouterr().out
    assert said.count("it is there already, --replace writes it anew") == 4
    assert "S3D_glosses.pth: not found (s3ds_glosscls_ckpt/*.pth.tar)" in said and "trained on" not in said
    assert {path: path.read_bytes() for path in ours.iterdir()} == before


def test_settings_are_those_of_the_split(ours, root):
    for model in ("S3D_CTC", "Gloss2Text", "Sign2Text"):
        content = checkpoint.load(ours / f"{model}.pth")
        assert (content["model"], content["split"], content["epoch"]) == (model, "phoenix2014t", 0)
        assert content["meta"]["classes"] == CLASSES and content["metrics"] == {}
        assert content["data_hash"] == content["meta"]["data_hash"] == sentences.data_hash(root, "phoenix2014t")
        config = read_config(Experiment(model, "phoenix2014t", "1"), {"data.root": str(root)}).as_dict()
        config["translation"] = content["config"].get("translation")
        config["model_params"]["last_relu"] = False if model == "S3D_CTC" else None
        if model == "Sign2Text":  # its clips are those of the first stage
            config["data"] |= content["meta"]["visual"]["clip"]
        assert content["config"] == {name: value for name, value in config.items() if value is not None}
    assert content["config"]["translation"]["features"].endswith("phoenix-2014t_s2g/extract_feature/head_rgb_input")
    assert content["config"]["translation"]["mapper"] == "projection"


@torch.no_grad()
def test_sign2gloss_says_what_its_weights_do(theirs, ours):
    """The backbone against `convert`, which has tests of its own, and the head against SLRT's."""
    state, task = weights(theirs, "s2g"), task_of(ours / "S3D_CTC.pth")
    model = s3d_ctc.build(len(CLASSES), frames=16, size=40).eval()
    model.load_state_dict(published.convert(state, model.state_dict(), parts=("backbone",))[0], strict=False)
    clips, lengths = torch.rand(2, 3, 16, 40, 40), torch.tensor([16, 16])
    features, steps = model.features(clips, lengths)
    expected = head_says(part_of(state, "recognition_network.visual_head."), features)
    found, found_steps = task.model.eval()(clips, lengths)
    assert torch.equal(found_steps, steps)
    torch.testing.assert_close(found[..., :3], expected[..., [0, 5, 3]], atol=1e-3, rtol=1e-3)  # WIND's row is new


def spoken_logits(theirs: Path, state: dict[str, Tensor], vectors: Tensor, language: str, tokens: Tensor) -> Tensor:
    """transformers' own answer to (S, C) vectors, from the published weights: (T, V)."""
    model = load_model(theirs / "pretrained_models/other").eval()
    model.load_state_dict(part_of(state, "translation_network.model."))
    table = state[importing.GLOSS_TABLE]
    source = torch.cat([vectors, table[[ROWS.index("</s>"), ROWS.index(language)]]]) * math.sqrt(vectors.shape[1])
    return model(inputs_embeds=source[None], decoder_input_ids=tokens[None]).logits[0]


@torch.no_grad()
def test_gloss2text_says_what_its_weights_do(theirs, ours):
    task = task_of(ours / "Gloss2Text.pth")
    batch = task.prepare(next(iter(task.loader("val", train=False))), train=False)
    found = task.forward(task.model.eval(), batch).text
    state = weights(theirs, "g2t")
    rows = state[importing.GLOSS_TABLE]
    for i, glosses in enumerate(batch["reference"]):
        vectors = rows[[ROWS.index(gloss.lower()) for gloss in glosses]]
        tokens = batch["tokens_in"][i][batch["tokens_in"][i] != task.speech.tokenizer.pad]
        expected = spoken_logits(theirs, state, vectors, "de_DGS", tokens)
        torch.testing.assert_close(found[i, :len(tokens)], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(task.model.gloss_embedding.weight[0], rows[ROWS.index("<unk>")])
    assert task.speech.language == "de_DE" and task.speech.tokenizer.size == len(load_ids(theirs))


def load_ids(theirs: Path) -> dict[int, int]:
    return pickle.loads((theirs / "pretrained_models/mBart_de/map_ids.pkl").read_bytes())


@torch.no_grad()
def test_sign2text_says_what_its_weights_do(theirs, ours):
    """From SLRT's own feature pickles; its backbone is that of the first stage, for videos."""
    task = task_of(ours / "Sign2Text.pth")
    batch = task.prepare(next(iter(task.loader("val", train=False))), train=False)
    found = task.forward(task.model.eval(), batch)
    state = weights(theirs, "s2t")
    seen = {row["name"]: row["sign"] for row in features("val")}
    head = part_of(state, "recognition_network.visual_head.")
    first, second = ([state[f"vl_mapper.mapping.{layer}.{part}"] for part in ("weight", "bias")] for layer in (0, 2))
    for i, name in enumerate(batch["ids"]):
        gloss = head_says(head | SEE_THROUGH, seen[name][None])[0]
        tokens = batch["tokens_in"][i][batch["tokens_in"][i] != task.speech.tokenizer.pad]
        expected = spoken_logits(theirs, state, F.linear(F.linear(gloss, *first).relu(), *second), "de_DGS", tokens)
        torch.testing.assert_close(found.text[i, :len(tokens)], expected, atol=1e-3, rtol=1e-3)
    whole = task_of(ours / "S3D_CTC.pth").model.state_dict()
    for name, value in task.model.visual.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value, whole[name]), name


@torch.no_grad()
def test_expectation_mapper_and_no_backbone(root, theirs, tmp_path):
    """CSL-Daily's: the columns of its linear layer are rows here. Nothing has seen its videos."""
    words = ("-as", "csl_daily", "--import_published", theirs / "csl", theirs / "data", "--to", tmp_path)
    assert imported(root, *words) == 0
    task = task_of(tmp_path / "Sign2Text.pth")
    assert task.visual["model"] == "" and task.speech.language == "zh_CN"
    assert task.keys.features == "S3D_CTC/csl_daily/1" and task.visual["fps"] == 30
    columns = weights(theirs, "s2t", "csl/csl-daily")["vl_mapper.mapping.weight"]
    assert torch.equal(task.model.mapper.embedding[:3], columns.T[[0, 5, 3]])
    table = weights(theirs, "s2t", "csl/csl-daily")[importing.GLOSS_TABLE]
    assert torch.equal(task.model.translator.suffix, table[[ROWS.index("</s>"), ROWS.index("zh_CSL")]])


@torch.no_grad()
def test_a_backbone_starts_a_sentence_model(root, ours, net):
    """model_params.init_from, as training reads it."""
    config = read_config(Experiment("S3D_CTC", "phoenix2014t", "1"), {
        "model_params.init_from": str(ours / "S3D_actions.pth"), "data.root": str(root)})
    task = build_task(config, Runtime.start("cpu", 0))
    model = s3d_ctc.build(len(CLASSES), frames=16, size=40)
    state, _ = published.convert(slrt.as_published(net, "module.", 16), model.state_dict(), parts=("backbone",))
    assert len(state) > 300
    assert all(torch.equal(task.model.state_dict()[name], value) for name, value in state.items())


def test_trained_ones_start_from_the_imported(root, ours):
    config = read_config(Experiment("Sign2Text", "phoenix2014t", "1"), {
        "model_params.init_from": f"{ours}/S3D_CTC.pth, {ours}/Gloss2Text.pth", "data.root": str(root),
        "translation.features": ""})
    task = build_task(config, Runtime.start("cpu", 0))
    head, spoken = (checkpoint.load(ours / f"{name}.pth")["model_state_dict"] for name in ("S3D_CTC", "Gloss2Text"))
    mine = task.model.state_dict()
    assert all(torch.equal(mine[f"visual.{name}"], value) for name, value in head.items())
    assert all(torch.equal(mine[name], value) for name, value in spoken.items() if name.startswith("translator."))


@pytest.mark.slow
def test_testing_takes_it(ours, tmp_path, capsys):
    testing.main(["full", "--checkpoint", str(ours / "Sign2Text.pth"), "--out", str(tmp_path), "--device", "cpu",
                  "--set", "translation.beam_width=2", "--set", "translation.max_length=6", "--set", "data.workers=0"])
    assert "bleu" in capsys.readouterr().out.lower()
    rows = (tmp_path / "Sign2Text_test-predictions.jsonl").read_text().splitlines()
    assert {json.loads(row)["id"] for row in rows} == {"test0", "test1"}


def test_one_bad_piece_does_not_cost_the_others(root, theirs, tmp_path, capsys):
    """Without the numbers of the classes only what needs none is written."""
    words = ("-as", "phoenix2014t", "--import_published", theirs / "pretrained_models", "--to", tmp_path)
    assert imported(root, *words) == 2
    said = capsys.readouterr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Gloss2Text.pth", "S3D_actions.pth"]
    for name in ("S3D_CTC", "Sign2Text"):
        assert f"error: {name}.pth: the numbers of the 6 published classes are missing" in said.err


def test_weights_that_are_not_all_there_are_refused(root, theirs, tmp_path, capsys):
    content = {"model_state": weights(theirs, "s2g")}
    del content["model_state"]["recognition_network.visual_head.fc1.bias"]
    saved(tmp_path / "x/a_s2g/best.ckpt", content)
    layers = slrt.as_published(slrt.random_s3d(), "", 12)
    saved(tmp_path / "x/s3ds_glosscls_ckpt/epoch_1.pth.tar", {"state_dict": layers})
    saved(tmp_path / "x/a_g2t/best.ckpt", content)
    words = ("-as", "phoenix2014t", "--import_published", tmp_path / "x", theirs / "data", "--to", tmp_path / "y")
    assert imported(root, *words) == 2
    said = capsys.readouterr().err
    assert "S3D_CTC.pth: " in said and "lacks weights of S3DSentence: 1, such as classifier.project.bias" in said
    assert "lacks layers of S3D: " in said and "backbone.features.12" in said
    assert "Gloss2Text.pth: " in said and "is not of this stage: it has no translation_network" in said
    assert not (tmp_path / "y").exists()


def test_what_is_not_clear_is_asked(root, theirs, tmp_path, net, capsys):
    """Two of a kind, and two numberings; what is clear is written anew where that is asked for."""
    for name in "ab":
        saved(tmp_path / f"x/{name}_s2g/best.ckpt", {})
    saved(tmp_path / "x/s3ds_actioncls_ckpt/S3D_kinetics400.pt", slrt.as_published(net, "module."))
    (tmp_path / "y").mkdir()
    (tmp_path / "y/S3D_actions.pth").write_text("older")
    words = ("-as", "phoenix2014t", "--import_published", tmp_path / "x", "--to", tmp_path / "y", "--replace")
    assert imported(root, *words) == 2
    assert "S3D_CTC.pth: there are several published files of the kind s2g" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "y/S3D_actions.pth")["model"] == "S3D"
    for name in "ab":
        pickled(tmp_path / f"{name}/gloss2ids.pkl", {"<si>": 0, name: 1})
    sources = importing.Sources.find("phoenix2014t", root, [tmp_path])
    with pytest.raises(Mistake, match="different numbers"):
        importing.class_numbers(sources, 2)
    pickled(tmp_path / "c/gloss2ids.pkl", ["<si>"])
    with pytest.raises(Mistake, match="holds no numbers of glosses"):
        importing.class_numbers(importing.Sources.find("phoenix2014t", root, [tmp_path]), 2)


@pytest.mark.parametrize(("place", "split", "fits"), [
    ("phoenix-2014t_s2g/ckpts/best.ckpt", "phoenix2014t", True), ("phoenix-2014_s2g/best.ckpt", "phoenix2014t", False),
    ("phoenix-2014t_s2g/ckpts/best.ckpt", "phoenix2014", False), ("phoenix-2014/gloss2ids.pkl", "phoenix2014", True),
    ("csl-daily_g2t/ckpts/best.ckpt", "phoenix2014t", False), ("mBart_zh/map_ids.pkl", "phoenix2014t", False),
    ("mBart_de/map_ids.pkl", "phoenix2014t", True), ("mBart_zh/map_ids.pkl", "csl_daily", True),
    ("s3ds_actioncls_ckpt/S3D_kinetics400.pt", "csl_daily", True), ("csl-daily_s2g/best.ckpt", "mine", True)])
def test_whose_a_file_is(place, split, fits):
    assert importing.is_of(Path(place), split) is fits


# --- pruning ------------------------------------------------------------------------------------------------

def test_mbart_is_pruned_to_a_split(root, tmp_path, capsys):
    little_mbart(tmp_path / "mBart")
    sizes = {}
    for name, more in (("train", []), ("all", ["--prune_from", "all"])):
        words = ["-as", "phoenix2014t", "--prune_mbart", tmp_path / "mBart", "--to", tmp_path / name, *more]
        assert imported(root, *words) == 0
        said = capsys.readouterr().out
        text = MBartText.load(tmp_path / name, "de_DE")
        sizes[name] = text.size
        assert f" -> {text.size:,}, parameters " in said and "2 glosses" in said
        assert f"mbart = '{tmp_path / name}'" in said and "written" in said
        for number, sentence in enumerate(TEXTS):
            if name == "all" or number < 2:
                assert text.unknown not in text.encode(sentence)
        assert text.unknown not in text.encode("regen nord")
    assert sizes["train"] < sizes["all"]
    assert imported(root, *words) == 0
    assert "it was there already" in capsys.readouterr().out


# --- mistakes -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "said"), [
    ("-as phoenix2014t --prune_mbart mBart", "--to is missing"),
    ("-as phoenix2014t csl_daily --prune_mbart mBart --to x", "--prune_mbart is for one split"),
    ("-as phoenix2014t csl_daily --import_published x", "--import_published is for one split"),
    ("-as phoenix2014t --prune_mbart mBart --to x --import_published y", "--import_published does nothing with"),
    ("-as phoenix2014t --prune_mbart mBart --to x --replace", "--replace does nothing with --prune_mbart"),
    ("-as phoenix2014t --prune_mbart mBart --to x --seed 3", "--seed does nothing with --prune_mbart"),
    ("-as phoenix2014t --import_published x --prune_from all", "--prune_from does nothing with"),
    ("-as phoenix2014t --import_published x --dry_run", "--dry_run does nothing with --import_published"),
    ("-as phoenix2014t --to x", "--to and --prune_from are of weights"),
    ("-as demo --prune_from train", "--to and --prune_from are of weights"),
    ("-as phoenix2014t --import_published nowhere", "there is no folder of published weights"),
    ("-as phoenix2014t --import_published {root}", "nothing that was published for phoenix2014t is there"),
    ("-as unheard --import_published {root}", "unheard is not prepared"),
    ("-as unheard --prune_mbart mBart --to x", "unheard is not prepared"),
    ("-as phoenix2014 --prune_mbart mBart --to x", "phoenix2014 has no texts"),
    ("-as phoenix2014t --prune_mbart nowhere/at/all --to x", "the folder of mBART is missing")])
def test_mistakes_are_said(words, said, root, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "HOME", tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(lambda: imported(root, *words.format(root=root).split()))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and err.startswith("error: ") and "Traceback" not in err
    assert not list(tmp_path.iterdir())
