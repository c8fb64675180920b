"""ViViT: an encoder of clips that lets all tubelets of all frames attend to one another, with learned places.

    encoder = ViViT(SIZES)
    vectors, lengths = encoder(clips, lengths)      # (N, 3, T, H, W), (N,) -> (N, 1 + S, width), (N,) of 1 + S

Arnab et al., ViViT: A Video Vision Transformer (2021), https://arxiv.org/abs/2103.15691, model 1 (section 3.3) with
tubelet embedding. On full clips it computes what transformers' VivitModel does, but for its pooler, which its
classifier lacks, too; `from_folder` and `to_folder` exchange weights with it, without that package.

Shapes: see video_mae.py; the first vector is that of the class token, which belongs to no tubelet.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from slr.errors import Mistake
from slr.models import video_mae
from slr.models.masked import Frames
from slr.models.video_mae import (
    ClipEncoder,
    Sizes,
    as_config,
    gelu,
    give,
    read_folder,
    square,
    take,
    their_name,
    write_folder,
)

SIZES = Sizes(frames=32, gelu="tanh", eps=1e-6)  # google/vivit-b-16x2


class ViViT(ClipEncoder):
    """Clips (N, 3, T, H, W), float and normalised, and lengths (N,) in frames -> vectors (N, 1 + S, width), the class
    token's first, and how many of each item are valid (N,), on the CPU.

    Raises Mistake as `ClipEncoder.embed` does.
    """

    def __init__(self, sizes: Sizes = SIZES, *, drop_p: float = 0.0):
        super().__init__(sizes, drop_p, key_bias=True)
        self.dropout = nn.Dropout(drop_p)
        self.class_token = nn.Parameter(torch.randn(sizes.width) * 0.02)
        self.places = nn.Parameter(torch.randn(1 + sizes.steps * sizes.cells, sizes.width) * 0.02)

    def forward(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, steps = self.embed(clips, lengths)
        count = steps.steps * self.sizes.cells
        valid = Frames(1 + steps.lengths * self.sizes.cells, 1 + count, clips.device)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x.flatten(1, 2)], 1)
        return self.encode(self.dropout(x + self.places[:1 + count]), valid), valid.lengths

    @classmethod
    def from_folder(cls, folder: Path | str, *, drop_p: float = 0.0) -> Self:
        """Out of a folder that transformers wrote for any of its ViViT models. Raises Mistake (see read_folder)."""
        config, theirs = read_folder(folder, "vivit")
        model = cls(_sizes(config, folder), drop_p=drop_p)
        prefix = "vivit." if any(name.startswith("vivit.") for name in theirs) else ""
        take(model, theirs, lambda name: prefix + _their_name(name), folder)
        return model

    def to_folder(self, folder: Path | str) -> None:
        """As transformers' VivitModel.from_pretrained(…, add_pooling_layer=False) reads it."""
        config = {"architectures": ["VivitModel"], "model_type": "vivit", **as_config(self.sizes), "qkv_bias": True,
                  "tubelet_size": [self.sizes.tubelet, self.sizes.patch, self.sizes.patch]}
        write_folder(folder, config, give(self, self.sizes, _their_name))


def _their_name(name: str) -> str:
    known = {"class_token": "embeddings.cls_token", "places": "embeddings.position_embeddings"}
    return known.get(name) or their_name(name, "encoder.layer", "layernorm")


def _sizes(config: Mapping[str, Any], folder: Path | str) -> Sizes:
    if not config.get("qkv_bias", True):
        raise Mistake(f"the ViViT in {folder} is of another kind", "its queries, keys and values have no biases",
                      "give one as the published ones")
    tubelet, *patch = config.get("tubelet_size", (2, 16, 16))
    given = {"frames": SIZES.frames, "eps": SIZES.eps,
             **{ours: config[name] for ours, name in video_mae.SIZES.items() if name in config},
             "size": square(config.get("image_size", 224), folder), "patch": square(patch, folder)}
    return Sizes(**given, tubelet=tubelet, gelu=gelu(config, "gelu_fast", folder))
