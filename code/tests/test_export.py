"""export.py: what it writes is what transformers reads and computes, and what comes back; where it writes, and where
not."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import export
import pytest
import torch
from inis import OPTIMIZER

from slr import checkpoint, search
from slr.catalogue import MODELS
from slr.config import parse_config
from slr.errors import Mistake
from slr.models import encoders, exchange
from slr.models.contrastive import Contrastive
from slr.models.encoders import Rates
from slr.models.exchange import EXPORTED, TRANSCRIBERS, from_export, largest_difference, rebuilt, write
from slr.models.language_decoder import LanguageDecoder
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans
from slr.models.transcriber import Transcriber
from slr.models.video_mae import VideoMAEPretrain
from slr.paths import Experiment
from slr.text import WordVocabulary

WORDS = WordVocabulary(["REGEN", "MORGEN", "NORD", "WÄRME", "SONNE", "TAG"])
CLIPS = {"frames": 4, "size": 16, "patch": 8, "tubelet": 2, "width": 24, "layers": 2, "heads": 3, "ffn": 20}
ENCODERS: dict[str, dict[str, Any]] = {
    "SpatioTemporal": {"kind": "SpatioTemporal", "width": 32, "layers": 2, "heads": 4, "ffn": 24, "kernel": 6,
                       "groups": 2},
    "VideoMAE": {"kind": "VideoMAE", **CLIPS}, "ViViT": {"kind": "ViViT", **CLIPS}}
DECODER = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "positions": 20}
SPATIAL = {"dinov2": "/somebody/s/disk/facebook/dinov2-base", "weights": "0123abcd"}
SEEN = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_frames": 4, "frame_size": 16,
        "frame_stride": 2, "eval_resize": None, "subtract_clip_mean": False, "spatial": None}
INI = f"[experiment]\ntask = 'TASK'\n[training]\nbatch_size = 2\nupdate_per_step = 1\nmax_epoch = 1\n{OPTIMIZER}"
OF_A_DECODER = ["README.md", "config.json", "generation_config.json", "model.safetensors", "vocab.json"]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def shaken(net: Any, seed: int = 1) -> Any:
    """Weights that no part starts with: biases and layer-norms count."""
    torch.manual_seed(seed)
    for weight in net.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return net.eval()


def encoder(kind: str) -> Any:
    return encoders.build(ENCODERS[kind], Rates())


def decoder(cross_attention: bool = True) -> LanguageDecoder:
    return LanguageDecoder(WORDS.size, **DECODER, cross_attention=cross_attention)


def made(model: str, joint: bool = True) -> tuple[Any, dict[str, Any]]:
    """(A net of MODEL with weights of chance, what its checkpoint's meta says)."""
    torch.manual_seed(0)
    words = {"language_decoder": DECODER, "tokenizer": WORDS.plain(), "classes": list(WORDS.words)}
    if model == "LanguageDecoder":
        return shaken(decoder(False)), words
    kind = model.removesuffix("Pretrain")
    seen = {**SEEN, "encoder": ENCODERS[kind], "spatial": SPATIAL if kind == "SpatioTemporal" else None}
    if model in TRANSCRIBERS:
        net: Any = Transcriber(encoders.wrapped(encoder(kind)), decoder(), joint=joint)
        return shaken(net), {**seen, **words, "joint": joint}
    if kind == "SpatioTemporal":
        sizes = {"groups": 2, "codes": 5, "dim": 12, "compared": 10}
        return shaken(Contrastive(encoder(kind), **sizes)), {**seen, "pretraining": sizes}
    sizes = {"width": 18, "layers": 1, "heads": 2, "ffn": 22}
    return shaken(VideoMAEPretrain(encoder(kind), **sizes)), {**seen, "pretraining": sizes}


def saved(folder: Path, model: str, **changes: Any) -> Path:
    """The checkpoint of such a net."""
    net, meta = made(model)
    config = parse_config(INI.replace("TASK", MODELS[model].task), Experiment(model, "phoenix2014", "1"))
    checkpoint.save(folder / f"{model}.pth", {
        "model": model, "task": MODELS[model].task, "meta": meta, "config": config.as_dict(), "epoch": 3,
        "metrics": {"train": {"loss": 1.25}, "val": {"loss": 2.5, "wer": 41.0}},
        "model_state_dict": net.state_dict(), **changes})
    return folder / f"{model}.pth"


def exported(folder: Path, model: str, *words: str) -> Path:
    assert export.main(["--checkpoint", str(saved(folder, model)), str(folder / model), *words]) == 0
    return folder / model


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def theirs(name: str, folder: Path, **options: Any) -> Any:
    """transformers' model, in which nothing is missing and of which nothing is left over."""
    library = pytest.importorskip("transformers")
    net, info = getattr(library, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return net.eval()


# --- against transformers -----------------------------------------------------------------------------------

@torch.no_grad()
def test_a_language_model_is_biogpt(tmp_path):
    ours = made("LanguageDecoder")[0]
    write(ours, tmp_path)
    net, tokens = theirs("BioGptForCausalLM", tmp_path), torch.tensor([[1, 4, 5, 9, 2], [1, 7, 2, 0, 0]])
    expected = ours(None, None, tokens)
    torch.testing.assert_close(net(tokens).logits, expected, **CLOSE)
    seen = net(tokens, attention_mask=(torch.arange(5) < torch.tensor([[5], [3]])).long()).logits
    torch.testing.assert_close(seen[1, :3], expected[1, :3], **CLOSE)
    torch.testing.assert_close(theirs("AutoModelForCausalLM", tmp_path)(tokens).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_decoder_is_blenderbots(tmp_path, seed):
    """With padding of the vectors, too, and word by word, to the last place."""
    torch.manual_seed(seed)
    ours = shaken(decoder(), seed)
    write(ours, tmp_path)
    net, tokens = theirs("BlenderbotForCausalLM", tmp_path), torch.tensor([[1, 4, 5, 9, 2], [1, 7, 8, 8, 2]])
    vectors, lengths = torch.randn(2, 6, 16), torch.tensor([6, 3])
    mask = (torch.arange(6) < lengths[:, None]).long()
    found = net(tokens, encoder_hidden_states=vectors, encoder_attention_mask=mask).logits
    torch.testing.assert_close(found, ours(vectors, lengths, tokens), **CLOSE)
    said = net.generate(torch.ones(2, 1, dtype=torch.long), encoder_hidden_states=vectors,
                        encoder_attention_mask=mask, max_new_tokens=19, do_sample=False)
    beams = search.beam_search([ours.decoder(vectors, lengths)], 2, start=1, end=2, width=1, max_length=20,
                               banned=(0, 1, 3))  # its last place is the end's
    for row, beam in zip(said[:, 1:].tolist(), beams, strict=True):
        words = list(beam[0].tokens)
        assert row[:len(words)] == words and set(row[len(words):]) <= {0, 2}


@torch.no_grad()
def test_the_encoder_of_features_is_wav2vec(tmp_path):
    """Called as a whole, with padding: its parts that hear sound hand on the features."""
    ours = shaken(encoder("SpatioTemporal"))
    write(ours, tmp_path)
    net = theirs("Wav2Vec2Model", tmp_path)
    features = 3 * torch.randn(3, 9, 32) + torch.randn(32)
    features[0, 0] = torch.nn.functional.one_hot(torch.tensor(3), 32) * -50.0  # as far below the mean as can be
    frames = Frames(torch.tensor([9, 5, 1]), 9, features.device)
    found = net(features.flatten(1), attention_mask=frames.valid.repeat_interleave(32, 1).long()).last_hidden_state
    torch.testing.assert_close(frames.zero(found, 1), ours(features, frames), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_contrastive_pre_training_is_wav2vecs(tmp_path):
    ours = made("SpatioTemporalPretrain")[0]
    write(ours, tmp_path)
    net, features = theirs("Wav2Vec2ForPreTraining", tmp_path), 3 * torch.randn(2, 8, 32)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 2:4] = mask[1, 5:7] = True
    frames = Frames(torch.tensor([8, 8]), 8, features.device)
    said = net(features.flatten(1), mask_time_indices=mask)
    normed = ours.encoder.normed(features, frames)
    context = ours.encoder.over_time(normed, frames, mask)
    torch.testing.assert_close(said.projected_states, ours.project_context(context), rtol=1e-4, atol=1e-4)
    codes = ours.quantizer(normed.flatten(0, 1), 1.0).vectors
    torch.testing.assert_close(said.projected_quantized_states.flatten(0, 1), ours.project_codes(codes), **CLOSE)
    assert net.config.contrastive_logits_temperature == 0.1


@torch.no_grad()
def test_video_maes_pre_training(tmp_path):
    ours = made("VideoMAEPretrain")[0]
    net = theirs("VideoMAEForPreTraining", exported(tmp_path, "VideoMAEPretrain"))
    clips, masked = torch.randn(2, 3, 4, 16, 16), torch.tensor([[True, False, True, False]] * 2)
    found = net(clips.transpose(1, 2), bool_masked_pos=masked.repeat(1, 2)).logits
    torch.testing.assert_close(found, ours(clips, torch.tensor([4, 4]), masked)[0].flatten(1, 2), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("model", EXPORTED)
def test_the_cards_code_runs(tmp_path, model):
    """As it stands there; of a transcriber encoder, bridge and decoder together are ours."""
    pytest.importorskip("transformers")
    folder, (ours, _) = exported(tmp_path, model), made(model)
    (code, own) = re.findall(r"```python\n(.*?)```", (folder / export.CARD).read_text(encoding="utf-8"), re.S)
    given = {"folder": folder, "features": torch.randn(2, 7, 32), "clips": torch.randn(2, 3, 4, 16, 16)}
    exec(code, given)
    exec(own, given)
    assert largest_difference(given["net"], ours) == (0.0, True)
    if model in TRANSCRIBERS:
        inputs = given["features" if model == "SpatioTemporal" else "clips"]
        tokens = torch.tensor([[1, 4, 5]] * 2)
        said = ours(inputs, torch.tensor([inputs.shape[2 if inputs.dim() == 5 else 1]] * 2), tokens)
        torch.testing.assert_close(given["seen"], said.vectors, rtol=1e-4, atol=1e-4)
        logits = given["decoder"](tokens, encoder_hidden_states=given["seen"]).logits
        torch.testing.assert_close(logits, said.logits, rtol=1e-4, atol=1e-4)
    if "tokens" in given:
        assert given["tokens"].shape[1] <= 20 and bool((given["tokens"][:, 0] == 1).all())


# --- and back -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", EXPORTED)
def test_what_is_written_comes_back(tmp_path, model, capsys):
    folder, (net, _) = exported(tmp_path, model), made(model)
    back = from_export(folder)
    assert type(back) is type(net) and not back.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    parts = [f"{part}/{name}" for part in ("decoder", "encoder") for name in ("config.json", "model.safetensors")]
    own = [*parts, "decoder/generation_config.json", "vocab.json"] if model in TRANSCRIBERS else []
    own += ["generation_config.json", "vocab.json"] if model == "LanguageDecoder" else []
    assert names(folder) == sorted(["README.md", "config.json", "model.safetensors", *own])
    assert "differs by 0 at most" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("model", TRANSCRIBERS)
def test_without_the_joint_ctc(tmp_path, model):
    net = made(model, joint=False)[0]
    write(net, tmp_path)
    back = from_export(tmp_path)
    assert isinstance(back, Transcriber) and back.head is None
    assert largest_difference(net, back) == (0.0, True)


@pytest.mark.parametrize("model", TRANSCRIBERS)
def test_a_run_can_start_from_the_encoder(tmp_path, model):
    """model_params.weights names such a folder."""
    from slr.tasks.on_clips import new_encoder

    folder, net = exported(tmp_path, model) / "encoder", made(model)[0].encoder.net
    ini = (f"{INI}[model_params]\npretrained = False\nweights = {str(folder)!r}\n"
           "[data]\nnum_frames = 4\nframe_size = 16\n")
    config = parse_config(ini.replace("TASK", "transcription"), Experiment(model, "phoenix2014", "1"))
    eye: Any = SimpleNamespace(width=32) if model == "SpatioTemporal" else None
    found = new_encoder(config, eye)
    assert encoders.sizes_of(found) == encoders.sizes_of(net)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


def test_an_encoder_of_either_pre_training_starts_a_run(tmp_path):
    for kind in ("SpatioTemporal", "VideoMAE"):
        net = made(f"{kind}Pretrain")[0].encoder
        found = encoders.from_folder(kind, exported(tmp_path, f"{kind}Pretrain"), Rates())
        assert largest_difference(net, found.eval()) == (0.0, True)


def test_rates_go_along(tmp_path):
    meta = made("SpatioTemporal")[1]
    state = made("SpatioTemporal")[0].state_dict()
    write(rebuilt("SpatioTemporal", state, meta, Rates(0.25, 0.0, Spans(0.0, 4)), 0.375), tmp_path)
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["hidden_dropout"], config["layerdrop"], config["mask_time_length"]) == (0.25, 0.0, 4)
    assert 0 < config["mask_time_prob"] < 1e-6
    assert json.loads((tmp_path / "decoder" / "config.json").read_text())["dropout"] == 0.375
    theirs("Wav2Vec2Model", tmp_path / "encoder")


def test_an_experiments_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    place = Experiment("LanguageDecoder", "phoenix2014", "1").checkpoints / "best.pth"
    place.parent.mkdir(parents=True)
    saved(tmp_path, "LanguageDecoder").rename(place)
    assert export.main(["LanguageDecoder", "phoenix2014", "1", str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == OF_A_DECODER


def test_the_vocabulary(tmp_path):
    found = json.loads((exported(tmp_path, "LanguageDecoder") / "vocab.json").read_text(encoding="utf-8"))
    assert found == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "REGEN": 4, "MORGEN": 5, "NORD": 6, "WÄRME": 7,
                     "SONNE": 8, "TAG": 9}
    assert [found[word] for word in "NORD REGEN".split()] == WORDS.encode("NORD REGEN")


def test_the_card(tmp_path):
    text = (exported(tmp_path, "SpatioTemporal") / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: transformers\n")
    for part in ("SpatioTemporal phoenix2014 1, epoch 3", "| val | wer | 41 |", "| train | loss | 1.25 |",
                 "facebook/dinov2-base (SHA-256 of its weights 0123abcd)", "MIT"):
        assert part in text, part
    assert "somebody" not in text and str(tmp_path) not in text


# --- what is refused ----------------------------------------------------------------------------------------

def test_other_models_are_not_exported(tmp_path):
    config = parse_config(INI.replace("TASK", "isolated") + "[data]\nnum_frames = 8\nframe_size = 32\n"
                          "[model_params]\ndrop_p = 0.5\n", Experiment("S3D", "asl100", "1"))
    file = saved(tmp_path, "SpatioTemporal", config=config.as_dict())
    with pytest.raises(Mistake, match="no such export") as caught:
        export.main(["--checkpoint", str(file), str(tmp_path / "out")])
    assert all(name in caught.value.do for name in EXPORTED) and "S3D" in caught.value.found
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it(tmp_path):
    file, out = str(saved(tmp_path, "LanguageDecoder")), tmp_path / "out"
    out.mkdir()
    export.main(["--checkpoint", file, str(out)])  # an empty one is none
    with pytest.raises(Mistake, match="is not empty"):
        export.main(["--checkpoint", file, str(out)])
    (out / "encoder").mkdir()
    (out / "encoder" / "config.json").write_text("of a transcriber")
    (out / ".gitattributes").write_text("of a clone")
    before = (out / "model.safetensors").read_bytes()
    assert export.main(["--checkpoint", file, str(out), "--overwrite"]) == 0
    assert names(out) == [".gitattributes", *OF_A_DECODER]
    assert (out / "model.safetensors").read_bytes() == before
    (out / "thesis.tex").write_text("x")
    with pytest.raises(Mistake, match="holds more than an export: thesis.tex"):
        export.main(["--checkpoint", file, str(out), "--overwrite"])
    with pytest.raises(Mistake, match="OUT is no folder"):
        export.main(["--checkpoint", file, str(out / "thesis.tex"), "--overwrite"])


def test_weights_that_are_not_finite(tmp_path):
    net, _ = made("LanguageDecoder")
    net.norm.weight.data[0] = math.nan
    file = saved(tmp_path, "LanguageDecoder", model_state_dict=net.state_dict())
    with pytest.raises(Mistake, match="another net than the checkpoint's: their outputs differ by nan"):
        export.main(["--checkpoint", str(file), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_comes_back_is_compared(tmp_path, monkeypatch):
    """A fault of the writing does not pass."""
    whole = exchange._decoder_out
    monkeypatch.setattr(exchange, "_decoder_out", lambda net: {
        name: tensor * (1.01 if name.endswith("fc1.weight") else 1) for name, tensor in whole(net).items()})
    with pytest.raises(Mistake, match="another net than the checkpoint's"):
        export.main(["--checkpoint", str(saved(tmp_path, "VideoMAE")), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model(tmp_path):
    file = saved(tmp_path, "LanguageDecoder", model_state_dict=made("VideoMAE")[0].decoder.state_dict())
    with pytest.raises(Mistake, match="do not fit this model"):
        export.main(["--checkpoint", str(file), str(tmp_path / "out")])


@pytest.mark.parametrize("words", [["out"], ["VideoMAE", "phoenix2014", "1"], ["--checkpoint", "a.pth", "a", "b"]])
def test_words_that_are_missing(words, capsys):
    with pytest.raises(SystemExit):
        export.parse_arguments(words)
    assert "give MODEL SPLIT EXP_NO OUT" in capsys.readouterr().err


def test_folders_that_are_no_export(tmp_path):
    with pytest.raises(Mistake, match="is no export: FileNotFoundError"):
        from_export(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    with pytest.raises(Mistake, match="is no export: its config.json is of GPT2LMHeadModel"):
        from_export(tmp_path)
    write(made("VideoMAE")[0], tmp_path / "whole")
    write(decoder(False), tmp_path / "whole" / "decoder")
    with pytest.raises(Mistake, match="is no whole export"):
        from_export(tmp_path / "whole")
    write(decoder(), tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps({**config, "decoder_ffn_dim": "24"}))
    with pytest.raises(Mistake, match="is not of this model: decoder_ffn_dim: 24"):
        from_export(tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text(json.dumps({**config, "decoder_ffn_dim": 25}))
    with pytest.raises(Mistake, match="do not fit this model: of another shape"):
        from_export(tmp_path / "one")


def test_nets_of_other_sizes_are_no_pair():
    with pytest.raises(Mistake, match="of other sizes"):
        largest_difference(decoder(), LanguageDecoder(WORDS.size + 1, **DECODER))
    difference, close = largest_difference(decoder(), decoder())
    assert difference > 0.01 and not close


# --- the hub ------------------------------------------------------------------------------------------------

class Hub:
    """Stands in for HfApi: notes what it is asked, and fails where `error` says so."""

    error: Exception | None = None
    calls: list[tuple[Any, ...]] = []

    def create_repo(self, name: str, **options: Any) -> None:
        if Hub.error:
            raise Hub.error
        Hub.calls.append(("create", name, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> None:
        Hub.calls.append(("upload", repo_id, names(Path(folder_path))))


@pytest.fixture
def hub(monkeypatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "error", None)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    return Hub


def test_pushing_is_asked_for(tmp_path, hub, capsys):
    exported(tmp_path / "a", "LanguageDecoder")
    assert hub.calls == []
    exported(tmp_path / "b", "LanguageDecoder", "--push_hf_hub", "me/glosses")
    assert hub.calls == [("create", "me/glosses", {"exist_ok": True}),
                         ("upload", "me/glosses", OF_A_DECODER)]
    assert "pushed to me/glosses" in capsys.readouterr().out


def test_pushing_fails(tmp_path, hub, monkeypatch):
    hub.error = ConnectionError("no route to the hub\nand more")
    failed = "is written, but not pushed to me/glosses: ConnectionError: no route to the hub\n"
    with pytest.raises(Mistake, match=failed) as caught:
        exported(tmp_path, "LanguageDecoder", "--push_hf_hub", "me/glosses")
    assert "hf auth login" in caught.value.do and (tmp_path / "LanguageDecoder" / "config.json").is_file()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Mistake, match="pushing it needs huggingface_hub"):
        exported(tmp_path / "again", "LanguageDecoder", "--push_hf_hub", "me/glosses")


@pytest.mark.parametrize("name", ["glosses", "me/", "/glosses", "me/a/b", "me/a b", "https://hub/me"])
def test_places_that_are_none(tmp_path, name, hub):
    with pytest.raises(Mistake, match="takes ACCOUNT/NAME"):
        exported(tmp_path, "LanguageDecoder", "--push_hf_hub", name)
    assert hub.calls == [] and not (tmp_path / "LanguageDecoder").exists()


def test_standardised_features_are_told(tmp_path):
    path = saved(tmp_path, "SpatioTemporal")
    content = checkpoint.load(path)
    content["meta"]["spatial"] = {**SPATIAL, "mean": [0.5] * 32, "deviation": [2.0] * 32}
    checkpoint.save(path, content)
    assert export.main(["--checkpoint", str(path), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "features.json").read_text()) == {"mean": [0.5] * 32, "deviation": [2.0] * 32}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "which are in features.json" in card and "0.5, 0.5" not in card
    assert "features.json" not in names(exported(tmp_path / "plain", "SpatioTemporal"))
