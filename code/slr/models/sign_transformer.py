"""SignTransformer: frames, landmarks or both -> a vector a frame -> a vector of the sign -> a classifier a head.

    model = build(HEADS, extractor="cnn_extractor", model_path="efficientnet_b1", representation=512, frames=8,
                  size=(224, 224), transformer="sign_language_transformer", output_size=1024)
    logits = model(clips, None, lengths)        # (N, 3, T, H, W), (N,) -> {head: (N, classes)}

HearAI (https://www.hearai.pl). A sign's output is what it would be alone, whatever the batch is padded with and to: in
evaluation always, and in training for the statistics of batch-norm too, which count valid frames only.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from slr.errors import Mistake
from slr.models import extractors, landmark_nets, over_time
from slr.models.masked import Frames

EXTRACTOR = "feature_extractor."


class FeatureExtractor(nn.Module):
    """Clips (N, 3, T, H, W) and landmarks (N, T, L), each where there is a net for it -> (N, T, representation).

    Both are fused by a linear layer. Behind an item's end the output is 0.
    """

    def __init__(self, frames: nn.Module | None, landmarks: nn.Module | None, representation: int):
        super().__init__()
        self.frames, self.landmarks = frames, landmarks
        both = frames is not None and landmarks is not None
        self.fuse = nn.Linear(2 * representation, representation) if both else None

    def forward(self, frames: Tensor | None, landmarks: Tensor | None, valid: Frames) -> Tensor:
        given = [(self.frames, frames), (self.landmarks, landmarks)]
        seen = [net(tensor, valid) for net, tensor in given if net is not None]
        return seen[0] if self.fuse is None else valid.zero(self.fuse(torch.cat(seen, 2)), 1)


class SignTransformer(nn.Module):
    """Clips (N, 3, T, H, W), float and normalised, or None; landmarks (N, T, L) or None; lengths (N,) from 1 to T ->
    {head: logits (N, classes)}.

    transformer: None in pre-training, where the heads see the mean over each item's valid frames.
    Raises Mistake where an input is missing or is none that the model looks at, and for lengths out of range.
    """

    def __init__(self, feature_extractor: FeatureExtractor, transformer: nn.Module | None, width: int,
                 heads: Mapping[str, int]):
        super().__init__()
        self.feature_extractor, self.transformer = feature_extractor, transformer
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in heads.items()})

    def forward(self, frames: Tensor | None, landmarks: Tensor | None, lengths: Tensor) -> dict[str, Tensor]:
        valid = self._valid(frames, landmarks, lengths)
        features = self.feature_extractor(frames, landmarks, valid)
        over = over_time.mean_over if self.transformer is None else self.transformer
        sign = over(features, valid)
        return {name: head(sign) for name, head in self.heads.items()}

    def _valid(self, frames: Tensor | None, landmarks: Tensor | None, lengths: Tensor) -> Frames:
        extractor = self.feature_extractor
        for name, net, given in (("frames", extractor.frames, frames), ("landmarks", extractor.landmarks, landmarks)):
            if (net is None) != (given is None):
                raise Mistake(f"the model {'does not look' if net is None else 'looks'} at {name}",
                              f"the batch has {'some' if net is None else 'none'}")
        shapes = {x.shape[:2] for x in (None if frames is None else frames[:, 0], landmarks) if x is not None}
        if len(shapes) != 1 or {items for items, _ in shapes} != {len(lengths)}:
            raise Mistake("frames, landmarks and lengths are of different batches",
                          f"{sorted(map(tuple, shapes))} items and steps, {len(lengths)} lengths")
        device = cast(Tensor, frames if landmarks is None else landmarks).device
        return Frames(lengths, next(iter(shapes))[1], device)

    def load_extractor(self, state: Mapping[str, Tensor]) -> list[str]:
        """Take over `feature_extractor.…` of a checkpoint of pre-training; the names of its tensors.

        Raises Mistake unless each is there in its shape and none is left over; the model is then unchanged.
        """
        mine = {EXTRACTOR + key: value.shape for key, value in self.feature_extractor.state_dict().items()}
        theirs = {key: value for key, value in state.items() if key.startswith(EXTRACTOR)}
        wrong = [key for key, shape in mine.items() if key not in theirs or theirs[key].shape != shape]
        wrong += [key for key in theirs if key not in mine]
        if wrong:
            raise Mistake("the checkpoint's feature extractor is another one",
                          f"{wrong[0]} and {len(wrong) - 1} more tensors are missing, left over or of another shape",
                          "give both experiments the same feature_extractor section, landmarks and frame size")
        self.load_state_dict(theirs, strict=False)
        return list(theirs)


def build(
    heads: Mapping[str, int],
    *,
    extractor: str,
    representation: int,
    transformer: str,
    output_size: int,
    frames: int,
    size: tuple[int, int],
    parts: tuple[str, ...] = (),
    landmark_net: str = "landmark_extractor",
    model_path: str = "",
    pretrained: bool = False,
    feedforward: int | None = None,
    attention_heads: int | None = None,
    layers: int | None = None,
    dropout: float = 0.1,
    hidden: int = 768,
    transformer_folder: str = "",
    transformer_settings: str = "",
    pre_training: bool = False,
) -> SignTransformer:
    """A SignTransformer with these heads (name -> classes) for clips of up to `frames` frames.

    Args:
        extractor: one of extractors.EXTRACTORS for frames of `size` (height, width) pixels, or "": no frames.
        representation: numbers a frame, of the extractor's and the landmarks' net alike.
        transformer: one of over_time.TRANSFORMERS, to `output_size` numbers; with `pre_training` there is none.
        parts: of the landmarks, in order, for `landmark_net`, one of landmark_nets.LANDMARK_NETS; (): no landmarks.
        model_path, pretrained: see extractors.build.
        feedforward, attention_heads, layers, dropout, hidden, transformer_folder, transformer_settings: see
            over_time.build.

    Raises Mistake for unknown names, where there is nothing to look at, and where weights cannot be had.
    """
    if not heads or not (extractor or parts):
        raise Mistake("a SignTransformer needs heads, and frames or landmarks to look at",
                      f"heads: {', '.join(heads) or 'none'}; extractor: {extractor or 'none'}; "
                      f"landmarks: {' '.join(parts) or 'none'}", "name a feature extractor, or parts of the landmarks")
    seen = None
    if extractor:
        seen = extractors.build(extractor, representation, frames=frames, size=size, model_path=model_path,
                                pretrained=pretrained)
    points = landmark_nets.build(landmark_net, representation, parts) if parts else None
    features = FeatureExtractor(seen, points, representation)
    if pre_training:
        return SignTransformer(features, None, representation, heads)
    time = over_time.build(transformer, representation, output_size, frames=frames, feedforward=feedforward,
                           attention_heads=attention_heads, layers=layers, dropout=dropout, hidden=hidden,
                           folder=transformer_folder, settings=transformer_settings)
    return SignTransformer(features, time, output_size, heads)
