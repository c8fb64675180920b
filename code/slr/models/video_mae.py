"""VideoMAE: an encoder of clips cut into tubelets, and its pre-training, which draws what tubes of a clip hide.

    encoder = VideoMAE(Sizes(frames=16, size=224))
    vectors, lengths = encoder(clips, lengths)              # (N, 3, T, H, W), (N,) -> (N, S, width), (N,) of S
    model = VideoMAEPretrain(encoder)
    masked = tubes(torch.rand(len(clips), encoder.sizes.cells), 0.9)        # (N, cells), or numbers of the items' own
    predicted, steps = model(clips, lengths, masked)
    total, count = reconstruction(predicted, model.targets(clips, masked), steps)

Tong et al., VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training (2022),
https://arxiv.org/abs/2203.12602. On full clips it computes what transformers' VideoMAEModel and VideoMAEForPreTraining
do, which take no padding; `from_folder` and `to_folder` exchange weights with them, without that package.

Shapes: T' = T // tubelet time steps, `cells` tubelets in each (by rows), S = T' cells vectors, those of a time step one
after another. A clip's last frame that fills no tubelet is left out. A clip's output is what it would be alone.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from slr import paths
from slr.errors import Mistake
from slr.models.masked import Frames
from slr.models.weights import read_weights
from slr.paths import shown

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of the colours that the models take
CONFIG, WEIGHTS, OLD_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
ROUNDING = 1e-9  # 0.29 of 100 cells are 29, though 0.29 * 100 is less


@dataclass(frozen=True)
class Sizes:
    """The shape of an encoder; the defaults are VideoMAE's base model. Raises Mistake where it does not come out even.

    frames: the most of a clip; size, patch: sides in pixels; gelu: `none` is the exact one, `tanh` its approximation.
    """

    frames: int = 16
    size: int = 224
    patch: int = 16
    tubelet: int = 2
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    gelu: str = "none"
    eps: float = 1e-12  # of the layer-norms

    def __post_init__(self) -> None:
        for whole, part in (("frames", "tubelet"), ("size", "patch"), ("width", "heads")):
            if getattr(self, part) < 1 or getattr(self, whole) < 1 or getattr(self, whole) % getattr(self, part):
                raise Mistake(f"{whole} is no multiple of {part}", f"{getattr(self, whole)} and {getattr(self, part)}",
                              f"choose a {whole} that {part} divides")

    @property
    def cells(self) -> int:
        """Tubelets in a time step."""
        return (self.size // self.patch) ** 2

    @property
    def steps(self) -> int:
        """Time steps of a clip of `frames`."""
        return self.frames // self.tubelet

    @property
    def pixels(self) -> int:
        """Numbers of a tubelet."""
        return 3 * self.tubelet * self.patch ** 2


def cut(clips: Tensor, sizes: Sizes) -> Tensor:
    """Clips (N, 3, T, H, W) -> tubelets (N, T', cells, 3, tubelet, patch, patch)."""
    side = sizes.size // sizes.patch
    whole = clips[:, :, :clips.shape[2] // sizes.tubelet * sizes.tubelet]
    parts = whole.unflatten(4, (side, -1)).unflatten(3, (side, -1)).unflatten(2, (-1, sizes.tubelet))
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(2, 3)


def places(count: int, width: int) -> Tensor:
    """Sinusoids (count, width), sine in the even channels and cosine in the odd ones, from angles in float64.

    Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762, section 3.5. In float32 the
    angle of the 1,568th place would be wrong in the fourth digit.
    """
    channel = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel.long() % 2 == 0, angles.sin(), angles.cos()).float()


# --- the encoder ------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """Self-attention and two linear layers, layer-norm before each: (N, S, width), (N, 1, 1, S) or None -> the same.

    The mask is true for what may be looked at.
    """

    def __init__(self, width: int, heads: int, ffn: int, sizes: Sizes, drop_p: float, key_bias: bool = False):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=sizes.eps) for _ in range(2))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=key_bias)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.act, self.dropout = nn.GELU(sizes.gelu), nn.Dropout(drop_p)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm1(x)
        query, key, value = (layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        seen = scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(seen))
        return x + self.dropout(self.fc2(self.act(self.fc1(self.norm2(x)))))


def through(blocks: nn.ModuleList, x: Tensor, valid: Frames) -> Tensor:
    """(N, S, width) through the blocks; nothing looks behind an item's end, where anything finite comes out."""
    mask = None if valid.full else valid.valid[:, None, None]
    for block in blocks:
        x = block(x, mask)
    return x


def begin(module: nn.Module) -> None:
    """Weights to start from: Glorot's for linear layers, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ClipEncoder(nn.Module):
    """What VideoMAE and ViViT share: tubelets to vectors, and the blocks. norm: whether one comes behind these."""

    def __init__(self, sizes: Sizes, drop_p: float, *, norm: bool = True, key_bias: bool = False):
        super().__init__()
        self.sizes, self.width = sizes, sizes.width
        self.project = nn.Linear(sizes.pixels, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads, sizes.ffn, sizes, drop_p, key_bias)
                                    for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.eps) if norm else None
        self.apply(begin)

    def embed(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Frames]:
        """(N, 3, T, H, W) and (N,) -> (N, T', cells, width), without places, and which time steps are valid.

        Raises Mistake for clips of other sizes, more frames than the encoder has places for, or less than a tubelet.
        """
        sizes, steps = self.sizes, clips.shape[2]
        if clips.shape[1:2] + clips.shape[3:] != (3, sizes.size, sizes.size) or steps > sizes.frames:
            raise Mistake("the clips do not fit the encoder", f"(3, T, H, W) is {tuple(clips.shape[1:])}",
                          f"give up to {sizes.frames} frames of {sizes.size} x {sizes.size} pixels")
        valid = Frames(lengths, steps, clips.device)
        if int(valid.lengths.min()) < sizes.tubelet:
            raise Mistake("a clip is shorter than a tubelet", f"{int(valid.lengths.min())} frames",
                          f"leave out clips of less than {sizes.tubelet} frames")
        tubelets = cut(valid.zero(clips, 2), sizes).flatten(3)
        return self.project(tubelets), Frames(valid.lengths // sizes.tubelet, steps // sizes.tubelet, clips.device)

    def encode(self, x: Tensor, valid: Frames) -> Tensor:
        """(N, S, width), with places -> (N, S, width), 0 behind an item's end."""
        x = through(self.blocks, x, valid)
        return valid.zero(x if self.norm is None else self.norm(x), 1)


class VideoMAE(ClipEncoder):
    """Clips (N, 3, T, H, W), float and normalised, and lengths (N,) in frames -> vectors (N, S, width), and how many
    of each item are valid (N,), on the CPU.

    norm: a layer-norm behind the last block, as for pre-training; transformers' models for classification have none.
    Raises Mistake as `embed` does.
    """

    places: Tensor

    def __init__(self, sizes: Sizes | None = None, *, norm: bool = True, drop_p: float = 0.0):
        sizes = sizes or Sizes()
        super().__init__(sizes, drop_p, norm=norm)
        self.register_buffer("places", places(sizes.steps * sizes.cells, sizes.width).unflatten(0, (-1, sizes.cells)),
                             persistent=False)

    def forward(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, steps = self.embed(clips, lengths)
        valid = over(steps, self.sizes.cells)
        return self.encode((x + self.places[:steps.steps]).flatten(1, 2), valid), valid.lengths

    @classmethod
    def from_folder(cls, folder: Path | str, *, drop_p: float = 0.0) -> Self:
        """Out of a folder that transformers wrote for any of its VideoMAE models. Raises Mistake (see read_folder)."""
        config, theirs = read_folder(folder, "videomae")
        model = cls(_sizes(config, folder), norm=not config.get("use_mean_pooling", True), drop_p=drop_p)
        prefix = "videomae." if any(name.startswith("videomae.") for name in theirs) else ""
        take(model, theirs, lambda name: prefix + _encoder_name(name), folder)
        return model

    def to_folder(self, folder: Path | str) -> None:
        """As transformers' VideoMAEModel.from_pretrained reads it."""
        config = {"architectures": ["VideoMAEModel"], **_config(self.sizes, self.norm is not None)}
        write_folder(folder, config, give(self, self.sizes, _encoder_name))


def over(steps: Frames, count: int) -> Frames:
    """Which of T' `count` vectors, those of a time step together, are valid."""
    return Frames(steps.lengths * count, steps.steps * count, steps.device)


# --- pre-training -----------------------------------------------------------------------------------------------

def tubes(draws: Tensor, ratio: float) -> Tensor:
    """Uniform numbers (N, cells) -> which cells are masked in all time steps of an item (N, cells) bool, the same
    number in each: `ratio` of them, rounded down; those with the highest numbers.

    Tube masking of Tong et al. 2022, section 3.3. Raises Mistake where nothing would be masked, or nothing seen.
    """
    cells = draws.shape[1]
    count = math.floor(ratio * cells + ROUNDING) if 0 < ratio < 1 else 0
    if not 0 < count < cells:
        raise Mistake("the mask hides nothing, or everything", f"a ratio of {ratio} of {cells} cells",
                      "give a ratio between 0 and 1 that leaves some of them, or larger clips")
    return torch.zeros_like(draws, dtype=torch.bool).scatter(1, draws.topk(count).indices, True)


class VideoMAEPretrain(nn.Module):
    """The encoder sees a clip's visible tubelets; a small decoder predicts the pixels of the masked ones.

    clips (N, 3, T, H, W), lengths (N,), masked (N, cells) bool, of as many cells in each row -> predicted
    (N, T', M, pixels), M being the masked cells by number, and the valid time steps of each item (N,), on the CPU.
    A tubelet's pixels go by time, row, column and colour. What is predicted behind an item's end is left open.
    mean, std: how the clips were normalised.
    """

    decoder_places: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: VideoMAE, *, width: int = 384, layers: int = 4, heads: int = 6, ffn: int = 1536,
                 drop_p: float = 0.0, mean: Sequence[float] = IMAGENET[0], std: Sequence[float] = IMAGENET[1]):
        super().__init__()
        sizes = encoder.sizes
        if width < 1 or width % heads:
            raise Mistake("the decoder's width is no multiple of its heads", f"{width} and {heads}")
        self.encoder, self.width, self.heads, self.ffn = encoder, width, heads, ffn
        self.narrow = nn.Linear(sizes.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = nn.ModuleList(Block(width, heads, ffn, sizes, drop_p) for _ in range(layers))
        self.decoder_norm, self.head = nn.LayerNorm(width), nn.Linear(width, sizes.pixels)
        for part in (self.narrow, self.decoder, self.head):
            part.apply(begin)
        self.register_buffer("decoder_places",
                             places(sizes.steps * sizes.cells, width).unflatten(0, (-1, sizes.cells)), persistent=False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1, 1), persistent=False)

    def forward(self, clips: Tensor, lengths: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        x, steps = self.encoder.embed(clips, lengths)
        seen, hidden = (cells.to(x.device) for cells in split(masked))
        x = pick(x + self.encoder.places[:steps.steps], seen)
        encoded = self.encoder.encode(x.flatten(1, 2), over(steps, seen.shape[1])).unflatten(1, (steps.steps, -1))
        where = self.decoder_places[:steps.steps].expand(len(x), -1, -1, -1)
        whole = torch.cat([self.narrow(encoded) + pick(where, seen), self.mask_token + pick(where, hidden)], 2)
        decoded = through(self.decoder, whole.flatten(1, 2), over(steps, self.encoder.sizes.cells))
        predicted = decoded.unflatten(1, (steps.steps, -1))[:, :, seen.shape[1]:]
        return self.head(self.decoder_norm(predicted)), steps.lengths

    @torch.no_grad()
    def targets(self, clips: Tensor, masked: Tensor) -> Tensor:
        """What forward should predict (N, T', M, pixels): each tubelet's colours with mean 0 and variance 1.

        He et al. 2022, https://arxiv.org/abs/2111.06377, section 3, for each colour of its own as in VideoMAE.
        """
        pixels = cut(clips.float() * self.std + self.mean, self.encoder.sizes)
        pixels = pick(pixels.movedim(3, -1).flatten(3), split(masked)[1].to(clips.device)).unflatten(3, (-1, 3))
        spread = pixels.var(3, keepdim=True).sqrt()
        return ((pixels - pixels.mean(3, keepdim=True)) / (spread + 1e-6)).flatten(3)

    @classmethod
    def from_folder(cls, folder: Path | str, *, drop_p: float = 0.0) -> Self:
        """Out of a folder of transformers' VideoMAEForPreTraining. Raises Mistake for another, see read_folder."""
        config, theirs = read_folder(folder, "videomae")
        if not config.get("norm_pix_loss", True):
            raise Mistake("the VideoMAE predicts pixels as they are", f"{folder}: norm_pix_loss is false",
                          "start the pre-training from its encoder alone")
        encoder = VideoMAE(_sizes(config, folder), norm=not config.get("use_mean_pooling", True), drop_p=drop_p)
        decoder = {ours: config[name] for ours, name in _DECODER.items() if name in config}
        model = cls(encoder, drop_p=drop_p, **decoder)
        take(model, theirs, _pretraining_name, folder)
        return model

    def to_folder(self, folder: Path | str) -> None:
        """As transformers' VideoMAEForPreTraining.from_pretrained reads it, and VideoMAEModel's its encoder."""
        mine = {"width": self.width, "layers": len(self.decoder), "heads": self.heads, "ffn": self.ffn}
        config = {"architectures": ["VideoMAEForPreTraining"],
                  **_config(self.encoder.sizes, self.encoder.norm is not None),
                  **{_DECODER[ours]: value for ours, value in mine.items()}}
        write_folder(folder, config, give(self, self.encoder.sizes, _pretraining_name))


def split(masked: Tensor) -> tuple[Tensor, Tensor]:
    """(N, cells) bool -> the numbers of the visible (N, V) and of the masked cells (N, M).

    Raises Mistake where the rows differ in how many they mask, or one masks nothing or everything.
    """
    counts = masked.sum(1)
    count = int(counts[0])
    if masked.dtype != torch.bool or not 0 < count < masked.shape[1] or not bool((counts == count).all()):
        raise Mistake("the masks of a batch do not fit", f"{counts.tolist()} of {masked.shape[1]} cells",
                      "mask as many cells in each item, neither none nor all: see tubes")
    order = masked.int().argsort(dim=1, stable=True)
    return order[:, :-count], order[:, -count:]


def pick(x: Tensor, cells: Tensor) -> Tensor:
    """x (N, T', cells, C) and numbers (N, M) -> (N, T', M, C)."""
    return x.gather(2, cells[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def reconstruction(predicted: Tensor, targets: Tensor, steps: Tensor) -> tuple[Tensor, int]:
    """(Sum over the predicted tubelets of the mean squared error of their pixels, how many they are), in float32.

    predicted, targets (N, T', M, pixels); steps (N,): of each item that many count, the others may hold anything.
    """
    valid = Frames(steps, predicted.shape[1], predicted.device)
    errors = valid.zero(predicted.float(), 1) - valid.zero(targets.float(), 1)
    return errors.square().mean(3).sum(), int(valid.lengths.sum()) * predicted.shape[2]


# --- folders as transformers writes them ------------------------------------------------------------------------

_DECODER = {"width": "decoder_hidden_size", "layers": "decoder_num_hidden_layers",
            "heads": "decoder_num_attention_heads", "ffn": "decoder_intermediate_size"}
SIZES = {"frames": "num_frames", "size": "image_size", "width": "hidden_size", "layers": "num_hidden_layers",
         "heads": "num_attention_heads", "ffn": "intermediate_size", "eps": "layer_norm_eps"}
_BLOCK = {"norm1": "layernorm_before", "query": "attention.attention.query", "key": "attention.attention.key",
          "value": "attention.attention.value", "out": "attention.output.dense", "norm2": "layernorm_after",
          "fc1": "intermediate.dense", "fc2": "output.dense"}
GELU = {"gelu": "none", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def read_folder(folder: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights of a folder (relative: to the project). Raises Mistake where one is missing or
    damaged, or the config is not of a `kind` of colour clips.
    """
    folder = paths.HOME / Path(folder).expanduser()
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = config["model_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Mistake(f"{shown(folder)} is no folder of a model", f"{type(error).__name__}: {error}"[:200],
                      f"name one with {CONFIG} and {WEIGHTS}") from None
    if found != kind or config.get("num_channels", 3) != 3:
        raise Mistake(f"the model in {shown(folder)} is no {kind} of colour clips",
                      f"{CONFIG} says {found!r}, {config.get('num_channels', 3)} channels")
    if not (folder / WEIGHTS).is_file():
        return config, read_weights(folder / OLD_WEIGHTS)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise Mistake("the weights file cannot be read", f"{shown(folder / WEIGHTS)}: {error}"[:200],
                      "get the file anew") from None


def write_folder(folder: Path | str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """config.json and model.safetensors, each written aside and renamed; the config, without which nothing is read,
    comes last.
    """
    from safetensors.torch import save_file

    folder = paths.HOME / Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    aside = {name: folder / f"{name}.part" for name in (WEIGHTS, CONFIG)}
    save_file(dict(state), aside[WEIGHTS], {"format": "pt"})
    aside[CONFIG].write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    for name, path in aside.items():
        os.replace(path, folder / name)


def take(model: nn.Module, theirs: Mapping[str, Tensor], name: Callable[[str], str], folder: Path | str) -> None:
    """Load the tensors that `name` finds for the model's own. Raises Mistake where one is missing or of another shape.

    What is left over (a classifier, a decoder) is not looked at.
    """
    mine = model.state_dict()
    wrong = [key for key, value in mine.items()
             if name(key) not in theirs or theirs[name(key)].numel() != value.numel()]
    if wrong:
        raise Mistake(f"the weights in {folder} are not those of this model",
                      f"{name(wrong[0])} and {len(wrong) - 1} more are missing or have another shape",
                      f"give a folder whose {CONFIG} goes with its weights")
    model.load_state_dict({key: theirs[name(key)].reshape(value.shape).to(value) for key, value in mine.items()})


def give(model: nn.Module, sizes: Sizes, name: Callable[[str], str]) -> dict[str, Tensor]:
    """The model's tensors by their names and shapes, on the CPU."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("project.weight"):
            value = value.view(-1, 3, sizes.tubelet, sizes.patch, sizes.patch)
        if key in ("mask_token", "class_token", "places"):
            value = value.view(1, -1, value.shape[-1])
        state[name(key)] = value.detach().cpu().contiguous()
    return state


def their_name(name: str, blocks: str, norm: str) -> str:
    """blocks.3.fc1.weight -> <blocks>.3.intermediate.dense.weight; project and norm likewise; others as they are."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        number, part, last = rest.split(".")
        return f"{blocks}.{number}.{_BLOCK[part]}.{last}"
    if first == "project":
        return f"embeddings.patch_embeddings.projection.{rest}"
    return f"{norm}.{rest}" if first == "norm" else name


def _encoder_name(name: str) -> str:
    return _with_biases(their_name(name, "encoder.layer", "layernorm"))


def _pretraining_name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first == "encoder":
        return "videomae." + _encoder_name(rest)
    if first == "decoder":
        return _with_biases(their_name(f"blocks.{rest}", "decoder.decoder_layers", ""))
    return {"narrow": "encoder_to_decoder.", "decoder_norm": "decoder.norm.", "head": "decoder.head."}.get(
        first, name) + rest


def _with_biases(name: str) -> str:
    """VideoMAE's files have names of their own for two biases, whatever transformers' modules of a version do."""
    return re.sub(r"\.(q)uery\.bias$|\.(v)alue\.bias$", lambda found: f".{found[1] or found[2]}_bias", name)


def square(side: int | Sequence[int], folder: Path | str) -> int:
    """A side that a config gives as a number, or as height and width. Raises Mistake where these differ."""
    sides = {side} if isinstance(side, int) else set(side)
    if len(sides) != 1:
        raise Mistake(f"the model in {folder} does not take square pictures and patches", str(side))
    return sides.pop()


def gelu(config: Mapping[str, Any], default: str, folder: Path | str) -> str:
    """Which of the GELUs the config means. Raises Mistake for another activation."""
    act = config.get("hidden_act", default)
    if act not in GELU:
        raise Mistake(f"the model in {folder} has another activation", str(act), f"give one with {', '.join(GELU)}")
    return GELU[act]


def _sizes(config: Mapping[str, Any], folder: Path | str) -> Sizes:
    if not config.get("qv_bias", config.get("qkv_bias", True)):
        raise Mistake(f"the VideoMAE in {folder} is of another kind", "its queries and values have no biases",
                      "give one as the published ones")
    given = {ours: config[name] for ours, name in SIZES.items() if name in config}
    given["size"], patch = square(config.get("image_size", 224), folder), square(config.get("patch_size", 16), folder)
    return Sizes(**given, patch=patch, tubelet=config.get("tubelet_size", 2), gelu=gelu(config, "gelu", folder))


def _config(sizes: Sizes, norm: bool) -> dict[str, Any]:
    return {"model_type": "videomae", **as_config(sizes), "patch_size": sizes.patch, "tubelet_size": sizes.tubelet,
            "qv_bias": True, "use_mean_pooling": not norm, "norm_pix_loss": True}


def as_config(sizes: Sizes) -> dict[str, Any]:
    """What the configs of VideoMAE and ViViT have in common."""
    act = "gelu" if sizes.gelu == "none" else "gelu_fast"
    return {**{name: getattr(sizes, ours) for ours, name in SIZES.items()}, "num_channels": 3, "hidden_act": act,
            "dtype": "float32"}
