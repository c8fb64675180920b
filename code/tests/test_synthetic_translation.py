"""The built-in translations: one English text a sentence, in another order; combinations that training never has."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import preprocess
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slr.datasets import synthetic_sentences as spoken
from slr.datasets import synthetic_translation as translated
from slr.datasets.phoenix import read_corpus, read_stm
from slr.datasets.sentences import load_sentences, load_vocabulary, read_frames
from slr.datasets.sentences_prepare import findings, prepare, read_source, summary, write_prepared
from slr.datasets.synthetic_translation import held_out_in, language
from slr.errors import Mistake
from slr.paths import SETS, sentences

SPLIT, SMALL = "demo_translation", "demo_translation_small"
PLANS = {split: translated.plans(split, size, 42) for split, size in translated.SIZES.items()}
TINY = spoken.Size((24, 3, 5), (4, 1, 2), 32)
WORDS = set("the a it there and of in at on to from through for if when will you , . 's thank "
            "mother cousin teacher school garden street chair water rain winter weather "
            "sunrise sunset tomorrow last next "
            "go goes went going come comes came coming take takes took taking bring brings brought bringing "
            "open opens opened opening turn turns turned turning unfold unfolds unfolded unfolding "
            "drink drinks drank drinking be is are was were rains rained start starts started stop stops stopped "
            "end ends ended rainy clear wet cold".split())


def of_set(part: str, split: str = SPLIT) -> list[spoken.Plan]:
    return [plan for plan in PLANS[split] if plan.set == part]


# ---------------------------------------------------------------- the grammar

@pytest.mark.parametrize("gloss, text", [
    ("TOMORROW MOTHER SCHOOL GO", "the mother will go to the school tomorrow ."),
    ("BEFORE MOTHER SCHOOL COME", "the mother came from the school ."),
    ("MOTHER TEACHER GO", "the mother and the teacher go ."),
    ("WINTER SUNRISE COUSIN SCHOOL GARDEN GO", "the cousin goes from the school to the garden at sunrise in winter ."),
    ("COUSIN SCHOOL GARDEN COME", "the cousin comes from the garden through the school ."),
    ("BEFORE TEACHER CHAIR SCHOOL GO", "the teacher took the chair to the school ."),
    ("BEFORE WINTER TEACHER CHAIR SCHOOL COME", "the teacher brought the chair from the school last winter ."),
    ("TEACHER GARDEN CHAIR OPEN", "the teacher unfolds the chair in the garden ."),
    ("MOTHER WATER OPEN", "the mother turns on the water ."),
    ("TOMORROW TEACHER SCHOOL GO WATER DRINK", "the teacher will go to the school and drink water tomorrow ."),
    ("BEFORE MOTHER COUSIN STREET", "the mother and the cousin were on the street ."),
    ("CHAIR GARDEN", "the chair is in the garden ."), ("GARDEN CHAIR", "there is a chair in the garden ."),
    ("TOMORROW TEACHER CHAIR STREET", "the teacher 's chair will be on the street tomorrow ."),
    ("BEFORE GARDEN RAIN", "it rained in the garden ."), ("WEATHER OPEN", "the weather is clear ."),
    ("TOMORROW RAIN MOTHER SCHOOL OPEN", "if it rains tomorrow the mother will open the school ."),
    ("BEFORE RAIN MOTHER COUSIN STREET COME", "when it rained the mother and the cousin came from the street ."),
    ("THANK-YOU TEACHER", "thank you , teacher ."), ("THANK-YOU MOTHER WATER", "thank you for the water , mother ."),
    ("THANK-YOU COUSIN MOTHER SUNSET SCHOOL GO",
     "thank you for going to the school at sunset , cousin and mother ."),
])
def test_what_the_glosses_mean(gloss, text):
    assert language()[tuple(gloss.split())].text == text


def test_every_sentence_has_one_text_and_every_text_one_sentence():
    """The grammar never makes the same glosses twice, so that none of two texts of them was given up."""
    made = [gloss for _, kind in translated.KINDS.values() for gloss, _ in kind()
            if 2 <= len(gloss) <= 7 and all(a != b for a, b in pairwise(gloss))]
    assert len(made) == len(set(made)) == len(language()) > 20_000
    assert len({spoken.text for spoken in language().values()}) == len(language())


def test_glosses_and_texts_are_well_formed():
    glosses = {spoken.as_word(sign) for sign in spoken.signs()}
    for gloss, (_, text) in language().items():
        assert 2 <= len(gloss) <= 7 and set(gloss) <= glosses and all(a != b for a, b in pairwise(gloss))
        assert text.endswith(" .") and text == " ".join(text.split()) == text.lower()
        assert WORDS.issuperset(text.split()) and text.count(".") == 1


def test_the_tense_is_that_of_the_time():
    past = set("went came took brought opened turned unfolded drank was were rained started stopped ended".split())
    for gloss, (kind, text) in language().items():
        words = text.split()
        if kind != "thanks":
            assert ("will" in words) == ("TOMORROW" in gloss) and bool(past & set(words)) == ("BEFORE" in gloss)
        if gloss[0] in translated.AGENTS and gloss[1] in translated.AGENTS:
            assert not set(words) & {"goes", "comes", "takes", "brings", "opens", "drinks", "unfolds", "turns", "is"}


def kendall(gloss: tuple[str, ...], text: str) -> float:
    """Of all pairs of glosses whose words stand in the text, how many stand in the order of the glosses."""
    words = [re.sub(r"(?<=rain)(s|ed|y)$", "", word) for word in text.split()]
    places = [words.index(one.lower()) for one in gloss if one.lower() in words]
    found = [a < b for i, a in enumerate(places) for b in places[i + 1:] if a != b]
    return float(np.mean(found)) if found else 1.0


def test_the_text_is_no_copy_of_the_glosses_in_order():
    """In most sentences some words change places, and most words are no gloss."""
    plans = of_set("test")
    assert np.mean([kendall(plan.gloss, plan.text) < 1 for plan in plans]) > 0.7
    assert 0.3 < np.mean([kendall(plan.gloss, plan.text) for plan in plans]) < 0.7
    copied = [word.upper() in plan.gloss for plan in plans for word in plan.text.split()]
    assert np.mean(copied) < 0.4


def test_copied_glosses_score_next_to_nothing():
    bleu = pytest.importorskip("sacrebleu").corpus_bleu
    texts = [[plan.text for plan in of_set("test")]]
    copies = [" ".join(plan.gloss).lower() + " ." for plan in of_set("test")]
    assert bleu(copies, texts, force=True).score < 5
    assert bleu([of_set("train")[i].text for i in range(240)], texts, force=True).score < 15


# ---------------------------------------------------------------- held out

def test_what_holds_a_pair():
    assert held_out_in(("TOMORROW", "MOTHER", "CHAIR", "SCHOOL", "GO")) == (("MOTHER", "SCHOOL GO"),)
    assert held_out_in(("TEACHER", "MOTHER", "STREET", "SCHOOL", "GO")) == (("MOTHER", "SCHOOL GO"),)
    assert not held_out_in(("TEACHER", "SCHOOL", "GO")) and not held_out_in(("MOTHER", "SCHOOL", "STREET", "GO"))
    assert held_out_in(("SCHOOL", "CHAIR")) and not held_out_in(("CHAIR", "SCHOOL"))


@pytest.mark.parametrize("split", translated.SIZES)
def test_training_never_has_what_is_held_out_and_the_others_always(split):
    def holds(plan: spoken.Plan, one: str, what: str) -> bool:
        return re.search(rf"\b{one} (.* )?{what}\b", " ".join(plan.gloss)) is not None

    pairs = {pair: {part: sum(holds(plan, *pair) for plan in of_set(part, split)) for part in SETS}
             for pair in translated.HELD_OUT}
    assert not any(counts["train"] for counts in pairs.values())
    for part in ("val", "test"):
        assert all(any(holds(plan, *pair) for pair in pairs) for plan in of_set(part, split))
        assert sum(counts[part] > 0 for counts in pairs.values()) >= 9
    if split == SPLIT:
        assert all(counts["val"] and counts["test"] for counts in pairs.values())


@pytest.mark.parametrize("split", translated.SIZES)
def test_every_word_of_the_other_sets_is_in_training(split):
    for words in (lambda plan: plan.gloss, lambda plan: plan.text.split()):
        known = {word for plan in of_set("train", split) for word in words(plan)}
        assert all(known.issuperset(words(plan)) for plan in PLANS[split])
    if split == SPLIT:
        trained = " ".join(" ".join((*plan.gloss, "|")) for plan in of_set("train"))
        assert all(one in trained and f"{what} " in trained for one, what in translated.HELD_OUT)


@pytest.mark.parametrize("split", translated.SIZES)
def test_sets_share_neither_sentences_nor_texts_nor_signers(split):
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        for of in (lambda plan: plan.said, lambda plan: plan.text, lambda plan: plan.signer_id):
            assert not {of(plan) for plan in of_set(a, split)} & {of(plan) for plan in of_set(b, split)}
    assert len({plan.text for plan in PLANS[split]}) == len({plan.said for plan in PLANS[split]}) == len(PLANS[split])


def test_the_sizes_and_turns():
    for split, size in translated.SIZES.items():
        assert tuple(len(of_set(part, split)) for part in SETS) == size.sentences
        assert tuple(len({plan.signer_id for plan in of_set(part, split)}) for part in SETS) == size.signers
    assert {n for part in SETS for n in Counter(plan.signer_id for plan in of_set(part)).values()} == {10}


@pytest.mark.parametrize("split", translated.SIZES)
def test_all_glosses_are_said_and_none_is_rare(split):
    for part in SETS:
        counts = Counter(gloss for plan in of_set(part, split) for gloss in plan.gloss)
        mean = sum(counts.values()) / 20
        assert len(counts) == 20 and min(counts.values()) >= (mean if split == SPLIT else 0.9 * mean) / 3
        assert max(counts.values()) <= 2 * mean
    lengths = Counter(len(plan.said) for plan in of_set("train"))
    assert sorted(lengths) == [2, 3, 4, 5, 6, 7] and min(lengths[n] for n in (3, 4, 5, 6, 7)) > 100
    kinds = Counter(language()[plan.gloss].kind for plan in of_set("test"))
    assert kinds.keys() == translated.KINDS.keys() and min(kinds.values()) >= 24


def test_the_same_seed_says_the_same_and_no_signer_is_in_another_split():
    tiny = translated.plans(SMALL, TINY, 1)
    assert tiny == translated.plans(SMALL, TINY, 1)
    assert [plan.text for plan in tiny] != [plan.text for plan in translated.plans(SMALL, TINY, 2)]
    others = spoken.plans("demo_continuous", spoken.Size((24, 3, 5), (4, 1, 2)), 42)
    mine = translated.plans(SPLIT, TINY, 42)
    signers = [{spoken.film(plan, 32).signer for plan in plans[:6]} for plans in (mine, others)]
    assert all(one != other for one, other in product(*signers))
    assert [plan.text for plan in mine] == [language()[plan.gloss].text for plan in mine]


@settings(max_examples=10)
@given(st.integers(0, 60), st.integers(0, 10), st.integers(0, 10), st.integers(0, 2**32))
def test_sets_of_any_size_keep_apart(train, val, test, seed):
    """Of few words fewer sentences are known to train: what there is too little of is said."""
    size = spoken.Size((train, val, test), (2, 2, 2))
    try:
        said = translated.sentences("x", size, seed)
    except Mistake as error:
        assert train < 40 and re.search("sentences for a set", str(error))
        return
    assert tuple(len(said[part]) for part in SETS) == size.sentences
    assert not any(held_out_in(gloss) for gloss in said["train"])
    assert all(held_out_in(gloss) for gloss in [*said["val"], *said["test"]])
    assert len({gloss for found in said.values() for gloss in found}) == train + val + test


def test_more_sentences_than_there_are_is_a_mistake():
    with pytest.raises(Mistake, match="no 12000 sentences for a set"):
        translated.plans("x", spoken.Size((60, 12_000, 0), (1, 1, 1)), 1)


# ---------------------------------------------------------------- files

@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with TINY drawn and prepared."""
    root = tmp_path_factory.mktemp("data")
    place = translated.draw(root, SMALL, size=TINY, workers=0)
    write_prepared(prepare(SMALL, read_source(place), place, workers=0, root=root), sentences(root, SMALL))
    return root


def test_the_csv_reads_back_with_glosses_and_texts(root):
    place = root / "SYNTHETIC" / SMALL
    made = translated.plans(SMALL, TINY, 42)
    for part, name in spoken.NAMES.items():
        corpus = place / "annotations" / "manual" / f"{name}.corpus.csv"
        assert corpus.read_text().splitlines()[0] == "name|video|start|end|speaker|orth|translation"
        entries, own = read_corpus(corpus, part), [plan for plan in made if plan.set == part]
        assert [(e.id, e.gloss, e.text) for e in entries] == [(plan.id, plan.gloss, plan.text) for plan in own]
        stm = read_stm(place / "evaluation" / f"synthetic-groundtruth-{name}.stm", part)
        assert [(e.id, e.gloss, e.signer) for e in stm] == [(e.id, e.gloss, e.signer) for e in entries]


def test_the_prepared_sentences_have_texts_and_the_frames_of_their_films(root):
    made = {plan.id: plan for plan in translated.plans(SMALL, TINY, 42)}
    loaded = [sentence for part in SETS for sentence in load_sentences(root, SMALL, part)]
    assert [sentence.id for sentence in loaded] == list(made)
    for sentence in loaded:
        plan = made[sentence.id]
        assert (sentence.text, sentence.gloss, sentence.set) == (plan.text, plan.gloss, plan.set)
        assert sentence.num_frames == len(spoken.film(plan, 32).motion.poses)
    seen = read_frames(loaded[-1], range(loaded[-1].num_frames))
    drawn = spoken.film(made[loaded[-1].id], 32).frames()
    assert seen.shape == drawn.shape and np.abs(seen.astype(int) - drawn).mean() < 12
    assert set(load_vocabulary(root, SMALL)[1:]) == {g for s in loaded if s.set == "train" for g in s.gloss}


def test_the_report_tells_of_the_texts(root):
    place = root / "SYNTHETIC" / SMALL
    source = read_source(place)
    report = prepare(SMALL, source, None).report
    words = {word for e in source.entries if e.set == "train" for word in e.text.split()}
    nothing = {"train": {}, "val": {}, "test": {}}
    assert report["text"] == {"without": [], "vocabulary": len(words), "unknown_words": nothing, "in_two_sets": 0}
    assert f"texts of {len(words)} words (training set)" in summary(report)
    others = [replace(e, text="") if e.set == "train" and e.id.endswith("01") else
              replace(e, text="we 明天 go") if e.set == "val" else replace(e, text=source.entries[3].text)
              if e.set == "test" else e for e in source.entries]
    report = prepare(SMALL, replace(source, entries=others), None).report
    text = report["text"]
    assert [row["id"] for row in text["without"]] == [source.entries[0].id] and text["in_two_sets"] == 1
    assert text["unknown_words"]["val"].items() >= {"we": 3, "明": 3, "天": 3}.items()
    found = dict(findings(report))
    assert found["have no text"] == 1 and found["same text in several sets"] == 1
    assert found["words of texts that training lacks"] >= 3
    mute = prepare(SMALL, replace(source, entries=[replace(e, text="") for e in source.entries]), None).report
    assert mute["text"] is None and "texts of" not in summary(mute)


def test_a_second_run_keeps_what_is_there_and_another_version_does_not(root, monkeypatch):
    place = root / "SYNTHETIC" / SMALL
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.*") if path.is_file()}
    assert translated.draw(root, SMALL, size=TINY, workers=0) == place
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*.*") if path.is_file()}
    assert {path for path in after if after[path] != before[path]} <= {place / spoken.MANIFEST}
    monkeypatch.setattr(translated, "VERSION", 999)
    monkeypatch.setattr(translated, "draw_plans", lambda *words: words)
    assert 999 in translated.draw(root, SMALL, size=TINY)[5]


def test_the_command_draws_only_where_it_may(tmp_path, capsys):
    with pytest.raises(Mistake, match="(?s)no such built-in sentences.*demo_translation_small"):
        preprocess.main(["-as", "demo_translation_huge", "--data", str(tmp_path)])
    with pytest.raises(Mistake, match="no data for demo_translation"):
        preprocess.main(["-as", SPLIT, "--dry_run", "--data", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    args = preprocess.parse_arguments(["-as", SPLIT, "--annotations", "mine.csv"])
    assert preprocess.dataset_of(SPLIT, args) == "WLASL"  # one's own file, whatever it is called


@pytest.mark.slow
def test_the_small_split_by_command(tmp_path, capsys):
    assert preprocess.main(["-as", SMALL, "--data", str(tmp_path), "--workers", "0", "--limit", "5"]) == 0
    assert [len(load_sentences(tmp_path, SMALL, part)) for part in SETS] == [5, 5, 5]
    assert preprocess.main(["-as", SMALL, "--data", str(tmp_path), "--workers", "0"]) == 0
    assert "96 of 96 sentences kept, a vocabulary of 20 glosses (training set), texts of" in capsys.readouterr().out
    loaded = load_sentences(tmp_path, SMALL, "test")
    assert len(loaded) == 24 and all(s.text == language()[s.gloss].text for s in loaded)


def test_the_baseline_of_the_nearest_sentence(tmp_path, monkeypatch, capsys):
    """A sentence that training has is its own nearest, and copied glosses are no text."""
    import importlib.util

    from slr.datasets.sentences import Sentence, write_sentences
    from slr.paths import ROOT, sentences

    spec = importlib.util.spec_from_file_location("nearest_text", ROOT / "code" / "benchmarks" / "nearest_text.py")
    nearest_text = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nearest_text)
    texts = {"MOTHER SCHOOL GO": "the mother goes to the school .", "RAIN": "it rains today and tomorrow ."}
    for part, name in (("train", "train"), ("test", "test")):
        rows = [Sentence(f"{part}{i}", part, tuple(gloss.split()), text=text)
                for i, (gloss, text) in enumerate(texts.items())]
        write_sentences(sentences(tmp_path, "little") / f"{name}.jsonl", rows)
    (sentences(tmp_path, "little") / "report.json").write_text('{"frames": "."}')
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["nearest_text.py", "little"])
    assert nearest_text.main() == 0
    glosses, nearest, _ = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert nearest == 100.0 and glosses < 1
