"""The language decoder: against torch's own Transformer; padding, the cache, the loss, a text by heart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from slr.errors import Mistake
from slr.models.language_decoder import CROSS, LanguageDecoder, Layer, token_loss
from slr.search import beam_search
from slr.text import WordVocabulary

EXACT = {"rtol": 1e-5, "atol": 1e-5}
NAN = float("nan")
WIDTH, VOCABULARY, START, END = 16, 11, 1, 2
LENGTHS = torch.tensor([3, 6, 2, 1])
SIZES = {"width": WIDTH, "layers": 2, "heads": 2, "ffn": 24, "positions": 9, "drop_p": 0.0}


def shifted_loss(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row t of the logits is about token t + 1."""
    return token_loss(logits[:, :-1], tokens[:, 1:])


def small(cross_attention: bool = True) -> LanguageDecoder:
    """Without dropout, in evaluation, and with norms and biases that do something."""
    torch.manual_seed(0)
    model = LanguageDecoder(VOCABULARY, **SIZES, cross_attention=cross_attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def a_batch(padding: float = 0.0, steps: int = 6) -> torch.Tensor:
    vectors = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    vectors = torch.cat([vectors, torch.zeros(4, steps - 6, WIDTH)], 1)
    return vectors.masked_fill((torch.arange(steps) >= LENGTHS[:, None])[..., None], padding)


def some_tokens(items: int, steps: int) -> torch.Tensor:
    tokens = torch.randint(3, VOCABULARY, (items, steps), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = START
    return tokens


def source(cross_attention: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (a_batch(NAN), LENGTHS) if cross_attention else (None, None)


# --- the net ------------------------------------------------------------------------------------------------

def test_the_number_of_parameters():
    """Attention 4 w^2 + 4 w, two linear layers, layer-norms 2 w, a row a word and a row a place."""
    attention, feedforward, norm = 4 * 256**2 + 4 * 256, 2 * 256 * 1536 + 1536 + 256, 2 * 256
    tables = (1297 + 1024) * 256 + norm
    with torch.device("meta"):
        counts = [sum(p.numel() for p in LanguageDecoder(1297, cross_attention=cross).parameters())
                  for cross in (True, False)]
    assert counts == [9_807_360, 7_961_600]
    assert counts[0] == 7 * (2 * attention + feedforward + 3 * norm) + tables
    assert counts[1] == 7 * (attention + feedforward + 2 * norm) + tables


def copied(theirs: nn.Module, layer: Layer) -> None:
    """Our layer's weights into torch's."""
    pairs = [(theirs.self_attn, layer.own), (getattr(theirs, "multihead_attn", None), layer.cross)]
    for attention, mine in pairs:
        if mine is not None:
            attention.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key.weight, mine.value.weight]))
            attention.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]))
            attention.out_proj.load_state_dict(mine.out.state_dict())
    norms = [layer.own_norm, layer.cross_norm, layer.norm] if layer.cross else [layer.own_norm, layer.norm]
    for number, norm in enumerate(norms, 1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(layer.fc1.state_dict())
    theirs.linear2.load_state_dict(layer.fc2.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("cross_attention", [True, False])
def test_it_is_torchs_transformer(cross_attention):
    """Whose layers get our weights; what comes in and goes out of them is counted out by hand."""
    model, tokens = small(cross_attention), some_tokens(4, 5)
    kind = nn.TransformerDecoderLayer if cross_attention else nn.TransformerEncoderLayer
    x = model.embedding.weight[tokens] * 4 + model.places[:5]
    future = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.arange(6) >= LENGTHS[:, None]
    for layer in model.layers:
        theirs = kind(WIDTH, 2, 24, dropout=0.0, batch_first=True, norm_first=True).eval()
        copied(theirs, layer)
        x = (theirs(x, a_batch(), tgt_mask=future, memory_key_padding_mask=padding) if cross_attention
             else theirs(x, src_mask=future))
    expected = model.norm(x) @ model.embedding.weight.T
    torch.testing.assert_close(model(*source(cross_attention), tokens), expected, **EXACT)


@torch.no_grad()
def test_padding_and_the_batch_change_nothing():
    model, tokens = small(), some_tokens(4, 5)
    together = model(a_batch(), LENGTHS, tokens)
    assert together.shape == (4, 5, VOCABULARY) and together.isfinite().all()
    torch.testing.assert_close(model(a_batch(NAN, steps=9), LENGTHS, tokens), together, **EXACT)
    for item, length in enumerate(LENGTHS.tolist()):
        alone = model(a_batch()[item:item + 1, :length], LENGTHS[item:item + 1], tokens[item:item + 1])
        torch.testing.assert_close(alone[0], together[item], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("cross_attention", [True, False])
def test_a_row_is_about_what_came_before_it(cross_attention):
    """So that padding behind an item's end changes nothing of it; the order of what came before matters."""
    model, tokens = small(cross_attention), some_tokens(4, 5)
    whole = model(*source(cross_attention), tokens)
    torch.testing.assert_close(model(*source(cross_attention), tokens[:, :3]), whole[:, :3], **EXACT)
    padded = torch.cat([tokens[:, :3], torch.zeros(4, 4, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(*source(cross_attention), padded)[:, :3], whole[:, :3], **EXACT)
    swapped = tokens[:, [0, 2, 1, 3, 4]]
    assert (model(*source(cross_attention), swapped)[:, 4] - whole[:, 4]).abs().max() > 1e-3


def test_gradients_are_finite_whatever_the_padding():
    model, vectors, tokens = small(), a_batch(NAN).requires_grad_(True), some_tokens(4, 5)
    tokens[0, 3:] = 0
    shifted_loss(model(vectors, LENGTHS, tokens), tokens)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (vectors.grad.abs().sum(2) > 0).tolist() == (torch.arange(6) < LENGTHS[:, None]).tolist()


def test_what_does_not_fit():
    tokens = some_tokens(4, 5)
    for model, given_ in ((small(), (None, None)), (small(), (a_batch(), None)), (small(False), (a_batch(), LENGTHS))):
        with pytest.raises(Mistake, match="the decoder (attends|is a language model)"):
            model(*given_, tokens)
    with pytest.raises(Mistake, match="lengths of a batch"):
        small()(a_batch(), torch.tensor([3, 6, 0, 1]), tokens)
    with pytest.raises(Mistake, match="too long"):
        small(False)(None, None, some_tokens(1, 10))
    with pytest.raises(Mistake, match="no multiple"):
        LanguageDecoder(VOCABULARY, width=10, heads=4)


# --- the loss -----------------------------------------------------------------------------------------------

@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(0, 3))
def test_the_loss_is_of_the_next_token(sequences, more):
    """Counted out a token at a time; neither padding nor the batch matters."""
    draw = torch.Generator().manual_seed(0)
    tokens = pad_sequence([torch.tensor(x) for x in sequences], batch_first=True)
    tokens = torch.cat([tokens, torch.zeros(len(tokens), more, dtype=torch.int64)], 1)
    logits = torch.randn(*tokens.shape, 7, generator=draw)
    total, count = shifted_loss(logits, tokens)
    chances = logits.softmax(2)
    expected = [-chances[item, at, token].log() for item, x in enumerate(sequences) for at, token in enumerate(x[1:])]
    assert count == len(expected)
    assert total.item() == pytest.approx(float(sum(expected)), abs=1e-4)


def test_the_loss_of_half_precision_is_taken_in_float32():
    logits, tokens = torch.randn(2, 5, 7).bfloat16(), torch.randint(1, 7, (2, 5))
    total, _ = shifted_loss(logits, tokens)
    assert total.dtype == torch.float32 and torch.equal(total, shifted_loss(logits.float(), tokens)[0])


# --- token by token -----------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("cross_attention", [True, False])
def test_steps_are_the_rows_of_forward(cross_attention):
    model, tokens = small(cross_attention), some_tokens(4, 6)
    expected = model(*source(cross_attention), tokens).log_softmax(2)
    decoder = model.decoder(*source(cross_attention))
    for step in range(6):
        torch.testing.assert_close(decoder.step(tokens[:, step]), expected[:, step], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("cross_attention", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_steps_after_rows_were_repeated_and_dropped(seed, cross_attention):
    """Against forward over each row's whole beginning."""
    random = torch.Generator().manual_seed(seed)
    model = small(cross_attention)
    decoder = model.decoder(*source(cross_attention))
    items, said = torch.arange(4), torch.empty(4, 0, dtype=torch.int64)
    for count in (5, 7, 2, 6):
        tokens = torch.randint(1, VOCABULARY, (len(items),), generator=random)
        said = torch.cat([said, tokens[:, None]], 1)
        given_ = (a_batch()[items], LENGTHS[items]) if cross_attention else (None, None)
        expected = model(*given_, said)[:, -1].log_softmax(1)
        torch.testing.assert_close(decoder.step(tokens), expected, **EXACT)
        rows = torch.randint(len(items), (count,), generator=random)
        decoder.select(rows)
        items, said = items[rows], said[rows]


@torch.no_grad()
def test_a_search_beyond_the_places_is_refused():
    decoder = small(False).decoder()
    for _ in range(9):
        decoder.step(torch.tensor([3]))
    with pytest.raises(Mistake, match="too long"):
        decoder.step(torch.tensor([3]))


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 3])
def test_what_is_found_does_not_depend_on_the_batch(width):
    model, options = small(), {"start": START, "end": END, "width": width, "max_length": 6, "banned": (0,)}
    together = beam_search([model.decoder(a_batch(), LENGTHS)], 4, **options)
    padded = beam_search([model.decoder(a_batch(NAN, steps=9), LENGTHS)], 4, **options)
    for item, length in enumerate(LENGTHS.tolist()):
        vectors = a_batch()[item:item + 1, :length]
        alone = beam_search([model.decoder(vectors, LENGTHS[item:item + 1])], 1, **options)[0]
        for other in (alone, padded[item]):
            assert [x.tokens for x in other] == [x.tokens for x in together[item]]
            assert [x.score for x in other] == pytest.approx([x.score for x in together[item]], abs=1e-5)


@torch.no_grad()
def test_a_score_is_what_the_whole_sentence_has():
    model = small()
    found = beam_search([model.decoder(a_batch(), LENGTHS)], 4, start=START, end=END, width=4, max_length=6,
                        length_penalty=0.0)
    for item, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            tokens = torch.tensor([[START, *hypothesis.tokens, END]])
            chances = model(a_batch()[item:item + 1], LENGTHS[item:item + 1], tokens).log_softmax(2)
            score = chances[0, :-1].gather(1, tokens[0, 1:, None]).sum().item()
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


# --- learning -----------------------------------------------------------------------------------------------

TEXT = ["morgen regen im norden", "morgen sonne im sueden", "heute nacht frost", "im norden heute wind und regen"]


def learn(model: LanguageDecoder, tokens: torch.Tensor, vectors: torch.Tensor | None = None,
          lengths: torch.Tensor | None = None) -> float:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        total, count = shifted_loss(model.train()(vectors, lengths, tokens), tokens)
        (total / count).backward()
        optimizer.step()
    model.eval()
    return total.item() / int(count)


def words_and_tokens() -> tuple[WordVocabulary, torch.Tensor]:
    words = WordVocabulary.build(TEXT)
    sentences = [torch.tensor([words.start, *words.encode(text), words.end]) for text in TEXT]
    return words, pad_sequence(sentences, batch_first=True, padding_value=words.pad)


def test_a_language_model_learns_a_text_by_heart():
    """No less than what is left open: how a sentence begins, and with `morgen`, how it goes on."""
    words, tokens = words_and_tokens()
    torch.manual_seed(0)
    model = LanguageDecoder(words.size, **SIZES, cross_attention=False)
    loss = learn(model, tokens)
    open_ = (4 * 1.0397 + 2 * 0.6931) / int((tokens[:, 1:] != words.pad).sum())  # entropies of 2:1:1 and 1:1
    assert open_ - 0.01 < loss < open_ + 0.1
    found = beam_search([model.decoder()], 1, start=words.start, end=words.end, width=4, max_length=8,
                        length_penalty=0.0)[0]
    assert {words.decode(x.tokens) for x in found} == set(TEXT)
    assert words.decode(beam_search([model.decoder()], 1, start=words.start, end=words.end, max_length=8)[0][0].tokens
                        ).startswith("morgen ")


def test_with_vectors_it_says_what_they_stand_for():
    """Greedy and with a beam; it begins with a language model's weights."""
    words, tokens = words_and_tokens()
    torch.manual_seed(0)
    language = LanguageDecoder(words.size, **SIZES, cross_attention=False)
    learn(language, tokens)
    model = LanguageDecoder(words.size, **SIZES)
    missing = model.start_from(language.state_dict(), "the test")
    assert missing == [name for name in model.state_dict() if any(part in name for part in CROSS)]
    assert len(missing) == 2 * 10
    for name, value in language.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    vectors = a_batch()
    assert learn(model, tokens, vectors, LENGTHS) < 0.05
    for width in (1, 3):
        found = beam_search([model.decoder(vectors, LENGTHS)], 4, start=words.start, end=words.end, width=width,
                            max_length=8, banned=(words.pad,))
        assert [words.decode(hypotheses[0].tokens) for hypotheses in found] == TEXT


def test_where_it_starts_from():
    model, other = small(), small()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    assert model.start_from(other.state_dict(), "x") == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    language = small(False)
    assert language.start_from(other.state_dict(), "x") == []
    assert torch.equal(language.places, other.places)
    state = other.state_dict()
    for wrong in ({k: v for k, v in state.items() if k != "places"}, {**state, "more": torch.zeros(1)},
                  {**state, "embedding.weight": torch.zeros(VOCABULARY + 1, WIDTH)},
                  {k: v for k, v in state.items() if "0.cross." not in k}):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(Mistake, match="language decoder of x"):
            model.start_from(wrong, "x")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
