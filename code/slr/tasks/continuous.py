"""Continuous signing: a sentence of frames, its glosses, a backbone over time with the gloss head, and CTC."""

import math
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from slr import checkpoint, decoding, paths
from slr.catalogue import MODELS, builder_of
from slr.config import LENGTHS, Config
from slr.datasets import keypoints, sentence_clips, sentences
from slr.datasets.sentence_clips import SentenceDataset
from slr.datasets.sentences import Sentence
from slr.errors import Mistake
from slr.loading import EpochBatches, build_loader, worker_count
from slr.losses import ctc
from slr.metrics import wer
from slr.models import classifier
from slr.models.classifier import Classifier, TwoParts, load_backbone
from slr.models.sentence import SentenceModel, init_from
from slr.models.weights import from_old
from slr.paths import shown
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import continuous_report, starting
from slr.tasks.sets import OnSets
from slr.transforms import Augment, heatmaps, to_input

Output = tuple[torch.Tensor, torch.Tensor]


class Continuous(OnSets):
    """The task `continuous`: batches are those of `sentence_clips.packed`, the model's output is logits and steps.

    `classes` are the glosses by number, the blank of CTC first. Sets are loaded once; of the training set the
    sentences that `left_out` names are not used.
    """

    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "test": ("test", {}), "val": ("val", {}), "test_black": ("test", {"black": True})}
    headline: ClassVar[tuple[str, float]] = ("wer", 1.0)
    table: ClassVar[str] = "wer"
    graphs: ClassVar[tuple[str, ...]] = continuous_report.GRAPHS

    def __init__(self, config: Config, runtime: Runtime, model: TwoParts, classes: list[str],
                 heatmap_channels: int = 0):
        assert config.decoding
        super().__init__()
        self.config, self.runtime, self.classes = config, runtime, classes
        self.heatmap_channels = heatmap_channels  # of the model's inputs, behind the three colours
        self.mirror = False  # evaluation looks at the mirrored clips as well; `build` says so of a trained model
        self.black = False  # frames and heatmaps tell nothing: what can be guessed from their number alone?
        self.root = paths.data_root(config.data.root)
        self.entry, self.split, self.decoding = MODELS[config.model], config.split, config.decoding
        self.cleanup, self._stride = starting.cleanup(config), cast(int, model.stride)
        self.numbers = {gloss: number for number, gloss in enumerate(classes) if number}
        self.model: TwoParts = model.to(runtime.device)
        self._channels_last = starting.channels_last(config, runtime.device.type)
        if self._channels_last:
            self.model = self.model.to(memory_format=torch.channels_last_3d)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Continuous":
        """For training: glosses from the prepared split, weights as the config says; else both from `meta`."""
        root = paths.data_root(config.data.root)
        classes = sentences.load_vocabulary(root, config.split) if meta is None else list(meta["classes"])
        weights = starting.pretrained(config) if meta is None else None
        channels = _heatmap_channels(config, root) if meta is None else meta.get("heatmap_channels", 0)
        own = _own_options(config) | ({"heatmaps": channels} if channels else {})
        model = builder_of(config.model)(
            len(classes), frames=config.data.num_frames, size=config.data.frame_size,
            drop_p=config.model_params.drop_p, weights=weights, **own)
        if meta is None and config.model_params.init_from:
            _start_from(model, config, classes)
        task = cls(config, runtime, model, classes, channels)
        task.mirror = meta is not None and task.decoding.mirror
        return task

    def meta(self) -> dict[str, Any]:
        data = self.config.data
        return {"classes": self.classes, "mean": list(self.entry.mean), "std": list(self.entry.std),
                "num_frames": data.num_frames, "frame_size": data.frame_size, "frame_stride": data.frame_stride,
                "eval_resize": data.eval_resize, "subtract_clip_mean": data.subtract_clip_mean,
                "heatmap_channels": self.heatmap_channels,
                "data_hash": sentences.data_hash(self.root, self.split)}

    def groups(self) -> list[dict[str, Any]]:
        self._check_validation()
        return starting.groups(self.config, self.model)

    def _check_validation(self) -> None:
        """What would only be found out after the first epoch."""
        reasons = [self._useless(sentence) for sentence in self.sentences("val")]
        starting.refuse_to_watch_nothing(self.config, len(reasons))
        if reasons and all(reasons):
            raise Mistake("no sentence of the validation set has a loss", reasons[0],
                          "see report.json of preprocess.py")

    # --- data -----------------------------------------------------------------------------------------------

    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]:
        """The sentences of a set; none where the split has no such set."""
        found = sentences.load_sentences(self.root, self.split, part)
        reasons = {s.id: why for s in found if (why := self._useless(s))} if part == "train" else {}
        return [s for s in found if s.id not in reasons], reasons

    def _useless(self, sentence: Sentence) -> str:
        """Why nothing can be learnt from a sentence; "" where it can."""
        unknown = [gloss for gloss in sentence.gloss if gloss not in self.numbers]
        if not sentence.gloss:
            return "no gloss"
        if unknown:
            return f"glosses that the vocabulary lacks: {', '.join(unknown)}"
        return self._too_short(sentence)

    def _too_short(self, sentence: Sentence) -> str:
        """Why its glosses have no room in it; "" where they have."""
        data = self.config.data
        if sentence_clips.is_feasible(sentence, most=data.num_frames, every=data.frame_stride, stride=self._stride):
            return ""
        return f"too few frames for its glosses: {sentence.num_frames} for {' '.join(sentence.gloss)}"

    def check_inputs(self, found: list[Sentence], part: str) -> None:
        """Raises Mistake where what the model looks at is not there."""
        _refuse_missing(found, part, self.split)

    def dataset(self, found: list[Sentence], train: bool) -> Any:
        """These sentences as training, or else as evaluation looks at them."""
        data, seed = self.config.data, self.config.experiment.seed
        augment = Augment(data.min_scale, data.max_aspect, data.hflip, data.jitter, data.jitter_p) if train else None
        return SentenceDataset(found, self.numbers, num_frames=data.num_frames, frame_size=data.frame_size,
                               frame_stride=data.frame_stride, stride=self._stride, multiple=LENGTHS, seed=seed,
                               eval_resize=data.eval_resize, augment=augment, jitter_frames=data.jitter_frames,
                               jitter_length=data.jitter_length, recipe=starting.recipe(data, train),
                               keypoints=self._keypoints(found))

    def _keypoints(self, found: list[Sentence]) -> keypoints.Keypoints | None:
        """The points on the frames of these sentences, where the model looks at any."""
        if not self.heatmap_channels:
            return None
        points = keypoints.load(_keypoint_file(self.config, self.root))
        drawn = points.count if self.config.data.heatmap == "points" else 1
        if drawn != self.heatmap_channels:
            raise Mistake("the model was trained with other heatmaps",
                          f"{drawn} a frame of {shown(points.path)}, {self.heatmap_channels} in the model",
                          "leave data.heatmap as it was, and set data.keypoints to a file of the same kind")
        points.check(found)
        return points

    def loader(self, part: str, train: bool) -> Any:
        data, seed, device = self.config.data, self.config.experiment.seed, self.runtime.device.type
        found = self.sentences(part)
        self.check_inputs(found, part)
        dataset = self.dataset(found, train)
        batches = EpochBatches(len(dataset), self.config.training.batch_size, shuffle=train, seed=seed,
                               rank=self.runtime.rank, world=self.runtime.world,
                               lengths=dataset.lengths, short_first=data.short_first if train else 0)
        return build_loader(dataset, batches, workers=worker_count(data.workers, device), prefetch=data.prefetch,
                            pin_memory=data.pin_memory and device == "cuda", collate_fn=sentence_clips.packed)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        """Adds inputs (N, 3 + heatmaps, T, S, S) float32, zeros behind an item's end. An item's own are those it has
        alone."""
        lengths, device = batch["lengths"], self.runtime.device
        size, channels = batch["frames"].shape[1], 3 + self.heatmap_channels
        inputs = torch.zeros(len(lengths), int(lengths.max()), size, size, channels, device=device)
        inputs = inputs.permute(0, 4, 1, 2, 3)
        if self.black:
            batch = {**batch, "frames": torch.zeros_like(batch["frames"])}
        for row, frames, draws in zip(inputs, sentence_clips.split(batch), batch["draws"], strict=True):
            row[:3, :len(frames)] = to_input(frames[None].to(device, non_blocking=True), draws[None], self.entry.mean,
                                             self.entry.std, subtract_clip_mean=self.config.data.subtract_clip_mean)[0]
        if self.heatmap_channels and not self.black:
            for row, points in zip(inputs, sentence_clips.split(batch, "points"), strict=True):
                row[3:, :len(points)] = heatmaps(points.to(device, non_blocking=True), size, self.config.data.heatmap)
        return {**batch, "inputs": inputs if self._channels_last else inputs.contiguous(), "train": train}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Logits (N, T', K) and how many of the T' time steps each item has (N,).

        With `decoding.mirror` a trained model gives the logarithms of the means over a clip and its mirror image of
        the classes' probabilities: who signs with the left hand is then seen with the right one, too. The validations
        of a training look once, as they search for the best path alone.
        """
        logits, steps = model(batch["inputs"], batch["lengths"])
        if batch["train"] or not self.mirror:
            return logits.float(), steps
        mirrored, _ = model(batch["inputs"].flip(-1), batch["lengths"])
        both = torch.stack([logits.float(), mirrored.float()]).log_softmax(3)
        return both.logsumexp(0) - math.log(2), steps

    def losses(self, output: Any, batch: dict[str, Any]) -> Sums:
        """CTC over the items that can be aligned; in evaluation also 100 x errors of the best paths over words."""
        log_probs, steps = output[0].log_softmax(2), output[1]
        rows = self._alignable(batch, steps)
        found: Sums = {"loss": (_ctc(log_probs, steps, batch["targets"], rows), len(rows))}
        if not batch["train"]:
            mode = wer.headline(self.cleanup)
            hypotheses = self._words(decoding.greedy(log_probs.detach(), steps))
            kinds = [step for ref, hyp in zip(batch["reference"], hypotheses, strict=True)
                     for step in wer.sentence_steps(ref, hyp, mode, self.cleanup)]
            errors = sum(step.kind != "C" for step in kinds)
            words = sum(step.ref is not None for step in kinds)
            found["wer"] = (torch.tensor(100.0 * errors, device=log_probs.device), words)
        return found

    @staticmethod
    def _alignable(batch: dict[str, Any], steps: torch.Tensor) -> list[int]:
        """The items whose glosses are all known and have room in their time steps."""
        room = (batch["needed"] <= steps.cpu()).tolist()
        return [i for i, targets in enumerate(batch["targets"]) if room[i] and 0 not in targets]

    def _words(self, labellings: list[tuple[int, ...]]) -> list[list[str]]:
        return [[self.classes[number] for number in labels] for labels in labellings]

    def decode(self, output: Any, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, set, reference, hypothesis, greedy, score, spans, steps, posteriors}.

        hypothesis is the best of the beam search, score its log-probability; spans are (gloss, first frame, one past
        the last frame, log-probability) of its best path; steps (T' + 1,) are the frames at which time steps begin;
        posteriors (1 + U, T') float32 are those of the blank and of each gloss said, over the time steps.
        """
        log_probs, steps = output[0].log_softmax(2).cpu(), output[1].cpu()
        greedy = self._words(decoding.greedy(log_probs, steps))
        width = search.get("beam_width", self.decoding.beam_width)
        best = [beam[0] for beam in decoding.beam_search(log_probs, steps, width)]
        aligned = decoding.align(log_probs, steps, [found.labels for found in best])
        records = []
        for i, (found, path) in enumerate(zip(best, aligned, strict=True)):
            edges = _edges(batch["indices"][i], int(steps[i]), self._stride)
            records.append({
                "id": batch["ids"][i], "set": batch["set"][i], "reference": batch["reference"][i],
                "hypothesis": [self.classes[number] for number in found.labels], "greedy": greedy[i],
                "score": found.score, "steps": edges,
                "spans": [(self.classes[s.label], edges[s.start], edges[s.stop], s.score) for s in path.spans],
                "posteriors": log_probs[i, :int(steps[i])][:, [0, *found.labels]].T.exp().numpy()})
        return records

    def vary(self, *, black: bool = False, **options: Any) -> None:
        """Black frames, as many as there were, and no keypoints: a control that has to fail."""
        super().vary(**options)
        self.black = black

    # --- what a person reads --------------------------------------------------------------------------------

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """wer (of the mode that counts), the counts of every mode, and the rates of the best paths."""
        return continuous_report.figures(records, self.cleanup, self.config.split, self.decoding.beam_width)

    def summary(self, records: list[dict[str, Any]]) -> str:
        return continuous_report.summary(self.score(records), records, self.cleanup)

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """predictions.jsonl, hypothesis.ctm, reference.stm, glosses.csv, details.json (unless tables=False), and the
        pictures that `graphs` names."""
        found = {(row["set"], row["id"]): row for row in records}
        known = {(s.set, s.id): s for part in self._sets.values() for s in part if (s.set, s.id) in found}
        return continuous_report.write(
            [found[key] for key in known], list(known.values()), folder, name, cleanup=self.cleanup,
            split=self.config.split, fps=self.decoding.fps,
            title=f"{self.config.model} on {self.config.split}, {name}", **options)


def _ctc(log_probs: torch.Tensor, steps: torch.Tensor, targets: list[list[int]], rows: list[int]) -> torch.Tensor:
    """The sum of the losses of the items `rows`; of none it is 0."""
    if not rows:
        return log_probs.sum() * 0
    own = [torch.tensor(targets[i], dtype=torch.long) for i in rows]
    labels = nn.utils.rnn.pad_sequence(own, batch_first=True)
    lengths = torch.tensor([len(labels) for labels in own])
    chosen = log_probs if len(rows) == len(targets) else log_probs[rows]
    return ctc(chosen, steps[rows], labels, lengths)[0]


def _edges(indices: list[int], steps: int, stride: int) -> list[int]:
    """The frames at which the time steps begin, and where the last one ends; (T' + 1,)."""
    return [indices[stride * step] for step in range(steps)] + [indices[-1] + 1]


def _refuse_missing(found: list[Sentence], part: str, split: str) -> None:
    there: dict[Path, bool] = {}
    missing = []
    for sentence in found:
        path = sentence.path
        if sentence.frames is None or not there.setdefault(path, path.exists()):
            missing.append(f"{sentence.id} ({shown(path) if sentence.frames else 'prepared without frames'})")
    if missing:
        raise Mistake(f"the frames of {len(missing)} of {len(found)} sentences of the {part} set are not there",
                      ", ".join(missing[:5]), f"run python preprocess.py -as {split} again")


def _keypoint_file(config: Config, root: Path) -> Path:
    return root / Path(config.data.keypoints).expanduser()


def _heatmap_channels(config: Config, root: Path) -> int:
    """How many channels are drawn of the keypoints that the config names."""
    if config.data.heatmap == "points":
        return keypoints.load(_keypoint_file(config, root)).count
    return int(config.data.heatmap == "max")


def _own_options(config: Config) -> dict[str, Any]:
    """The options that only some models have."""
    entry, keys = MODELS[config.model], config.model_params
    started = bool(keys.init_from or keys.pretrained or keys.weights)
    options: dict[str, Any] = {}
    if entry.batch_norm:
        options["bn_momentum"] = starting.momentum(config)
    if entry.drop_path is not None:
        options["drop_path"] = keys.drop_path
    if config.mamba:
        options |= vars(config.mamba)
    if entry.freezable:
        options["frozen_blocks"] = int(started) if keys.frozen_blocks is None else keys.frozen_blocks
        options["last_relu"] = keys.last_relu is not False
    return options


def _start_from(model: SentenceModel | Classifier, config: Config, classes: list[str]) -> None:
    """Weights of another experiment: of this model, or of the isolated one that its backbone is of."""
    path = starting.checkpoint_of(config.model_params.init_from)
    content = checkpoint.load(path)
    fitting = (config.model, MODELS[config.model].starts_from)
    if content.get("model", fitting[1]) not in fitting:
        raise Mistake(f"{shown(path)} is of another model", f"{content['model']}, this is {config.model}",
                      f"set model_params.init_from to a checkpoint of {' or '.join(filter(None, fitting))}")
    state = content["model_state_dict"]
    if content.get("model") == config.model:
        _check_head(content, config, shown(path))
        old = content["meta"]["classes"]
        model.report = (classifier.init_from(model, state, old, classes) if isinstance(model, Classifier)
                        else init_from(model, state, old, classes, shown(path)))
    else:
        model.report = load_backbone(model, from_old(state, str(fitting[1])), shown(path))


def _check_head(content: dict[str, Any], config: Config, source: str) -> None:
    """Raises Mistake where the heads differ in a ReLU, which no weight shows."""
    theirs = content.get("config", {}).get("model_params", {}).get("last_relu") is not False
    if theirs != (config.model_params.last_relu is not False):
        raise Mistake(f"the head in {source} computes something else",
                      f"it was trained with{'' if theirs else 'out'} a ReLU behind its last convolution",
                      f"set model_params.last_relu = {theirs}")
