"""Transcription's own encoder: a frozen DINOv2 sees each frame, a wav2vec 2.0 Transformer what happens over time.

    see, encoder = spatial_net_from("pretrained_models/dinov2-base"), SpatioTemporalEncoder()
    features = see(clips, frames)                                # (N, 3, T, H, W) -> (N, T, 768), no gradient
    vectors = encoder(features, frames, rngs=rngs)               # (N, T, 768); rngs: a numpy generator an item

Oquab et al., DINOv2 (2023), https://arxiv.org/abs/2304.07193; Baevski et al., wav2vec 2.0 (2020),
https://arxiv.org/abs/2006.11477. What stands behind an item's end is never looked at, and both outputs are 0 there.
Weights are exchanged with transformers' Wav2Vec2Model by `from_transformers` and `to_transformers`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, scaled_dot_product_attention

from slr import paths
from slr.errors import Mistake
from slr.models.masked import Frames
from slr.paths import shown

PUBLISHED = "facebook/dinov2-base"


# --- a frame ------------------------------------------------------------------------------------------------

# Of the weights and the places in an untrained net. With 0.02 for both, as transformers has it, the places drown in the
# pixels, and its class token hardly tells where in a picture something is.
WEIGHTS, PLACES = 0.05, 0.5


class SpatialNet(nn.Module):
    """Clips (N, 3, T, H, W), normalised as ImageNet -> (N, T, width): of each valid frame DINOv2's class token behind
    the last layer-norm, of the others 0.

    net: a Dinov2Model. It is frozen: always as in evaluation, and without gradients. chunk: how many frames it sees at
    once, which decides on memory and not on the result (but for the last bits). Raises Mistake for less than a frame.
    """

    def __init__(self, net: Any, chunk: int = 32):
        super().__init__()
        if chunk < 1:
            raise Mistake("DINOv2 sees less than a frame at once", str(chunk), "give 1 frame or more")
        self.net, self.chunk = net.requires_grad_(False).eval(), chunk
        self.width: int = net.config.hidden_size

    def train(self, mode: bool = True) -> "SpatialNet":
        """Stays in evaluation: dropout and dropped paths would make other features in every epoch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, clips: Tensor, frames: Frames) -> Tensor:
        pictures, steps = clips.movedim(2, 1), clips.shape[2]
        seen = torch.cat([self.of_pictures(pictures[part // steps, part % steps])
                          for part in frames.index.split(self.chunk)])
        rows = seen.new_zeros(len(clips) * steps, self.width)
        return rows.index_copy(0, frames.index, seen).unflatten(0, (len(clips), steps))

    @torch.no_grad()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, width), all at once. Raises Mistake for pictures smaller than a patch."""
        height, width = pictures.shape[2:]
        patch = max(self.net.embeddings.patch_embeddings.patch_size)
        if min(height, width) < patch:
            raise Mistake("the frames are smaller than a patch of DINOv2", f"{height}x{width}, a patch has {patch}",
                          f"give frames of a multiple of {patch} pixels")
        return self.net(pictures).last_hidden_state[:, 0]


def spatial_net(*, chunk: int = 32, width: int = 768, layers: int = 12, heads: int = 12, patch: int = 14,
                image: int = 518, seed: int = 0) -> SpatialNet:
    """An untrained one of these sizes, by default those of facebook/dinov2-base: the same weights for the same seed.

    image: side of the pictures whose positions it knows; for others they are interpolated. Raises Mistake for heads
    that do not divide the width, and without transformers.
    """
    if width % heads:
        raise Mistake("DINOv2's heads share its width", f"{heads} heads, {width} numbers",
                      f"give a multiple of {heads}")
    library = _transformers()
    config = library.Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                                  patch_size=patch, image_size=image, initializer_range=WEIGHTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = library.Dinov2Model(config)
        nn.init.normal_(net.embeddings.position_embeddings, std=PLACES)
        return SpatialNet(net, chunk)


def spatial_net_from(source: str | Path, *, chunk: int = 32) -> SpatialNet:
    """The one in a folder (relative: to the project) as transformers saves it, config.json and the weights; or where
    there is no such folder the hub's of that name, such as facebook/dinov2-base, fetched into the hub's cache.

    Only tensors are read. Raises Mistake for a folder that is damaged or of another model, and where there is none.
    """
    folder = paths.HOME / Path(source).expanduser()
    advice = f"get config.json and the weights of {PUBLISHED} and name their folder"
    if not folder.is_dir():
        return SpatialNet(_fetched(source, folder, advice), chunk)
    if not (folder / "config.json").is_file():
        raise Mistake("the folder of DINOv2 is missing", f"there is no {shown(folder / 'config.json')}", advice)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "dinov2":
            raise Mistake(f"{shown(folder)} holds no DINOv2", f"its config.json says {kind}", advice)
        net, info = _loaded(str(folder))
    except Mistake:
        raise
    except Exception as error:  # a damaged file makes them raise almost any kind
        raise Mistake(f"the DINOv2 in {shown(folder)} cannot be read", _first_line(error),
                      "get the files anew") from error
    _refuse_lacking(info, shown(folder))
    return SpatialNet(net, chunk)


def _fetched(source: str | Path, folder: Path, advice: str) -> Any:
    """The hub's model of that name, or Mistake."""
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise Mistake("the folder of DINOv2 is missing", f"there is no {shown(folder)}", advice)
    try:
        net, info = _loaded(source)
    except Mistake:
        raise
    except Exception as error:  # its own kinds, the connection's, the disk's
        raise Mistake(f"there is no folder {source}, and the hub does not give a DINOv2 of that name",
                      _first_line(error), advice) from error
    _refuse_lacking(info, source)
    return net


def _loaded(source: str) -> Any:
    """(The net, what was missing in its files)."""
    return _transformers().Dinov2Model.from_pretrained(source, dtype=torch.float32, weights_only=True,
                                                       output_loading_info=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]


def _refuse_lacking(info: dict[str, Any], source: str) -> None:
    wrong = [*map(str, info["missing_keys"]), *map(str, info.get("mismatched_keys", ()))]
    if wrong:
        raise Mistake(f"the weights in {source} are not those of its config.json",
                      f"{wrong[0]} and {len(wrong) - 1} more are missing or have another shape", "get the files anew")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Mistake("DINOv2 needs transformers", str(error), "pip install transformers") from None
    return transformers


# --- which frames are masked --------------------------------------------------------------------------------

@dataclass(frozen=True)
class Spans:
    """How frames are masked, as time is in SpecAugment: Park et al. (2019), https://arxiv.org/abs/1904.08779.

    A clip of T frames gets share x T / length spans of `length` frames, rounded up or down by chance, yet at least
    `least` and no more than fit beside one another. They start at different frames and may overlap, so that share is
    the most that is masked on the average. A clip shorter than a span has none. Raises Mistake for impossible numbers.
    """

    share: float
    length: int
    least: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.length < 1 or self.least < 0:
            raise Mistake("frames cannot be masked like this", str(self),
                          "give a share from 0 to 1, a length of 1 or more, and a least of 0 or more")

    def draw(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """(T,) bool, one entry a frame."""
        mask = np.zeros(steps, bool)
        count = int(self.share * steps / self.length + rng.random())
        count = min(max(count, self.least), steps // self.length)
        if count:
            starts = rng.choice(steps - self.length + 1, count, replace=False)
            mask[starts[:, None] + np.arange(self.length)] = True
        return mask


def span_masks(frames: Frames, spans: Spans, rngs: Sequence[np.random.Generator]) -> Tensor:
    """(N, T) bool: of each item its own draw from its own generator, so neighbours and padding change nothing."""
    masks = torch.zeros(len(frames.lengths), frames.steps, dtype=torch.bool)
    for row, length, rng in zip(masks, frames.lengths.tolist(), rngs, strict=True):
        row[:length] = torch.from_numpy(spans.draw(length, rng))
    return masks.to(frames.device, non_blocking=True)


# transformers' defaults for fine-tuning a wav2vec 2.0, and with them those of the thesis' program.
SPEC_AUGMENT = Spans(share=0.05, length=10, least=2)


# --- over time ----------------------------------------------------------------------------------------------

class ConvolvedPositions(nn.Module):
    """GELU of a convolution over `kernel` frames, (N, T, C) -> (N, T, C): where a frame is, told by its neighbours.

    wav2vec 2.0, section 2. Frame t sees t - kernel // 2 to t + (kernel - 1) // 2. The weights of each place in the
    kernel are a direction and a length: Salimans and Kingma, Weight Normalization (2016),
    https://arxiv.org/abs/1602.07868, equation 2.
    """

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.direction = nn.Parameter(torch.randn(width, width // groups, kernel) * 2 / math.sqrt(kernel * width))
        self.length = nn.Parameter(self.direction.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.length * self.direction / self.direction.norm(dim=(0, 1), keepdim=True)
        around = conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return gelu(around[..., :x.shape[1]]).transpose(1, 2)  # an even kernel gives one frame too many, at the end


class Attention(nn.Module):
    """Self-attention among the valid frames, (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        query, key, value = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        mask = None if frames.full else frames.valid[:, None, None]
        seen = scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.output(seen.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then two linear layers about a GELU, a layer-norm behind each sum: Vaswani et al. (2017),
    https://arxiv.org/abs/1706.03762, with wav2vec 2.0's dropouts.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = self.first_norm(x + self.dropout(self.attention(x, frames)))
        inner = self.dropout(gelu(self.widen(x)))
        return self.last_norm(x + self.dropout(self.narrow(inner)))


class SpatioTemporalEncoder(nn.Module):
    """Features (N, T, width) and which frames are valid -> (N, T, width): 37.8 million parameters.

    dropout: everywhere; layerdrop: how often a layer is skipped in training (Fan et al. 2019,
    https://arxiv.org/abs/1909.11556). spans: of what is masked in training. Raises Mistake for sizes that do not fit.
    """

    def __init__(self, width: int = 768, *, layers: int = 6, heads: int = 8, ffn: int = 2048, kernel: int = 128,
                 groups: int = 16, dropout: float = 0.1, layerdrop: float = 0.1, spans: Spans = SPEC_AUGMENT):
        super().__init__()
        if width % math.lcm(heads, groups):
            raise Mistake("the encoder's heads and groups of channels share its width",
                          f"{heads} heads, {groups} groups, {width} numbers",
                          f"give a multiple of {math.lcm(heads, groups)}")
        self.width, self.layerdrop, self.spans = width, layerdrop, spans
        self.norm, self.enter_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mask_vector = nn.Parameter(torch.rand(width))
        self.positions = ConvolvedPositions(width, kernel, groups)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, ffn, dropout) for _ in range(layers))
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, features: Tensor, frames: Frames, mask: Tensor | None = None,
                rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """mask (N, T) bool: these frames are masked, in evaluation too. Without one, training draws it from rngs, a
        generator an item, which it then needs (else a ValueError) unless spans mask nothing.
        """
        if mask is None and self.training:
            mask = self._drawn(frames, rngs)
        return self.over_time(self.normed(features, frames), frames, mask)

    def _drawn(self, frames: Frames, rngs: Sequence[np.random.Generator] | None) -> Tensor:
        if rngs is not None:
            return span_masks(frames, self.spans, rngs)
        if self.spans.share or self.spans.least:
            raise ValueError("training masks frames: give their mask, or the items' generators")
        # Masks nothing, and yet keeps the mask's vector in the graph: several processes wait for its gradient.
        return torch.zeros(len(frames.lengths), frames.steps, dtype=torch.bool, device=frames.device)

    def normed(self, features: Tensor, frames: Frames) -> Tensor:
        """What is masked, and what the pre-training quantises: (N, T, width), 0 behind an item's end."""
        return frames.zero(self.norm(frames.zero(features, 1)), 1)

    def over_time(self, normed: Tensor, frames: Frames, mask: Tensor | None) -> Tensor:
        """The rest of the way, from what `normed` gives; `normed` itself is left as it is."""
        x = normed if mask is None else frames.zero(torch.where(mask[..., None], self.mask_vector, normed), 1)
        x = self.dropout(self.enter_norm(x + self.positions(x)))
        for layer in self.layers:
            skip = self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop
            x = _beside(layer, x) if skip else layer(x, frames)
        return frames.zero(x, 1)


def _beside(layer: nn.Module, x: Tensor) -> Tensor:
    """x, with gradients of 0 for the layer: of several processes, those that do not skip it wait for this one's."""
    return x + 0.0 * torch.stack([weight.sum() for weight in layer.parameters()]).sum()


# --- transformers' names ------------------------------------------------------------------------------------

_CONVOLUTION = "encoder.pos_conv_embed.conv."
_WHOLE = {"mask_vector": "masked_spec_embed", "positions.bias": _CONVOLUTION + "bias",
          "positions.length": _CONVOLUTION + "parametrizations.weight.original0",
          "positions.direction": _CONVOLUTION + "parametrizations.weight.original1",
          **{f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")
             for ours, theirs in (("norm", "feature_projection.layer_norm"), ("enter_norm", "encoder.layer_norm"))}}
_LAYER = {"attention.query": "attention.q_proj", "attention.key": "attention.k_proj", "attention.value":
          "attention.v_proj", "attention.output": "attention.out_proj", "first_norm": "layer_norm", "widen":
          "feed_forward.intermediate_dense", "narrow": "feed_forward.output_dense", "last_norm": "final_layer_norm"}
_OLD = {_CONVOLUTION + "weight_g": _WHOLE["positions.length"], _CONVOLUTION + "weight_v": _WHOLE["positions.direction"]}
_SPEECH = ("feature_extractor.", "feature_projection.projection.")  # what hears sound: no frame needs it
_HEADS = ("quantizer.", "project_hid.", "project_q.", "lm_head.")  # on top of the encoder
_OURS = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under the names that Wav2Vec2Model has for them (of its speech parts there are none).

    Raises Mistake for a name that the encoder does not have.
    """
    return {_renamed(name, _WHOLE, _OURS, _LAYER, "encoder.layers"): tensor for name, tensor in state.items()}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a Wav2Vec2Model, of one with heads, or of a Wav2Vec2Encoder, under the encoder's names.

    Left out are the parts that hear sound, and heads. A Wav2Vec2Encoder has neither mask_vector nor norm. Older names
    of the convolution's weights are known. Raises Mistake for other names: the weights of another model.
    """
    names = {name: name.removeprefix("wav2vec2.") for name in state}
    if not any(name.startswith("encoder.") for name in names.values()):
        names = {name: "encoder." + plain for name, plain in names.items()}
    whole, layer = ({theirs: ours for ours, theirs in table.items()} for table in (_WHOLE, _LAYER))
    return {_renamed(_OLD.get(plain, plain), whole, _THEIRS, layer, "layers"): state[name]
            for name, plain in names.items() if not plain.startswith((*_SPEECH, *_HEADS))}


def _renamed(name: str, whole: Mapping[str, str], pattern: re.Pattern[str], layer: Mapping[str, str],
             layers: str) -> str:
    found = pattern.fullmatch(name)
    if found and found[2] in layer:
        return f"{layers}.{found[1]}.{layer[found[2]]}.{found[3]}"
    if name not in whole:
        raise Mistake("these are not the weights of a wav2vec 2.0 encoder", name,
                      "give those of a Wav2Vec2Model with layer-norm behind the sums, or of ours")
    return whole[name]
