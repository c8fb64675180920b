"""What tasks on clips with words to them share: the sets, batches of frames or of what DINOv2 sees in them, weights to
start from, and the optimiser's groups. Transcription and its pre-training stand on this."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from slr import checkpoint, paths
from slr.catalogue import MODELS
from slr.config import LENGTHS, Config
from slr.datasets import footage, sentence_clips
from slr.datasets.footage import SeenCache
from slr.datasets.sentence_clips import SeenDataset, SentenceDataset
from slr.datasets.sentences import Sentence
from slr.errors import Mistake
from slr.loading import EpochBatches, Key, build_loader, worker_count
from slr.models import encoders
from slr.models.encoders import Encoder, Rates
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatialNet
from slr.paths import shown
from slr.runtime import Runtime, generator
from slr.tasks import spatial, starting
from slr.tasks.sets import OnSets
from slr.transforms import Augment, to_input

Content = dict[str, Any]
MEASURED = 100  # training clips whose features' mean and deviation are taken
MASKS = "mask"  # what the random numbers of an item's masks are called, so that they are not those of its frames


class OnClips(OnSets):
    """Batches are those of `sentence_clips.packed`; `prepare` adds inputs, which are (N, 3, T, S, S) normalised, or
    with `eye` what that sees of them, (N, T, C); and `rngs`, a generator an item for what is masked.

    numbers: of the words; eye: the frozen DINOv2 of SpatioTemporal; seen_by: what a checkpoint has to know of it.
    """

    numbers: dict[str, int]

    def __init__(self, config: Config, runtime: Runtime, model: nn.Module, eye: SpatialNet | None,
                 seen_by: dict[str, Any] | None):
        super().__init__()
        self.config, self.runtime, self.split = config, runtime, config.split
        self.root, self.entry = paths.data_root(config.data.root), MODELS[config.model]
        self.model = model.to(runtime.device)
        self.eye = eye.to(runtime.device) if eye else None
        self.seen_by = seen_by
        self.numbers = {}
        self.black = False
        self._standard: tuple[Tensor, Tensor] | None = None

    # --- data -----------------------------------------------------------------------------------------------

    @property
    def least(self) -> int:
        """Frames of the shortest clip that the model can look at."""
        return self.config.encoder.tubelet if self.config.encoder and not self.config.spatial else 1

    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]:
        """All clips of a set; of the training set those that something can be learnt from."""
        found = footage.load(self.root, self.split, part)
        if part != "train":
            return found, {}
        reasons = {s.id: why for s in found if (why := self.useless(s))}
        return [s for s in found if s.id not in reasons], footage.left_out(self.root, self.split) | reasons

    def useless(self, sentence: Sentence) -> str:
        """Why nothing can be learnt from a clip; "" where it can."""
        if sentence.frames is None:
            return "prepared without frames"
        if sentence_clips.longest(sentence.num_frames, sentence.num_frames, self.config.data.frame_stride) < self.least:
            return f"{sentence.num_frames} frames are too few"
        return ""

    def dataset(self, found: list[Sentence], train: bool) -> SentenceDataset:
        """These clips as training, or else as evaluation looks at them."""
        data, cache = self.config.data, self.cache
        options: dict[str, Any] = {
            "num_frames": data.num_frames, "frame_size": data.frame_size, "frame_stride": data.frame_stride,
            "multiple": LENGTHS, "seed": self.config.experiment.seed, "eval_resize": data.eval_resize,
            "augment": Augment(data.min_scale, data.max_aspect, data.hflip, data.jitter, data.jitter_p) if train
            else None, "jitter_frames": data.jitter_frames, "jitter_length": data.jitter_length,
            "recipe": starting.recipe(data, train),
            "windows": self.config.experiment.task == "pretraining", "stride": self.least}
        if cache is None:
            return SentenceDataset(found, self.numbers, **options)
        return SeenDataset(found, self.numbers, cache.read, **options)

    def loader(self, part: str, train: bool) -> Any:
        data, device, found = self.config.data, self.runtime.device.type, self.sentences(part)
        _refuse_missing(found, part, self.split)
        self._fill_cache(found, part)
        dataset = self.dataset(found, train)
        batches = EpochBatches(len(dataset), self.config.training.batch_size, shuffle=train,
                               seed=self.config.experiment.seed, rank=self.runtime.rank, world=self.runtime.world,
                               lengths=dataset.lengths, short_first=data.short_first if train else 0)
        return build_loader(dataset, batches, workers=worker_count(data.workers, device), prefetch=data.prefetch,
                            pin_memory=data.pin_memory and device == "cuda", collate_fn=sentence_clips.packed)

    # --- what a frozen net sees -----------------------------------------------------------------------------

    @property
    def cache(self) -> SeenCache | None:
        """Where that is kept; None where it is not, or black frames are looked at."""
        keys, data = self.config.spatial, self.config.data
        if not keys or not keys.cache or self.black or not self.keeps:
            return None
        made_with = {"eye": self.seen_by and self.seen_by["weights"], "frame_size": data.frame_size,
                     "eval_resize": data.eval_resize, "subtract_clip_mean": data.subtract_clip_mean}
        return SeenCache(paths.seen(self.root, Path(self.split).name), made_with, self.root)

    def _fill_cache(self, found: list[Sentence], part: str) -> None:
        """See what was not seen yet; several processes share the work."""
        if (cache := self.cache) is None:
            return
        missing = cache.missing(found)
        self.runtime.wait()  # all have looked before one of them writes, so the shares are even and apart
        mine = missing[self.runtime.rank::self.runtime.world]
        if missing and self.runtime.main:
            tqdm.write(f"DINOv2 looks once at {len(missing)} clips of {part}: {shown(cache.folder)}", sys.stderr)
        data = self.config.data
        dataset = SentenceDataset(mine, {}, num_frames=max((s.num_frames for s in mine), default=1),
                                  frame_size=data.frame_size, eval_resize=data.eval_resize)
        for item in tqdm(range(len(mine)), desc=f"DINOv2 looks at {part}", unit="clip", leave=False,
                         disable=not (mine and sys.stderr.isatty() and self.runtime.main)):
            batch = sentence_clips.packed([dataset[Key(0, item)]])
            cache.add(mine[item], self.see(batch, whole=True)[0].float().cpu().numpy())
        self.runtime.wait()

    @property
    def standard(self) -> tuple[Tensor, Tensor] | None:
        """(Mean, deviation), each (C,), of what DINOv2 sees; None where it is taken as it is."""
        if self._standard is None and self.seen_by and "mean" in self.seen_by:
            mean, deviation = (torch.tensor(self.seen_by[name], device=self.runtime.device)
                               for name in spatial.STANDARD)
            self._standard = mean, deviation
        return self._standard

    def standardise(self, older: dict[str, tuple[Content, str]]) -> None:
        """Find out mean and deviation, where they are wanted: those of the encoder that this starts from, or over some
        of the training clips, evenly from all over them."""
        if not self.config.spatial or self.seen_by is None:
            return
        for content, name in older.values():
            self._refuse_other_eye(content["meta"], name)
        if not self.config.spatial.standardise:
            return
        before = [content["meta"]["spatial"] for content, _ in older.values() if content["meta"].get("spatial")]
        if before and "mean" in before[0]:
            self.seen_by |= {name: before[0][name] for name in spatial.STANDARD}
            return
        found = self.sentences("train")
        some = found[::max(1, len(found) // MEASURED)][:MEASURED]
        data = self.config.data
        dataset = SentenceDataset(some, {}, num_frames=data.num_frames, frame_size=data.frame_size,
                                  eval_resize=data.eval_resize, frame_stride=data.frame_stride)
        if some:
            seen = torch.cat([self.see(sentence_clips.packed([dataset[Key(0, item)]]), whole=True)[0].double()
                              for item in range(len(some))])
            deviation = seen.std(0, correction=0) + 1e-6
            self.seen_by |= {"mean": seen.mean(0).float().tolist(), "deviation": deviation.float().tolist()}

    def _refuse_other_eye(self, meta: dict[str, Any], name: str) -> None:
        """Raises Mistake where the encoder of a checkpoint has learnt from other features."""
        before, mine = meta.get("spatial"), self.facts()
        if not before or not self.config.spatial:
            return
        other = [key for key in ("frame_size", "eval_resize", "subtract_clip_mean") if meta[key] != mine[key]]
        if other:
            raise Mistake(f"{name} was trained on other features", f"data.{other[0]} = {meta[other[0]]}, here "
                          f"{mine[other[0]]}", "give both experiments the same")
        if before["weights"] != mine["spatial"]["weights"] or ("mean" in before) != self.config.spatial.standardise:
            raise Mistake(f"{name} was trained on other features", "another DINOv2, or standardised otherwise",
                          "give both experiments the same [spatial]")

    def see(self, batch: dict[str, Any], whole: bool = False) -> Tensor:
        """(N, T, C) of a batch with frames; `whole`: in fp32, as what is kept."""
        assert self.eye
        frames = Frames(batch["lengths"], int(batch["lengths"].max()), self.runtime.device)
        dtype = torch.float32 if whole else self.runtime.precision(self.config.training.precision)
        with self.runtime.autocast(dtype):
            return self.eye(self.clips(batch), frames).float()

    # --- batches --------------------------------------------------------------------------------------------

    def clips(self, batch: dict[str, Any]) -> Tensor:
        """(N, 3, T, S, S) float32 on the device, normalised, zeros behind an item's end."""
        lengths, device, data = batch["lengths"], self.runtime.device, self.config.data
        size = batch["frames"].shape[1]
        inputs = torch.zeros(len(lengths), 3, int(lengths.max()), size, size, device=device)
        for row, frames, draws in zip(inputs, sentence_clips.split(batch), batch["draws"], strict=True):
            frames = torch.zeros_like(frames) if self.black else frames
            row[:, :len(frames)] = to_input(frames[None].to(device, non_blocking=True), draws[None], self.entry.mean,
                                            self.entry.std, subtract_clip_mean=data.subtract_clip_mean)[0]
        return inputs

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        batch = self._lengthened(batch)
        if "features" in batch:
            parts = sentence_clips.split(batch, "features")
            inputs = pad_sequence(list(parts), batch_first=True).to(self.runtime.device, non_blocking=True)
        else:
            inputs = self.see(batch) if self.eye else self.clips(batch)
        if (standard := self.standard) is not None:
            frames = Frames(batch["lengths"], inputs.shape[1], inputs.device)
            inputs = frames.zero((inputs - standard[0]) / standard[1], 1)
        seed = self.config.experiment.seed
        rngs = [generator(seed, int(epoch), f"{name}|{MASKS}")
                for epoch, name in zip(batch["epoch"], batch["ids"], strict=True)]
        return {**batch, "inputs": inputs, "rngs": rngs, "train": train}

    def _lengthened(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Clips of a test that are shorter than a tubelet stand still at their end."""
        if int(batch["lengths"].min()) >= self.least:
            return batch
        parts = [torch.cat([part, part[-1:].expand(self.least - len(part), *part.shape[1:])]) if len(part) < self.least
                 else part for part in sentence_clips.split(batch)]
        return {**batch, "frames": torch.cat(parts), "lengths": batch["lengths"].clamp(min=self.least)}

    # --- tests ----------------------------------------------------------------------------------------------

    def vary(self, *, black: bool = False, **options: Any) -> None:
        """Black frames, as many as there were: a control that has to fail."""
        super().vary(**options)
        self.black = black

    def facts(self) -> dict[str, Any]:
        """What every checkpoint of these tasks has in its meta."""
        data = self.config.data
        return {"mean": list(self.entry.mean), "std": list(self.entry.std), "num_frames": data.num_frames,
                "frame_size": data.frame_size, "frame_stride": data.frame_stride, "eval_resize": data.eval_resize,
                "subtract_clip_mean": data.subtract_clip_mean, "spatial": self.seen_by,
                "data_hash": footage.data_hash(self.root, self.split)}


def _refuse_missing(found: list[Sentence], part: str, split: str) -> None:
    """Raises Mistake for a set that was prepared without frames."""
    if found and all(sentence.frames is None for sentence in found):
        raise Mistake(f"the {part} set of {split} has no frames", "it was prepared with --no_frames",
                      f"run: python preprocess.py -as {split}")


# --- encoders and their weights -----------------------------------------------------------------------------

def rates_of(config: Config) -> Rates:
    keys = config.encoder
    assert keys
    return Rates(keys.dropout, keys.layerdrop, Spans(keys.mask_share, keys.mask_length, keys.mask_least))


def new_encoder(config: Config, eye: SpatialNet | None) -> Encoder:
    """As the config says: out of a folder that transformers has saved, or untrained."""
    keys, data, kind = config.encoder, config.data, config.model.removesuffix("Pretrain")
    assert keys
    if config.model_params.weights:
        net = encoders.from_folder(kind, config.model_params.weights, rates_of(config))
        _refuse_other_clips(net, config, eye)
        return net
    plain: dict[str, Any] = {"kind": kind, "layers": keys.layers, "heads": keys.heads, "ffn": keys.ffn}
    if eye is None:
        plain |= {"frames": data.num_frames, "size": data.frame_size, "width": keys.width, "patch": keys.patch,
                  "tubelet": keys.tubelet}
    else:
        plain |= {"width": eye.width, "kernel": keys.kernel, "groups": keys.groups}
    return encoders.build(plain, rates_of(config))


def _refuse_other_clips(net: Encoder, config: Config, eye: SpatialNet | None) -> None:
    plain = encoders.sizes_of(net)
    wanted = {"width": eye.width} if eye else {"frames": config.data.num_frames, "size": config.data.frame_size}
    names = {"width": "numbers of a frame", "frames": "data.num_frames", "size": "data.frame_size"}
    for name, value in wanted.items():
        if plain[name] != value:
            raise Mistake(f"the encoder in {config.model_params.weights} looks at other clips",
                          f"{names[name]}: {plain[name]}, here {value}",
                          f"set {names[name]} = {plain[name]}" if not eye else "give the DINOv2 that it goes with")


def settled(config: Config, net: Encoder) -> Config:
    """The config with the encoder's own sizes in the place of what it says of them."""
    assert config.encoder
    plain = encoders.sizes_of(net)
    return replace(config, encoder=replace(config.encoder, **{
        name: plain[name] for name in ("layers", "heads", "ffn", "width", "patch", "tubelet", "kernel", "groups")
        if name in plain}))


def as_trained(config: Config, meta: dict[str, Any]) -> Config:
    """The config with a checkpoint's sizes in the place of what it says of DINOv2, of the decoder and of the heads."""
    for section, names in (("language_decoder", {}), ("pretraining", config_names(config.model)), ("spatial", {})):
        keys, plain = getattr(config, section), meta.get(section)
        if keys and plain:
            own = {names.get(name, name): value for name, value in plain.items()}
            config = replace(config, **{section: replace(keys, **{k: v for k, v in own.items()
                                                           if hasattr(keys, k) and k != "dinov2"})})
    return config


def config_names(model: str) -> dict[str, str]:
    """What the .ini calls the sizes of a pre-training's heads."""
    if model == "VideoMAEPretrain":
        return {"width": "decoder_width", "layers": "decoder_layers", "heads": "decoder_heads", "ffn": "decoder_ffn"}
    return {"groups": "code_groups", "codes": "codes", "dim": "code_dim", "compared": "compare_dim"}


def see(config: Config, meta: dict[str, Any] | None) -> tuple[SpatialNet | None, dict[str, Any] | None]:
    """(DINOv2, what a checkpoint has to know of it): the config's, or a checkpoint's."""
    if meta is None:  # a mistake there is found before weights are fetched
        footage.load(paths.data_root(config.data.root), config.split, "train")
    if not config.spatial:
        return None, None
    return spatial.opened(config) if meta is None else spatial.again(meta["spatial"], config)


# --- where weights come from --------------------------------------------------------------------------------

def older(config: Config, kinds: Sequence[str]) -> dict[str, tuple[Content, str]]:
    """{MODEL: (checkpoint, its name)} of what model_params.init_from names, each one of `kinds`, each once.

    Raises Mistake for another one.
    """
    found: dict[str, tuple[Content, str]] = {}
    for path in starting.checkpoints_of(config.model_params.init_from) if config.model_params.init_from else ():
        content = checkpoint.load(path)
        kind = str(content.get("model", "an unknown model"))
        if kind not in kinds or kind in found:
            raise Mistake(f"{config.model} does not start from {shown(path)}",
                          f"it is of {kind}{', as another one is' if kind in found else ''}",
                          f"give at most one of each of {', '.join(kinds)}")
        found[kind] = content, shown(path)
    return found


def refuse_other_sizes(content: Content, part: str, own: dict[str, Any], name: str) -> None:
    """Raises Mistake where a part of a checkpoint has other sizes than ours: of heads its weights do not tell. How long
    and large its clips were does not matter."""
    found = content.get("meta", {}).get(part, {})
    for key, value in own.items():
        if key not in ("frames", "size") and found.get(key, value) != value:
            raise Mistake(f"{name} has other sizes", f"{part}, {key}: {found[key]}, here {value}",
                          "give both experiments the same sizes")


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a submodule, under the names that they have there."""
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


def groups(config: Config, parts: dict[str, Sequence[nn.Module]]) -> list[dict[str, Any]]:
    """Optimiser groups of {backbone or classifier: its modules}: no weight decay for biases and layer-norms."""
    found = []
    for name, modules in parts.items():
        rate, decay = (getattr(config.optimizer, f"{name}_{end}") for end in ("init_lr", "weight_decay"))
        weights = [w for module in modules for w in module.parameters() if w.requires_grad]
        for ending, held, own in (("", [w for w in weights if w.ndim > 1], decay),
                                  ("_bare", [w for w in weights if w.ndim < 2], 0.0)):
            if held:
                found.append({"name": name + ending, "params": held, "lr": rate, "weight_decay": own})
    return found
