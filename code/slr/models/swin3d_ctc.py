"""Swin3D_T_CTC, Swin3D_S_CTC, Swin3D_B_CTC: the video Swin's features over time under the gloss head."""

from pathlib import Path

from torch import Tensor
from torchvision.models.video.swin_transformer import SwinTransformer3d

from slr.catalogue import check_clip
from slr.models import swin3d
from slr.models.masked import Frames
from slr.models.sentence import GlossHead, SentenceModel

STRIDE = 2  # over time: a patch is 2 frames, and nothing is merged over time after that


class SwinSentence(SentenceModel):
    """See SentenceModel: a time step each 2 frames, features (N, T/2, 768 or, for B, 1024), means over the patches.

    Windows are laid out from an item's length, and their attention sees torchvision's own padding to a whole window. So
    items run unpadded, those of one length together: a batch of many lengths takes as many passes.
    """

    backbone: SwinTransformer3d

    def over_time(self, clips: Tensor, frames: Frames) -> Tensor:
        passes = []
        for length in frames.lengths.unique():
            rows = (frames.lengths == length).nonzero()[:, 0].to(clips.device)
            passes.append((rows, self._unpadded(clips.index_select(0, rows)[:, :, :length])))
        _, some = passes[0]
        out = some.new_zeros(len(clips), frames.strided(STRIDE).steps, some.shape[2])
        for rows, features in passes:
            out[rows, :features.shape[1]] = features
        return out

    def _unpadded(self, clips: Tensor) -> Tensor:
        """(N, 3, T, H, W) -> (N, ceil(T / 2), C): all of torchvision's forward up to the mean over time."""
        net = self.backbone
        return net.norm(net.features(net.pos_drop(net.patch_embed(clips)))).mean((2, 3))


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "swin3d_t",
    drop_p: float = 0.1,
    width: int = 512,
    drop_path: float | None = None,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> SwinSentence:
    """`variant` swin3d_t, swin3d_s or swin3d_b, for sentences of up to `frames` frames of `size` pixels and
    `num_classes` classes, the blank among them.

    `width` is the head's. `drop_path` is the last layer's stochastic depth, 0.1 unless given.
    """
    check_clip(f"{swin3d.VARIANTS[variant][0]}_CTC", frames, size)
    whole = swin3d.build(1, frames=frames, size=size, variant=variant, drop_path=drop_path, bn_momentum=bn_momentum,
                         weights=weights)
    channels = int(whole.backbone.num_features)  # type: ignore[arg-type]
    model = SwinSentence(whole.backbone, GlossHead(channels, num_classes, width, drop_p), STRIDE)
    model.report = whole.report
    return model
