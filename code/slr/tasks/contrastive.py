"""Contrastive pre-training of the spatio-temporal encoder: wav2vec 2.0 on what a frozen DINOv2 sees of each frame."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slr.checkpoint import load_weights
from slr.config import Config, PretrainingSection
from slr.datasets.sentence_clips import longest
from slr.errors import Mistake
from slr.models import contrastive, encoders
from slr.models.contrastive import Contrast, Contrastive, draw_masked
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatialNet, SpatioTemporalEncoder
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import on_clips, pretraining_report, starting
from slr.tasks.on_clips import OnClips

SIZES = on_clips.config_names("SpatioTemporalPretrain")


class ContrastivePretraining(OnClips):
    """The model is a `Contrastive`. Masks and negatives come from an item's own random numbers, in evaluation those of
    epoch 0, so that its figures are of the same masks every time."""

    headline: ClassVar[tuple[str, float]] = ("accuracy", 100.0)
    table: ClassVar[str] = "contrast"

    def __init__(self, config: Config, runtime: Runtime, model: Contrastive, eye: SpatialNet | None,
                 seen_by: dict[str, Any] | None):
        assert config.pretraining
        super().__init__(config, runtime, model, eye, seen_by)
        self.keys, self.temperature = config.pretraining, config.pretraining.temperature
        self.spans = Spans(self.keys.mask_share, self.keys.mask_length, least=1)
        self.model: Contrastive = model.to(runtime.device)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "ContrastivePretraining":
        """For training: weights as the config says; else from `meta`, whose sizes are then taken."""
        assert config.pretraining
        eye, seen_by = on_clips.see(config, meta)
        if meta is not None:
            net = encoders.build(meta["encoder"], on_clips.rates_of(config))
            sizes, config = meta["pretraining"], on_clips.as_trained(config, meta)
        else:
            net = on_clips.new_encoder(config, eye)
            sizes = {ours: getattr(config.pretraining, name) for ours, name in SIZES.items()}
        assert isinstance(net, SpatioTemporalEncoder)
        model = Contrastive(net, **sizes)
        older = on_clips.older(config, (config.model,)) if meta is None else {}
        for content, name in older.values():
            on_clips.refuse_other_sizes(content, "encoder", encoders.sizes_of(net), name)
            on_clips.refuse_other_sizes(content, "pretraining", sizes, name)
            load_weights(model, content["model_state_dict"], name)
        task = cls(on_clips.settled(config, net), runtime, model, eye, seen_by)
        if meta is None:
            task.standardise(older)
        return task

    def meta(self) -> dict[str, Any]:
        quantizer = self.model.quantizer
        sizes = {"groups": quantizer.groups, "codes": quantizer.codes, "dim": quantizer.dim,
                 "compared": self.model.project_codes.out_features}
        return {**self.facts(), "encoder": encoders.sizes_of(self.model.encoder), "pretraining": sizes}

    def groups(self) -> list[dict[str, Any]]:
        starting.refuse_to_watch_nothing(self.config, self.size("val"))
        reasons = [self.useless(sentence) for sentence in self.sentences("val")]
        if reasons and all(reasons):
            raise Mistake("no clip of the validation set has frames to mask", reasons[0],
                          "set a smaller pretraining.mask_length")
        heads = [self.model.quantizer, self.model.project_context, self.model.project_codes]
        return on_clips.groups(self.config, {"backbone": [self.model.encoder], "classifier": heads})

    def useless(self, sentence: Any) -> str:
        seen = longest(sentence.num_frames, self.config.data.num_frames, self.config.data.frame_stride)
        short = seen < 2 * self.keys.mask_length
        return f"{sentence.num_frames} frames are too few" if short else super().useless(sentence)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def tick(self, done: int) -> None:
        self.temperature = annealed(self.keys, done)

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        batch = super().prepare(batch, train)
        frames = Frames(batch["lengths"], batch["inputs"].shape[1], self.runtime.device)
        masked = draw_masked(frames, batch["rngs"], self.spans, self.keys.negatives)
        return {**batch, "frames_of": frames, "masked": masked}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Contrast:
        return model(batch["inputs"], batch["frames_of"], batch["masked"], self.temperature)

    def losses(self, output: Contrast, batch: dict[str, Any]) -> Sums:
        """loss: contrastive + diversity's weight x diversity, over the masked frames; beside it both by themselves,
        perplexity, accuracy, and in training the temperature."""
        found: Sums = dict(contrastive.losses(output))
        (contrast, count), (diversity, _) = found["contrastive"], found["diversity"]
        sums: Sums = {"loss": (contrast + self.keys.diversity * diversity, count), **found}
        if batch["train"]:
            sums["temperature"] = (contrast.new_tensor(self.temperature * count), count)
        return sums

    def decode(self, output: Contrast, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, set, masked: how many frames, loss, accuracy}, and of each group's codes how often they were
        chosen in all items of the batch together: `usage`, on the batch's first record."""
        wide = output.logits.float()
        losses = wide.logsumexp(1) - wide[:, 0]
        best = wide[:, 1:].amax(1)
        right = ((wide[:, 0] > best) & best.isfinite()).float()
        owner = batch["masked"].index.cpu() // batch["inputs"].shape[1]
        records = []
        for i, name in enumerate(batch["ids"]):
            own = owner == i
            count = int(own.sum())
            records.append({"id": name, "set": batch["set"][i], "masked": count, "loss": _mean(losses, own),
                            "accuracy": _mean(right, own)})
        records[0]["usage"] = output.usage.cpu().tolist()
        return records

    # --- tests ----------------------------------------------------------------------------------------------

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Over all masked frames of the set: loss (contrastive alone), accuracy, and the perplexity of the codes."""
        usage = sum(torch.tensor(row["usage"]) for row in records if "usage" in row)
        count = sum(row["masked"] for row in records)
        assert isinstance(usage, Tensor)
        return {"objective": "contrastive", **pretraining_report.means(records, "masked", ("loss", "accuracy")),
                "masked": count, "perplexity": float(contrastive.perplexity(usage, count)), "codes": usage.numel()}

    def summary(self, records: list[dict[str, Any]]) -> str:
        found, others = self.score(records), self.keys.negatives
        return (f"{len(records)} clips, {found['masked']} masked frames: told from {others} others in "
                f"{100 * found['accuracy']:.1f} % (by chance {100 / (1 + others):.1f} %), contrastive loss "
                f"{found['loss']:.4f}, {found['perplexity']:.0f} of {found['codes']} codes in use (perplexity)")

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """items.csv and details.json (unless tables=False)."""
        return pretraining_report.write(records, folder, name, self.score(records),
                                        tables=options.get("tables", True))


def annealed(keys: PretrainingSection, done: int) -> float:
    """The temperature after so many steps: wav2vec 2.0, section 4.2."""
    return max(keys.temperature * keys.temperature_decay ** done, keys.temperature_end)


def _mean(values: Tensor, own: Tensor) -> float:
    return float(values[own.to(values.device)].mean()) if bool(own.any()) else 0.0
