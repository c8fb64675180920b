"""Transcription: an encoder looks at a sentence, and the language decoder says its glosses, one after the other."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from slr import decoding, paths, search
from slr.checkpoint import load_weights
from slr.config import Config, LanguageDecoderSection
from slr.datasets import footage
from slr.errors import Mistake
from slr.losses import ctc, smoothed_kl
from slr.metrics import wer
from slr.models import encoders
from slr.models.language_decoder import LanguageDecoder
from slr.models.spatio_temporal import SpatialNet
from slr.models.transcriber import Said, Transcriber
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import on_clips, starting, transcription_report
from slr.tasks.on_clips import OnClips
from slr.tasks.speech import in_and_out
from slr.text import WordVocabulary, tokenizer_from

LANGUAGE_MODEL = "LanguageDecoder"
PRETRAINED = ("SpatioTemporalPretrain", "VideoMAEPretrain")
Tokenizer = WordVocabulary


class Transcription(OnClips):
    """The task `transcription`; the model is a `Transcriber`. A sentence's glosses are the words of `tokenizer`."""

    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "test": ("test", {}), "val": ("val", {}), "test_black": ("test", {"black": True})}
    headline: ClassVar[tuple[str, float]] = ("wer", 1.0)
    table: ClassVar[str] = "wer"
    generates: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = transcription_report.GRAPHS

    def __init__(self, config: Config, runtime: Runtime, model: Transcriber, tokenizer: Tokenizer,
                 eye: SpatialNet | None, seen_by: dict[str, Any] | None):
        assert config.transcription and config.decoding
        super().__init__(config, runtime, model, eye, seen_by)
        self.model: Transcriber = model.to(runtime.device)
        self.tokenizer, self.keys, self.cleanup = tokenizer, config.transcription, starting.cleanup(config)
        self.numbers = numbers_of(tokenizer)
        if model.head is not None:
            self.weights = {"loss": 1.0, "ctc": self.keys.ctc_weight}

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "Transcription":
        """For training: words of the training set, weights as the config says; else both from `meta`."""
        eye, seen_by = on_clips.see(config, meta)
        if meta is not None:
            tokenizer = cast(Tokenizer, tokenizer_from(meta["tokenizer"]))
            net, sizes = encoders.build(meta["encoder"], on_clips.rates_of(config)), meta["language_decoder"]
            model = Transcriber(encoders.wrapped(net), decoder_of(config, tokenizer, sizes), joint=meta["joint"])
            _refuse_ctc(config, meta["joint"])
            config = on_clips.settled(on_clips.as_trained(config, meta), net)
            return cls(config, runtime, model, tokenizer, eye, seen_by)
        pretrained = [kind for kind in PRETRAINED if kind == f"{config.model}Pretrain"]
        older = on_clips.older(config, (config.model, *pretrained, LANGUAGE_MODEL))
        spoken = next((older[kind][0] for kind in (LANGUAGE_MODEL, config.model) if kind in older), None)
        tokenizer = words_of(config, spoken)
        assert config.transcription
        net = on_clips.new_encoder(config, eye)
        model = Transcriber(encoders.wrapped(net), decoder_of(config, tokenizer),
                            joint=config.transcription.ctc_weight > 0)
        for kind, (content, name) in older.items():
            _take_over(model, kind, content, name)
        task = cls(on_clips.settled(config, net), runtime, model, tokenizer, eye, seen_by)
        task.standardise(older)
        task.note_unknown()
        return task

    def note_unknown(self) -> None:
        """Say which words of the training set the vocabulary lacks: they cannot be said."""
        lacking = sorted({word for s in self.sentences("train") for word in s.gloss if word not in self.numbers})
        if lacking and self.runtime.main:
            print(f"note: {len(lacking)} words of {self.split} are not in the vocabulary that the decoder starts from, "
                  f"and cannot be said: {', '.join(lacking[:5])}", file=sys.stderr)

    def meta(self) -> dict[str, Any]:
        decoder = self.model.decoder
        return {**self.facts(), "encoder": encoders.sizes_of(self.model.encoder.net), "classes": list(self.numbers),
                "language_decoder": sizes_of(decoder), "joint": self.model.head is not None,
                "tokenizer": self.tokenizer.plain()}

    def groups(self) -> list[dict[str, Any]]:
        starting.refuse_to_watch_nothing(self.config, self.size("val"))
        most = self.model.decoder.positions - 1
        if long := [s for s in self.sentences("val") if len(s.gloss) > most]:
            raise Mistake("a sentence of the validation set is too long for the decoder", f"{long[0].id} has "
                          f"{len(long[0].gloss)} glosses", f"set language_decoder.positions = {len(long[0].gloss) + 1}")
        heads = [self.model.bridge, self.model.decoder, *([self.model.head] if self.model.head is not None else [])]
        return on_clips.groups(self.config, {"backbone": [self.model.encoder], "classifier": heads})

    def useless(self, sentence: Any) -> str:
        if not sentence.gloss:
            return "no gloss"
        if len(sentence.gloss) + 1 > self.model.decoder.positions:
            return f"{len(sentence.gloss)} glosses are more than language_decoder.positions allows"
        return super().useless(sentence)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        return super().prepare(batch, train) | targets(batch["targets"], self.tokenizer, self.runtime.device)

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Said:
        said = model(batch["inputs"], batch["lengths"], batch["tokens_in"], batch["rngs"])
        return said._replace(logits=said.logits.float(), vectors=said.vectors.float(),
                             ctc=None if said.ctc is None else said.ctc.float(),
                             decoder=cast(Transcriber, getattr(model, "module", model)).decoder)

    def losses(self, output: Said, batch: dict[str, Any]) -> Sums:
        """Cross-entropy of the words and the end, each given those before it, and CTC over the items that it can align;
        in evaluation also 100 x errors of the words that are likeliest after the right ones: `teacher_forced_wer`."""
        wanted, tokens = batch["tokens_out"], self.tokenizer
        log_probs = output.logits.log_softmax(2)
        smoothing = self.keys.smoothing if batch["train"] else 0.0
        found: Sums = {"loss": (smoothed_kl(log_probs, wanted, tokens.pad, smoothing).sum(),
                                sum(len(row) + 1 for row in batch["targets"]))}
        if output.ctc is not None and output.steps is not None:
            total, glosses = self._ctc(output.ctc.log_softmax(2), output.steps, batch)
            if glosses or batch["train"]:  # a validation set without any has no mean
                found["ctc"] = total, glosses
        if not batch["train"]:
            likeliest = log_probs.argmax(2).cpu()
            hypotheses = [self._words(row[:len(own) + 1]) for row, own in
                          zip(likeliest, batch["targets"], strict=True)]
            errors, words = self._errors(batch["reference"], hypotheses)
            if words:
                found["teacher_forced_wer"] = (torch.tensor(100.0 * errors, device=log_probs.device), words)
        return found

    def _ctc(self, log_probs: Tensor, steps: Tensor, batch: dict[str, Any]) -> tuple[Tensor, int]:
        """-ln p of the glosses of the items that have room for them, and how many glosses these are."""
        rows = [[n or self.tokenizer.unknown for n in row] for row in batch["targets"]]
        labels = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
        total, _ = ctc(log_probs, steps, labels, torch.tensor([len(row) for row in rows]))
        room = (batch["needed"] <= steps.cpu()).tolist()
        return total, sum(len(row) for row, fits in zip(rows, room, strict=True) if fits)

    def _errors(self, references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> tuple[int, int]:
        mode = wer.headline(self.cleanup)
        steps = [step for ref, hyp in zip(references, hypotheses, strict=True)
                 for step in wer.sentence_steps(ref, hyp, mode, self.cleanup)]
        return sum(step.kind != "C" for step in steps), sum(step.ref is not None for step in steps)

    def _words(self, tokens: Any) -> list[str]:
        return self.tokenizer.decode([int(token) for token in tokens]).split()

    def decode(self, output: Said, batch: dict[str, Any], quick: bool = False, **options: Any) -> list[dict[str, Any]]:
        """Records {id, set, reference, hypothesis, greedy, score}, and with joint CTC its best path's glosses as `ctc`.

        hypothesis is the best of the beam search, score its log-probability by its length; quick: greedy as both.
        """
        greedy = self._said(output, 1)
        best = greedy if quick or self.keys.beam_width == 1 else self._said(output, self.keys.beam_width)
        heard: list[dict[str, Any]] = [{}] * len(best)
        if output.ctc is not None and output.steps is not None:
            paths = decoding.greedy(output.ctc.log_softmax(2).cpu(), output.steps)
            heard = [{"ctc": self._words(path)} for path in paths]
        return [{"id": name, "set": batch["set"][i], "reference": batch["reference"][i], "hypothesis": best[i][0],
                 "greedy": greedy[i][0], "score": best[i][1], **heard[i]} for i, name in enumerate(batch["ids"])]

    def _said(self, output: Said, width: int) -> list[tuple[list[str], float]]:
        """(Glosses, score) of each item."""
        tokens = self.tokenizer
        found = search.beam_search(
            [self._speaker(output)], len(output.vectors), start=tokens.start, end=tokens.end, width=width,
            max_length=min(self.keys.max_length + 1, self.model.decoder.positions),  # the end counts
            length_penalty=self.keys.length_penalty, device=output.vectors.device,
            banned=(tokens.pad, tokens.start, tokens.unknown))
        return [(self._words(beam[0].tokens), beam[0].score) if beam else ([], 0.0) for beam in found]

    def _speaker(self, output: Said) -> search.Decoder:
        """What says the glosses: the language decoder, or it and the joint CTC together."""
        share = self.keys.ctc_share
        assert output.decoder
        attending = output.decoder.decoder(output.vectors, output.lengths)
        if not share:
            return attending
        assert output.ctc is not None and output.steps is not None
        heard = decoding.Prefixes(output.ctc.log_softmax(2), output.steps, self.tokenizer.end)
        return search.Weighted([attending, heard], [1 - share, share])

    # --- tests ----------------------------------------------------------------------------------------------

    def validation(self, means: dict[str, float], records: list[dict[str, Any]]) -> dict[str, float]:
        """`wer` is of what is generated; teacher-forced figures keep their own name."""
        errors, words = self._errors([row["reference"] for row in records], [row["greedy"] for row in records])
        return means | {"wer": 100.0 * errors / words if words else 0.0}

    def examples(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        return transcription_report.samples(records)

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """wer (of the mode that counts), the counts of every mode, those of greedy search, and of the joint CTC."""
        return transcription_report.figures(records, self.cleanup, self.config.split, self.keys)

    def summary(self, records: list[dict[str, Any]]) -> str:
        return transcription_report.summary(self.score(records), records, self.cleanup)

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """predictions.jsonl, reference.trn, hypothesis.trn, glosses.csv, samples.md, details.json (unless
        tables=False), and the pictures that `graphs` names."""
        return transcription_report.write(
            records, folder, name, cleanup=self.cleanup, split=self.config.split,
            title=f"{self.config.model} on {self.config.split}, {name}", **options)


def _refuse_ctc(config: Config, joint: bool) -> None:
    if config.transcription and config.transcription.ctc_weight and not joint:
        raise Mistake("transcription.ctc_weight cannot change", "the checkpoint has no head for CTC",
                      "leave it out, or train a new run")


# --- words ----------------------------------------------------------------------------------------------------

def numbers_of(tokenizer: Tokenizer) -> dict[str, int]:
    """{word: its token}."""
    return {word: tokenizer.encode(word)[0] for word in tokenizer.words}


def words_of(config: Config, spoken: dict[str, Any] | None) -> Tokenizer:
    """The words of the training set's glosses; of a model that the decoder starts from, that one's."""
    if spoken is not None:
        return cast(Tokenizer, tokenizer_from(spoken["meta"]["tokenizer"]))
    found = footage.load(paths.data_root(config.data.root), config.split, "train")
    return WordVocabulary.build(" ".join(sentence.gloss) for sentence in found)


def targets(rows: Sequence[Sequence[int]], tokenizer: Tokenizer, device: torch.device) -> dict[str, Tensor]:
    """tokens_in (N, U), the start and the words, and tokens_out (N, U), the words and the end; a 0 among the rows is a
    word that the tokenizer lacks."""
    return in_and_out([[number or tokenizer.unknown for number in row] for row in rows], tokenizer, device)


# --- the decoder ----------------------------------------------------------------------------------------------

SIZES = ("width", "layers", "heads", "ffn", "positions")


def decoder_of(config: Config, tokenizer: Tokenizer, sizes: dict[str, Any] | None = None, *,
               cross_attention: bool = True) -> LanguageDecoder:
    """Of the config's sizes, or of a checkpoint's."""
    keys = config.language_decoder or LanguageDecoderSection()
    plain = sizes or {name: getattr(keys, name) for name in SIZES}
    return LanguageDecoder(tokenizer.size, **plain, cross_attention=cross_attention, drop_p=keys.dropout)


def sizes_of(decoder: LanguageDecoder) -> dict[str, int]:
    """What a checkpoint has to know of it."""
    first: Any = decoder.layers[0]
    return {"width": decoder.width, "layers": len(decoder.layers), "heads": first.own.heads,
            "ffn": first.fc1.out_features, "positions": decoder.positions}


def _take_over(model: Transcriber, kind: str, content: dict[str, Any], name: str) -> None:
    """The weights of an older run: of the language model, of a pre-trained encoder, or of this very model."""
    state = content["model_state_dict"]
    if kind == LANGUAGE_MODEL or kind not in PRETRAINED:
        on_clips.refuse_other_sizes(content, "language_decoder", sizes_of(model.decoder), name)
    if kind != LANGUAGE_MODEL:
        on_clips.refuse_other_sizes(content, "encoder", encoders.sizes_of(model.encoder.net), name)
    if kind == LANGUAGE_MODEL:
        model.decoder.start_from(state, name)
    elif kind in PRETRAINED:
        load_weights(model.encoder.net, on_clips.part_of(state, "encoder."), name)
    else:
        load_weights(model, state, name)
