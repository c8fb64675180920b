"""mBART with the vocabulary that a data set needs, in a folder that loads as any other.

    report = prune("facebook/mbart-large-cc25", "pretrained_models/mBart_de", texts, glosses, "de_DE", "de_DGS")

Kept are the special tokens, all languages, <mask>, and the sub-tokens of the texts and of the glosses in lower case:
that made 2,498 of 250,027 for PHOENIX-2014T and 6,386 for CSL-Daily (Chen et al. 2022,
https://arxiv.org/abs/2203.04287, the authors' program SLRT; from the texts of all three sets), 357 and 361 of 611
million parameters. Nothing else changes: a kept token has the logit that it had. The folder holds the model, mBART's
tokenizer files, map_ids.json ({old id: new id}, special tokens first, then the sub-tokens by old id),
gloss_embeddings.safetensors (gloss_table.py) and pruned.json, the report. It appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slr import paths
from slr.errors import Mistake
from slr.models.gloss_table import TABLE, gloss_means, write_gloss_table
from slr.models.mbart import (
    CONFIG,
    END,
    ID_MAP,
    PIECES,
    UNKNOWN,
    WEIGHTS,
    MBartText,
    file_of,
    folder_of,
    load_model,
    read_config,
)
from slr.paths import shown

if TYPE_CHECKING:
    from transformers import MBartForConditionalGeneration

REPORT = "pruned.json"
TOKENIZER_FILES = (PIECES, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def prune(source: Path | str, folder: Path | str, texts: Iterable[str], glosses: Iterable[str], language: str,
          gloss_language: str) -> dict[str, Any]:
    """Write the pruned mBART `source` to the new `folder` (relative: to the project), and say what became of it.

    Args:
        texts: the sentences as the model will be given them, cleaned up and in lower case where that is so.
        glosses: any number of times each.
        language: of the texts, as mBART names it: de_DE, zh_CN.
        gloss_language: the name of its token in the table of gloss embeddings: de_DGS, zh_CSL.

    Returns:
        pruned.json: what it was made of (`recipe`), tokens before and after, parameters, glosses, and how many
        sub-tokens of the texts mBART itself does not know; with `new`, False where the folder was there already.

    Raises:
        Mistake: no mBART there, it is pruned already, there are no texts, or `folder` holds something else.
    """
    folder = paths.HOME / Path(folder).expanduser()
    text = MBartText.load(source, language)
    if text.size != read_config(source).get("vocab_size") or text.size != text.whole_size:
        raise Mistake(f"{source} does not have mBART's whole vocabulary",
                      f"{read_config(source).get('vocab_size')} of {text.whole_size} tokens",
                      "prune the published model, facebook/mbart-large-cc25")
    names = sorted({gloss.lower() for gloss in glosses})
    seen = count_tokens(text, texts, names)
    kept = kept_ids(text, seen)
    recipe = {"source": _fingerprint(source), "language": language, "gloss_language": gloss_language,
              "kept": _hash(kept), "glosses": _hash(names)}
    done = _already(folder, recipe)
    if done is not None:
        return {**done, "new": False}
    report = {"recipe": recipe, "tokens_before": text.size, "tokens": len(kept), "glosses": len(names),
              "unknown": seen[UNKNOWN]}
    return {**_write(source, folder, text, kept, names, report), "new": True}


def count_tokens(text: MBartText, texts: Iterable[str], glosses: Iterable[str]) -> Counter[int]:
    """How often the texts, and each gloss once, have each token of the whole vocabulary."""
    seen: Counter[int] = Counter()
    for sentence in texts:
        seen.update(text.whole(sentence))
    if not seen:
        raise Mistake("there is nothing to prune for", "no texts", "prepare the data set first")
    for gloss in glosses:
        seen.update(text.whole(gloss))
    return seen


def kept_ids(text: MBartText, seen: Iterable[int]) -> list[int]:
    """Old ids by new id: special tokens, languages, <mask>, then what was seen."""
    first = [*range(UNKNOWN + 1), *range(text.whole_size - len(text.added), text.whole_size)]
    return first + sorted(set(seen) - set(first))


def shrink(model: "MBartForConditionalGeneration", kept: Sequence[int], start: int) -> None:
    """Keep these rows of the embedding, of the output layer and of its bias, in this order; in place.

    `start` is the new id of the token that targets begin with.
    """
    index = torch.tensor(kept)
    rows: dict[int, nn.Parameter] = {}  # tied before, tied after
    inner = model.model
    for module in (inner.shared, inner.encoder.embed_tokens, inner.decoder.embed_tokens, model.lm_head):
        weight: Tensor = module.weight
        rows.setdefault(id(weight), nn.Parameter(weight.detach()[index].clone()))
        module.weight = rows[id(weight)]
        setattr(module, "out_features" if isinstance(module, nn.Linear) else "num_embeddings", len(kept))
    model.register_buffer("final_logits_bias", model.final_logits_bias[:, index].clone())
    model.config.vocab_size, model.config.decoder_start_token_id = len(kept), start
    if model.generation_config is not None:  # the ids in it are old ones, but for the first four
        model.generation_config.decoder_start_token_id = start
        model.generation_config.forced_bos_token_id = None
        model.generation_config.forced_eos_token_id = END
    if hasattr(model.config, "task_specific_params"):
        model.config.task_specific_params = None


def _write(source: Path | str, folder: Path, whole: MBartText, kept: list[int], glosses: list[str],
           report: dict[str, Any]) -> dict[str, Any]:
    model = load_model(source)
    report["parameters_before"] = model.num_parameters()
    text = MBartText.load(source, whole.language, {old: new for new, old in enumerate(kept)})
    shrink(model, kept, text.start)
    report["parameters"] = model.num_parameters()
    table = gloss_means(model.model.shared.weight, text, glosses, report["recipe"]["gloss_language"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    try:
        model.save_pretrained(aside)
        _copy_tokenizer(source, aside)
        (aside / ID_MAP).write_text(json.dumps({old: new for new, old in enumerate(kept)}), encoding="utf-8")
        write_gloss_table(aside / TABLE, table)
        (aside / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
        _flush(aside)
        os.rename(aside, folder)
    except OSError as error:
        raise Mistake(f"{shown(folder)} cannot be written", str(error), "make room, or name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _aside(folder: Path) -> Path:
    """A new folder beside the one to come; what a killed pruning left is removed."""
    for old in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(old, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    aside.mkdir()
    return aside


def _copy_tokenizer(source: Path | str, aside: Path) -> None:
    """From the hub the pieces alone, which are all that is needed."""
    folder = folder_of(source)
    there = [name for name in TOKENIZER_FILES if folder is not None and (folder / name).is_file()]
    for name in there or (PIECES,):
        shutil.copyfile(file_of(source, name), aside / name)


def _flush(folder: Path) -> None:
    """Everything in it is on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _already(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a folder that this very pruning wrote; None where there is none. Anything else is a Mistake."""
    if not folder.exists():
        return None
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        found = "its " + REPORT + " tells of another pruning" if report["recipe"] != recipe else ""
    except (OSError, ValueError, TypeError, KeyError):
        report, found = None, f"no {REPORT} of a pruning in it"
    if found:
        raise Mistake(f"{shown(folder)} is taken", found, "name another folder, or remove that one")
    return report


def _fingerprint(source: Path | str) -> str:
    """Of the config, the pieces and the sizes of the weights' files: reading those takes a minute."""
    whole = hashlib.sha256(file_of(source, CONFIG).read_bytes() + file_of(source, PIECES).read_bytes())
    folder = folder_of(source)
    if folder is not None:
        sizes = sorted((path.name, path.stat().st_size) for path in folder.iterdir()
                       if path.suffix in {Path(name).suffix for name in WEIGHTS} and path.name != TABLE)
        whole.update(repr(sizes).encode())
    return whole.hexdigest()[:16]


def _hash(items: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
