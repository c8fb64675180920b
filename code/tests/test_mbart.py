"""mBART as a translator: against transformers' own forward, generate and tokenizer."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little_mbart import GLOSSES, SIZES, TEXTS, little_mbart, pieces_model

from slr.errors import Mistake
from slr.models import mbart
from slr.models.gloss_table import TABLE, gloss_means, gloss_rows, read_gloss_table, write_gloss_table
from slr.models.mbart import MBart, MBartText, build, folder_of, load_model, read_id_map
from slr.search import beam_search

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
PIECES = pieces_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return little_mbart(tmp_path_factory.mktemp("mbart") / "mBart")


@pytest.fixture(scope="module")
def text(folder) -> MBartText:
    return MBartText.load(folder, "de_DE")


@pytest.fixture(scope="module")
def translator(folder, text) -> MBart:
    return build(folder, text).eval()


def batch(items: int = 3, steps: int = 7, width: int = 32, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(items, steps, width, generator=draw) / 4, torch.tensor([steps, 4, 1, 6][:items])


# --- text ---------------------------------------------------------------------------------------------------

def test_numbers_are_those_of_transformers(folder, text):
    """An implementation that is not ours; it gets texts that need no normalisation, see below."""
    from transformers import MBartTokenizer

    theirs = MBartTokenizer.from_pretrained(folder, src_lang="de_DE", tgt_lang="de_DE")
    for sentence in [*TEXTS, "unbekannt: ж", "  zwei  leerzeichen ", "<s> </s> nein"][:8]:
        ids = theirs(sentence)["input_ids"]
        assert ids[-2:] == [text.end, text.start]
        assert text.encode(sentence) == ids[:-2]
        assert text.decode(ids[:-2]) == theirs.decode(ids[:-2], skip_special_tokens=True).strip()
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "ar_AR", "de_DE", "zh_CN"):
        assert text.number(name) == theirs.convert_tokens_to_ids(name)
    assert (text.pad, text.end, text.unknown) == (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id)
    assert text.size == text.whole_size == len(theirs)


def test_text_is_normalised_as_mbart_was_trained(text):
    """nmt_nfkc: full-width signs are the plain ones, which transformers from version 5 on leaves out."""
    assert text.encode("nord，süd") == text.encode("nord,süd")
    assert text.unknown not in text.encode("morgen，")


def test_text_comes_back(text):
    for sentence in TEXTS:
        assert text.decode(text.encode(sentence)) == sentence
        ids = [text.start, text.number("<s>"), *text.encode(sentence), text.end, *text.encode("danach"), text.pad]
        assert text.decode(ids) == sentence


def test_special_tokens_cannot_be_written(text):
    special = {text.number(name) for name in ("<s>", "<pad>", "</s>", "<mask>", "de_DE")}
    assert not special & set(text.encode("<s> de_DE </s><pad> <mask>"))


@given(st.lists(st.sampled_from(" ".join(TEXTS).split()), min_size=1, max_size=8))
def test_any_words_come_back(words):
    text = MBartText(PIECES, "de_DE")
    assert text.decode(text.encode(" ".join(words))) == " ".join(words)


@given(st.text(max_size=30))
def test_any_text_gives_numbers_of_the_vocabulary(sentence):
    text = MBartText(PIECES, "de_DE")
    assert all(3 <= number < text.whole_size - 26 for number in text.encode(sentence))
    assert isinstance(text.decode(text.encode(sentence)), str)



def test_pruned_numbers():
    whole = MBartText(PIECES, "de_DE")
    seen = sorted(set(whole.encode(TEXTS[0])))
    first = [0, 1, 2, 3, whole.start]
    kept = {old: new for new, old in enumerate([*first, *(i for i in seen if i not in first)])}
    text = MBartText(PIECES, "de_DE", kept)
    assert text.size == len(kept) and text.start == 4 and text.number("zh_CN") is None
    assert text.ids == kept and whole.ids == {i: i for i in range(whole.size)}
    assert text.encode(TEXTS[0]) == [kept[i] for i in whole.encode(TEXTS[0])]
    assert text.decode(text.encode(TEXTS[0])) == TEXTS[0]
    assert text.whole(TEXTS[1]) == whole.encode(TEXTS[1])
    assert text.unknown in text.encode(TEXTS[1]) and max(text.encode(TEXTS[1])) < text.size
    with pytest.raises(Mistake, match="zh_CN"):
        MBartText(PIECES, "zh_CN", kept)


def test_text_survives_a_checkpoint(tmp_path):
    for kept in (None, {old: old for old in range(60)} | {MBartText(PIECES, "de_DE").start: 60}):
        text = MBartText(PIECES, "de_DE", kept)
        torch.save({"meta": text.plain()}, tmp_path / "x.pth")
        again = MBartText.from_plain(torch.load(tmp_path / "x.pth", weights_only=True)["meta"])
        assert (again.size, again.start, again.language) == (text.size, text.start, "de_DE")
        assert [again.encode(t) for t in TEXTS] == [text.encode(t) for t in TEXTS]


@pytest.mark.parametrize("kept", [{0: 0, 1: 1, 2: 2, 3: 3, 9: 5}, {0: 1, 1: 0, 2: 2, 3: 3}, {0: 0, 1: 1, 2: 2},
                                  {0: 0, 1: 1, 2: 2, 3: 3, 9999: 4}, {0: 0, 1: 1, 2: 2, 3: 3, 7: 4, 8: 4}])
def test_damaged_id_maps_are_refused(kept):
    with pytest.raises(Mistake, match="id map"):
        MBartText(PIECES, "de_DE", kept)


@pytest.mark.parametrize("content", ["", "[]", '{"0": "a"}', '{"x": 1}', '{"0": 1.5}', '{"0": true}'])
def test_unreadable_id_maps_are_refused(tmp_path, content):
    (tmp_path / "map_ids.json").write_text(content)
    with pytest.raises(Mistake, match="no id map"):
        read_id_map(tmp_path / "map_ids.json")


def test_other_languages_and_pieces_are_refused():
    with pytest.raises(Mistake, match="no such language"):
        MBartText(PIECES, "de_DGS")
    with pytest.raises(Mistake, match="damaged|not of an mBART"):
        MBartText(b"no model at all", "de_DE")


# --- forward ------------------------------------------------------------------------------------------------

def test_forward_is_transformers_own(folder, text, translator):
    """Item by item without padding, through transformers' interface, the scale and the suffix put in by hand."""
    model = load_model(folder).eval()
    table = model.model.shared.weight
    vectors, lengths = batch()
    tokens = torch.tensor([[text.start, 8, 9, 10], [text.start, 5, 6, 7], [text.start, 20, 4, 30]])
    with torch.no_grad():
        found = translator(vectors, lengths, tokens)
        for n, length in enumerate(lengths.tolist()):
            source = torch.cat([vectors[n, :length], table[[text.end, text.start]]]) * 32 ** 0.5
            theirs = model(inputs_embeds=source[None], decoder_input_ids=tokens[n:n + 1]).logits[0]
            torch.testing.assert_close(found[n], theirs, atol=1e-5, rtol=1e-5)
    assert translator.width == 32 and translator.vocabulary == text.size == found.shape[2]


def test_padding_changes_nothing(text, translator):
    vectors, lengths = batch()
    tokens = torch.full((3, 2), text.start)
    padded = torch.cat([vectors, torch.full((3, 5, 32), float("nan"))], 1)
    for n, length in enumerate(lengths.tolist()):
        padded[n, length:] = float("nan")
    with torch.no_grad():
        torch.testing.assert_close(translator(padded, lengths, tokens), translator(vectors, lengths, tokens),
                                   atol=1e-5, rtol=1e-5)
        for n, length in enumerate(lengths.tolist()):
            alone = translator(vectors[n:n + 1, :length], lengths[n:n + 1], tokens[n:n + 1])
            torch.testing.assert_close(alone[0], translator(vectors, lengths, tokens)[n], atol=1e-5, rtol=1e-5)


def test_gradients_arrive(folder, text):
    for freeze in (False, True):
        model = build(folder, text, freeze_text=freeze)
        vectors, lengths = batch()
        vectors.requires_grad_(True)
        model(vectors, lengths, torch.full((3, 2), text.start)).square().mean().backward()
        assert model.suffix.grad.abs().sum(1).gt(0).all() and vectors.grad[1, 4:].eq(0).all()
        assert vectors.grad[0].abs().sum(1).gt(0).all()
        assert (model.model.model.shared.weight.grad is None) == freeze
        assert model.model.lm_head.weight is model.model.model.shared.weight


def test_too_long_is_a_mistake(text, translator):
    most = SIZES["max_position_embeddings"]
    translator(torch.zeros(1, most - 2, 32), torch.tensor([most - 2]), torch.full((1, most), text.start))
    with pytest.raises(Mistake, match="too long"):
        translator(torch.zeros(1, most - 1, 32), torch.tensor([most - 1]), torch.full((1, 1), text.start))
    with pytest.raises(Mistake, match="too long"):
        translator(torch.zeros(1, 3, 32), torch.tensor([3]), torch.full((1, most + 1), text.start))


def test_dropout_is_that_of_the_call(folder, text):
    model = build(folder, text)
    assert (model.model.config.dropout, model.model.config.attention_dropout) == (0.3, 0.1)
    layer = build(folder, text, dropout=0.0, attention_dropout=0.0).train().model.model.decoder.layers[0]
    assert layer.dropout == 0.0 and layer.self_attn.dropout == 0.0


# --- the cache ----------------------------------------------------------------------------------------------

@torch.no_grad()
def test_cached_is_uncached(text, translator):
    vectors, lengths = batch()
    tokens = torch.tensor([[text.start, 8, 9, 10, 11], [text.start, 5, 6, 7, 50], [text.start, 20, 4, 30, 2]])
    whole = translator(vectors, lengths, tokens).log_softmax(2)
    decoder = translator.decoder(vectors, lengths)
    for t in range(5):
        step = decoder.step(tokens[:, t])
        assert step.dtype == torch.float32
        torch.testing.assert_close(step, whole[:, t], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_selected_rows_go_on_from_their_beginnings(text, translator):
    """Rows are repeated, dropped and permuted, before the first step too; each is then what it would be alone."""
    vectors, lengths = batch()
    decoder = translator.decoder(vectors, lengths)
    items, rows = [0, 1, 2], [[] for _ in range(3)]
    plan = [([2, 0, 0, 1], [text.start] * 4), ([3, 1, 1, 2, 0], [4, 5, 6, 7, 8]), ([4, 2], [9, 10]), ([0], [11])]
    for order, tokens in plan:
        decoder.select(torch.tensor(order))
        items, rows = [items[i] for i in order], [rows[i] + [token] for i, token in zip(order, tokens, strict=True)]
        found = decoder.step(torch.tensor(tokens))
        for row, (item, prefix) in enumerate(zip(items, rows, strict=True)):
            alone = translator(vectors[item:item + 1], lengths[item:item + 1], torch.tensor([prefix]))
            torch.testing.assert_close(found[row], alone[0, -1].log_softmax(0), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def talker(tmp_path_factory, text) -> MBart:
    """One that says different things, and ends by itself."""
    model = build(little_mbart(tmp_path_factory.mktemp("talker") / "mBart", init_std=0.8), text).eval()
    model.model.final_logits_bias[0] = 0
    model.model.final_logits_bias[0, [text.pad, text.end]] = torch.tensor([-torch.inf, 6.0])
    return model


def generated(translator: MBart, vectors: torch.Tensor, lengths: torch.Tensor, start: int, **search) -> list[list[int]]:
    """What transformers' generate says, up to the end; as the last of 15 tokens nothing else is allowed."""
    def ends(said: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) != 2, -torch.inf) if said.shape[1] == 15 else scores

    out = translator.model.generate(
        **translator.source(vectors, lengths), decoder_start_token_id=start, forced_eos_token_id=None, do_sample=False,
        max_new_tokens=15, logits_processor=[ends], **search)
    return [row[1:row.index(2)] for row in out.tolist()]


@torch.no_grad()
def test_greedy_is_transformers_own(text, talker):
    vectors, lengths = batch(4)
    decoder, last, steps = talker.decoder(vectors, lengths), torch.full((4,), text.start), []
    for _ in range(14):
        last = decoder.step(last).argmax(1)
        steps.append(last)
    rows = [[*row, 2] for row in torch.stack(steps, 1).tolist()]
    expected = generated(talker, vectors, lengths, text.start, num_beams=1)
    assert [row[:row.index(2)] for row in rows] == expected
    assert len({token for row in expected for token in row}) > 5


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
def test_beam_search_is_transformers_own(text, talker, length_penalty):
    found, expected = [], []
    for seed in range(3):
        vectors, lengths = batch(4, seed=seed)
        found += beam_search([talker.decoder(vectors, lengths)], 4, start=text.start, end=text.end, width=3,
                             max_length=15, length_penalty=length_penalty, banned=[text.pad])
        expected += generated(talker, vectors, lengths, text.start, num_beams=3, length_penalty=length_penalty,
                              early_stopping="never")
    assert [list(best[0].tokens) for best in found] == expected
    assert len({len(row) for row in expected}) > 2 and len({token for row in expected for token in row}) > 5


# --- loading ------------------------------------------------------------------------------------------------

def test_published_form_of_weights(tmp_path, translator, text):
    """pytorch_model.bin, as the hub has it, with the same numbers."""
    other = build(little_mbart(tmp_path / "mBart", form="bin"), text).eval()
    vectors, lengths = batch()
    tokens = torch.full((3, 2), text.start)
    with torch.no_grad():
        assert torch.equal(other(vectors, lengths, tokens), translator(vectors, lengths, tokens))


def test_random_start_needs_no_weights(tmp_path, text):
    folder = little_mbart(tmp_path / "mBart")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Mistake, match="holds no weights"):
        build(folder, text)
    model = build(folder, text, pretrained=False)
    assert model.model.config.scale_embedding and model.vocabulary == text.size
    small = build(None, text, pretrained=False, **SIZES | {"d_model": 16})
    assert small.width == 16 and small.model.config.encoder_layers == 2
    with pytest.raises(Mistake, match="sizes"):
        build(folder, text, d_model=16)
    with pytest.raises(Mistake, match="sizes"):
        build(None, text)


def test_rebuilt_without_its_folder(translator, text, tmp_path):
    torch.save({"plain": translator.plain(), "state": translator.state_dict()}, tmp_path / "x.pth")
    saved = torch.load(tmp_path / "x.pth", weights_only=True)
    again = MBart.from_plain(saved["plain"]).eval()
    again.load_state_dict(saved["state"])
    assert str(tmp_path.parent) not in json.dumps(saved["plain"])
    vectors, lengths = batch()
    tokens = torch.full((3, 2), text.start)
    with torch.no_grad():
        assert torch.equal(again(vectors, lengths, tokens), translator(vectors, lengths, tokens))


def test_suffix_comes_from_the_gloss_embeddings(tmp_path, text):
    folder = little_mbart(tmp_path / "mBart")
    shared = load_model(folder).model.shared.weight
    plain = build(folder, text, gloss_language="de_DGS")
    torch.testing.assert_close(plain.suffix, shared[[text.end, text.start]])
    table = {"</s>": torch.ones(32), "de_DGS": torch.full((32,), 2.0), "regen": torch.zeros(32)}
    write_gloss_table(folder / TABLE, table)
    found = build(folder, text, gloss_language="de_DGS").suffix
    assert torch.equal(found, torch.stack([table["</s>"], table["de_DGS"]]))
    write_gloss_table(folder / TABLE, {"</s>": torch.ones(8)})
    with pytest.raises(Mistake, match="of another model"):
        build(folder, text)


def test_wrong_folders_are_mistakes(tmp_path, folder, text, monkeypatch):
    with pytest.raises(Mistake, match="mbart-large-cc25"):
        build(tmp_path / "nowhere", text)
    with pytest.raises(Mistake, match="is missing"):
        MBartText.load(tmp_path, "de_DE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Mistake, match="no folder some/where"):
        MBartText.load("some/where", "de_DE")
    with pytest.raises(Mistake, match="no folder some/where"):
        build("some/where", text)
    with pytest.raises(Mistake, match="missing"):
        folder_of("../some/where/else")
    small = MBartText.load(folder, "de_DE", {old: old for old in range(4)} | {text.start: 4})
    with pytest.raises(Mistake, match="different vocabularies"):
        build(folder, small)


def test_other_models_are_mistakes(tmp_path, text):
    folder = little_mbart(tmp_path / "mBart")
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(Mistake, match="cannot be read"):
        build(folder, text)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    with pytest.raises(Mistake, match="not those of its|cannot be read"):
        build(folder, text)
    for content, found in ((json.dumps(config | {"model_type": "bart"}), "no mBART"), ("[]", "no config")):
        (folder / "config.json").write_text(content)
        with pytest.raises(Mistake, match=found):
            build(folder, text)


@pytest.mark.slow
def test_size_of_the_published_models():
    """mbart-large-cc25, and pruned for German and for Chinese."""
    from transformers import MBartConfig, MBartForConditionalGeneration

    for tokens, parameters in ((250027, 610_851_840), (2498, 357_382_144), (6386, 361_363_456)):
        with torch.device("meta"):
            model = MBartForConditionalGeneration(MBartConfig(vocab_size=tokens, scale_embedding=True))
        assert sum(p.numel() for p in model.parameters()) == parameters


# --- gloss embeddings ---------------------------------------------------------------------------------------

def test_gloss_embeddings_are_means(translator, text):
    weight = translator.model.model.shared.weight
    table = gloss_means(weight, text, [*GLOSSES, "Regen"], "de_DGS")
    assert set(table) == {"<s>", "<pad>", "</s>", "<unk>", "<mask>", "de_DE", "de_DGS", *map(str.lower, GLOSSES)}
    for gloss in GLOSSES:
        rows = [weight[number] for number in text.encode(gloss.lower())]
        torch.testing.assert_close(table[gloss.lower()], sum(rows) / len(rows))
    assert torch.equal(table["de_DGS"], weight[text.start]) and torch.equal(table["</s>"], weight[text.end])


def test_gloss_embeddings_by_class(tmp_path, translator, text):
    table = gloss_means(translator.model.model.shared.weight, text, GLOSSES, "de_DGS")
    write_gloss_table(tmp_path / TABLE, table)
    again = read_gloss_table(tmp_path / TABLE)
    assert list(again) == list(table) and all(torch.equal(again[name], table[name]) for name in table)
    rows, found = gloss_rows(again, ["<blank>", "SONNE", "wind", "FREMD"])
    assert found.tolist() == [False, True, True, False]
    assert torch.equal(rows[1], table["sonne"]) and torch.equal(rows[2], table["wind"]) and rows[0].eq(0).all()
    with pytest.raises(Mistake, match="other glosses"):
        gloss_rows(again, ["FREMD"])


def test_damaged_gloss_embeddings_are_refused(tmp_path):
    for content in (b"", b"\x00" * 100):
        (tmp_path / TABLE).write_bytes(content)
        with pytest.raises(Mistake, match="no table"):
            read_gloss_table(tmp_path / TABLE)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(Mistake, match="pip install transformers|needs transformers"):
        mbart.MBart.from_plain({"config": {}})
