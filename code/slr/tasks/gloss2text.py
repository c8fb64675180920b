"""Glosses to text: a gloss embedding and a translator, trained on the glosses and texts of a corpus."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from slr import checkpoint, paths
from slr.config import Config
from slr.datasets import sentences
from slr.datasets.sentences import Sentence
from slr.datasets.translations import GlossDataset, dealt_out, glosses_in_rows
from slr.errors import Mistake
from slr.loading import EpochBatches, build_loader, worker_count
from slr.models.sign2text import Gloss2Text, Source
from slr.models.translator import Translator
from slr.paths import shown
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import starting, translation_report, translators
from slr.tasks.sets import OnSets
from slr.tasks.speech import Speech, languages


class Output(NamedTuple):
    """Text logits (N, T, V); the translator that said them, and what it was given."""

    text: Tensor
    translator: Translator
    source: Source


class GlossToText(OnSets):
    """Batches are those of `translations.glosses_in_rows`. `classes` are the glosses by number, 0 is for others."""

    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "test": ("test", {}), "val": ("val", {}), "test_shuffled": ("test", {"shuffle": True})}
    headline: ClassVar[tuple[str, float]] = ("bleu4", 1.0)
    table: ClassVar[str] = "bleu"
    generates: ClassVar[bool] = True

    def __init__(self, config: Config, runtime: Runtime, model: Gloss2Text, classes: list[str], speech: Speech,
                 translator: dict[str, Any]):
        assert config.translation
        super().__init__()
        self.config, self.runtime, self.classes, self.speech = config, runtime, classes, speech
        self.split, self.root = config.split, paths.data_root(config.data.root)
        self.numbers = {gloss: number for number, gloss in enumerate(classes) if number}
        self.translator = translator  # what is needed to build it again
        model.gloss_embedding.requires_grad_(not config.translation.freeze_gloss)
        self.model: Gloss2Text = model.to(runtime.device)
        self.friends: list[GlossToText] = []  # an ensemble's others
        self._dealt: int | None = None  # the seed of whose glosses an item is given, where not its own

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "GlossToText":
        """For training: tokens of the split's texts, weights as the config says; else both from `meta`."""
        assert config.translation
        root, keys, pretrained = paths.data_root(config.data.root), config.translation, config.model_params.pretrained
        spoken, signed = languages(keys, config.split)
        if meta is not None:
            translators.refuse_another(keys, meta["translator"])
            tokenizer = translators.tokenizer_of(meta["tokenizer"])
            translator = translators.again(meta["translator"], tokenizer, keys)
            model = Gloss2Text(len(meta["classes"]), translator)
            return cls(config, runtime, model, list(meta["classes"]), Speech(keys, meta["language"], tokenizer),
                       meta["translator"])
        classes, older = sentences.load_vocabulary(root, config.split), _older(config)
        texts = [s.text for s in sentences.load_sentences(root, config.split, "train")]
        tokenizer = translators.chosen(keys, spoken, older["meta"]["tokenizer"] if older else None, texts)
        if older:
            plain = older["meta"]["translator"]
            keys = translators.settled(keys, plain)
            config = replace(config, translation=keys)
            model = Gloss2Text(len(classes), translators.again(plain, tokenizer, keys))
            translators.start_from(model, older, classes, config.model_params.init_from)
            spoken = older["meta"]["language"] if keys.language == "auto" else spoken
        else:
            translator = translators.new(keys, tokenizer, signed, pretrained)
            plain = translators.plain_of(translator, keys)
            model = Gloss2Text(len(classes), translator)
            translators.start_glosses(model, classes, keys, tokenizer, signed)
        return cls(config, runtime, model, classes, Speech(keys, spoken, tokenizer), plain)

    def meta(self) -> dict[str, Any]:
        return {"classes": self.classes, "translator": self.translator, "tokenizer": self.speech.tokenizer.plain(),
                "language": self.speech.language, "data_hash": sentences.data_hash(self.root, self.split)}

    def groups(self) -> list[dict[str, Any]]:
        starting.refuse_to_watch_nothing(self.config, self.size("val"))
        return [translators.group("translator", (p for p in self.model.parameters() if p.requires_grad),
                                  self.config.optimizer)]

    # --- data -----------------------------------------------------------------------------------------------

    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]:
        """The sentences of a set that have glosses and a text."""
        found = sentences.load_sentences(self.root, self.split, part)
        reasons = {s.id: "no gloss" if not s.gloss else "no text" for s in found if not (s.gloss and s.text)}
        return [s for s in found if s.id not in reasons], reasons

    def loader(self, part: str, train: bool) -> Any:
        data, seed = self.config.data, self.config.experiment.seed
        found = self.sentences(part)
        dealt = None if self._dealt is None else dealt_out(len(found), self._dealt)
        dataset = GlossDataset(found, self.numbers, self.speech.clean, self.speech.tokenizer.encode, dealt)
        batches = EpochBatches(len(dataset), self.config.training.batch_size, shuffle=train, seed=seed,
                               rank=self.runtime.rank, world=self.runtime.world, lengths=dataset.lengths)
        workers = worker_count(data.workers, self.runtime.device.type) if data.workers > 0 else 0  # a line of text
        return build_loader(dataset, batches, workers=workers, prefetch=data.prefetch, pin_memory=False,
                            collate_fn=glosses_in_rows)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        device = self.runtime.device
        return {**batch, **self.speech.targets(batch["tokens"], device), "train": train,
                "glosses": batch["glosses"].to(device, non_blocking=True)}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Output:
        said = model(batch["glosses"], batch["lengths"], batch["tokens_in"])
        translator = cast(Gloss2Text, getattr(model, "module", model)).translator
        return Output(said.text.float(), translator, said.source)

    def losses(self, output: Output, batch: dict[str, Any]) -> Sums:
        return {"loss": self.speech.loss(output.text, batch["tokens_out"], smoothed=batch["train"])}

    def decode(self, output: Output, batch: dict[str, Any], quick: bool = False,
               **search: Any) -> list[dict[str, Any]]:
        """Records {id, set, reference: glosses, text, translation, greedy_translation}."""
        others = [friend.forward(friend.model, batch) for friend in self.friends]
        said = self.speech.texts([(found.translator, found.source) for found in (output, *others)], quick)
        keys = {"id": "ids", "set": "set", "reference": "reference", "text": "text"}
        return [{**{key: batch[name][i] for key, name in keys.items()}, **found} for i, found in enumerate(said)]

    @torch.no_grad()
    def translate(self, glosses: Sequence[Sequence[str]]) -> list[str]:
        """The text of each sentence of glosses; a gloss that is not known counts as such."""
        rows = [{"ids": str(i), "glosses": [self.numbers.get(gloss, 0) for gloss in row]}
                for i, row in enumerate(glosses)]
        batch = glosses_in_rows(rows)
        self.model.eval()
        source = Source(self.model.gloss_embedding(batch["glosses"].to(self.runtime.device)), batch["lengths"])
        return self.speech.say([(self.model.translator, source)], self.speech.keys.beam_width)

    # --- tests ----------------------------------------------------------------------------------------------

    def validation(self, means: dict[str, float], records: list[dict[str, Any]]) -> dict[str, float]:
        return means | {"bleu4": self.speech.bleu4(records, "greedy_translation")}

    def sweep(self) -> list[dict[str, Any]]:
        return self.speech.sweep()

    def use_search(self, **options: Any) -> None:
        self.speech.use(**options)

    def join(self, others: list["GlossToText"]) -> None:
        """Say from now on what all of them together find likeliest."""
        for other in others:
            if other.classes != self.classes:
                raise Mistake("these models do not read the same glosses", f"{len(other.classes)} and "
                              f"{len(self.classes)}, or in another order", "give runs on the same prepared split")
            other.model.eval()
        translators.check_friends(self.speech, [other.speech for other in others])
        self.friends = others

    def vary(self, *, shuffle: bool = False, seed: int = 42, **options: Any) -> None:
        """Shuffled: each item is given another one's glosses."""
        super().vary(**options)
        self._dealt = seed if shuffle else None

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return self.speech.score(records, self.config.split)

    def summary(self, records: list[dict[str, Any]]) -> str:
        return translation_report.summary(self.score(records), records, self.speech.level)

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """predictions.jsonl, reference.txt, hypothesis.txt, examples.md, details.json (unless tables=False)."""
        return translation_report.write(records, folder, name, self.score(records), self.speech.level, **options)


def _older(config: Config) -> dict[str, Any] | None:
    """The Gloss2Text checkpoint that the config starts from, if any."""
    if not config.model_params.init_from:
        return None
    path = starting.checkpoint_of(config.model_params.init_from)
    content = checkpoint.load(path)
    if content.get("model") != config.model:
        raise Mistake(f"{shown(path)} is of another model", f"{content.get('model')}, this is {config.model}",
                      "set model_params.init_from to a checkpoint of Gloss2Text")
    return content
