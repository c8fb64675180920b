"""What a translation is worth that looks nothing up but the nearest training sentence, or nothing at all.

    python code/benchmarks/nearest_text.py demo_translation

BLEU-4 on the test set of the glosses in lower case, of the text of the training sentence whose glosses are nearest
(longest common subsequence; of equal ones the first), and of a training text drawn at random.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slr import errors, paths, text
from slr.config import TranslationSection
from slr.datasets.sentences import Sentence, load_sentences
from slr.metrics import text as metrics
from slr.tasks.speech import languages


def nearest(sentence: Sentence, known: list[Sentence]) -> Sentence:
    """The one whose glosses have the largest share in common with the sentence's."""
    def alike(other: Sentence) -> float:
        return 2 * metrics.lcs(sentence.gloss, other.gloss) / (len(sentence.gloss) + len(other.gloss))

    return max(known, key=alike)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", metavar="SPLIT")
    split = parser.parse_args().split
    train, test = (load_sentences(paths.data_root(), split, part) for part in ("train", "test"))
    language, draw = languages(TranslationSection(), split)[0], random.Random(42)
    level = "char" if language.startswith("zh") else "word"
    refs = [text.clean(sentence.text, language) for sentence in test]
    found = {"the glosses in lower case": [" ".join(text.gloss_words(sentence.gloss)) for sentence in test],
             "the nearest training sentence": [nearest(sentence, train).text for sentence in test],
             "a random training sentence": [draw.choice(train).text for _ in test]}
    for name, hyps in found.items():
        score = metrics.bleu4(refs, [text.clean(hyp, language) for hyp in hyps], level)
        print(f"{name:<32} BLEU-4 {score:.1f}")
    return 0


if __name__ == "__main__":
    errors.run(main)
