"""From a vector a frame to one of the whole sign: Transformers, Hubert, an LSTM, and a mean to compare them with.

    net = build("sign_language_transformer", 512, 1024, frames=8)
    vectors = net(features, Frames(lengths, 8, features.device))        # (N, T, 512), T up to 8 -> (N, 1024)

What stands behind an item's end is never looked at, and no item looks at another. The names are HearAI's
(https://github.com/hearai/hearai, models/transformers), whose nets had no masks, and whose LSTM mixed a batch's items.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from slr import paths
from slr.errors import Mistake
from slr.models.masked import Frames
from slr.models.sentence import sinusoids
from slr.paths import shown

HUBERT = {"layers": "num_hidden_layers", "attention_heads": "num_attention_heads", "feedforward": "intermediate_size"}


class Flattened(nn.Module):
    """All steps (N, T, width) beside one another, as far as they are valid, else 0 -> linear -> (N, output_size).

    Its weights are for `frames` steps; a batch may have fewer. Raises Mistake where it has more.
    """

    def __init__(self, width: int, output_size: int, frames: int):
        super().__init__()
        self.frames, self.linear = frames, nn.Linear(frames * width, output_size)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        if x.shape[1] > self.frames:
            raise Mistake("the clips are longer than the model's", f"{x.shape[1]} steps", f"give up to {self.frames}")
        return self.linear(pad(valid.zero(x, 1), (0, 0, 0, self.frames - x.shape[1])).flatten(1))


def with_positions(x: Tensor) -> Tensor:
    """x (N, T, C) plus sinusoids; C may be odd."""
    width = x.shape[2]
    return x + sinusoids(x.shape[1], width + width % 2, x.device)[:, :width].to(x.dtype)


class WideAttention(nn.Module):
    """Self-attention (N, T, width) -> (N, T, width) whose heads each have queries, keys and values of the full width.

    Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762, section 3.2, with d_k = d_v =
    d_model: of the values' `heads` x width numbers a linear layer makes width again.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, heads * width) for _ in range(3))
        self.output = nn.Linear(heads * width, width)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        query, key, value = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        mask = None if valid.full else valid.valid[:, None, None]
        seen = scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.output(seen.transpose(1, 2).flatten(2))


class WideLayer(nn.Module):
    """Encoder layer, layer-norm first: attention with heads of the full width, then two linear layers about a GELU."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WideAttention(width, heads, dropout)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout),
                                         nn.Linear(feedforward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        x = x + self.dropout(self.attention(self.first_norm(x), valid))
        return x + self.dropout(self.feedforward(self.second_norm(x)))


class ConvolvedLayer(nn.Module):
    """x + GELU of a convolution over 5 steps of each channel by itself, then torch's encoder layer, layer-norm first.

    Its heads share the width, which they must divide.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        if width % heads:
            raise Mistake("sign_language_cnn_transformer's attention heads share the representation",
                          f"{heads} heads, {width} numbers", "give a multiple of the heads as representation")
        self.convolution = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, "gelu", batch_first=True,
                                                  norm_first=True)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        around = self.convolution(valid.zero(x, 1).transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(nn.functional.gelu(around))
        return self.encoder(x, src_key_padding_mask=None if valid.full else ~valid.valid)


class Encoder(nn.Module):
    """Positions, `layers` layers of a kind, layer-norm, all steps flattened: (N, T, width) -> (N, output_size).

    Camgoz et al., Sign Language Transformers (2020), https://arxiv.org/abs/2003.13830, section 3.2, for one vector.
    """

    def __init__(self, kind: Callable[[int, int, int, float], nn.Module], width: int, output_size: int, frames: int,
                 layers: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(kind(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.flattened = Flattened(width, output_size, frames)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        x = self.dropout(with_positions(valid.zero(x, 1)))
        for layer in self.layers:
            x = layer(x, valid)
        return self.flattened(self.norm(x), valid)


class LSTM(nn.Module):
    """Layers of an LSTM, `hidden` numbers wide, all its outputs flattened: (N, T, width) -> (N, output_size)."""

    def __init__(self, width: int, output_size: int, frames: int, layers: int, hidden: int, dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.flattened = Flattened(hidden, output_size, frames)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        # It only looks back, so padding behind an item's end cannot reach it.
        return self.flattened(self.lstm(valid.zero(x, 1))[0], valid)


class Mean(nn.Module):
    """The mean over an item's steps, and a linear layer: what can be told without the order of the frames."""

    def __init__(self, width: int, output_size: int):
        super().__init__()
        self.linear = nn.Linear(width, output_size)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        return self.linear(mean_over(x, valid))


def mean_over(x: Tensor, valid: Frames) -> Tensor:
    """(N, T, C) -> (N, C): the mean over each item's valid steps."""
    return valid.zero(x, 1).sum(1) / valid.valid.sum(1, keepdim=True)


class Hubert(nn.Module):
    """transformers' Hubert without its ears: layer-norm and a linear layer, as between its convolutions over sound and
    its encoder, then this, all steps flattened: (N, T, width) -> (N, output_size).

    Hsu et al., HuBERT (2021), https://arxiv.org/abs/2106.07447. encoder: a HubertModel's, with its positional
    convolution. No layer is left out at random: on several processes each would draw its own.
    """

    def __init__(self, encoder: Any, width: int, output_size: int, frames: int, dropout: float):
        super().__init__()
        hidden = encoder.config.hidden_size
        encoder.config.layerdrop = 0.0
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.Dropout(dropout))
        self.encoder = encoder
        self.flattened = Flattened(hidden, output_size, frames)

    def forward(self, x: Tensor, valid: Frames) -> Tensor:
        embeddings = self.enter(valid.zero(x, 1))  # a new tensor: the encoder writes zeros into it
        mask = None if valid.full else valid.valid
        return self.flattened(self.encoder(embeddings, attention_mask=mask).last_hidden_state, valid)


def _hubert(width: int, output_size: int, *, frames: int, dropout: float, hidden: int, folder: str, settings: str,
            **sizes: int | None) -> Hubert:
    rates = {"hidden_dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout}
    given = {HUBERT[name]: value for name, value in sizes.items() if value is not None}
    if settings:
        library = _transformers()
        encoder = library.HubertModel(library.HubertConfig.from_dict(json.loads(settings))).encoder
        return Hubert(encoder, width, output_size, frames, dropout)
    if folder:
        return Hubert(_hubert_in(folder, rates, given), width, output_size, frames, dropout)
    library = _transformers()
    config = library.HubertConfig(hidden_size=hidden, **given, **rates)
    groups = math.lcm(config.num_attention_heads, config.num_conv_pos_embedding_groups)
    if hidden % groups:
        raise Mistake("Hubert's heads and groups of channels share its hidden size",
                      f"{config.num_attention_heads} heads, {config.num_conv_pos_embedding_groups} groups, "
                      f"{hidden} numbers", f"give a multiple of {groups}")
    return Hubert(library.HubertModel(config).encoder, width, output_size, frames, dropout)


def _hubert_in(source: str, rates: dict[str, float], given: dict[str, int]) -> Any:
    """The encoder in a folder as transformers saves it (config.json and the weights); only tensors are read."""
    folder = paths.HOME / Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise Mistake("the folder of Hubert is missing", f"there is no {shown(folder / 'config.json')}",
                      "get config.json and the weights of facebook/hubert-base-ls960 and name their folder")
    try:
        model, info = _transformers().HubertModel.from_pretrained(
            str(folder), dtype=torch.float32, weights_only=True, output_loading_info=True, **rates)
    except Exception as error:  # a damaged file makes them raise almost any kind
        raise Mistake(f"the Hubert in {shown(folder)} cannot be read",
                      f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300],
                      "get the files anew") from error
    missing = [*map(str, info["missing_keys"]), *map(str, info.get("mismatched_keys", ()))]
    wrong = [key for key in missing if "encoder." in key]
    if wrong:
        raise Mistake(f"the weights in {shown(folder)} are not those of its config.json",
                      f"{wrong[0]} and {len(wrong) - 1} more are missing or have another shape", "get the files anew")
    other = {name: getattr(model.config, name) for name, value in given.items() if getattr(model.config, name) != value}
    if other:
        raise Mistake(f"the Hubert in {shown(folder)} has other sizes", str(other), "leave them out, or give these")
    return model.encoder


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Mistake("hubert_transformer needs transformers", str(error), "pip install transformers") from None
    return transformers


TRANSFORMERS = ("sign_language_transformer", "sign_language_cnn_transformer", "hubert_transformer", "lstm",
                "fake_transformer")


def build(name: str, width: int, output_size: int, *, frames: int, feedforward: int | None = None,
          attention_heads: int | None = None, layers: int | None = None, dropout: float = 0.1, hidden: int = 768,
          folder: str = "", settings: str = "") -> nn.Module:
    """The net `name` of TRANSFORMERS: (N, T, width), T up to `frames`, and which are valid -> (N, output_size).

    feedforward, attention_heads, layers: where None 1024, 8 and 1, of Hubert those of its configuration (3072, 12 and
    12). lstm is `feedforward` wide, and has no heads; fake_transformer has none of them. hidden, folder: Hubert's
    width, and a folder with its weights, which has a width of its own; settings: what `settings_of` says of such a one,
    in place of all of these. Raises Mistake for an unknown name, and for
    sizes that do not fit one another or the folder.
    """
    if name not in TRANSFORMERS:
        raise Mistake("no such transformer", name or "no name", f"there are {', '.join(TRANSFORMERS)}")
    if folder and name != "hubert_transformer":
        raise Mistake("only hubert_transformer reads a folder of weights", f"{name} with {folder}", "leave it out")
    if name == "fake_transformer":
        return Mean(width, output_size)
    if name == "hubert_transformer":
        return _hubert(width, output_size, frames=frames, dropout=dropout, hidden=hidden, folder=folder,
                       settings=settings, feedforward=feedforward, attention_heads=attention_heads, layers=layers)
    wide, heads, layers = feedforward or 1024, attention_heads or 8, layers or 1
    if name == "lstm":
        return LSTM(width, output_size, frames, layers, wide, dropout)
    kind = WideLayer if name == "sign_language_transformer" else ConvolvedLayer
    return Encoder(kind, width, output_size, frames, layers, heads, wide, dropout)


def settings_of(net: nn.Module | None) -> str:
    """Hubert's configuration as JSON, from which `build` makes it again without its folder; of other nets nothing."""
    return json.dumps(net.encoder.config.to_dict()) if isinstance(net, Hubert) else ""
