"""Which translator a config or a checkpoint asks for, the tokens that it speaks in, and the weights it starts from.

`plain` is what a checkpoint has to know to build one again: {"kind": small or mbart, and its sizes}.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slr import paths, text
from slr.checkpoint import load_weights
from slr.config import OptimizerSection, TranslationSection
from slr.errors import Mistake
from slr.models.sign2text import Gloss2Text
from slr.models.translator import SmallTranslator, Translator
from slr.tasks.speech import Speech, cleaned

SIZES = ("width", "layers", "heads", "ffn")
Content = dict[str, Any]


def chosen(keys: TranslationSection, spoken: str, tokens: dict[str, Any] | None, texts: Sequence[str]) -> Any:
    """The tokenizer of a new model: a checkpoint's `tokens`, mBART's, or one of the training texts."""
    if tokens is not None:
        return tokenizer_of(tokens)
    if not any(texts):
        raise Mistake("there is nothing to translate to", "no training sentence has a text",
                      "prepare a corpus with translations, such as phoenix2014t, csl_daily or demo_translation")
    if keys.translator == "mbart":
        from slr.models.mbart import MBartText

        return MBartText.load(keys.mbart, spoken)
    clean = [cleaned(sentence, spoken) for sentence in texts]
    if keys.tokens == "pieces":
        return text.PieceVocabulary.build(clean, keys.pieces)
    auto = "char" if spoken.startswith("zh") else "word"
    return text.WordVocabulary.build(clean, auto if keys.tokens == "auto" else keys.tokens)


def tokenizer_of(plain: dict[str, Any]) -> Any:
    """What a tokenizer's `plain` describes."""
    if plain["kind"] == "mbart":
        from slr.models.mbart import MBartText

        return MBartText.from_plain(plain)
    return text.tokenizer_from(plain)


def new(keys: TranslationSection, tokenizer: Any, signed: str, pretrained: bool) -> Translator:
    """The translator that a config asks for; mBART's with its weights where it is to be pretrained."""
    if keys.translator == "small":
        return SmallTranslator(tokenizer.size, drop_p=keys.dropout, **{name: getattr(keys, name) for name in SIZES})
    from slr.models import mbart

    return mbart.build(keys.mbart, tokenizer, gloss_language=signed, pretrained=pretrained, dropout=keys.dropout,
                       attention_dropout=keys.attention_dropout, freeze_text=keys.freeze_text)


def again(plain: dict[str, Any], tokenizer: Any, keys: TranslationSection) -> Translator:
    """The translator of a checkpoint, its weights still random; dropout and what is frozen as the config says."""
    if plain["kind"] == "small":
        return SmallTranslator(tokenizer.size, drop_p=keys.dropout, **{name: plain[name] for name in SIZES})
    from slr.models.mbart import MBart

    rates = {"dropout": keys.dropout, "attention_dropout": keys.attention_dropout}
    translator = MBart.from_plain({**plain, "config": {**plain["config"], **rates}})
    translator.model.model.shared.requires_grad_(not keys.freeze_text)
    return translator


def settled(keys: TranslationSection, plain: dict[str, Any]) -> TranslationSection:
    """The settings, with what a checkpoint's translator is in the place of what they say of it."""
    sizes = {name: plain[name] for name in SIZES} if plain["kind"] == "small" else {}
    return replace(keys, translator=plain["kind"], **sizes)


def refuse_another(keys: TranslationSection, plain: dict[str, Any]) -> None:
    """Raises Mistake where the settings ask for another translator than the checkpoint has."""
    own = settled(keys, plain)
    other = [name for name in ("translator", *SIZES) if getattr(own, name) != getattr(keys, name)]
    if other:
        raise Mistake(f"translation.{other[0]} cannot change", f"{getattr(keys, other[0])!r}, the checkpoint has "
                      f"{getattr(own, other[0])!r}", "leave it out, or train a new run")


def plain_of(translator: Translator, keys: TranslationSection) -> dict[str, Any]:
    """What `again` needs to know of a translator that `new` has made."""
    if isinstance(translator, SmallTranslator):
        return {"kind": "small", **{name: getattr(keys, name) for name in SIZES}}
    return translator.plain()  # type: ignore[operator]


def start_glosses(model: Gloss2Text, classes: Sequence[str], keys: TranslationSection, tokenizer: Any,
                  signed: str) -> None:
    """Under mBART begin with the means of the glosses' sub-tokens: of the table in its folder, else of its embedding.

    What stands for glosses that are not known is mBART's <unk>, or 0 under the small translator, where it never learns.
    """
    with torch.no_grad():
        model.gloss_embedding.weight[0] = 0
    if keys.translator == "small":
        if keys.freeze_gloss:
            raise Mistake("translation.freeze_gloss would freeze random embeddings", "the translator is small",
                          "leave the key out")
        return
    from slr.models.gloss_table import TABLE, gloss_means, gloss_rows, read_gloss_table

    file = paths.HOME / Path(keys.mbart).expanduser() / TABLE
    embedding: Any = model.translator.model.model.shared.weight  # type: ignore[union-attr]
    table = read_gloss_table(file) if file.is_file() else gloss_means(embedding, tokenizer, classes[1:], signed)
    rows, known = gloss_rows(table, ["<unk>", *classes[1:]])
    with torch.no_grad():
        model.gloss_embedding.weight[known] = rows[known].to(model.gloss_embedding.weight)


def start_from(model: Gloss2Text, content: Content, classes: Sequence[str], source: str) -> None:
    """Take over another Gloss2Text's translator, and the embeddings of the glosses that both know."""
    state = content["model_state_dict"]
    load_weights(model.translator, part_of(state, "translator."), source)
    rows = {gloss: number for number, gloss in enumerate(content["meta"]["classes"])}
    known = [number for number, gloss in enumerate(classes) if gloss in rows]
    table = state["gloss_embedding.weight"]
    with torch.no_grad():
        model.gloss_embedding.weight[known] = table[[rows[classes[number]] for number in known]].to(
            model.gloss_embedding.weight)


def part_of(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors of a submodule, under the names that they have there."""
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


def group(name: str, parameters: Iterable[nn.Parameter], keys: OptimizerSection) -> dict[str, Any]:
    """An optimiser group with the rate of `name`: backbone, classifier, mapper or translator."""
    rate = getattr(keys, f"{name}_init_lr")
    decay = {"backbone": keys.backbone_weight_decay, "translator": keys.translator_weight_decay}.get(name)
    return {"name": name, "params": list(parameters), "lr": keys.classifier_init_lr if rate is None else rate,
            "weight_decay": keys.classifier_weight_decay if decay is None else decay}


def check_friends(speech: Speech, others: Sequence[Speech]) -> None:
    """Raises Mistake unless the models of an ensemble speak in the same tokens."""
    if any(other.tokenizer.plain() != speech.tokenizer.plain() for other in others):
        raise Mistake("these models do not speak in the same tokens", "their vocabularies differ",
                      "give runs that were trained on the same prepared split with the same [translation] tokens")
