"""MViTv2_S_CTC and MViTv1_B_CTC: a multiscale transformer over sliding windows of a sentence, under the gloss head.

MViT's positions are laid out for clips of one length, so it looks at a sentence through a window of that length, and
what it says of a window (its class token, from which the isolated model names a sign) is the feature of a time step.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slr.catalogue import check_clip
from slr.errors import Mistake
from slr.models.masked import Frames
from slr.models.mvit import VARIANTS, MViT, fit_table
from slr.models.mvit import build as build_isolated
from slr.models.sentence import GlossHead, SentenceModel

CHANNELS = 768


def windows(lengths: Tensor, window: int, stride: int) -> tuple[Tensor, Tensor]:
    """Of every time step of every item, in order: the item (W,), and the numbers of the frames it sees (W, window).

    Step t stands for the frames stride x t to stride x (t + 1), in the middle of its window; a number beyond the item
    becomes that of its first or last frame.
    """
    steps = -(-lengths // stride)
    item = torch.arange(len(lengths)).repeat_interleave(steps)
    step = torch.cat([torch.arange(int(count)) for count in steps])
    first = step * stride + (stride - window) // 2
    seen = first[:, None] + torch.arange(window)
    return item, torch.minimum(seen, lengths[item, None] - 1).clamp(min=0)


class MViTSentence(SentenceModel):
    """See SentenceModel: a time step each `stride` frames, features (N, T / stride, 768), of the window around it.

    An item may be shorter than a window: before its first frame and behind its last, these are repeated. `portion`
    windows pass at a time; where there are more and it trains, each portion is computed again on the way back, a third
    more work, so that memory holds the activations of one.
    """

    def __init__(self, isolated: MViT, classifier: GlossHead, stride: int, portion: int):
        super().__init__(isolated.backbone, classifier, stride)
        self.window, *self.sides = isolated.clip
        self.portion = portion

    def over_time(self, clips: Tensor, frames: Frames) -> Tensor:
        if list(clips.shape[3:]) != self.sides:
            raise ValueError(f"built for frames of (H, W) = {tuple(self.sides)}, given {tuple(clips.shape[3:])}")
        after = frames.strided(self.stride)
        item, seen = (numbers.to(clips.device) for numbers in windows(frames.lengths, self.window, self.stride))
        features = self._in_portions(clips, item, seen)
        out = features.new_zeros(len(clips) * after.steps, CHANNELS).index_copy_(0, after.index, features)
        return out.unflatten(0, (len(clips), after.steps))

    def resize(self, key: str, table: Tensor, shape: torch.Size) -> Tensor | None:
        """See TwoParts.resize."""
        return fit_table(key, table, shape)

    def _in_portions(self, clips: Tensor, item: Tensor, seen: Tensor) -> Tensor:
        portions = list(zip(item.split(self.portion), seen.split(self.portion), strict=True))
        if len(portions) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._look(clips, *portion) for portion in portions])
        return torch.cat([checkpoint(self._look, clips, *portion, use_reentrant=False) for portion in portions])

    def _look(self, clips: Tensor, item: Tensor, seen: Tensor) -> Tensor:
        """Windows that show the frames `seen` (W, window) of the items (W,) -> features (W, 768)."""
        return self.backbone(clips.movedim(2, 1)[item[:, None], seen].movedim(1, 2).contiguous())


def build(
    num_classes: int,
    *,
    frames: int,
    size: int,
    variant: str = "mvit_v2_s",
    drop_p: float = 0.1,
    width: int = 512,
    window: int = 16,
    stride: int = 4,
    portion: int = 32,
    drop_path: float | None = None,
    bn_momentum: float | None = None,
    weights: Path | str | None = None,
) -> MViTSentence:
    """`variant` mvit_v2_s or mvit_v1_b, for sentences of up to `frames` frames of `size` pixels and `num_classes`
    classes, the blank among them; a window of `window` frames each `stride` frames.

    `width` is the head's. `drop_path` is the last block's stochastic depth, 0.2 unless given, drawn for each window.
    """
    check_clip(f"{VARIANTS[variant][0]}_CTC", frames, size)
    if window < 1 or not 1 <= stride <= window or portion < 1:
        raise Mistake("these windows leave frames out", f"window = {window}, stride = {stride}, portion = {portion}",
                      "each is 1 or more, and a stride is no longer than a window")
    isolated = build_isolated(1, frames=window, size=size, variant=variant, drop_path=drop_path,
                              bn_momentum=bn_momentum, weights=weights)
    model = MViTSentence(isolated, GlossHead(CHANNELS, num_classes, width, drop_p), stride, portion)
    model.report = isolated.report
    return model
