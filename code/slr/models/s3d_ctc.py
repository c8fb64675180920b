"""S3D_CTC: S3D's blocks 1 to 4 under the gloss head, the single stream of the two-stream network.

Chen et al., Two-Stream Network for Sign Language Recognition and Translation (2022),
https://arxiv.org/abs/2211.01367, section 3.1.
"""

from collections import OrderedDict
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import pad

from slr.catalogue import check_clip
from slr.errors import Mistake
from slr.models import s3d
from slr.models.masked import Frames, run
from slr.models.sentence import GlossHead, SentenceModel

CHANNELS = 832
STRIDE = 4  # of blocks 1 to 4 over time: the stem's and the pool's before block 4 are 2 each
ENDS = (0, 2, 5, 8, 13)  # layers of torchvision's S3D.features up to the end of block 0 (none), 1, 2, 3, 4
# Frames. On a CPU torch (2.14.1) computes wrong gradients for shorter clips: in fp32 the stem's of 5 to 7 frames (and
# writes beside its memory), in bf16 those of the temporal convolutions of 8, which leave two time steps.
FEWEST = 12


def up_to(block: int, backbone: nn.Module) -> nn.Sequential:
    """S3D's layers up to the end of a block, 1 to 4; none for block 0."""
    return cast(nn.Sequential, backbone.get_submodule("features"))[:ENDS[block]]


class S3DSentence(SentenceModel):
    """See SentenceModel: a time step each 4 frames, features (N, T/4, 832), the means over each frame's cells.

    The first `frozen_blocks` blocks do not learn, nor does their batch-norm. Clips of fewer than 12 frames are padded
    to 12, which changes nothing but that training on them is safe on a CPU.
    """

    def __init__(self, backbone: nn.Sequential, classifier: GlossHead, frozen_blocks: int):
        super().__init__(backbone, classifier, STRIDE)
        self.frozen_blocks = frozen_blocks
        self._frozen().requires_grad_(False)
        self.train()

    def over_time(self, clips: Tensor, frames: Frames) -> Tensor:
        lacking = max(0, FEWEST - frames.steps)
        padded = Frames(frames.lengths, frames.steps + lacking, frames.device)
        longer = pad(clips, (0, 0, 0, 0, 0, lacking)) if lacking else clips
        cells, _ = run(self.backbone, padded.zero(longer, 2), padded)
        return cells.mean((3, 4)).transpose(1, 2)[:, :frames.strided(STRIDE).steps]

    def train(self, mode: bool = True) -> "S3DSentence":
        super().train(mode)
        self._frozen().eval()
        return self

    def _frozen(self) -> nn.Sequential:
        return up_to(self.frozen_blocks, self.backbone)


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    drop_p: float = 0.1,
    width: int = 512,
    frozen_blocks: int = 1,
    last_relu: bool = True,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> S3DSentence:
    """S3D_CTC for sentences of up to `frames` frames of `size` pixels and `num_classes` classes, the blank among them.

    `width` and `last_relu` are the head's. `frozen_blocks` (0 to 4) stay as they start, which is of use when they start
    from `weights` or another experiment. Batch-norm's momentum in the backbone is 0.001 with weights, 0.1 without, as
    for S3D.
    """
    check_clip("S3D_CTC", frames, size)
    if frozen_blocks not in range(len(ENDS)):
        raise Mistake("S3D_CTC has no so many blocks to freeze", f"frozen_blocks = {frozen_blocks}", "give 0 to 4")
    whole = s3d.build(1, frames=max(frames, FEWEST), size=size, bn_momentum=bn_momentum, weights=weights)
    backbone = nn.Sequential(OrderedDict(features=up_to(4, whole.backbone)))
    model = S3DSentence(backbone, GlossHead(CHANNELS, num_classes, width, drop_p, last_relu), frozen_blocks)
    model.report = whole.report
    return model
