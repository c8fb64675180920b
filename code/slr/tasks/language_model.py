"""Pre-training of the language decoder: which word comes next, of the glosses of the training set alone."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from slr import paths, search
from slr.checkpoint import load_weights
from slr.config import Config
from slr.datasets import footage
from slr.datasets.sentences import Sentence
from slr.loading import EpochBatches, Key, build_loader, collate
from slr.models.language_decoder import LanguageDecoder, token_loss
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import on_clips, pretraining_report, starting, transcription
from slr.tasks.sets import OnSets
from slr.tasks.transcription import Tokenizer, decoder_of, numbers_of, sizes_of
from slr.text import SPECIALS, WordVocabulary, tokenizer_from

UNKNOWN = SPECIALS[WordVocabulary.unknown]
SAID = 5  # sentences that the model says by itself, in a report


class GlossRows(Dataset):
    """Items {ids, set, targets, lengths, ghost} for `Key(epoch, item)`; a word that `numbers` lacks is 0."""

    def __init__(self, found: list[Sentence], numbers: dict[str, int]):
        self.found, self.numbers = found, numbers

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        sentence = self.found[key.item]
        return {"ids": sentence.id, "set": sentence.set, "targets": [self.numbers.get(w, 0) for w in sentence.gloss],
                "lengths": np.int64(len(sentence.gloss)), "ghost": key.ghost}

    def lengths(self, epoch: int) -> list[int]:
        return [len(sentence.gloss) for sentence in self.found]


class LanguageModel(OnSets):
    """The model is a `LanguageDecoder` without cross-attention."""

    headline: ClassVar[tuple[str, float]] = ("accuracy", 100.0)
    table: ClassVar[str] = "language"

    def __init__(self, config: Config, runtime: Runtime, model: LanguageDecoder, tokenizer: Tokenizer):
        super().__init__()
        self.config, self.runtime, self.split = config, runtime, config.split
        self.root, self.tokenizer, self.numbers = paths.data_root(config.data.root), tokenizer, numbers_of(tokenizer)
        self.model: LanguageDecoder = model.to(runtime.device)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "LanguageModel":
        """For training: words of the training set, or of a model that it starts from; else both from `meta`."""
        if meta is not None:
            tokenizer: Any = tokenizer_from(meta["tokenizer"])
            return cls(config, runtime, decoder_of(config, tokenizer, meta["language_decoder"], cross_attention=False),
                       tokenizer)
        older = on_clips.older(config, (config.model,)).get(config.model)
        tokenizer = transcription.words_of(config, older[0] if older else None)
        model = decoder_of(config, tokenizer, cross_attention=False)
        if older:
            on_clips.refuse_other_sizes(older[0], "language_decoder", sizes_of(model), older[1])
            load_weights(model, older[0]["model_state_dict"], older[1])
        return cls(config, runtime, model, tokenizer)

    def meta(self) -> dict[str, Any]:
        return {"classes": list(self.numbers), "language_decoder": sizes_of(self.model),
                "tokenizer": self.tokenizer.plain(), "data_hash": footage.data_hash(self.root, self.split)}

    def groups(self) -> list[dict[str, Any]]:
        starting.refuse_to_watch_nothing(self.config, self.size("val"))
        return on_clips.groups(self.config, {"classifier": [self.model]})

    # --- data -----------------------------------------------------------------------------------------------

    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]:
        """Those that have glosses, and not too many."""
        found = footage.load(self.root, self.split, part)
        reasons = {s.id: why for s in found if (why := self._useless(s))}
        return [s for s in found if s.id not in reasons], reasons

    def _useless(self, sentence: Sentence) -> str:
        if not sentence.gloss:
            return "no gloss"
        many = len(sentence.gloss) > self.model.positions - 1
        return f"{len(sentence.gloss)} glosses are more than language_decoder.positions allows" if many else ""

    def loader(self, part: str, train: bool) -> Any:
        dataset, keys = GlossRows(self.sentences(part), self.numbers), self.config
        batches = EpochBatches(len(dataset), keys.training.batch_size, shuffle=train, seed=keys.experiment.seed,
                               rank=self.runtime.rank, world=self.runtime.world, lengths=dataset.lengths)
        return build_loader(dataset, batches, workers=0, prefetch=keys.data.prefetch, pin_memory=False,
                            collate_fn=collate)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        return {**batch, **transcription.targets(batch["targets"], self.tokenizer, self.runtime.device),
                "train": train}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Logits (N, U, V) of the words behind each of tokens_in."""
        return model(None, None, batch["tokens_in"]).float()

    def losses(self, output: Tensor, batch: dict[str, Any]) -> Sums:
        """Of each word and each end, given those before it: loss, -ln p, and accuracy."""
        wanted = batch["tokens_out"]
        count = sum(len(row) + 1 for row in batch["targets"])
        total, _ = token_loss(output, wanted, self.tokenizer.pad)
        right = ((output.argmax(2) == wanted) & (wanted != self.tokenizer.pad)).sum().double()
        return {"loss": (total, count), "accuracy": (right, count)}

    def decode(self, output: Tensor, batch: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
        """Records {id, set, tokens, loss, accuracy, glosses}; tokens counts the end, an unknown gloss is <unk>."""
        wanted = batch["tokens_out"]
        picked = -output.log_softmax(2).gather(2, wanted[..., None])[..., 0]
        right = (output.argmax(2) == wanted).float()
        counts, words = [len(row) + 1 for row in batch["targets"]], {n: word for word, n in self.numbers.items()}
        return [{"id": name, "set": batch["set"][i], "tokens": n, "loss": float(picked[i, :n].mean()),
                 "accuracy": float(right[i, :n].mean()),
                 "glosses": " ".join(words.get(t, UNKNOWN) for t in batch["targets"][i])}
                for i, (name, n) in enumerate(zip(batch["ids"], counts, strict=True))]

    # --- tests ----------------------------------------------------------------------------------------------

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """loss and accuracy over all words and ends, the perplexity, and what counting words alone would have."""
        found = pretraining_report.means(records, "tokens", ("loss", "accuracy"))
        return {"objective": "language", **found, "tokens": sum(row["tokens"] for row in records),
                "perplexity": math.exp(min(found["loss"], 700.0)), "unigram_perplexity": self._unigram(records)}

    def _unigram(self, records: list[dict[str, Any]]) -> float:
        """The perplexity of the training set's frequencies, one added to each, of words, the unknown one and ends."""
        counts = Counter(word if word in self.numbers or word is None else UNKNOWN
                         for sentence in self.sentences("train") for word in (*sentence.gloss, None))
        total = sum(counts.values()) + len(self.numbers) + 2
        said = [word for row in records for word in (*row["glosses"].split(), None)]
        return math.exp(-sum(math.log((counts[word] + 1) / total) for word in said) / max(len(said), 1))

    def summary(self, records: list[dict[str, Any]]) -> str:
        found = self.score(records)
        return (f"{len(records)} sentences, {found['tokens']} words and ends: perplexity {found['perplexity']:.2f} "
                f"({found['unigram_perplexity']:.2f} by frequency alone), the next one is right in "
                f"{100 * found['accuracy']:.1f} %")

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """items.csv and details.json (unless tables=False), with the sentences that the model finds likeliest."""
        found = {**self.score(records), "likeliest": self.likeliest()}
        return pretraining_report.write(records, folder, name, found, tables=options.get("tables", True))

    @torch.no_grad()
    def likeliest(self) -> list[str]:
        """The sentences that a beam search finds."""
        tokens, model = self.tokenizer, self.model.eval()
        found = search.beam_search([model.decoder()], 1, start=tokens.start, end=tokens.end, width=SAID,
                                   max_length=min(50, model.positions - 1), device=self.runtime.device,
                                   banned=(tokens.pad, tokens.start, tokens.unknown))
        return [tokens.decode(beam.tokens) for beam in found[0]]
