"""Signs as symbols: one clip, several heads, such as HamNoSys's hand shape and location, or a gloss."""

import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from slr import checkpoint, hamnosys, paths
from slr.catalogue import builder_of
from slr.config import Config
from slr.datasets import hearai
from slr.datasets.hearai_clips import Pictures, SignDataset, read_pictures
from slr.errors import Mistake
from slr.loading import EpochBatches, build_loader, worker_count
from slr.losses import class_weights, over_heads
from slr.metrics import heads as metrics
from slr.models import extractors
from slr.models import over_time as over_time_net
from slr.models.sign_transformer import SignTransformer
from slr.paths import SETS, shown
from slr.runtime import Runtime
from slr.sections import LANDMARK_NETS, TransformerSection
from slr.task import Sums, Task
from slr.tasks import multihead_report, starting
from slr.transforms import to_input

MOVEMENT = (48 / 255,) * 3  # what pictures without their mean over time are divided by


class Multihead(Task):
    """The task `multihead`: batches hold ids, lengths (N,), labels (N, K) with -1 for a missing one, and frames (N, T,
    H, W, 3) uint8, landmarks (N, T, L), or both."""

    graphs: ClassVar[tuple[str, ...]] = multihead_report.GRAPHS
    headline: ClassVar[tuple[str, float]] = ("f1", 100.0)
    table: ClassVar[str] = "heads"
    generates: ClassVar[bool] = True

    def __init__(self, config: Config, runtime: Runtime, model: SignTransformer, meta: dict[str, Any]):
        assert config.multihead and config.heads and config.augmentations
        self.config, self.runtime, self.split = config, runtime, config.split
        self.keys, self._meta = config.multihead, meta
        self.heads = heads_of(config)
        self.weights = {"loss": 1.0}
        self.parts = tuple(self.keys.landmarks.split())
        self.model: SignTransformer = model.to(runtime.device)
        for weight in self.model.parameters():
            if weight.ndim == 4:  # nets for pictures are faster so, on a CPU too
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._sets: dict[str, list[hearai.Sample]] = {}
        self._by_id: dict[str, hearai.Sample] = {}
        self._left_out: dict[str, str] = {}
        self._overfits = False
        self._weights: list[Tensor | None] | None = None

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Multihead":
        """For training: symbols and dictionary beside the data, weights as the config says; else all from `meta`."""
        assert config.multihead and config.feature_extractor and config.transformer
        facts = meta or _facts(config)
        keys, over_time = config.feature_extractor, config.transformer
        model = builder_of(config.model)(
            {name: classes for name, (classes, _) in heads_of(config).items()},
            extractor=keys.name if looks_at_frames(config) else "", representation=keys.representation_size,
            landmark_net=keys.landmark_net if looks_at_frames(config) else keys.name, model_path=keys.model_path,
            parts=tuple(config.multihead.landmarks.split()), frames=config.data.num_frames, size=tuple(facts["size"]),
            transformer=over_time.name, output_size=over_time.output_size, dropout=over_time.dropout_rate,
            pre_training=config.multihead.pre_training, pretrained=meta is None and config.model_params.pretrained,
            **(_sizes(over_time) if meta is None or not meta["hubert"] else {"transformer_settings": meta["hubert"]}))
        if meta is None and config.model_params.init_from:
            _start_from(model, config.model_params.init_from, config)
        return cls(config, runtime, model, {**facts, "hubert": over_time_net.settings_of(model.transformer)})

    def meta(self) -> dict[str, Any]:
        return {**self._meta, "data_hash": self._data_hash()}

    def groups(self) -> list[dict[str, Any]]:
        """The extractor is the backbone, everything behind it the classifier; biases and norms do not decay."""
        keys, made = self.config.optimizer, dict[str, dict[str, Any]]()
        rates = {"backbone": (keys.backbone_init_lr, keys.backbone_weight_decay),
                 "classifier": (keys.classifier_init_lr, keys.classifier_weight_decay)}
        for name, weight in self.model.named_parameters():
            part = "backbone" if name.startswith("feature_extractor.") else "classifier"
            decays = weight.ndim > 1
            group = made.setdefault(part + ("" if decays else "_no_decay"), {
                "name": part + ("" if decays else "_no_decay"), "params": [], "lr": rates[part][0],
                "weight_decay": rates[part][1] if decays else 0.0})
            group["params"].append(weight)
        return list(made.values())

    # --- data -----------------------------------------------------------------------------------------------

    def samples(self, part: str) -> list[hearai.Sample]:
        """The signs of a set, read once: of its own paths, or its share of data_paths."""
        if part not in self._sets:
            own = {"val": self.keys.val_paths, "test": self.keys.test_paths}
            if self.split != self.config.split:  # a folder to test on
                self._sets[part] = self._found([self.split]) if part == "test" else []
            elif own.get(part):
                self._sets[part] = self._found(own[part])
            else:
                self._sets |= self._shared([name for name, there in own.items() if not there])
            self._by_id = {sample.id: sample for samples in self._sets.values() for sample in samples}
        return self._sets[part]

    def _shared(self, others: list[str]) -> dict[str, list[hearai.Sample]]:
        """data_paths, shared out among training and the other sets that have no paths of their own."""
        keys = self.keys
        train = keys.ratio_train_test if others else 1.0
        shares = (train, *((1 - train) / max(len(others), 1) if part in others else 0.0 for part in SETS[1:]))
        sets = hearai.split(self._found(keys.data_paths), shares, keys.split_by, self.config.experiment.seed)
        return {part: sets[part] for part in ("train", *others)}

    def _found(self, folders: Any) -> list[hearai.Sample]:
        """The samples of these data paths, notices said, what is left out remembered."""
        samples = []
        for folder in folders:
            found = hearai.read_samples(
                data_path(self.config, folder), self.keys.annotation_file,
                {name: classes for name, (classes, _) in self.heads.items()}, self.keys.separator or None,
                needs_frames=looks_at_frames(self.config), needs_landmarks=bool(self.parts), parts=self.parts)
            for notice in found.notices if self.runtime.main else ():
                print(f"note: {notice}", file=sys.stderr)
            above = Path(folder).parent  # by it, sets whose last folders are called alike have other ids
            before = "" if above in (Path("."), Path(folder)) else f"{above}/"
            self._left_out |= {before + name: why for name, why in found.left_out.items()}
            samples += [replace(sample, id=before + sample.id) for sample in found.samples]
        return samples

    def _data_hash(self) -> str:
        """Of all sets' items and labels."""
        if not self._overfits:
            _refuse_twice({part: self.samples(part) for part in SETS})
        rows = [(part, sample.id, sorted(sample.labels.items())) for part in SETS for sample in self.samples(part)]
        return f"{zlib.crc32(repr(rows).encode()):08x}"

    def size(self, part: str) -> int:
        return len(self.samples(part))

    def left_out(self) -> dict[str, str]:
        self.samples("train")
        return self._left_out

    def keep_first_items(self, first: int) -> None:
        """Train on the first signs alone, and validate on the same (training.py --overfit)."""
        kept = self.samples("train")[:first]
        self._sets, self._overfits = {"train": kept, "val": kept, "test": self.samples("test")}, True

    def loader(self, part: str, train: bool) -> Any:
        data, seed = self.config.data, self.config.experiment.seed
        dataset = SignDataset(self.samples(part), list(self.heads), segments=data.num_frames, time=self.keys.time,
                              parts=self.parts, pictures=pictures_of(self.config), train=train, seed=seed)
        batches = EpochBatches(len(dataset), self.config.training.batch_size, shuffle=train, seed=seed,
                               rank=self.runtime.rank, world=self.runtime.world)
        device = self.runtime.device.type
        return build_loader(dataset, batches, workers=worker_count(data.workers, device), prefetch=data.prefetch,
                            pin_memory=data.pin_memory and device == "cuda")

    # --- one batch ------------------------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        """Adds pictures (N, 3, T, H, W) where there are frames; lengths stay on the CPU."""
        device = self.runtime.device
        ready: dict[str, Any] = {**batch, "train": train}
        for name in ("labels", "landmarks"):
            if name in batch:
                ready[name] = batch[name].to(device, non_blocking=True)
        if "frames" in batch:
            ready["pictures"] = self._pictures(batch["frames"].to(device, non_blocking=True), batch)
        return ready

    def _pictures(self, frames: Tensor, batch: dict[str, Any]) -> Tensor:
        """Coloured as the clip's draw says and normalised; without their mean over time where the config says so."""
        moving = self.config.data.subtract_clip_mean
        mean, std = ((0.0,) * 3, MOVEMENT) if moving else (self._meta["mean"], self._meta["std"])
        inputs = to_input(frames, batch["draws"], mean, std)
        if moving:  # to_input's own would count padding
            steps = torch.arange(inputs.shape[2]) < batch["length"][:, None]
            valid = steps.to(inputs.device)[:, None, :, None, None]
            inputs = inputs - (inputs * valid).sum(2, keepdim=True) / valid.sum(2, keepdim=True)
        return inputs

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        found = model(batch.get("pictures"), batch.get("landmarks"), batch["length"])
        return {name: logits.float() for name, logits in found.items()}

    def losses(self, output: dict[str, Tensor], batch: dict[str, Any]) -> Sums:
        """The heads' weighted mean loss of each sign over what is known of it, and the share of right symbols."""
        labels = batch["labels"]
        train = batch["train"]
        loss = over_heads(list(output.values()), labels, [weight for _, weight in self.heads.values()],
                          binary=self.keys.loss == "bce", rare=self._rare(labels.device) if train else None,
                          smoothing=self.config.training.label_smoothing if train else 0.0)
        known = labels >= 0
        right = torch.stack([logits.detach().argmax(1) for logits in output.values()], 1) == labels
        return {"loss": loss, "acc": ((right & known).sum(), int(known.sum()))}

    def _rare(self, device: torch.device) -> list[Tensor | None]:
        """Of each head the weights of its classes, by how rare they are in training."""
        if self._weights is None:
            each = [[sample.labels.get(name, -1) for sample in self.samples("train")] for name in self.heads]
            self._weights = [class_weights(torch.tensor(found), classes).to(device) if self.keys.class_weights else None
                             for found, (classes, _) in zip(each, self.heads.values(), strict=True)]
        return self._weights

    def decode(self, output: dict[str, Tensor], batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, signer, gloss, labels, scores}: of each head the log-probabilities (classes,) float32."""
        binary = self.keys.loss == "bce"
        scores = {name: (logsigmoid(logits) if binary else logits).log_softmax(1).cpu().numpy().astype(np.float32)
                  for name, logits in output.items()}
        labels = batch["labels"].tolist() if "labels" in batch else [[-1] * len(self.heads)] * len(batch["ids"])
        known = self._by_id
        return [{"id": name, "signer": getattr(known.get(name), "signer", None),
                 "gloss": getattr(known.get(name), "gloss", None),
                 "labels": {head: label for head, label in zip(self.heads, row, strict=True) if label >= 0},
                 "scores": {head: scores[head][i] for head in self.heads}}
                for i, (name, row) in enumerate(zip(batch["ids"], labels, strict=True))]

    # --- figures --------------------------------------------------------------------------------------------

    def validation(self, means: dict[str, float], records: list[dict[str, Any]]) -> dict[str, float]:
        """And the mean macro-F1 over the heads, and how many signs are right in all of them; as shares."""
        return {**means, **metrics.quick(records)}

    @property
    def known(self) -> dict[str, Any]:
        """The symbols' names, and the dictionary {gloss: (name, {head: class})} or None."""
        dictionary = {gloss: (name, dict(labels)) for gloss, name, labels in self._meta["dictionary"]}
        return {"symbols": self._meta["symbols"], "dictionary": dictionary or None}

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return multihead_report.score(records, **self.known)

    def summary(self, records: list[dict[str, Any]]) -> str:
        return multihead_report.summary(records, **self.known)

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """predictions.csv and details.json (unless tables=False), and the pictures that `graphs` names."""
        return multihead_report.write(records, folder, name, **self.known,
                                      title=f"{self.config.model} on {self.config.split}, {name}", **options)


def heads_of(config: Config) -> dict[str, tuple[int, float]]:
    """{name: (classes, weight)} of the heads that there are, in the annotation's order."""
    return {name: value for name, value in vars(config.heads).items() if value}


def _sizes(keys: TransformerSection) -> dict[str, Any]:
    """As the config says, or as the weights' folder has them."""
    folder = str(paths.HOME / Path(keys.model_path).expanduser()) if keys.model_path else ""
    if folder:
        return {"transformer_folder": folder}
    return {"feedforward": keys.feedforward_size, "attention_heads": keys.num_attention_heads,
            "layers": keys.num_encoder_layers, "hidden": keys.hidden_size}


def looks_at_frames(config: Config) -> bool:
    assert config.feature_extractor
    return config.feature_extractor.name not in LANDMARK_NETS


def data_path(config: Config, folder: str) -> Path:
    """Where a data path is: from HEARAI in the data folder on, or absolute."""
    return paths.hearai(paths.data_root(config.data.root)) / Path(folder).expanduser()


def picture_size(config: Config) -> tuple[int, int] | None:
    """(Height, width) that pictures are brought to; None: they stay as large as they are."""
    keys = config.augmentations
    assert keys
    cut = keys.center_crop_size
    if keys.apply_center_crop and cut is not None:
        return cut if isinstance(cut, tuple) else (cut, cut)
    side = keys.resize_size or config.data.frame_size
    return (side, side) if keys.apply_resize else None


def pictures_of(config: Config) -> Pictures | None:
    """What is done to pictures; None where the model looks at none."""
    keys = config.augmentations
    assert keys
    if not looks_at_frames(config):
        return None
    changes = (keys.color_jitter_brightness, keys.color_jitter_contrast, keys.color_jitter_saturation,
               keys.color_jitter_hue) if keys.apply_color_jitter else (0.0, 0.0, 0.0, 0.0)
    return Pictures(resize=(keys.resize_size or config.data.frame_size) if keys.apply_resize else None,
                    crop=picture_size(config) if keys.apply_center_crop else None,
                    rotation=keys.random_rotation_degree if keys.apply_random_rotation else 0.0,
                    erase_p=keys.random_erasing_probability if keys.apply_random_erasing else 0.0, jitter=changes)


def _facts(config: Config) -> dict[str, Any]:
    """What a checkpoint keeps of the data: sizes, the symbols' names, the dictionary."""
    assert config.multihead and config.feature_extractor
    folder = data_path(config, config.multihead.data_paths[0])
    symbols, named = hearai.find_beside(folder, "symbols.json"), config.multihead.dictionary
    file = data_path(config, named) if named else hearai.find_beside(folder, "dictionary.csv")
    classes = {name: count for name, (count, _) in heads_of(config).items()}
    keys = config.feature_extractor
    mean, std = extractors.normalisation(keys.name, keys.model_path) if looks_at_frames(config) else ((), ())
    known = hearai.read_dictionary(file, hamnosys.HEADS | classes) if file else {}
    size = picture_size(config) or (_size_on_disk(config, folder) if looks_at_frames(config) else (1, 1))
    return {"heads": classes, "size": list(size), "mean": list(mean), "std": list(std),
            "symbols": hearai.read_symbols(symbols) if symbols else {}, "num_frames": config.data.num_frames,
            "landmarks": config.multihead.landmarks, "order": list(hamnosys.COLUMNS),
            "dictionary": [[gloss, name, dict(labels)] for gloss, (name, labels) in known.items()]}


def _size_on_disk(config: Config, folder: Path) -> tuple[int, int]:
    """(Height, width) of the first sign's pictures, where they stay as they are."""
    assert config.multihead
    classes = {name: classes for name, (classes, _) in heads_of(config).items()}
    found = hearai.read_samples(folder, config.multihead.annotation_file, classes, config.multihead.separator or None,
                                needs_frames=True, needs_landmarks=False)
    if not found.samples:
        raise Mistake(f"no sign of {shown(folder)} has frames", f"{len(found.left_out)} are left out",
                      "check multihead.data_paths")
    height, width = read_pictures(found.samples[0], [found.samples[0].start])[0].shape[:2]
    return height, width


def _refuse_twice(sets: dict[str, list[hearai.Sample]]) -> None:
    """Raises Mistake where a sign, or another stretch of its frames, is in two sets: its test would be none."""
    seen: dict[tuple[Path, str], str] = {}
    for part, samples in sets.items():
        for sample in samples:
            key = (sample.folder.resolve(), sample.name)
            if seen.setdefault(key, part) != part:
                raise Mistake("a sign is in two sets", f"{sample.id} in {seen[key]} and {part}",
                              "give multihead.val_paths and test_paths other folders than data_paths")


def _start_from(model: SignTransformer, where: str, config: Config) -> None:
    """The extractor of a pre-training, or all weights of another experiment but heads of other sizes."""
    path = starting.checkpoint_of(where)
    content = checkpoint.load(path)
    if content.get("model") != config.model:
        raise Mistake(f"{shown(path)} is of another model", f"{content.get('model')}, this is {config.model}",
                      "set model_params.init_from to a checkpoint of SignTransformer")
    state = content["model_state_dict"]
    if (content["config"].get("multihead") or {}).get("pre_training"):
        model.load_extractor(state)
        return
    own = model.state_dict()
    kept = {name: value for name, value in state.items()
            if not name.startswith("heads.") or name in own and own[name].shape == value.shape}
    checkpoint.load_weights(model, kept, shown(path), may_miss=("heads.",))
