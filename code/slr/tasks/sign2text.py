"""Signing to glosses and text: a gloss head with CTC as in `continuous`, a mapper, and a translator, trained together.

The glosses' side is that of the task `continuous`, from whose models the visual part comes. What goes in are the
features that extract_features.py has written, or with translation.features = '' the video.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from slr import checkpoint, paths
from slr.catalogue import MODELS, builder_of, canonical
from slr.checkpoint import load_weights
from slr.config import Config, DataSection, config_from_dict
from slr.datasets import features, sentence_clips, sentences
from slr.datasets.sentences import Sentence, steps_needed
from slr.datasets.translations import FeatureDataset, WithText, dealt_out
from slr.errors import Mistake
from slr.models.classifier import TwoParts
from slr.models.sentence import GlossHead, SentenceModel, init_from
from slr.models.sign2text import MAPPERS, Expectation, FeatureHead, Sign2Text, Source
from slr.models.translator import Translator
from slr.paths import shown
from slr.runtime import Runtime
from slr.task import Sums
from slr.tasks import continuous_report, starting, translation_report, translators
from slr.tasks.continuous import Continuous
from slr.tasks.speech import Speech, languages

CLIP = ("num_frames", "frame_size", "frame_stride", "eval_resize", "subtract_clip_mean")  # of [data]: what a clip is
SIGN2GLOSS, GLOSS2TEXT, WHOLE = "a checkpoint of sentences (S3D_CTC, …)", "a checkpoint of Gloss2Text", "Sign2Text"
Content = dict[str, Any]


class Output(NamedTuple):
    """Gloss logits (N, T', K), time steps (N,), text logits (N, T, V); the translator, and what it was given."""

    glosses: Tensor
    steps: Tensor
    text: Tensor
    translator: Translator
    source: Source


class SignToText(Continuous):
    """`visual` says what the visual part is: model (of the catalogue, "" for a bare head), channels, fps and clip; over
    features also weights, the hash of the model that has to have made them."""

    passes: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "test": ("test", {}), "val": ("val", {}), "test_shuffled": ("test", {"shuffle": True})}
    headline: ClassVar[tuple[str, float]] = ("bleu4", 1.0)
    table: ClassVar[str] = "bleu"
    generates: ClassVar[bool] = True
    graphs: ClassVar[tuple[str, ...]] = ("alignment",)

    def __init__(self, config: Config, runtime: Runtime, model: Sign2Text, classes: list[str], speech: Speech,
                 translator: dict[str, Any], visual: dict[str, Any]):
        assert config.translation and config.decoding
        clip = replace(config.data, **visual["clip"])
        config = replace(config, data=clip, decoding=replace(config.decoding, fps=visual["fps"]))
        assert config.translation
        if not visual["model"] and not config.translation.features:
            raise Mistake("this model cannot see videos", "it has no backbone, only a gloss head over features",
                          "set translation.features, or start from a checkpoint of S3D_CTC (model_params.init_from)")
        super().__init__(config, runtime, cast(TwoParts, model), classes)
        self.keys, self.speech, self.translator, self.visual = config.translation, speech, translator, visual
        self.from_features = bool(config.translation.features)
        self.weights = {"ctc": self.keys.ctc_weight, "text": self.keys.text_weight}
        self.friends: list[SignToText] = []  # an ensemble's others
        self._dealt: int | None = None  # the seed of whose signing an item is given, where not its own
        self._features: dict[str, dict[str, Tensor]] = {}
        if visual["model"]:
            self.entry = MODELS[visual["model"]]
            self._channels_last = starting.channels_last(replace(config, model=visual["model"]), runtime.device.type)
        if self._channels_last:
            self.model = self.model.to(memory_format=torch.channels_last_3d)

    @classmethod
    def build(cls, config: Config, runtime: Runtime, meta: dict[str, Any] | None = None) -> "SignToText":
        """For training: from the two checkpoints of model_params.init_from; else all of it from `meta`."""
        assert config.translation
        if meta is None:
            return _fresh(cls, config, runtime)
        translators.refuse_another(config.translation, meta["translator"])
        tokenizer = translators.tokenizer_of(meta["tokenizer"])
        translator = translators.again(meta["translator"], tokenizer, config.translation)
        classes, visual = list(meta["classes"]), meta["visual"]
        return cls(config, runtime, _assembled(config, classes, visual, translator), classes,
                   Speech(config.translation, meta["language"], tokenizer), meta["translator"], visual)

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "translator": self.translator, "tokenizer": self.speech.tokenizer.plain(),
                "language": self.speech.language, "visual": self.visual}

    def groups(self) -> list[dict[str, Any]]:
        """The visual part (in two groups, as for sentences, where it learns to see), the mapper, the translator."""
        self._check_validation()
        model, keys = cast(Sign2Text, self.model), self.config.optimizer
        parts = {"classifier": model.visual.classifier, "mapper": model.mapper, "translator": model.translator}
        if model.learns_to_see:
            parts = {"backbone": cast(nn.Module, model.visual.backbone), **parts}
        return [translators.group(name, (p for p in part.parameters() if p.requires_grad), keys)
                for name, part in parts.items()]

    # --- data -----------------------------------------------------------------------------------------------

    def read(self, part: str) -> tuple[list[Sentence], dict[str, str]]:
        """Those with a text: of the others no set can tell how well they are translated."""
        found, reasons = super().read(part)
        return [sentence for sentence in found if sentence.text], reasons

    def _useless(self, sentence: Sentence) -> str:
        return super()._useless(sentence) or ("" if sentence.text else "no text")

    def _too_short(self, sentence: Sentence) -> str:
        if not self.from_features:
            return super()._too_short(sentence)
        found = self.features(sentence.set).get(sentence.id)
        if found is None:
            return "no features"
        room = len(found) >= steps_needed(sentence.gloss)
        return "" if room else f"too few time steps for its glosses: {len(found)} for {' '.join(sentence.gloss)}"

    def features(self, part: str) -> dict[str, Tensor]:
        """{id: (T', C)} of a set, read once. Raises Mistake where they are not those of the gloss head."""
        if part not in self._features:
            found = features.read_features(self.keys.features, part)
            _refuse_others_features(self.keys.features, part, self.visual.get("weights"))
            width = next(iter(found.values())).shape[1] if found else self.visual["channels"]
            if width != self.visual["channels"]:
                raise Mistake("the features are of another model", f"{width} numbers a time step in "
                              f"{self.keys.features}, the gloss head takes {self.visual['channels']}",
                              "extract them with the model that translation.visual or model_params.init_from names")
            self._features[part] = found
        return self._features[part]

    def check_inputs(self, found: list[Sentence], part: str) -> None:
        if not self.from_features:
            super().check_inputs(found, part)
            return
        other = features.of_other_frames(self.keys.features, found, self.root)
        if other:
            raise Mistake(f"the features of {len(other)} of {len(found)} sentences of the {part} set are of other "
                          "frames", ", ".join(other[:5]), "run extract_features.py again: it renews what has changed")
        missing = [s.id for s in found if s.id not in self.features(s.set)]  # --overfit validates on the training set
        if missing:
            raise Mistake(f"{len(missing)} of {len(found)} sentences of the {part} set have no features",
                          ", ".join(missing[:5]), f"they are looked for in {self.keys.features}: run "
                          "extract_features.py again")

    def dataset(self, found: list[Sentence], train: bool) -> Any:
        dealt = None if self._dealt is None else dealt_out(len(found), self._dealt)
        clean, encode, data = self.speech.clean, self.speech.tokenizer.encode, self.config.data
        if not self.from_features:
            return WithText(super().dataset(found, train), clean, encode, dealt)
        rows = self.features(found[0].set) if found else {}
        return FeatureDataset(found, self.numbers, clean, encode, rows, stride=self._stride, every=data.frame_stride,
                              most=data.num_frames, dealt=dealt)

    # --- what the engine asks for ---------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], train: bool) -> dict[str, Any]:
        """Adds inputs: features (N, T', C), or clips as for sentences; tokens_in and tokens_out (N, T)."""
        device = self.runtime.device
        if "features" in batch:
            rows = pad_sequence(sentence_clips.split(batch, "features"), batch_first=True)
            batch = {**batch, "inputs": rows.to(device, non_blocking=True), "train": train}
        else:
            batch = super().prepare(batch, train)
        return batch | self.speech.targets(batch["tokens"], device)

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Output:
        said = model(batch["inputs"], batch["lengths"], batch["tokens_in"], features="features" in batch)
        translator = cast(Sign2Text, getattr(model, "module", model)).translator
        return Output(said.glosses.float(), said.steps, said.text.float(), translator, said.source)

    def losses(self, output: Output, batch: dict[str, Any]) -> Sums:
        """CTC over the items that can be aligned, the text's over all; `loss` is both, as they are weighed."""
        found = super().losses(output, batch)
        ctc, text = found.pop("loss"), self.speech.loss(output.text, batch["tokens_out"], smoothed=batch["train"])
        both = self.weights["ctc"] * ctc[0].detach() + self.weights["text"] * text[0].detach()
        return {"loss": (both, text[1]), "ctc": ctc, "text": text, **found}

    def decode(self, output: Output, batch: dict[str, Any], quick: bool = False,
               **search: Any) -> list[dict[str, Any]]:
        """The records of `Continuous.decode`, with text, translation, greedy_translation; `quick`: only these."""
        others = [friend.forward(friend.model, batch) for friend in self.friends]
        said = self.speech.texts([(found.translator, found.source) for found in (output, *others)], quick)
        names = zip(batch["ids"], batch["set"], batch["text"], strict=True)
        records = ([{"id": name, "set": part} for name, part, _ in names] if quick
                   else super().decode(output[:2], batch, **search))
        return [{**record, "text": text, **found}
                for record, text, found in zip(records, batch["text"], said, strict=True)]

    # --- tests ----------------------------------------------------------------------------------------------

    def validation(self, means: dict[str, float], records: list[dict[str, Any]]) -> dict[str, float]:
        return means | {"bleu4": self.speech.bleu4(records, "greedy_translation")}

    def sweep(self) -> list[dict[str, Any]]:
        return self.speech.sweep()

    def use_search(self, **options: Any) -> None:
        self.speech.use(**options)

    def join(self, others: list["SignToText"]) -> None:
        """Say from now on what all of them together find likeliest; the glosses stay this one's."""
        translators.check_friends(self.speech, [other.speech for other in others])
        for other in others:
            if other._looks_at() != self._looks_at():
                raise Mistake("these models do not look at the same thing", f"{other.keys.features or 'videos'} and "
                              f"{self.keys.features or 'videos'}", "give runs over the same features, or clips")
            other.model.eval()
        self.friends = others

    def _looks_at(self) -> tuple[Any, ...]:
        """What an item's inputs follow from."""
        return (self.keys.features,) if self.from_features else (self.visual["clip"], self.entry.mean, self.entry.std)

    def vary(self, *, shuffle: bool = False, seed: int = 42, **options: Any) -> None:
        """Shuffled: each item is given another one's signing."""
        if options.get("black") and self.from_features:
            raise Mistake("there are no frames to blacken", "the model reads extracted features", "leave -bf out")
        super().vary(**options)
        self._dealt = seed if shuffle else None

    def score(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Of the texts as for Gloss2Text; `glosses` as for sentences."""
        return {**self.speech.score(records, self.config.split), "glosses": super().score(records)}

    def summary(self, records: list[dict[str, Any]]) -> str:
        found = self.score(records)
        return (f"{translation_report.summary(found, records, self.speech.level)}\nglosses: "
                f"{continuous_report.summary(found['glosses'], records, self.cleanup)}")

    def report(self, records: list[dict[str, Any]], folder: Path, name: str, **options: Any) -> list[Path]:
        """The files of Gloss2Text; those of sentences, named `name`_glosses-something, about the glosses."""
        graphs = options.pop("graphs", self.graphs)
        if graphs and self._dealt is not None:
            raise Mistake("shuffled signing has no alignment", "the frames are another sentence's", "leave -al out")
        if any(s.frames is None or not s.path.exists() for part in self._sets.values() for s in part):
            graphs = ()  # there is nothing to show
        made = translation_report.write(records, folder, name, self.score(records), self.speech.level, **options)
        return made + super().report(records, folder, f"{name}_glosses", graphs=graphs, **options)


# --- how a model begins -------------------------------------------------------------------------------------

def _fresh(cls: type[SignToText], config: Config, runtime: Runtime) -> SignToText:
    """A model for training, with the weights that it is told to start from."""
    assert config.translation
    keys, root = config.translation, paths.data_root(config.data.root)
    found = _pieces(config)
    if WHOLE in found:
        content = found[WHOLE]
        same = replace(config, translation=translators.settled(keys, content["meta"]["translator"]))
        task = cls.build(same, runtime, content["meta"])
        task.load(content["model_state_dict"], config.model_params.init_from)
        return task
    sign2gloss, gloss2text = found.get(SIGN2GLOSS), found.get(GLOSS2TEXT)
    classes = sentences.load_vocabulary(root, config.split)
    visual = _visual(config, sign2gloss)
    spoken, signed = languages(keys, config.split)
    if gloss2text and keys.language == "auto":
        spoken = gloss2text["meta"]["language"]
    texts = [s.text for s in sentences.load_sentences(root, config.split, "train")]
    tokenizer = translators.chosen(keys, spoken, gloss2text["meta"]["tokenizer"] if gloss2text else None, texts)
    if gloss2text:
        plain = gloss2text["meta"]["translator"]
        keys = translators.settled(keys, plain)
        config = replace(config, translation=keys)
        translator = translators.again(plain, tokenizer, keys)
        load_weights(translator, translators.part_of(gloss2text["model_state_dict"], "translator."),
                     config.model_params.init_from)
    else:
        translator = translators.new(keys, tokenizer, signed, config.model_params.pretrained)
        plain = translators.plain_of(translator, keys)
    model = _assembled(config, classes, visual, translator)
    _start(model, sign2gloss, gloss2text, classes, config.model_params.init_from)
    return cls(config, runtime, model, classes, Speech(keys, spoken, tokenizer), plain, visual)


def _pieces(config: Config) -> dict[str, Content]:
    """The checkpoints of model_params.init_from by what they are. Raises Mistake unless all that is needed is there."""
    assert config.translation
    found: dict[str, Content] = {}
    for path in starting.checkpoints_of(config.model_params.init_from):
        content = checkpoint.load(path)
        model = content.get("model", "")
        kind = {"Gloss2Text": GLOSS2TEXT, "Sign2Text": WHOLE}.get(
            model, SIGN2GLOSS if model in MODELS and MODELS[model].task == "continuous" else "")
        if not kind or kind in found or "meta" not in content:
            raise Mistake(f"Sign2Text cannot start from {shown(path)}", f"it is of {model or 'no model of ours'}"
                          + (", and so is another" if kind in found else ""),
                          f"give {SIGN2GLOSS} and {GLOSS2TEXT}, or one of Sign2Text")
        found[kind] = content
    if WHOLE in found and len(found) > 1:
        raise Mistake("Sign2Text starts from one of its own, or from parts", f"model_params.init_from = "
                      f"{config.model_params.init_from!r} has both", "leave one or the others out")
    lacking = [] if WHOLE in found else [kind for kind in (SIGN2GLOSS, GLOSS2TEXT) if kind not in found]
    if lacking and not config.translation.scratch:
        raise Mistake(f"Sign2Text has nothing to start from: {' and '.join(lacking)} missing",
                      f"model_params.init_from = {config.model_params.init_from!r}",
                      "name both, with a comma between them; translation.scratch = True starts at random")
    return found


def _visual(config: Config, sign2gloss: Content | None) -> dict[str, Any]:
    """What the visual part is: that of the checkpoint, else as the config says."""
    assert config.translation and config.decoding
    if sign2gloss:
        own = config_from_dict(sign2gloss["config"])
        assert own.decoding
        table = sign2gloss["model_state_dict"].get("classifier.project.weight")
        if table is None:
            raise Mistake(f"{own.model} has no gloss features that a mapper could read", "its head is a single layer",
                          "start from a model whose name ends in _CTC")
        channels, width = table.shape[1], table.shape[0]
        made_with = {}
        if config.translation.features:
            made_with["weights"] = checkpoint.weights_hash(sign2gloss["model_state_dict"])
        return {"model": own.model, "channels": channels, "width": width, "fps": own.decoding.fps,
                "clip": _clip(own.data), "last_relu": own.model_params.last_relu is not False,
                **made_with}
    bare = {"width": 512, "last_relu": True, "fps": config.decoding.fps, "clip": _clip(config.data)}
    model, over = canonical(config.translation.visual), config.translation.features
    if MODELS[model].task != "continuous" or not (over or model.endswith("_CTC")):
        raise Mistake("translation.visual is no model that a mapper could read", model,
                      f"give one of {', '.join(name for name in MODELS if name.endswith('_CTC'))}")
    if over:
        some = features.read_features(over, "train")
        if not some:
            raise Mistake("there are no features of the train set", over, "extract them again")
        return {"model": "", "channels": next(iter(some.values())).shape[1], "stride": MODELS[model].stride, **bare}
    return {"model": model, "channels": None, **bare}


def _refuse_others_features(where: str, part: str, weights: str | None) -> None:
    """Raises Mistake where extract_features.py wrote a set with other weights than those (by their hash) that the
    visual part began with."""
    if weights and features.made_with(where, part) not in (None, weights):
        raise Mistake(f"the features in {where} are not of the model that Sign2Text starts from",
                      "they were extracted with other weights", "extract them again with that model's best.pth")


def _clip(data: DataSection) -> dict[str, Any]:
    return {name: getattr(data, name) for name in CLIP}


def _assembled(config: Config, classes: Sequence[str], visual: dict[str, Any], translator: Translator) -> Sign2Text:
    """The model, its weights random but the translator's."""
    assert config.translation
    part: SentenceModel | FeatureHead
    drop_p, clip = config.model_params.drop_p, visual["clip"]
    if visual["model"]:
        options = {"frozen_blocks": int(not config.translation.scratch), "last_relu": visual["last_relu"]}
        options = options if MODELS[visual["model"]].freezable else {}
        part = builder_of(visual["model"])(len(classes), frames=clip["num_frames"], size=clip["frame_size"],
                                           drop_p=drop_p, width=visual["width"], **options)
        visual["channels"] = part.classifier.project.in_features
    else:
        head = GlossHead(visual["channels"], len(classes), visual["width"], drop_p, visual["last_relu"])
        part = FeatureHead(head, visual["stride"])
    inside = len(classes) if config.translation.mapper == "embedding" else visual["width"]
    mapper = MAPPERS[config.translation.mapper](inside, translator.width)
    return Sign2Text(part, mapper, translator, learns_to_see=not config.translation.features)


def _start(model: Sign2Text, sign2gloss: Content | None, gloss2text: Content | None, classes: list[str],
           source: str) -> None:
    """The weights of both checkpoints; of other glosses than theirs the rows stay new."""
    if sign2gloss and isinstance(model.visual, SentenceModel):
        report = model.visual.report = init_from(model.visual, sign2gloss["model_state_dict"],
                                                 sign2gloss["meta"]["classes"], classes, source)
        if not set(report.shared) - {sentences.BLANK}:
            raise Mistake("the checkpoint of sentences knows none of these glosses", f"{', '.join(classes[1:4])}, …",
                          "start from one that was trained on this split, or on its glosses")
    if gloss2text and isinstance(model.mapper, Expectation):
        rows = {gloss: number for number, gloss in enumerate(gloss2text["meta"]["classes"])}
        table = model.mapper.embedding.detach().clone()
        for number, gloss in enumerate(classes):
            if gloss in rows:
                table[number] = gloss2text["model_state_dict"]["gloss_embedding.weight"][rows[gloss]]
        model.mapper.start_from(table)
