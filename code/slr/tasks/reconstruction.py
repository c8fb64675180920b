"""Pre-training of VideoMAE: draw what the masked tubes of a clip hide."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slr.checkpoint import load_weights
from slr.config import Config
from slr.models import encoders
from slr.models.video_mae import VideoMAE, VideoMAEPretrain, reconstruction, tubes
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import on_clips, pretraining_report, reconstruction_pictures, starting
from slr.tasks.on_clips import OnClips

SIZES = on_clips.config_names("VideoMAEPretrain")
DRAWN = 4  # clips of the picture


class Drawn(NamedTuple):
    """predicted (N, T', M, pixels), and of each item its valid time steps (N,)."""

    predicted: Tensor
    steps: Tensor


class Reconstruction(OnClips):
    """The model is a `VideoMAEPretrain`. An item's masked tubes come from its own random numbers, in evaluation those
    of epoch 0."""

    headline: ClassVar[tuple[str, float]] = ("loss", 1.0)
    table: ClassVar[str] = "reconstruction"
    graphs: ClassVar[tuple[str, ...]] = ("alignment",)

    def __init__(self, config: Config, runtime: Runtime, model: VideoMAEPretrain):
        assert config.pretraining
        super().__init__(config, runtime, model, None, None)
        self.keys = config.pretraining
        self.model: VideoMAEPretrain = model.to(runtime.device)
        self._drawn = 0  # clips of the set that is gone through now

    def loader(self, part: str, train: bool) -> Any:
        self._drawn = 0
        return super().loader(part, train)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Reconstruction":
        """For training: weights as the config says; else from `meta`, whose sizes are then taken."""
        assert config.pretraining
        entry: dict[str, Any] = {}
        if meta is not None:
            net, sizes = encoders.build(meta["encoder"], on_clips.rates_of(config)), meta["pretraining"]
            config = on_clips.as_trained(config, meta)
        else:
            net = on_clips.new_encoder(config, None)
            sizes = {ours: getattr(config.pretraining, name) for ours, name in SIZES.items()}
        assert isinstance(net, VideoMAE)
        if config.data.subtract_clip_mean:  # then pixels are in 48ths of 255, around 0
            entry = {"mean": (0.0, 0.0, 0.0), "std": (48 / 255,) * 3}
        model = VideoMAEPretrain(net, **sizes, **entry)
        older = on_clips.older(config, (config.model,)) if meta is None else {}
        for content, name in older.values():
            on_clips.refuse_other_sizes(content, "encoder", encoders.sizes_of(net), name)
            on_clips.refuse_other_sizes(content, "pretraining", sizes, name)
            load_weights(model, content["model_state_dict"], name)
        return cls(on_clips.settled(config, net), runtime, model)

    def meta(self) -> dict[str, Any]:
        sizes = {"width": self.model.width, "layers": len(self.model.decoder), "heads": self.model.heads,
                 "ffn": self.model.ffn}
        return {**self.facts(), "encoder": encoders.sizes_of(self.model.encoder), "pretraining": sizes}

    def groups(self) -> list[dict[str, Any]]:
        starting.refuse_to_watch_nothing(self.config, self.size("val"))
        heads = [part for name, part in self.model.named_children() if name != "encoder"]
        found = on_clips.groups(self.config, {"backbone": [self.model.encoder], "classifier": heads})
        bare = next(group for group in found if group["name"] == "classifier_bare")
        bare["params"].append(self.model.mask_token)
        return found

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        batch, cells = super().prepare(batch, train), self.model.encoder.sizes.cells
        draws = torch.from_numpy(np.stack([rng.random(cells) for rng in batch["rngs"]]))
        return {**batch, "masked": tubes(draws, self.keys.mask_ratio)}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Drawn:
        predicted, steps = model(batch["inputs"], batch["lengths"], batch["masked"])
        return Drawn(predicted.float(), steps)

    def losses(self, output: Drawn, batch: dict[str, Any]) -> Sums:
        """The mean squared error of a hidden tubelet's pixels, over all hidden tubelets of valid frames."""
        targets = self.model.targets(batch["inputs"], batch["masked"])
        return {"loss": reconstruction(output.predicted, targets, output.steps)}

    def decode(self, output: Drawn, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, set, hidden: how many tubelets, loss}; the first of the first batches also have
        `pictures`: the clip, what was seen of it, and what was drawn, each (T, S, S, 3) uint8."""
        targets, records = self.model.targets(batch["inputs"], batch["masked"]), []
        for i, name in enumerate(batch["ids"]):
            row = slice(i, i + 1)
            total, count = reconstruction(output.predicted[row], targets[row], output.steps[row])
            records.append({"id": name, "set": batch["set"][i], "hidden": count, "loss": float(total) / count})
        if not search.get("quick") and self._drawn < DRAWN:
            self._drawn += 1
            records[0]["pictures"] = reconstruction_pictures.pictures(
                self.model, batch["inputs"][:1], batch["masked"][:1], output.predicted[:1], int(output.steps[0]))
        return records

    # --- tests ----------------------------------------------------------------------------------------------

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """loss over all hidden tubelets of the set; 1 is what a flat colour, each tubelet's mean, would have."""
        return {"objective": "reconstruction", **pretraining_report.means(records, "hidden", ("loss",)),
                "hidden": sum(row["hidden"] for row in records)}

    def summary(self, records: list[dict[str, Any]]) -> str:
        found = self.score(records)
        return (f"{len(records)} clips, {found['hidden']} hidden tubelets: mean squared error {found['loss']:.4f} of "
                f"pixels normalised by tubelet and colour (1 is each tubelet's mean colour)")

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """items.csv, details.json (unless tables=False), and what was drawn of a few clips."""
        made = pretraining_report.write(records, folder, name, self.score(records),
                                        tables=options.get("tables", True))
        drawn = [row for row in records if "pictures" in row][:DRAWN]
        if drawn and options.get("graphs") != ():
            made.append(reconstruction_pictures.draw(drawn, folder / f"{name}-reconstruction.png",
                                                     f"{self.config.model} on {self.config.split}, {name}"))
        return made


