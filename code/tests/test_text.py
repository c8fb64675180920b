"""Clean-ups as pairs, and vocabularies: round trips, order, what a checkpoint keeps of them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slr.errors import Mistake
from slr.text import SPECIALS, PieceVocabulary, Tokenizer, WordVocabulary, clean, gloss_words, tokenizer_from

GERMAN = ["im süden scheint die sonne .", "im norden regnet es .", "morgen regnet es auch im süden .",
          "und nun die wettervorhersage für morgen freitag den siebten mai ."]
CHINESE = ["今天天气很好。", "他２０１０年去了北京，明天回来。", "你好！"]

PAIRS = [
    # German and English: lower case, single blanks, one " ." at the end
    ("de_DE", "Im Süden scheint die Sonne", "im süden scheint die sonne ."),
    ("de_DE", "im süden scheint die sonne .", "im süden scheint die sonne ."),
    ("de_DE", "Regen.", "regen ."),
    ("de_DE", "regen . .", "regen ."),
    ("de_DE", " regen ... ", "regen ."),
    ("de_DE", "  und\tnun\u00a0 die \n wettervorhersage ", "und nun die wettervorhersage ."),
    ("de_DE", "ÄÖÜ Straße", "äöü straße ."),
    ("de_DE", "am 12. mai z. b. regen", "am 12. mai z. b. regen ."),
    ("de_DE", "regnet es ?", "regnet es ? ."),
    ("de_DE", "", ""),
    ("de_DE", " \n", ""),
    ("de_DE", ".", ""),
    ("en_XX", "The  Sun shines.", "the sun shines ."),
    ("en_XX", "3.5 degrees", "3.5 degrees ."),
    # Chinese: no white space, full-width forms as they are
    ("zh_CN", "今天 天气 很 好 。", "今天天气很好。"),
    ("zh_CN", "　２０１０年，\t北京\n", "２０１０年，北京"),
    ("zh_CN", "ＮＢＡ NBA", "ＮＢＡNBA"),
    ("zh_CN", "好 .", "好."),
    ("zh_CN", "", ""),
    # others: the white space alone
    ("pl_PL", "  Dzień\u3000dobry . ", "Dzień dobry ."),
    ("ko_KR", "안녕\n하세요", "안녕 하세요"),
    ("", " A  B. ", "A B."),
]


@pytest.mark.parametrize("language, text, expected", PAIRS)
def test_clean(language, text, expected):
    assert clean(text, language) == expected


@given(st.text(), st.sampled_from(["de_DE", "en_XX", "zh_CN", "pl_PL"]))
def test_cleaning_twice_changes_nothing(text, language):
    once = clean(text, language)
    assert clean(once, language) == once
    assert once.split() == (once.split(" ") if once else [])
    if language == "zh_CN":
        assert once == "".join(once.split())
    if language == "de_DE" and once:
        assert once.endswith(" .") and not once[:-2].endswith((".", " "))


@pytest.mark.parametrize("glosses, expected", [
    (["MORGEN", "SÜD", "poss-WETTER"], ["morgen", "süd", "poss-wetter"]),
    ("JETZT  WIE-AUSSEHEN __ON__", ["jetzt", "wie-aussehen", "__on__"]),
    (("今天", "天气"), ["今天", "天气"]),
    ([], []), ("", []),
])
def test_gloss_words(glosses, expected):
    assert gloss_words(glosses) == expected


# --- words and characters -----------------------------------------------------------------------------------

def test_words_by_frequency_then_alphabet():
    vocabulary = WordVocabulary.build(["b a ä .", "c b .", "a b ."])
    assert vocabulary.words == (".", "b", "a", "c", "ä")
    assert (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.unknown) == (0, 1, 2, 3)
    assert vocabulary.size == 9
    assert vocabulary.encode("a b nichts .") == [6, 5, 3, 4]
    assert vocabulary.decode([6, 5, 3, 4]) == "a b ."


def test_the_order_of_sentences_does_not_matter():
    assert WordVocabulary.build(GERMAN).words == WordVocabulary.build(GERMAN[::-1]).words


def test_rare_words_are_unknown():
    vocabulary = WordVocabulary.build(GERMAN, least=3)
    assert vocabulary.words == (".", "im")
    assert vocabulary.encode("im norden .") == [5, vocabulary.unknown, 4]


def test_characters():
    vocabulary = WordVocabulary.build(CHINESE, "char")
    assert vocabulary.words[:3] == ("天", "。", "好")
    for text in CHINESE:
        assert len(vocabulary.encode(text)) == len(text)
        assert vocabulary.decode(vocabulary.encode(text)) == text
    blanks = WordVocabulary.build(GERMAN, "char")
    assert blanks.decode(blanks.encode(GERMAN[0])) == GERMAN[0]


def test_special_tokens_in_a_text_are_words_that_nobody_knows():
    vocabulary = WordVocabulary.build(["a </s> <pad> b", "<unk> a"])
    assert vocabulary.words == ("a", "b")
    assert vocabulary.encode("a </s> <pad> <s>") == [4, 3, 3, 3]


@pytest.mark.parametrize("vocabulary", [WordVocabulary(["a", "b"]), WordVocabulary(["a", "b"], "char")])
def test_decoding_stops_at_the_end_and_leaves_specials_out(vocabulary):
    joint = " " if vocabulary.level == "word" else ""
    assert vocabulary.decode([1, 4, 0, 3, 5, 2, 4, 4]) == joint.join("ab")
    assert vocabulary.decode(torch.tensor([4, 2])) == "a"
    assert vocabulary.decode([]) == vocabulary.decode([2]) == ""


@pytest.mark.parametrize("token", [-1, 6])
def test_no_such_token(token):
    with pytest.raises(Mistake, match=f"{token} of 6"):
        WordVocabulary(["a", "b"]).decode([4, token])


def test_no_vocabulary():
    for build, words in ((lambda: WordVocabulary.build([]), "no words"),
                         (lambda: WordVocabulary.build(["", " "]), "no words"),
                         (lambda: WordVocabulary.build(GERMAN, least=9), "none comes 9 times"),
                         (lambda: WordVocabulary(["a", "a"]), "1 of them different"),
                         (lambda: WordVocabulary.build(GERMAN, "gloss"), "word, char")):
        with pytest.raises(Mistake, match=words):
            build()


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=6), min_size=1, max_size=6),
       st.sampled_from([("de_DE", "word"), ("de_DE", "char"), ("zh_CN", "char"), ("pl_PL", "word")]))
def test_clean_text_of_known_words_comes_back(sentences, form):
    language, level = form
    texts = [clean(" ".join(words), language) for words in sentences]
    texts = [text for text in texts if text and not set(text.split()) & set(SPECIALS)]
    if texts:
        vocabulary = WordVocabulary.build(texts, level)
        for text in texts:
            ids = vocabulary.encode(text)
            assert vocabulary.decode(ids) == text and min(ids) >= len(SPECIALS) and max(ids) < vocabulary.size
            assert vocabulary.decode([vocabulary.start, *ids, vocabulary.end, vocabulary.pad]) == text


# --- pieces -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pieces(request):
    pytest.importorskip("sentencepiece")
    return PieceVocabulary.build(GERMAN, 40, request.param)


def test_pieces_have_the_same_special_tokens(pieces):
    assert (pieces.pad, pieces.start, pieces.end, pieces.unknown) == (0, 1, 2, 3)
    assert pieces.size == 40
    ids = pieces.encode("sonne </s> <pad> <s>")  # these are spelled, and no special tokens
    assert not {0, 1, 2} & set(ids) and 3 in ids


def test_pieces_come_back(pieces):
    for text in [*GERMAN, "sonne im mai .", "freitag"]:
        ids = pieces.encode(text)
        assert pieces.decode(ids) == text and min(ids) >= len(SPECIALS)
        assert pieces.decode([pieces.start, *ids, pieces.unknown, pieces.end, *ids]) == text
        assert pieces.decode(torch.tensor(ids)) == text
    assert pieces.decode([]) == pieces.decode([2, 5]) == ""
    with pytest.raises(Mistake, match="40 of 40"):
        pieces.decode([40])


def test_pieces_never_seen_are_unknown(pieces):
    ids = pieces.encode("sonne 雨 .")
    assert pieces.unknown in ids
    assert pieces.decode(ids).split() == ["sonne", "."]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("abcdeüß,２。天", min_size=1, max_size=8), min_size=1, max_size=8), st.integers(16, 200),
       st.sampled_from(["unigram", "bpe"]))
def test_any_size_and_sentences(words, size, model):
    """A size that the sentences cannot fill is lowered; full-width forms and all characters are kept."""
    pytest.importorskip("sentencepiece")
    texts = [" ".join(words[i:i + 3]) for i in range(0, len(words), 3)]
    vocabulary = PieceVocabulary.build(texts, size, model)
    assert len(SPECIALS) + 1 + len(set("".join(words))) <= vocabulary.size <= size
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_the_same_sentences_give_the_same_pieces(pieces):
    """Byte for byte, in another process too."""
    again = tokenizer_from(pieces.plain())
    assert PieceVocabulary.build(GERMAN, 1000).model == PieceVocabulary.build(GERMAN, 1000).model
    assert again.encode(GERMAN[0]) == pieces.encode(GERMAN[0])
    code = ("import sys, json; from slr.text import PieceVocabulary;"
            "print(PieceVocabulary.build(json.loads(sys.argv[1]), 1000).plain()['model'])")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(GERMAN)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).resolve().parents[1])
    assert done.stdout.strip() == PieceVocabulary.build(GERMAN, 1000).plain()["model"]


def test_long_sentences_are_learned_too():
    pytest.importorskip("sentencepiece")
    text = " ".join(f"wort{n}" for n in range(2000))
    assert PieceVocabulary.unknown not in PieceVocabulary.build([text], 40).encode(text)


def test_no_pieces():
    pytest.importorskip("sentencepiece")
    for build, words in ((lambda: PieceVocabulary.build([], 100), "no words"),
                         (lambda: PieceVocabulary.build([" "], 100), "no words"),
                         (lambda: PieceVocabulary.build(["abc abc"], 7), "give 8 or more"),
                         (lambda: PieceVocabulary.build(GERMAN, 100, "word"), "unigram, bpe"),
                         (lambda: PieceVocabulary(b"nothing"), "no SentencePiece model")):
        with pytest.raises(Mistake, match=words):
            build()
    assert PieceVocabulary.build(["abc abc"], 8).size == 8


def test_a_model_with_other_special_tokens():
    """SentencePiece's own default begins with <unk> <s> </s>."""
    spm = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(GERMAN), model_writer=file, vocab_size=40, minloglevel=2)
    with pytest.raises(Mistake, match="<unk> <s> </s>"):
        PieceVocabulary(file.getvalue())


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(Mistake, match="pip install sentencepiece"):
        PieceVocabulary.build(GERMAN, 40)
    assert WordVocabulary.build(GERMAN).size > 4


# --- in a checkpoint ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["word", "char", "unigram", "bpe"])
def test_plain_survives_a_checkpoint(kind, tmp_path):
    vocabulary: Tokenizer
    if kind in ("unigram", "bpe"):
        pytest.importorskip("sentencepiece")
        vocabulary = PieceVocabulary.build(GERMAN, 60, kind)
    else:
        vocabulary = WordVocabulary.build(GERMAN, kind)
    torch.save({"tokenizer": vocabulary.plain()}, tmp_path / "last.pth")
    kept = torch.load(tmp_path / "last.pth", weights_only=True)["tokenizer"]
    for plain in (kept, json.loads(json.dumps(vocabulary.plain()))):
        again = tokenizer_from(plain)
        assert type(again) is type(vocabulary) and again.plain() == vocabulary.plain()
        assert again.size == vocabulary.size
        for text in [*GERMAN, "nie gesehen ."]:
            assert again.encode(text) == vocabulary.encode(text)
            assert again.decode(again.encode(text)) == vocabulary.decode(vocabulary.encode(text))


def test_unknown_kinds_name_the_known():
    with pytest.raises(Mistake, match="words, pieces"):
        tokenizer_from({"kind": "mbart"})
