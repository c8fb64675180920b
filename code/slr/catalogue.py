"""What the models are called, where their builders are, and what clips they take. No torch in here.

    entry = MODELS[canonical("R2Plus1D_18")]          # -> the entry of R(2+1)D_18
    check_clip("S3D", frames=6, size=64, training_on_cpu=True)   # -> Mistake, and what S3D can take
    model = builder_of("S3D")(100, frames=32, size=224, drop_p=0.5)

Normalisation belongs to the model: mean and standard deviation (RGB, of values in 0..1) are those that its
Kinetics-400 weights were trained with (torchvision.models.video, the `transforms` of each `*_Weights`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from slr.errors import Mistake

KINETICS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}


@dataclass(frozen=True, eq=False)  # without __eq__ the import stays under a millisecond
class Entry:
    """One model: frames are counted in the clip, sizes are the side of its square frames in pixels."""

    name: str
    task: str
    builder: str  # "module:function"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    default_frames: int
    default_size: int
    variant: str = ""  # handed to the builder as `variant` where one file builds several models
    fewest_frames: int = 1
    fewest_pixels: int = 1
    multiple_frames: int = 1
    multiple_pixels: int = 1
    train_cpu_frames: int = 1  # fewest frames of a clip when the model is trained on a CPU
    channels_last_cpu: bool = False  # does the memory format channels_last_3d make training faster?
    channels_last_gpu: bool = False
    batch_norm: bool = False
    freezable: bool = False  # does its builder take `frozen_blocks`?
    pretrained_momentum: float | None = None  # of batch-norm after Kinetics weights, where it is unlike 0.1
    drop_path: float | None = None  # the builder's default stochastic depth; None = the model has none
    weights: str | None = None  # torchvision's name of the pretrained weights
    weights_file: str | None = None  # their file in torchvision's cache; the hash in its name is checked
    heatmaps: bool = False  # does its builder take `heatmaps`, channels behind the three colours?
    starts_from: str | None = None  # the isolated model whose checkpoints can start this one
    stride: int | None = None  # frames of a time step, where the output is over time: T frames give ceil(T / stride)


def _isolated(name: str, builder: str, *, frames: int, size: int, **fields: Any) -> Entry:
    return Entry(name, "isolated", builder, default_frames=frames, default_size=size, **fields)


_ENTRIES = [
    # The weight gradient of the stem's temporal convolution (kernel 7, stride 2) corrupts memory on a CPU at
    # 5 to 7 frames (torch 2.14.1, both memory formats): train_cpu_frames. 5 frames and 17 pixels are the
    # fewest that leave one cell after S3D's halvings of time and space.
    _isolated("S3D", "slr.models.s3d:build", frames=32, size=224, **KINETICS, batch_norm=True,
              fewest_frames=5, fewest_pixels=17, train_cpu_frames=8, pretrained_momentum=0.001,
              channels_last_cpu=True, channels_last_gpu=True,
              weights="S3D_Weights.KINETICS400_V1", weights_file="s3d-d76dad2f.pth"),
    _isolated("R3D_18", "slr.models.resnet3d:build", variant="r3d_18", frames=16, size=112, **KINETICS,
              batch_norm=True, channels_last_gpu=True,
              weights="R3D_18_Weights.KINETICS400_V1", weights_file="r3d_18-b3b3357e.pth"),
    _isolated("R(2+1)D_18", "slr.models.resnet3d:build", variant="r2plus1d_18", frames=16, size=112,
              **KINETICS, batch_norm=True, channels_last_gpu=True,
              weights="R2Plus1D_18_Weights.KINETICS400_V1", weights_file="r2plus1d_18-91a641e6.pth"),
    _isolated("Swin3D_T", "slr.models.swin3d:build", variant="swin3d_t", frames=32, size=224, **IMAGENET,
              drop_path=0.1, weights="Swin3D_T_Weights.KINETICS400_V1", weights_file="swin3d_t-7615ae03.pth"),
    _isolated("Swin3D_S", "slr.models.swin3d:build", variant="swin3d_s", frames=32, size=224, **IMAGENET,
              drop_path=0.1, weights="Swin3D_S_Weights.KINETICS400_V1", weights_file="swin3d_s-da41c237.pth"),
    _isolated("Swin3D_B", "slr.models.swin3d:build", variant="swin3d_b", frames=32, size=224, **IMAGENET,
              drop_path=0.1, weights="Swin3D_B_Weights.KINETICS400_IMAGENET22K_V1",
              weights_file="swin3d_b_22k-7c6ae6fa.pth"),
    _isolated("MViTv2_S", "slr.models.mvit:build", variant="mvit_v2_s", frames=16, size=224, **HALF,
              drop_path=0.2,
              weights="MViT_V2_S_Weights.KINETICS400_V1", weights_file="mvit_v2_s-ae3be167.pth"),
    _isolated("MViTv1_B", "slr.models.mvit:build", variant="mvit_v1_b", frames=16, size=224, **HALF,
              drop_path=0.2,
              weights="MViT_V1_B_Weights.KINETICS400_V1", weights_file="mvit_v1_b-dbeb1030.pth"),
]


def _sentence(base: Entry, stride: int) -> Entry:
    """The classifier's features over time under the gloss head; S3D's own are of 12 frames or more, by padding."""
    module, _, function = base.builder.partition(":")
    return replace(base, name=f"{base.name}_CTC", task="continuous", builder=f"{module}_ctc:{function}",
                   default_frames=400, fewest_frames=1, train_cpu_frames=1, starts_from=base.name, stride=stride,
                   freezable=base.name == "S3D")


_STRIDES = {"S3D": 4, "R3D_18": 4, "R(2+1)D_18": 4, "Swin3D_T": 2, "Swin3D_S": 2, "Swin3D_B": 2,
            "MViTv2_S": 4, "MViTv1_B": 4}
_ENTRIES += [_sentence(entry, _STRIDES[entry.name]) for entry in _ENTRIES]
_ENTRIES.append(replace(_isolated("MambaSLR", "slr.models.mamba:build_for_sentences", frames=400, size=224, **IMAGENET),
                        task="continuous", fewest_pixels=16, drop_path=0.4, heatmaps=True, stride=1))


def _translation(name: str) -> Entry:
    """Glosses, or what another model sees in a sentence, to text; frames are as that one takes them."""
    base = _isolated(name, f"slr.models.sign2text:{name}", frames=400, size=224, **KINETICS)
    return replace(base, task="translation")


_ENTRIES += [_translation("Gloss2Text"), _translation("Sign2Text")]
_ENTRIES.append(replace(_isolated("SignTransformer", "slr.models.sign_transformer:build", frames=32, size=224,
                                  **IMAGENET), task="multihead"))


def _frames_to_words(name: str, task: str, frames: int) -> Entry:
    """Transcription and its pre-training; which clips the encoders take follows from [encoder]."""
    return replace(_isolated(name, "slr.models.encoders:build", frames=frames, size=224, **IMAGENET), task=task)


_ENTRIES += [_frames_to_words(name, "transcription", frames) for name, frames in
             (("SpatioTemporal", 400), ("VideoMAE", 16), ("ViViT", 32))]
_ENTRIES += [_frames_to_words(name, "pretraining", frames) for name, frames in
             (("SpatioTemporalPretrain", 400), ("VideoMAEPretrain", 16), ("LanguageDecoder", 400))]

MODELS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

# R2Plus1D_18 needs no quotes in a shell; MViT_v2S and MViT_v1B are the old program's names.
ALIASES = {"R2Plus1D_18": "R(2+1)D_18", "R2Plus1D_18_CTC": "R(2+1)D_18_CTC",
           "MViT_v2S": "MViTv2_S", "MViT_v1B": "MViTv1_B"}


def canonical(name: str) -> str:
    """The name in MODELS that `name` stands for. Raises Mistake, with the closest name, if there is none."""
    if name in MODELS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    raise Mistake("no such model", repr(name), f"{_suggestion(name)}The models are: {', '.join(MODELS)}.")


def check_clip(name: str, frames: int, size: int, training_on_cpu: bool = False) -> None:
    """Raises Mistake unless the model takes clips of `frames` frames of `size` x `size` pixels."""
    entry = MODELS[canonical(name)]
    _check(entry, "data.num_frames", frames, entry.fewest_frames, entry.multiple_frames)
    _check(entry, "data.frame_size", size, entry.fewest_pixels, entry.multiple_pixels)
    if training_on_cpu and frames < entry.train_cpu_frames:
        raise Mistake(
            f"{entry.name} cannot be trained on clips this short on a CPU",
            f"data.num_frames = {frames}",
            f"torch's gradients are wrong there: take {entry.train_cpu_frames} frames or more, or a GPU.",
        )


def builder_of(name: str) -> Callable[..., Any]:
    """The model's builder: build(num_classes, *, frames, size, drop_p=0.0, ...) -> Module; imports torch."""
    from functools import partial
    from importlib import import_module

    entry = MODELS[canonical(name)]
    module, _, function = entry.builder.partition(":")
    build = getattr(import_module(module), function)
    return partial(build, variant=entry.variant) if entry.variant else build


def _check(entry: Entry, key: str, value: int, fewest: int, multiple: int) -> None:
    if value >= fewest and value % multiple == 0:
        return
    steps = f", in multiples of {multiple}" if multiple > 1 else ""
    raise Mistake(
        f"{entry.name} cannot take such clips", f"{key} = {value}", f"It takes {fewest} or more{steps}."
    )


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    known = {known.lower(): known for known in [*MODELS, *ALIASES]}
    close = get_close_matches(name.lower(), known, n=1)
    return f"Did you mean {known[close[0]]}? " if close else ""
