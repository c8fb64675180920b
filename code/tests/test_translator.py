"""The small translator and the two models over a translator: padding, the cache, the mappers, what trains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_models import stir
from torch import nn
from torch.nn.functional import cross_entropy, linear

from slr.catalogue import builder_of
from slr.losses import smoothed_kl
from slr.models.sentence import GlossHead
from slr.models.sign2text import MAPPERS, Expectation, FeatureHead, Gloss2Text, Projection, Sign2Text
from slr.models.translator import SmallTranslator, with_suffix
from slr.search import beam_search

EXACT = {"rtol": 1e-5, "atol": 1e-5}
NAN = float("nan")
WIDTH, VOCABULARY, CLASSES, START, END = 16, 11, 7, 1, 2
LENGTHS = torch.tensor([3, 6, 0, 1])


def small(vocabulary: int = VOCABULARY, width: int = WIDTH, layers: int = 2) -> SmallTranslator:
    """Without dropout, in evaluation, and with norms and biases that do something."""
    torch.manual_seed(0)
    model = SmallTranslator(vocabulary, width=width, layers=layers, heads=2, ffn=24, drop_p=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def a_batch(padding: float = 0.0, steps: int = 6) -> torch.Tensor:
    """Vectors (4, steps, WIDTH) of LENGTHS; `padding` stands behind the items' ends."""
    vectors = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    vectors = torch.cat([vectors, torch.zeros(4, steps - 6, WIDTH)], 1)
    return vectors.masked_fill((torch.arange(steps) >= LENGTHS[:, None])[..., None], padding)


def some_tokens(items: int, steps: int) -> torch.Tensor:
    tokens = torch.randint(3, VOCABULARY, (items, steps), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = START
    return tokens


# --- the suffix ---------------------------------------------------------------------------------------------

@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 2), st.integers(0, 3),
       st.sampled_from([0.0, NAN, math.inf, 7.0]))
def test_the_suffix_is_behind_each_items_own_end(lengths, more, count, padding):
    steps = max(lengths) + more
    vectors = torch.randn(len(lengths), steps, 2)
    for item, length in enumerate(lengths):
        vectors[item, length:] = padding
    suffix = torch.randn(count, 2)
    whole, is_padding = with_suffix(vectors, torch.tensor(lengths), suffix)
    assert whole.shape == (len(lengths), steps + count, 2) and is_padding.shape == whole.shape[:2]
    for item, length in enumerate(lengths):
        rest = torch.zeros(steps - length, 2)
        assert torch.equal(whole[item], torch.cat([vectors[item, :length], suffix, rest]))
        assert is_padding[item].tolist() == [False] * (length + count) + [True] * (steps - length)


def test_gradients_flow_through_the_suffix_and_past_the_padding():
    vectors, suffix = a_batch(NAN).requires_grad_(True), torch.randn(2, WIDTH, requires_grad=True)
    whole, _ = with_suffix(vectors, LENGTHS, suffix)
    weights = torch.randn_like(whole)
    (whole * weights).sum().backward()
    for item, length in enumerate(LENGTHS.tolist()):
        assert torch.equal(vectors.grad[item, :length], weights[item, :length])
        assert not vectors.grad[item, length:].any()
    expected = sum(weights[item, n:n + 2] for item, n in enumerate(LENGTHS.tolist()))
    torch.testing.assert_close(suffix.grad, expected)


# --- the small translator -----------------------------------------------------------------------------------

def test_the_number_of_parameters():
    """Attention 4 w^2 + 4 w, two linear layers 2 w f + f + w, layer-norms 2 w: six millions by default."""
    for size, width, layers, ffn in ((2000, 256, 3, 1024), (11, 8, 1, 12)):
        encoder = 4 * width**2 + 2 * width * ffn + ffn + 9 * width
        decoder = 8 * width**2 + 2 * width * ffn + ffn + 15 * width
        model = SmallTranslator(size) if size == 2000 else SmallTranslator(size, width=width, layers=layers, ffn=ffn)
        assert (model.width, model.vocabulary) == (width, size)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == layers * (encoder + decoder) + 2 * 2 * width + width + size * width
        assert size != 2000 or count == 6_042_880


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
def test_a_row_is_about_what_came_before_it():
    """And about the order of that, and of the vectors."""
    model, tokens = small(), some_tokens(4, 5)
    whole = model(a_batch(), LENGTHS, tokens)
    torch.testing.assert_close(model(a_batch(), LENGTHS, tokens[:, :3]), whole[:, :3], **EXACT)
    swapped = tokens[:, [0, 2, 1, 3, 4]]
    assert (model(a_batch(), LENGTHS, swapped)[:, 4] - whole[:, 4]).abs().max() > 1e-3
    backwards = a_batch()[:, [2, 1, 0, 3, 4, 5]]
    assert (model(backwards, LENGTHS, tokens)[0] - whole[0]).abs().max() > 1e-3


def test_gradients_are_finite_whatever_the_padding():
    model, vectors = small(), a_batch(NAN).requires_grad_(True)
    model(vectors, LENGTHS, some_tokens(4, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (vectors.grad.abs().sum(2) > 0).tolist() == (torch.arange(6) < LENGTHS[:, None]).tolist()


# --- token by token -----------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_steps_are_the_rows_of_forward(layers):
    model, tokens = small(layers=layers), some_tokens(4, 6)
    expected = model(a_batch(), LENGTHS, tokens).log_softmax(2)
    decoder = model.decoder(a_batch(NAN, steps=8), LENGTHS)
    for step in range(6):
        torch.testing.assert_close(decoder.step(tokens[:, step]), expected[:, step], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_steps_after_rows_were_repeated_and_dropped(seed):
    """Against forward over each row's whole beginning."""
    random = torch.Generator().manual_seed(seed)
    model = small()
    decoder = model.decoder(a_batch(NAN), LENGTHS)
    items, said = torch.arange(4), torch.empty(4, 0, dtype=torch.int64)
    for count in (5, 7, 2, 6):
        tokens = torch.randint(1, VOCABULARY, (len(items),), generator=random)
        said = torch.cat([said, tokens[:, None]], 1)
        expected = model(a_batch()[items], LENGTHS[items], said)[:, -1].log_softmax(1)
        torch.testing.assert_close(decoder.step(tokens), expected, **EXACT)
        rows = torch.randint(len(items), (count,), generator=random)
        decoder.select(rows)
        items, said = items[rows], said[rows]


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


def test_it_learns_to_say_things_backwards():
    """Four sequences, two of them alike but for their order, by heart."""
    sequences = [[1, 2, 3], [3, 2, 1], [2, 1], [4, 1, 3, 2]]
    lengths = torch.tensor([len(x) for x in sequences])
    glosses = nn.utils.rnn.pad_sequence([torch.tensor(x) for x in sequences], batch_first=True)
    answers = [[number + 2 for number in reversed(x)] for x in sequences]
    fed = nn.utils.rnn.pad_sequence([torch.tensor([START, *x]) for x in answers], batch_first=True)
    wanted = nn.utils.rnn.pad_sequence([torch.tensor([*x, END]) for x in answers], batch_first=True)
    torch.manual_seed(0)
    model = Gloss2Text(5, SmallTranslator(7, width=32, layers=1, heads=2, ffn=64, drop_p=0.0))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = smoothed_kl(model(glosses, lengths, fed).text.log_softmax(2), wanted, 0).sum() / 4
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    model.eval()
    with torch.no_grad():
        source = model(glosses, lengths, fed).source
        for width in (1, 3):
            found = beam_search([model.translator.decoder(*source)], 4, start=START, end=END, width=width,
                                max_length=8, banned=(0,))
            assert [list(hypotheses[0].tokens) for hypotheses in found] == answers


# --- glosses to text ----------------------------------------------------------------------------------------

@torch.no_grad()
def test_gloss2text():
    """What stands for the glosses goes to the translator; numbers behind an item's end do not matter."""
    model, tokens = Gloss2Text(CLASSES, small()).eval(), some_tokens(3, 4)
    glosses, lengths = torch.tensor([[1, 2, 3], [6, 0, 0], [4, 4, 0]]), torch.tensor([3, 1, 2])
    said = model(glosses, lengths, tokens)
    assert said.glosses is None and said.steps.tolist() == [3, 1, 2] and said.text.shape == (3, 4, VOCABULARY)
    assert torch.equal(said.source.vectors, model.gloss_embedding.weight[glosses])
    torch.testing.assert_close(said.text, model.translator(said.source.vectors, lengths, tokens))
    other = model(glosses.masked_fill(torch.arange(3) >= lengths[:, None], 5), lengths, tokens)
    torch.testing.assert_close(other.text, said.text, **EXACT)


# --- the mappers --------------------------------------------------------------------------------------------

def test_projection_is_two_linear_layers():
    mapper = Projection(8, WIDTH)
    features = torch.randn(2, 5, 8)
    hidden = linear(features, mapper.first.weight, mapper.first.bias).clamp(min=0)
    expected = linear(hidden, mapper.second.weight, mapper.second.bias)
    torch.testing.assert_close(mapper(features, torch.randn(2, 5, CLASSES)), expected)
    assert sum(p.numel() for p in mapper.parameters()) == 8 * WIDTH + WIDTH + WIDTH**2 + WIDTH


def test_expectation_is_the_mean_of_the_expected_embeddings():
    mapper, logits = Expectation(CLASSES, WIDTH), torch.randn(2, 5, CLASSES)
    assert not mapper.embedding[0].any() and mapper.embedding[1:].abs().sum(1).gt(0).all()
    shares = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = sum(shares[..., k, None] * mapper.embedding[k] for k in range(CLASSES))
    torch.testing.assert_close(mapper(torch.randn(2, 5, 8), logits), expected)
    sure = torch.full((1, 2, CLASSES), -100.0)
    sure[0, 0, 0] = sure[0, 1, 3] = 100.0
    found = mapper(torch.randn(1, 2, 8), sure)[0]
    torch.testing.assert_close(found, torch.stack([torch.zeros(WIDTH), mapper.embedding[3]]))


def test_expectation_starts_from_a_table():
    """But for the blank, which stays zero; the table itself stays what it is."""
    mapper, table = Expectation(CLASSES, WIDTH), torch.randn(CLASSES, WIDTH, dtype=torch.float64)
    before = table.clone()
    mapper.start_from(table)
    assert torch.equal(mapper.embedding[1:], table[1:].float()) and not mapper.embedding[0].any()
    assert torch.equal(table, before) and mapper.embedding.is_leaf and mapper.embedding.requires_grad


# --- signing to text ----------------------------------------------------------------------------------------

def mapper_of(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return MAPPERS[kind](16 if kind == "projection" else CLASSES, WIDTH)


def visual() -> nn.Module:
    torch.manual_seed(0)
    return stir(builder_of("S3D_CTC")(CLASSES, frames=60, size=24, width=16, drop_p=0.0))


def some_clips(padding: float = NAN) -> tuple[torch.Tensor, torch.Tensor]:
    clips, lengths = torch.randn(2, 3, 14, 24, 24, generator=torch.Generator().manual_seed(4)), torch.tensor([14, 9])
    clips[1, :, 9:] = padding
    return clips, lengths


@torch.no_grad()
@pytest.mark.parametrize("kind", MAPPERS)
def test_from_features_it_is_as_from_their_clips(kind):
    seeing = Sign2Text(visual(), mapper_of(kind), small(), learns_to_see=False).eval()
    (clips, lengths), tokens = some_clips(), some_tokens(2, 5)
    features, steps = seeing.visual.features(clips, lengths)
    said = seeing(clips, lengths, tokens, features=False)
    assert said.glosses.shape == (2, 4, CLASSES) and said.text.shape == (2, 5, VOCABULARY) and seeing.stride == 4
    assert said.steps.tolist() == said.source.lengths.tolist() == [4, 3] and said.source.vectors.shape == (2, 4, WIDTH)
    blind = Sign2Text(FeatureHead(seeing.visual.classifier, 4), seeing.mapper, seeing.translator, False).eval()
    features[1, 3:] = NAN
    for model in (seeing, blind):
        found = model(features, steps, tokens, features=True)
        torch.testing.assert_close(found.text, said.text, **EXACT)
        assert model.stride == 4 and found.steps.tolist() == [4, 3]
        for item, count in enumerate([4, 3]):
            torch.testing.assert_close(found.glosses[item, :count], said.glosses[item, :count], **EXACT)
    logits, _ = seeing.visual(clips, lengths)
    torch.testing.assert_close(said.glosses[1, :3], logits[1, :3], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", MAPPERS)
def test_an_item_of_features_is_what_it_is_alone(kind):
    head = stir(GlossHead(8, CLASSES, 16, 0.0))
    model, tokens = Sign2Text(FeatureHead(head, 4), mapper_of(kind), small(), True).eval(), some_tokens(2, 3)
    features, lengths = torch.randn(2, 6, 8), torch.tensor([6, 2])
    together = model(features, lengths, tokens, features=True)
    alone = model(features[1:, :2], lengths[1:], tokens[1:], features=True)
    torch.testing.assert_close(together.text[1], alone.text[0], **EXACT)
    assert torch.equal(together.text, model(features.clone(), lengths, tokens, features=True).text)


def test_a_backbone_that_does_not_learn_stays_as_it_is():
    """Its batch-norm too; all the rest learns, the gloss head from both losses."""
    model = Sign2Text(visual(), mapper_of("embedding"), small(), learns_to_see=False)
    assert model.train() is model and model.training and model.visual.classifier.training and model.translator.training
    assert not any(part.training for part in model.visual.backbone.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = model(*some_clips(), some_tokens(2, 5), features=False)
    (cross_entropy(said.text.flatten(0, 1), torch.arange(10)) + said.glosses[0].square().mean()).backward()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "backbone" in name)
    assert not torch.equal(after["visual.classifier.norm.running_mean"], before["visual.classifier.norm.running_mean"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == ("backbone" not in name), name
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_a_backbone_that_learns():
    """But for the blocks that the visual model itself keeps as they are."""
    model = Sign2Text(visual(), mapper_of("projection"), small(), learns_to_see=True).train()
    trains = {name: p.requires_grad for name, p in model.visual.backbone.named_parameters()}
    assert any(trains.values()) and not all(trains.values())
    assert {part.training for part in model.visual.backbone.modules() if isinstance(part, nn.BatchNorm3d)} == {
        True, False}
    model.eval()
    assert not any(part.training for part in model.modules())


def test_without_a_backbone_there_are_no_videos():
    """Nothing of a FeatureHead is asked for but its head, in training, too."""
    model = Sign2Text(FeatureHead(GlossHead(8, CLASSES, 16, 0.0), 4), mapper_of("projection"), small(), False).train()
    assert not hasattr(model.visual, "features") and not hasattr(model.visual, "backbone")
    assert model.visual.classifier.training and all(p.requires_grad for p in model.parameters())
    said = model(torch.randn(2, 6, 8), torch.tensor([6, 2]), some_tokens(2, 3), features=True)
    (said.text.square().mean() + said.glosses.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
