"""mBART with the vocabulary of a prepared split: what preprocess.py --prune_mbart does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slr import paths
from slr.config import TranslationSection, read_config
from slr.datasets.sentences import Sentence, load_sentences
from slr.errors import Mistake
from slr.models.prune import prune
from slr.paths import SETS, Experiment, shown
from slr.tasks.speech import cleaned, languages


def prune_for(split: str, root: Path, source: str, folder: Path, parts: Sequence[str] = ("train",)) -> str:
    """Prune the mBART `source` to what these sets of a split say, into `folder` (relative: to the project).

    Returns what became of it, a few lines. Raises Mistake where the split is not prepared, has no texts, or as `prune`.
    """
    found = [sentence for part in parts for sentence in load_sentences(root, split, part)]
    texts, glosses = words_of(found, split)
    spoken, signed = languages(_settings(split), split)
    report = prune(source, folder, [cleaned(sentence, spoken) for sentence in texts], glosses, spoken, signed)
    whose = "all sets" if len(parts) == len(SETS) else " and ".join(parts)
    return summary(report, shown(paths.HOME / folder.expanduser()), f"{split}: {len(texts)} texts of {whose}, {spoken}")


def _settings(split: str) -> TranslationSection:
    """Those of Gloss2Text SPLIT 1, which can name the languages of a split that is called after no corpus."""
    experiment = Experiment("Gloss2Text", split, "1")
    own = read_config(experiment).translation if experiment.config_file.is_file() else None
    return own or TranslationSection()


def words_of(found: Sequence[Sentence], split: str) -> tuple[list[str], list[str]]:
    """(The texts, all glosses) of sentences. Raises Mistake where none has a text."""
    texts = [sentence.text for sentence in found if sentence.text]
    if not texts:
        raise Mistake(f"{split} has no texts", f"{len(found)} sentences, none with a translation",
                      "mBART is pruned to a corpus with texts, such as phoenix2014t, csl_daily or demo_translation")
    return texts, [gloss for sentence in found for gloss in sentence.gloss]


def summary(report: dict[str, Any], folder: str, whose: str) -> str:
    """The report of `prune` in words, and how an .ini names the folder."""
    unknown = f"; mBART does not know {report['unknown']} sub-tokens of them" if report["unknown"] else ""
    return "\n".join((
        f"{whose}, {report['glosses']} glosses{unknown}",
        f"tokens {report['tokens_before']:,} -> {report['tokens']:,}, "
        f"parameters {report['parameters_before']:,} -> {report['parameters']:,}",
        f"{folder}: {'written' if report['new'] else 'it was there already'}; in the .ini: [translation] "
        f"translator = 'mbart', mbart = {folder!r}"))
