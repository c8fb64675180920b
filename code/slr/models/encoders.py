"""The encoders of transcription and of its pre-training, built from plain sizes as a checkpoint keeps them.

    net = build({"kind": "VideoMAE", "frames": 16, "size": 224, …}, rates)
    net = from_folder("VideoMAE", "pretrained/videomae-base", rates)            # as transformers saves it
    encoder = wrapped(net)                                                      # as slr.models.transcriber wants it
    sizes_of(net)                                                               # what `build` takes

`rates` are what may change from one run to the next: dropout, layerdrop, and what SpecAugment masks.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from slr.checkpoint import load_weights
from slr.errors import Mistake
from slr.models import spatio_temporal, video_mae, vivit
from slr.models.spatio_temporal import SPEC_AUGMENT, Layer, Spans, SpatioTemporalEncoder
from slr.models.transcriber import OverTime, OverTubelets
from slr.models.video_mae import ClipEncoder, Sizes, VideoMAE
from slr.models.vivit import ViViT

OVER_TUBELETS: dict[str, type[VideoMAE] | type[ViViT]] = {"VideoMAE": VideoMAE, "ViViT": ViViT}
GELUS = {"VideoMAE": {}, "ViViT": {"gelu": vivit.SIZES.gelu, "eps": vivit.SIZES.eps}}  # where they are not Sizes' own
# Wav2Vec2Config's names
WAV2VEC2 = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
            "ffn": "intermediate_size", "kernel": "num_conv_pos_embeddings", "groups": "num_conv_pos_embedding_groups"}
FIXED = {"do_stable_layer_norm": False, "hidden_act": "gelu", "layer_norm_eps": 1e-5}  # and what ours cannot change
Encoder = SpatioTemporalEncoder | VideoMAE | ViViT


@dataclass(frozen=True)
class Rates:
    """Shares of what is left out in training; the last two of SpatioTemporal alone."""

    dropout: float = 0.1
    layerdrop: float = 0.1
    spans: Spans = SPEC_AUGMENT


def build(plain: dict[str, Any], rates: Rates) -> Encoder:
    """The net of these sizes, untrained. `kind` is one of SpatioTemporal, VideoMAE and ViViT."""
    sizes = {name: value for name, value in plain.items() if name != "kind"}
    if plain["kind"] == "SpatioTemporal":
        return SpatioTemporalEncoder(**sizes, dropout=rates.dropout, layerdrop=rates.layerdrop, spans=rates.spans)
    kind, norm = plain["kind"], {"norm": sizes.pop("norm")} if "norm" in sizes else {}
    return OVER_TUBELETS[kind](Sizes(**{**GELUS[kind], **sizes}), drop_p=rates.dropout, **norm)


def sizes_of(net: Encoder | ClipEncoder) -> dict[str, Any]:
    """What `build` needs to make another one."""
    if not isinstance(net, SpatioTemporalEncoder):
        bare = {} if net.norm is not None else {"norm": False}  # as transformers' VideoMAE for classification
        return {"kind": type(net).__name__, **asdict(net.sizes), **bare}
    first, positions = cast(Layer, net.layers[0]), net.positions
    return {"kind": "SpatioTemporal", "width": net.width, "layers": len(net.layers), "heads": first.attention.heads,
            "ffn": first.widen.out_features, "kernel": positions.kernel, "groups": positions.groups}


def wrapped(net: Encoder) -> OverTime | OverTubelets:
    return OverTime(net) if isinstance(net, SpatioTemporalEncoder) else OverTubelets(net)


def from_folder(kind: str, folder: Path | str, rates: Rates) -> Encoder:
    """The net of a folder that transformers has saved: of any of its VideoMAE, ViViT or wav2vec 2.0 models.

    Raises Mistake where it is none of these, or damaged.
    """
    if kind in OVER_TUBELETS:
        return OVER_TUBELETS[kind].from_folder(folder, drop_p=rates.dropout)
    config, theirs = video_mae.read_folder(folder, "wav2vec2")
    lacking = [name for name in WAV2VEC2.values() if name not in config]
    others = [f"{name} is {config[name]}" for name, own in FIXED.items() if config.get(name, own) != own]
    if lacking or others:
        raise Mistake(f"the wav2vec 2.0 in {folder} is of another kind",
                      f"its config.json lacks {', '.join(lacking)}" if lacking else ", ".join(others),
                      "give one with layer-norm behind the sums, as wav2vec2-base has it")
    net = build({"kind": kind, **{ours: config[name] for ours, name in WAV2VEC2.items()}}, rates)
    load_weights(net, spatio_temporal.from_transformers(theirs), str(folder))
    return net
