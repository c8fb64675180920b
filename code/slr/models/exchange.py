"""Trained nets as folders that transformers' from_pretrained reads, and back again.

    net = rebuilt("VideoMAE", content["model_state_dict"], content["meta"])     # out of a checkpoint, without its data
    write(net, "exported/videomae")
    net = from_export("exported/videomae")                                      # without transformers

| net | folder |
|---|---|
| VideoMAEPretrain | VideoMAEForPreTraining |
| VideoMAE, ViViT | VideoMAEModel; VivitModel (its pooler, which ours lacks, is new there) |
| SpatioTemporalEncoder, Contrastive | Wav2Vec2Model, Wav2Vec2ForPreTraining |
| LanguageDecoder alone | BioGptForCausalLM |
| LanguageDecoder with cross-attention | BlenderbotForCausalLM |
| Transcriber | encoder/ and decoder/ as above, beside them the bridge and the CTC head: a folder of our own kind |

BioGPT and Blenderbot are the decoders that compute what ours does: layer-norm first and once more at the end, a table
of words that is scaled by the root of the width going in and used again coming out, learned places, a ReLU. OPT has no
such scale, and its tables would come apart; Whisper has neither that, nor biases of keys, nor a mask of the vectors.

A wav2vec 2.0 hears sound, ours sees frames. The parts that hear are written such that they only hand on: as sound
it takes the frames' numbers one after the other, features.flatten(1), and a mask likewise. What comes out differs from
ours by rounding (some 1e-5) in float32, not in half precision. Reading back here leaves those parts out.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from slr import paths
from slr.checkpoint import load_weights
from slr.errors import Mistake
from slr.models import contrastive, encoders, spatio_temporal
from slr.models.contrastive import COSINE_TEMPERATURE, Contrast, Contrastive, draw_masked
from slr.models.encoders import Encoder, Rates
from slr.models.language_decoder import LanguageDecoder
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatioTemporalEncoder
from slr.models.transcriber import Transcriber
from slr.models.translator import PAD
from slr.models.video_mae import CONFIG, VideoMAE, VideoMAEPretrain, read_folder, tubes, write_folder
from slr.paths import shown
from slr.text import tokenizer_from

Net = Transcriber | Contrastive | VideoMAEPretrain | LanguageDecoder | Encoder
TRANSCRIBERS = ("SpatioTemporal", "VideoMAE", "ViViT")
EXPORTED = (*TRANSCRIBERS, "SpatioTemporalPretrain", "VideoMAEPretrain", "LanguageDecoder")
OWN_TYPE = "slr_transcriber"  # config.json's model_type where there is no such model in transformers
ENCODER, DECODER = "encoder", "decoder"  # the folders in a Transcriber's
START, END, UNKNOWN = 1, 2, 3  # tokens, as slr.text numbers them
GENERATION = "generation_config.json"
RTOL, ATOL = 1e-4, 1e-5


def rebuilt(kind: str, state: Mapping[str, Tensor], meta: Mapping[str, Any], rates: Rates | None = None,
            drop_p: float = 0.1, source: str = "the checkpoint") -> Net:
    """The net of MODEL `kind` with a checkpoint's weights, in evaluation; `rates` and `drop_p` of dropout go into what
    is written. Raises Mistake for a MODEL that is not exported, and for weights that do not fit.
    """
    if kind not in EXPORTED:
        raise Mistake("there is no such export", f"{source} is of {kind}", f"these can be: {', '.join(EXPORTED)}")
    net = _untrained(kind, meta, rates or Rates(), drop_p)
    load_weights(net, dict(state), source)
    return net.eval()


def _untrained(kind: str, meta: Mapping[str, Any], rates: Rates, drop_p: float) -> Net:
    if kind == "LanguageDecoder":
        return _decoder_of(meta, drop_p, cross_attention=False)
    net = encoders.build(meta["encoder"], rates)
    if kind in TRANSCRIBERS:
        decoder = _decoder_of(meta, drop_p, cross_attention=True)
        return Transcriber(encoders.wrapped(net), decoder, joint=meta["joint"])
    if isinstance(net, SpatioTemporalEncoder):
        return Contrastive(net, **meta["pretraining"])
    assert isinstance(net, VideoMAE)
    return VideoMAEPretrain(net, **meta["pretraining"])


def _decoder_of(meta: Mapping[str, Any], drop_p: float, *, cross_attention: bool) -> LanguageDecoder:
    size = tokenizer_from(meta["tokenizer"]).size
    return LanguageDecoder(size, **meta["language_decoder"], cross_attention=cross_attention, drop_p=drop_p)


def write(net: Net, folder: Path | str) -> None:
    """config.json and model.safetensors of the net, of a Transcriber with folders for encoder and decoder; of decoders
    generation_config.json, too. folder: relative to the project.
    """
    folder = paths.HOME / Path(folder).expanduser()
    if isinstance(net, Transcriber):
        write(cast(Encoder, net.encoder.net), folder / ENCODER)
        write(net.decoder, folder / DECODER)
        config = {"architectures": ["Transcriber"], "model_type": OWN_TYPE, "joint": net.head is not None,
                  "encoder_width": net.encoder.width, "decoder_width": net.decoder.width,
                  "vocab_size": net.decoder.vocabulary, "dtype": "float32"}
        state = net.state_dict()
        write_folder(folder, config, {name: tensor for name, tensor in _plain(state).items() if _of_root(name)})
    elif isinstance(net, LanguageDecoder):
        write_folder(folder, _decoder_config(net), _decoder_out(net))
        (folder / GENERATION).write_text(json.dumps(_generation(net), indent=2) + "\n", encoding="utf-8")
    elif isinstance(net, Contrastive):
        state = contrastive.to_transformers(net.state_dict()) | _hearing(net.encoder.width, "wav2vec2.")
        write_folder(folder, _pretraining_config(net), _plain(state))
    elif isinstance(net, SpatioTemporalEncoder):
        state = spatio_temporal.to_transformers(net.state_dict()) | _hearing(net.width)
        write_folder(folder, {"architectures": ["Wav2Vec2Model"], **_wav2vec2_config(net)}, _plain(state))
    else:
        net.to_folder(folder)


def from_export(folder: Path | str, rates: Rates | None = None, drop_p: float = 0.1) -> Net:
    """The net of a folder (relative: to the project) that `write` wrote, or of one within it, in evaluation.

    Raises Mistake for another folder, and for one that is damaged.
    """
    folder, rates = paths.HOME / Path(folder).expanduser(), rates or Rates()
    name = _architecture(folder)
    if name not in _READERS:
        raise Mistake(f"{shown(folder)} is no export", f"its {CONFIG} is of {name}",
                      f"give a folder of {', '.join(_READERS)} that export.py wrote")
    return _READERS[name](folder, rates, drop_p).eval()


def _architecture(folder: Path) -> str:
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise Mistake(f"{shown(folder)} is no export", f"{type(error).__name__}: {error}"[:200],
                      "write one: python export.py MODEL SPLIT EXP_NO OUT") from None


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _of_root(name: str) -> bool:
    """Is it one of a Transcriber's tensors that neither encoder nor decoder has?"""
    return not name.startswith((f"{ENCODER}.", f"{DECODER}."))


def _read_transcriber(folder: Path, rates: Rates, drop_p: float) -> Transcriber:
    config, state = read_folder(folder, OWN_TYPE)
    net, decoder = (from_export(folder / part, rates, drop_p) for part in (ENCODER, DECODER))
    if not isinstance(net, Encoder) or not isinstance(decoder, LanguageDecoder) or not decoder.cross_attention:
        raise Mistake(f"{shown(folder)} is no whole export", f"{ENCODER}/ holds a {type(net).__name__}, {DECODER}/ a "
                      f"{type(decoder).__name__}", "export it again")
    model = Transcriber(encoders.wrapped(net), decoder, joint=bool(config.get("joint")))
    parts = {name: tensor for name, tensor in model.state_dict().items() if not _of_root(name)}
    load_weights(model, {**parts, **state}, shown(folder))
    return model


# --- wav2vec 2.0 --------------------------------------------------------------------------------------------

def _wav2vec2_config(net: SpatioTemporalEncoder) -> dict[str, Any]:
    sizes, rate = encoders.sizes_of(net), net.dropout.p
    return {"model_type": "wav2vec2", **{theirs: sizes[ours] for ours, theirs in encoders.WAV2VEC2.items()},
            "do_stable_layer_norm": False, "layer_norm_eps": net.norm.eps, "hidden_act": "gelu",
            "conv_dim": [net.width], "conv_kernel": [net.width], "conv_stride": [net.width], "conv_bias": False,
            "feat_extract_norm": "layer", "feat_extract_activation": "gelu",
            "hidden_dropout": rate, "attention_dropout": rate, "activation_dropout": rate, "layerdrop": net.layerdrop,
            "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0,
            "mask_time_prob": net.spans.share or 1e-9,  # with 0 it has no vector for masked frames
            "mask_time_length": net.spans.length, "mask_time_min_masks": net.spans.least, "dtype": "float32"}


def _hearing(width: int, prefix: str = "") -> dict[str, Tensor]:
    """The parts that hear sound, handing on `width` samples as the numbers of a frame.

    What they do to these is a layer-norm, which the next one does again, and a GELU, which changes nothing so far above
    0: no number of a frame is more than the root of the width below its mean, in standard deviations.
    """
    layer, projection = (f"{prefix}{name}." for name in ("feature_extractor.conv_layers.0",
                                                         "feature_projection.projection"))
    return {f"{layer}conv.weight": torch.eye(width)[:, None], f"{layer}layer_norm.weight": torch.ones(width),
            f"{layer}layer_norm.bias": torch.full((width,), math.sqrt(width) + 6.0),
            f"{projection}weight": torch.eye(width), f"{projection}bias": torch.zeros(width)}


_HEADS = {"groups": "num_codevector_groups", "codes": "num_codevectors_per_group", "dim": "codevector_dim",
          "compared": "proj_codevector_dim"}


def _pretraining_config(net: Contrastive) -> dict[str, Any]:
    quantizer = net.quantizer
    sizes = {"groups": quantizer.groups, "codes": quantizer.codes, "dim": quantizer.dim,
             "compared": net.project_codes.out_features}
    return {"architectures": ["Wav2Vec2ForPreTraining"], **_wav2vec2_config(net.encoder),
            **{theirs: sizes[ours] for ours, theirs in _HEADS.items()},
            "contrastive_logits_temperature": COSINE_TEMPERATURE}


def _read_contrastive(folder: Path, rates: Rates, drop_p: float) -> Contrastive:
    encoder = encoders.from_folder("SpatioTemporal", folder, rates)
    assert isinstance(encoder, SpatioTemporalEncoder)
    config, theirs = read_folder(folder, "wav2vec2")
    model = Contrastive(encoder, **{ours: _size(config, name, folder) for ours, name in _HEADS.items()})
    load_weights(model, contrastive.from_transformers(theirs), shown(folder))
    return model


def _size(config: Mapping[str, Any], name: str, folder: Path) -> int:
    if type(config.get(name)) is not int:
        raise Mistake(f"the {CONFIG} in {shown(folder)} is not of this model", f"{name}: {config.get(name)}",
                      "export it again")
    return config[name]


# --- the language decoder -----------------------------------------------------------------------------------

_PREFIX = {True: "model.decoder.", False: "biogpt."}  # by cross_attention
_OFFSET = 2  # BioGPT's first place is the third of its table
_SIZES = {True: {"width": "d_model", "layers": "decoder_layers", "heads": "decoder_attention_heads",
                 "ffn": "decoder_ffn_dim", "positions": "max_position_embeddings"},
          False: {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
                  "ffn": "intermediate_size", "positions": "max_position_embeddings"}}
_PARTS = {"own_norm": "self_attn_layer_norm", "cross_norm": "encoder_attn_layer_norm", "norm": "final_layer_norm",
          "fc1": "fc1", "fc2": "fc2",
          **{f"{ours}.{part}": f"{theirs}.{part[0] if part != 'out' else part}_proj"
             for ours, theirs in (("own", "self_attn"), ("cross", "encoder_attn"))
             for part in ("query", "key", "value", "out")}}
_TABLES = {"embedding.weight": "embed_tokens.weight", "places": "embed_positions.weight",
           "norm.weight": "layer_norm.weight", "norm.bias": "layer_norm.bias"}


def _their_name(name: str, cross_attention: bool) -> str:
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    plain = f"layers.{found[1]}.{_PARTS[found[2]]}.{found[3]}" if found else _TABLES[name]
    return _PREFIX[cross_attention] + plain


def _decoder_out(net: LanguageDecoder) -> dict[str, Tensor]:
    state = {_their_name(name, net.cross_attention): tensor for name, tensor in _plain(net.state_dict()).items()}
    if not net.cross_attention:
        places = _their_name("places", False)
        state[places] = torch.cat([torch.zeros(_OFFSET, net.width), state[places]])
    return state


def _decoder_config(net: LanguageDecoder) -> dict[str, Any]:
    first: Any = net.layers[0]
    ours = {"width": net.width, "layers": len(net.layers), "heads": first.own.heads, "ffn": first.fc1.out_features,
            "positions": net.positions}
    sizes = {theirs: ours[name] for name, theirs in _SIZES[net.cross_attention].items()}
    common = {"vocab_size": net.vocabulary, **sizes, "scale_embedding": True, "tie_word_embeddings": True,
              "activation_dropout": 0.0, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
              "decoder_start_token_id": START, "dtype": "float32"}
    if not net.cross_attention:
        return {"architectures": ["BioGptForCausalLM"], "model_type": "biogpt", **common, "hidden_act": "relu",
                "hidden_dropout_prob": net.dropout.p, "attention_probs_dropout_prob": 0.0, "layerdrop": 0.0,
                "layer_norm_eps": net.norm.eps}
    # The encoder's are looked at where a config is asked how large the model is.
    idle = {name.replace(DECODER, ENCODER): value for name, value in sizes.items() if name.startswith(DECODER)}
    return {"architectures": ["BlenderbotForCausalLM"], "model_type": "blenderbot", **common, **idle,
            "activation_function": "relu", "dropout": net.dropout.p, "attention_dropout": 0.0, "is_decoder": True,
            "is_encoder_decoder": False, "decoder_layerdrop": 0.0, "forced_eos_token_id": None,
            "encoder_no_repeat_ngram_size": 0}


def _generation(net: LanguageDecoder) -> dict[str, Any]:
    """What `generate` goes by. With cross-attention it has no cache: it would put the keys of tokens and those of
    vectors into the same one, for only the decoder of a pair gets two.
    """
    return {"bos_token_id": START, "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD,
            "suppress_tokens": [PAD, START, UNKNOWN], "use_cache": not net.cross_attention}


def _read_decoder(kind: str) -> Callable[[Path, Rates, float], LanguageDecoder]:
    cross = kind == "blenderbot"

    def read(folder: Path, rates: Rates, drop_p: float) -> LanguageDecoder:
        config, theirs = read_folder(folder, kind)
        sizes = {ours: _size(config, name, folder) for ours, name in _SIZES[cross].items()}
        net = LanguageDecoder(_size(config, "vocab_size", folder), **sizes, cross_attention=cross, drop_p=drop_p)
        names = {name: _their_name(name, cross) for name in net.state_dict()}
        state = {name: theirs[other] for name, other in names.items() if other in theirs}
        if not cross and "places" in state:
            state["places"] = state["places"][_OFFSET:]
        load_weights(net, state, shown(folder))
        return net

    return read


def _read_encoder(kind: str) -> Callable[[Path, Rates, float], Encoder]:
    return lambda folder, rates, drop_p: encoders.from_folder(kind, folder, rates)


_READERS: dict[str, Callable[[Path, Rates, float], Net]] = {
    "Transcriber": _read_transcriber, "Wav2Vec2ForPreTraining": _read_contrastive,
    "VideoMAEForPreTraining": lambda folder, rates, drop_p: VideoMAEPretrain.from_folder(folder, drop_p=rates.dropout),
    "BioGptForCausalLM": _read_decoder("biogpt"), "BlenderbotForCausalLM": _read_decoder("blenderbot"),
    "Wav2Vec2Model": _read_encoder("SpatioTemporal"), "VideoMAEModel": _read_encoder("VideoMAE"),
    "VivitModel": _read_encoder("ViViT")}


# --- do two nets compute the same? --------------------------------------------------------------------------

@torch.no_grad()
def largest_difference(net: Net, other: Net) -> tuple[float, bool]:
    """(The largest difference of what both make of a small random input, are they close?); the same input every time.

    Raises Mistake where the outputs are not even of one shape.
    """
    pairs = list(zip(_outputs(net), _outputs(other), strict=True))
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        raise Mistake("the nets are of other sizes", ", ".join(f"{tuple(a.shape)} and {tuple(b.shape)}"
                                                               for a, b in pairs), "export it again")
    apart = [torch.where(mine == theirs, 0.0, (mine - theirs).abs()) for mine, theirs in pairs]  # -inf is -inf
    return (max(float(gap.max()) for gap in apart),
            all(torch.allclose(mine, theirs, rtol=RTOL, atol=ATOL) for mine, theirs in pairs))


def _outputs(net: Net) -> list[Tensor]:
    """What the net makes of noise: a single item without padding."""
    noise = torch.Generator().manual_seed(0)
    if isinstance(net, LanguageDecoder) and not net.cross_attention:
        return [net(None, None, _tokens(net, noise))]
    if isinstance(net, LanguageDecoder):
        return [net(torch.randn(1, 5, net.width, generator=noise), torch.tensor([5]), _tokens(net, noise))]
    inputs, lengths = _noise(net, noise)
    if isinstance(net, Transcriber):
        said = net(inputs, lengths, _tokens(net.decoder, noise))
        return [said.logits] + ([] if said.ctc is None else [said.ctc])
    if isinstance(net, VideoMAEPretrain):
        masked = tubes(torch.rand(1, net.encoder.sizes.cells, generator=noise), 0.5)
        return [net(inputs, lengths, masked)[0]]
    if isinstance(net, SpatioTemporalEncoder):
        return [net(inputs, Frames(lengths, inputs.shape[1], inputs.device))]
    if isinstance(net, Contrastive):
        frames = Frames(lengths, inputs.shape[1], inputs.device)
        drawn = draw_masked(frames, [np.random.default_rng(0)], Spans(0.5, 2, least=1))
        contrast: Contrast = net(inputs, frames, drawn, temperature=1.0)
        return list(contrast)
    return [net(inputs, lengths)[0]]


def _tokens(net: LanguageDecoder, noise: torch.Generator) -> Tensor:
    """(1, U): the start, and whatever words."""
    said = torch.randint(net.vocabulary, (1, min(7, net.positions - 1)), generator=noise)
    return torch.cat([torch.full((1, 1), START), said], 1)


def _noise(net: Net, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (1, T, width), or the shortest clip (1, 3, T, H, W), and T."""
    inner: Any = net.encoder if isinstance(net, Transcriber | Contrastive | VideoMAEPretrain) else net
    inner = inner.net if isinstance(net, Transcriber) else inner
    if isinstance(inner, SpatioTemporalEncoder):
        return torch.randn(1, 12, inner.width, generator=noise), torch.tensor([12])
    sizes = inner.sizes
    clip = torch.randn(1, 3, sizes.tubelet, sizes.size, sizes.size, generator=noise)
    return clip, torch.tensor([sizes.tubelet])
