"""Isolated signs: one clip, one gloss, a torchvision video classifier and cross-entropy."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from slr import checkpoint, paths
from slr.catalogue import MODELS, builder_of, check_clip
from slr.config import Config
from slr.datasets import wlasl
from slr.datasets.clips import ClipDataset
from slr.errors import Mistake
from slr.loading import EpochBatches, build_loader, worker_count
from slr.losses import mixed_cross_entropy
from slr.metrics import topk
from slr.models.classifier import Classifier, init_from
from slr.models.weights import from_old
from slr.paths import shown
from slr.runtime import Runtime
from slr.task import Sums, Task
from slr.tasks import isolated_report, starting
from slr.transforms import Augment, mixup, to_input
from slr.video import open_source


class Isolated(Task):
    """The task `isolated`: batches hold ids, frames (N, T, S, S, 3) uint8, labels (N,) and draws (N, 6)."""

    graphs: ClassVar[tuple[str, ...]] = isolated_report.GRAPHS
    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "test": ("test", {}), "val": ("val", {}), "test_shuff": ("test", {"shuffle": True})}

    def __init__(self, config: Config, runtime: Runtime, model: Classifier, classes: list[str]):
        self.config, self.runtime, self.classes = config, runtime, classes
        self.root = paths.data_root(config.data.root)
        self.entry = MODELS[config.model]
        self.split = config.split  # or, to test elsewhere, the path of a folder with prepared labels
        self.order: list[int] | None = None  # of the frames, where a test shuffles them
        self._clips: dict[str, list[wlasl.Clip]] = {}
        self._numbers = {gloss: number for number, gloss in enumerate(classes)}
        self.model: Classifier = model.to(runtime.device)
        if starting.channels_last(config, runtime.device.type):
            self.model = self.model.to(memory_format=torch.channels_last_3d)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Isolated":
        """For training: classes from the prepared labels, weights as the config says; else both from `meta`."""
        root = paths.data_root(config.data.root)
        classes = wlasl.load_classes(root, config.split) if meta is None else list(meta["classes"])
        weights = starting.pretrained(config) if meta is None else None
        keys = config.model_params
        entry = MODELS[config.model]
        extra = {"bn_momentum": starting.momentum(config)} if entry.batch_norm else {}
        if entry.drop_path is not None:
            extra["drop_path"] = keys.drop_path
        model = builder_of(config.model)(len(classes), frames=config.data.num_frames, size=config.data.frame_size,
                                         drop_p=keys.drop_p, weights=weights, **extra)
        if meta is None and keys.init_from:
            _start_from(model, keys.init_from, config.model, classes)
        return cls(config, runtime, model, classes)

    def meta(self) -> dict[str, Any]:
        data = self.config.data
        return {"classes": self.classes, "mean": list(self.entry.mean), "std": list(self.entry.std),
                "num_frames": data.num_frames, "frame_size": data.frame_size, "crop": data.crop,
                "eval_resize": data.eval_resize, "subtract_clip_mean": data.subtract_clip_mean,
                "data_hash": wlasl.data_hash(self.root, self.split)}

    def groups(self) -> list[dict[str, Any]]:
        check_clip(self.config.model, self.config.data.num_frames, self.config.data.frame_size,
                   training_on_cpu=self.runtime.device.type == "cpu")
        return starting.groups(self.config, self.model)

    def clips(self, part: str) -> list[wlasl.Clip]:
        """The clips of a set, read once; none where the split has no such set."""
        if part not in self._clips:
            self._clips[part] = [self._renumbered(clip) for clip in wlasl.load_clips(self.root, self.split, part)]
        return self._clips[part]

    def _renumbered(self, clip: wlasl.Clip) -> wlasl.Clip:
        """The clip with this model's number of its gloss, whatever the labels' own order is."""
        if clip.gloss not in self._numbers:
            raise Mistake(f"clip {clip.id} has a gloss that this model does not know", clip.gloss,
                          f"it knows {len(self.classes)} others; test it on the split it was trained on")
        return replace(clip, label=self._numbers[clip.gloss])

    def keep_first_items(self, first: int) -> None:
        """Train on the first clips alone, and validate on the same (training.py --overfit)."""
        self._clips["train"] = self._clips["val"] = self.clips("train")[:first]

    def load(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Also takes the old program's names of weights."""
        checkpoint.load_weights(self.model, from_old(state, self.config.model), source)

    def size(self, part: str) -> int:
        return len(self.clips(part))

    def loader(self, part: str, train: bool) -> Any:
        data, seed = self.config.data, self.config.experiment.seed
        name = wlasl.split_name(self.root, self.split)
        source = open_source(data.store, wlasl.videos_folder(self.root, self.split),
                             paths.store(self.root, data.store, name), data.crop)
        missing = source.missing(self.clips(part))
        if missing:
            raise Mistake(f"{len(missing)} of {self.size(part)} clips of the {part} set are not there any more",
                          ", ".join(missing[:5]), f"run python preprocess.py -as {name}"
                          + (f" --store {data.store}" if data.store != "video" else "") + " again")
        augment = Augment(data.min_scale, data.max_aspect, data.hflip, data.jitter, data.jitter_p,
                          self.config.training.mixup) if train else None
        dataset = ClipDataset(self.clips(part), source, num_frames=data.num_frames, frame_size=data.frame_size,
                              seed=seed, eval_resize=data.eval_resize, augment=augment,
                              jitter_frames=data.jitter_frames, recipe=starting.recipe(data, train))
        batches = EpochBatches(len(dataset), self.config.training.batch_size, shuffle=train, seed=seed,
                               rank=self.runtime.rank, world=self.runtime.world,
                               pairs=train and self.config.training.mixup > 0)
        device = self.runtime.device.type
        return build_loader(dataset, batches, workers=worker_count(data.workers, device), prefetch=data.prefetch,
                            pin_memory=data.pin_memory and device == "cuda")

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        """Adds inputs (N, 3, T, S, S) float32, and in training each item's mixup partner and share."""
        device = self.runtime.device
        inputs = to_input(batch["frames"].to(device, non_blocking=True), batch["draws"], self.entry.mean,
                          self.entry.std, subtract_clip_mean=self.config.data.subtract_clip_mean)
        ready = {**batch, "labels": batch["labels"].to(device, non_blocking=True), "train": train}
        if train and self.config.training.mixup:
            inputs, ready["other"], ready["share"] = mixup(inputs, batch["draws"].to(device))
        if not train and self.order is not None:
            inputs = inputs[:, :, self.order]
        if not starting.channels_last(self.config, self.runtime.device.type):
            inputs = inputs.contiguous()
        return {**ready, "inputs": inputs}

    def losses(self, output: torch.Tensor, batch: dict[str, Any]) -> Sums:
        """Cross-entropy (smoothed and mixed in training, plain in evaluation) and the share of right answers."""
        labels, n = batch["labels"], len(output)
        other = batch.get("other", torch.arange(n, device=output.device))
        share = batch.get("share", torch.ones(n, device=output.device))
        smoothing = self.config.training.label_smoothing if batch["train"] else 0.0
        right = (output.detach().argmax(1) == labels).sum()
        return {"loss": (mixed_cross_entropy(output, labels, other, share, smoothing), n), "acc": (right, n)}

    def decode(self, output: torch.Tensor, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, label, logits (K,) float32 array}."""
        labels = batch["labels"].tolist() if "labels" in batch else [None] * len(output)
        return [{"id": name, "label": label, "logits": logits} for name, label, logits in
                zip(batch["ids"], labels, output.cpu().numpy().astype(np.float32), strict=True)]

    def vary(self, *, shuffle: bool = False, seed: int = 42, **options: Any) -> None:
        """Shuffled frames: one permutation for all clips, from the seed."""
        super().vary(**options)
        self.order = topk.permutation(self.config.data.num_frames, seed) if shuffle else None

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The seed's BaseRes, or with shuffled frames its ShuffRes: accuracies as decimals, mean cross-entropy."""
        logits, labels = _table(records)
        if self.order is None:
            return dict(topk.base_result(logits, labels))
        return dict(topk.shuffled_result(logits, labels, self.order))

    def summary(self, records: list[dict[str, Any]]) -> str:
        return isolated_report.summary(*_table(records), self.classes)

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """predictions.csv and details.json (unless tables=False), and the pictures that `graphs` names."""
        logits, labels = _table(records)
        signers = {clip.id: clip.signer for part in self._clips.values() for clip in part}
        return isolated_report.write(logits, labels, [row["id"] for row in records],
                                     [signers.get(row["id"]) for row in records], self.classes, folder, name,
                                     title=f"{self.config.model} on {self.config.split}, {name}", **options)


def _table(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and labels (N,) of the records."""
    return np.stack([row["logits"] for row in records]), np.array([row["label"] for row in records])


def _start_from(model: Classifier, where: str, name: str, classes: list[str]) -> None:
    """Weights of another experiment: a checkpoint file, or MODEL/SPLIT/EXP_NO for its best.pth."""
    path = starting.checkpoint_of(where)
    content = checkpoint.load(path)
    if content.get("model", name) != name:
        raise Mistake(f"{shown(path)} is of another model", f"{content['model']}, this is {name}",
                      "set model_params.init_from to a checkpoint of the same MODEL")
    if "meta" not in content:
        raise Mistake(f"{shown(path)} does not say which glosses it knows", "it is the old program's",
                      "set model_params.weights to it: its backbone is taken over, the head starts fresh")
    state = from_old(content["model_state_dict"], name)
    model.report = init_from(model, state, content["meta"]["classes"], classes)
