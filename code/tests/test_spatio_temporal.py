"""Transcription's encoder and its pre-training, against transformers' DINOv2 and wav2vec 2.0 on the same weights."""

import copy
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slr.errors import Mistake
from slr.models import contrastive, spatio_temporal
from slr.models.contrastive import Contrast, Contrastive, GumbelQuantizer, Masked, draw_masked, losses, perplexity
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatioTemporalEncoder, span_masks, spatial_net, spatial_net_from

CPU = torch.device("cpu")
LENGTHS, STEPS, WIDTH = [9, 1, 5], 9, 32
SMALL = {"layers": 2, "heads": 4, "ffn": 24, "kernel": 6, "groups": 2}
LITTLE = {"width": 24, "layers": 2, "heads": 2, "patch": 4, "image": 16}
CODES = {"groups": 2, "codes": 5, "dim": 12, "compared": 10}
SEEN = Spans(0.5, 2, 1)


def valid(lengths=LENGTHS, steps: int = STEPS) -> Frames:
    return Frames(torch.tensor(lengths), steps, CPU)


def some(padding: float = 0.0, *shape: int) -> torch.Tensor:
    """Features (N, T, C), or clips where a shape is given: (N, T, *shape)."""
    x = torch.randn(len(LENGTHS), STEPS, *(shape or (WIDTH,)), generator=torch.Generator().manual_seed(3))
    return torch.where(valid().valid.view(len(LENGTHS), STEPS, *[1] * len(shape or (1,))), x, padding)


def rngs(count: int = len(LENGTHS), seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, item]) for item in range(count)]


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def shaken(net: nn.Module) -> nn.Module:
    """No weight is left as it begins: layer-norms and biases would hide a mistake."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return net.eval()


def small(**options) -> SpatioTemporalEncoder:
    torch.manual_seed(0)
    return shaken(SpatioTemporalEncoder(WIDTH, **{**SMALL, **options}))


# ---- DINOv2


def little_dino(**options):
    pytest.importorskip("transformers")
    return spatial_net(**{**LITTLE, **options})


def clips(padding: float = 0.0) -> torch.Tensor:
    return some(padding, 3, 16, 12).transpose(1, 2)


def test_a_vector_is_the_class_token_behind_the_last_norm():
    see = little_dino()
    shaken(see.net)
    found = see(clips(float("nan")), valid())
    assert found.shape == (3, STEPS, 24) and not found.requires_grad
    for item, length in enumerate(LENGTHS):
        for t in range(length):
            frame = clips()[item, :, t]
            inner = see.net.encoder(see.net.embeddings(frame[None])).last_hidden_state[:, 0]
            torch.testing.assert_close(found[item, t], see.net.layernorm(inner)[0].detach(), rtol=1e-4, atol=1e-5)
        assert not found[item, length:].any()


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_how_many_frames_it_sees_at_once_does_not_matter(chunk):
    expected, found = (little_dino(chunk=size)(clips(), valid()) for size in (7, chunk))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_never_sees_more_frames_at_once():
    see, sizes = little_dino(chunk=4), []
    see.net.register_forward_pre_hook(lambda net, inputs: sizes.append(len(inputs[0])))
    see(clips(), valid())
    assert sizes == [4, 4, 4, 3]


def test_it_is_frozen():
    see = little_dino()
    inside = nn.Sequential(see).train()
    assert inside.training and not any(part.training for part in see.modules())
    assert not any(weight.requires_grad for weight in see.parameters())
    assert not see(clips().requires_grad_(), valid()).requires_grad


def test_untrained_weights_come_from_their_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = little_dino(), little_dino(), little_dino(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weight = "net.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_parameters_of_dinov2_base():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        see = spatial_net()
    c, inner = 768, 3072
    embeddings = 2 * c + (37 * 37 + 1) * c + 3 * 14 * 14 * c + c  # class and mask tokens, positions, patches
    layer = 4 * (c * c + c) + 2 * c * inner + inner + c + 4 * c + 2 * c  # its last are the layer scales
    assert count(see) == embeddings + 12 * layer + 2 * c == 86_580_480
    assert see.width == c


def test_a_folder_of_dinov2(tmp_path):
    theirs = shaken(little_dino().net)
    theirs.save_pretrained(tmp_path)
    see = spatial_net_from(tmp_path, chunk=5)
    assert see.width == 24 and see.chunk == 5
    frame = clips()[:1, :, 0]
    torch.testing.assert_close(see.of_pictures(frame), theirs(frame).last_hidden_state[:, 0].detach())


def test_a_folder_of_dinov2_that_does_not_serve(tmp_path):
    def refusal() -> str:
        with pytest.raises(Mistake) as caught:
            spatial_net_from(tmp_path / "d")
        return str(caught.value)

    assert "the folder of DINOv2 is missing" in refusal()
    little_dino().net.save_pretrained(tmp_path / "d")
    written = json.loads((tmp_path / "d" / "config.json").read_text())
    for change, told in (({"num_hidden_layers": 3}, "not those of its config.json: encoder.layer.2"),
                         ({"model_type": "vit"}, "holds no DINOv2: its config.json says vit")):
        (tmp_path / "d" / "config.json").write_text(json.dumps({**written, **change}))
        assert told in refusal()
    (tmp_path / "d" / "config.json").write_text("{")
    assert "cannot be read" in refusal()


def test_dinov2_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Mistake, match="pip install transformers"):
        spatial_net()


@pytest.mark.parametrize(("act", "told"), [
    (lambda: little_dino(heads=5), "a multiple of 5"), (lambda: little_dino(chunk=0), "give 1 frame or more"),
    (lambda: little_dino(patch=14, image=28)(clips(), valid()), "a multiple of 14 pixels"),
    (lambda: SpatioTemporalEncoder(36), "a multiple of 16"), (lambda: Spans(1.2, 2), "a share from 0 to 1"),
    (lambda: Spans(0.1, 0), "a length of 1 or more"), (lambda: GumbelQuantizer(8, groups=3), "a multiple of 3"),
    (lambda: draw_masked(valid(), rngs(), negatives=0), "give 1 or more")])
def test_mistakes(act, told):
    with pytest.raises(Mistake) as caught:
        act()
    assert told in str(caught.value)


# ---- which frames are masked


@given(st.integers(1, 60), st.floats(0, 1), st.integers(1, 12), st.integers(0, 4), st.integers(0, 9))
def test_spans(steps, share, length, least, seed):
    mask = Spans(share, length, least).draw(steps, np.random.default_rng(seed))
    assert mask.shape == (steps,) and mask.dtype == bool
    runs = [len(run) for run in "".join("x" if masked else " " for masked in mask).split()]
    assert all(run >= length for run in runs)
    most = min(max(math.floor(share * steps / length) + 1, least), steps // length)
    fewest = min(max(math.floor(share * steps / length + 1e-9), least), steps // length)
    assert mask.sum() <= most * length
    # `fewest` different starts reach at least so far
    assert mask.sum() >= (fewest + length - 1 if fewest else 0) - 1e-9


def test_the_share_is_that_of_starting_spans():
    rng, spans = np.random.default_rng(0), Spans(0.3, 2)
    found = np.mean([spans.draw(40, rng).mean() for _ in range(2000)])
    places, drawn = 39, 6  # a frame stays when neither of the two starts that reach it is drawn
    inner = 1 - (places - drawn) * (places - drawn - 1) / (places * (places - 1))
    expected = (38 * inner + 2 * drawn / places) / 40
    assert found == pytest.approx(expected, abs=0.005)


def test_masks_of_a_batch_are_those_of_the_items_alone():
    lengths = [40, 3, 17]
    batch = span_masks(valid(lengths, 50), SEEN, rngs())
    assert batch.shape == (3, 50) and not (batch & ~valid(lengths, 50).valid).any()
    for row, length, rng in zip(batch, lengths, rngs(), strict=True):
        assert torch.equal(span_masks(valid([length], length), SEEN, [rng])[0], row[:length])
    assert batch[0].any() and batch[2].any()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
def test_negatives_are_other_masked_frames_of_the_clip(lengths, length, negatives, seed):
    frames = valid(lengths, max(lengths))
    masked = draw_masked(frames, rngs(len(lengths), seed), Spans(0.4, length, 1), negatives)
    assert not (masked.mask & ~frames.valid).any() and not (masked.mask.sum(1) == 1).any()
    assert torch.equal(masked.index, masked.mask.flatten().nonzero()[:, 0])
    assert masked.negatives.shape == (len(masked.index), negatives)
    clip = masked.index // frames.steps
    assert (clip[masked.negatives] == clip[:, None]).all()
    assert (masked.negatives != torch.arange(len(masked.index))[:, None]).all()


def test_negatives_of_a_batch_are_those_of_the_items_alone():
    lengths = [40, 1, 17]
    batch, before = draw_masked(valid(lengths, 50), rngs()), 0
    for row, length, rng in zip(batch.mask, lengths, rngs(), strict=True):
        alone = draw_masked(valid([length], length), [rng])
        assert torch.equal(alone.mask[0], row[:length])
        assert torch.equal(alone.negatives + before, batch.negatives[before:before + len(alone.index)])
        before += len(alone.index)
    assert before == len(batch.index) > 10


def test_all_others_are_drawn_alike():
    drawn = draw_masked(valid([6], 6), rngs(1), Spans(1.0, 6, 1), 30_000).negatives
    for frame, row in enumerate(drawn):
        shares = torch.bincount(row, minlength=6) / 30_000
        expected = torch.full((6,), 0.2).index_fill(0, torch.tensor([frame]), 0.0)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


# ---- the encoder


def their_config(**options):
    library = pytest.importorskip("transformers")
    rates = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout",
                           "feat_quantizer_dropout", "layerdrop"), 0.0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
             "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2, "conv_dim": (WIDTH,),
             "conv_kernel": (1,), "conv_stride": (1,), "num_codevector_groups": 2, "num_codevectors_per_group": 5,
             "codevector_dim": 12, "proj_codevector_dim": 10, "num_negatives": 10}
    return library.Wav2Vec2Config(**{**rates, **sizes, **options})


def their_encoder(**options):
    config = their_config(**options)
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Encoder

    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return shaken(Wav2Vec2Encoder(config))


def with_their_weights(theirs: nn.Module, **options) -> SpatioTemporalEncoder:
    ours = small(**options)
    missing, unexpected = ours.load_state_dict(spatio_temporal.from_transformers(theirs.state_dict()), strict=False)
    assert set(missing) == {"norm.weight", "norm.bias", "mask_vector"} and not unexpected
    return ours


@pytest.mark.parametrize("kernel", [6, 5], ids=["even", "odd"])
def test_it_is_transformers_encoder(kernel):
    theirs = their_encoder(num_conv_pos_embeddings=kernel)
    ours = with_their_weights(theirs, kernel=kernel)
    normed = ours.normed(some(), valid())
    expected = theirs(normed.clone(), attention_mask=valid().valid).last_hidden_state
    found = ours(some(float("nan")), valid())
    torch.testing.assert_close(found, valid().zero(expected, 1), rtol=1e-4, atol=1e-5)


def test_the_skipped_layers_are_transformers():
    theirs = their_encoder(layerdrop=0.5).train()
    ours = with_their_weights(theirs, dropout=0.0, layerdrop=0.5, spans=Spans(0.0, 1)).train()
    whole, skipped = valid([STEPS] * 3), set()
    for seed in range(4):
        ours.zero_grad()
        torch.manual_seed(seed)
        expected = theirs(ours.normed(some(), whole)).last_hidden_state
        torch.manual_seed(seed)
        found = ours(some(), whole)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.sin().sum().backward()
        skipped.add(tuple(not layer.widen.weight.grad.any() for layer in ours.layers))
    assert len(skipped) > 1


def test_the_gradients_are_transformers():
    theirs = their_encoder()
    ours = with_their_weights(theirs)
    whole = valid([STEPS] * 3)
    theirs(ours.normed(some(), whole).detach()).last_hidden_state.sin().sum().backward()
    ours(some(), whole).sin().sum().backward()
    named = spatio_temporal.to_transformers({name: weight.grad for name, weight in ours.named_parameters()
                                             if weight.grad is not None and not name.startswith("norm.")})
    expected = {f"encoder.{name}": weight.grad for name, weight in theirs.named_parameters()}
    assert named.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(named[name], grad, rtol=1e-3, atol=1e-4, msg=name)


def test_names_there_and_back():
    theirs = their_encoder().state_dict()
    ours = spatio_temporal.from_transformers(theirs)
    back = spatio_temporal.to_transformers(ours)
    assert {name.removeprefix("encoder."): tensor for name, tensor in back.items()} == theirs
    whole = small().state_dict()
    again = spatio_temporal.from_transformers(spatio_temporal.to_transformers(whole))
    assert again.keys() == whole.keys() and all(again[name] is tensor for name, tensor in whole.items())
    old = {name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"): tensor for name, tensor in theirs.items()}
    assert old.keys() != theirs.keys() and spatio_temporal.from_transformers(old).keys() == ours.keys()
    for change in (spatio_temporal.from_transformers, spatio_temporal.to_transformers):
        with pytest.raises(Mistake, match="layers.0.adapter"):
            change({"encoder.layers.0.adapter.weight": torch.zeros(1)})


def test_parameters_of_the_default_sizes():
    with torch.device("meta"):
        encoder = SpatioTemporalEncoder()
    c, inner = 768, 2048
    convolution = c * c // 16 * 128 + 128 + c  # direction, a length each place of the kernel, bias
    layer = 4 * (c * c + c) + 2 * c * inner + inner + c + 4 * c
    assert count(encoder) == 2 * c + c + convolution + 2 * c + 6 * layer == 37_807_232


def test_padding_and_neighbours_do_not_matter():
    encoder, mask = small(), span_masks(valid(), SEEN, rngs())
    assert mask.any()
    expected = encoder(some(), valid(), mask)
    assert expected.shape == (3, STEPS, WIDTH) and not expected[~valid().valid].any()
    torch.testing.assert_close(encoder(some(float("nan")), valid(), mask), expected, rtol=0, atol=0)
    beyond = mask | ~valid().valid
    torch.testing.assert_close(encoder(some(), valid(), beyond), expected, rtol=0, atol=0)
    for item, row, own, length in zip(some(), expected, mask, LENGTHS, strict=True):
        alone = encoder(item[None, :length], valid([length], length), own[None, :length])
        torch.testing.assert_close(alone[0], row[:length], rtol=1e-4, atol=1e-5)


def test_padding_does_not_reach_the_gradients():
    encoder = small()
    encoder(some(float("nan")), valid()).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters() if weight.grad is not None)


def test_what_is_masked_is_not_seen():
    encoder, mask = small(), torch.zeros(3, STEPS, dtype=torch.bool)
    mask[0, 3:5] = True
    other = some()
    other[0, 3:5] = 7.0
    torch.testing.assert_close(encoder(other, valid(), mask), encoder(some(), valid(), mask), rtol=0, atol=0)
    assert not torch.allclose(encoder(other, valid()), encoder(some(), valid()), atol=1e-3)


def test_training_masks_by_the_items_generators():
    encoder = small(dropout=0.0, layerdrop=0.0, spans=SEEN).train()
    found = encoder(some(), valid(), rngs=rngs())
    torch.testing.assert_close(found, encoder(some(), valid(), span_masks(valid(), SEEN, rngs())), rtol=0, atol=0)
    assert not torch.allclose(found, encoder(some(), valid(), rngs=rngs(seed=4)), atol=1e-3)
    torch.testing.assert_close(encoder.eval()(some(), valid(), rngs=rngs()), encoder(some(), valid()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="give their mask"):
        encoder.train()(some(), valid())


def test_dropout_only_in_training():
    encoder = small(dropout=0.5, spans=Spans(0.0, 1)).train()
    assert not torch.equal(encoder(some(), valid()), encoder(some(), valid()))
    still = copy.deepcopy(encoder).eval()
    assert torch.equal(still(some(), valid()), still(some(), valid()))


def test_every_weight_has_a_gradient_even_where_nothing_is_masked_and_no_layer_used():
    encoder = small(layerdrop=1.0, spans=Spans(0.0, 1)).train()
    encoder(some(), valid()).sin().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    assert not any(weight.grad.any() for weight in encoder.layers.parameters())


# ---- the pre-training


class Turned(nn.Module):
    """In the place of the net that hears sound: the features as they come."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.transpose(1, 2)


class Copy(nn.Module):
    """In the place of their projection. Without a copy theirs would quantise what it masks: it writes in place."""

    def forward(self, normed: torch.Tensor) -> torch.Tensor:
        return normed.clone()


def pretraining(seed: int = 0):
    """Theirs, whose front is left out, and ours with its weights."""
    library, config = pytest.importorskip("transformers"), their_config()
    torch.manual_seed(seed)
    theirs = library.Wav2Vec2ForPreTraining(config)
    theirs.wav2vec2.feature_extractor = Turned()
    theirs.wav2vec2.feature_projection.projection = Copy()
    shaken(theirs)
    ours = Contrastive(small(), **CODES).eval()
    ours.load_state_dict(contrastive.from_transformers(theirs.state_dict()))
    return theirs, ours


def in_their_form(masked: Masked) -> dict[str, torch.Tensor]:
    negatives = torch.zeros(masked.mask.numel(), masked.negatives.shape[1], dtype=torch.long)
    negatives[masked.index] = masked.index[masked.negatives]
    return {"mask_time_indices": masked.mask, "sampled_negative_indices": negatives.unflatten(0, masked.mask.shape)}


@pytest.mark.parametrize("seed", range(4))
def test_the_losses_are_transformers(seed):
    theirs, ours = pretraining(seed)
    frames, features = valid([STEPS, STEPS - 2, 5]), some()
    masked = draw_masked(frames, rngs(seed=seed), SEEN)
    contrast = ours(frames.zero(features, 1), frames, masked, 1.0)
    expected = theirs(frames.zero(features, 1), attention_mask=frames.valid.long(), **in_their_form(masked))
    found = losses(contrast)
    torch.testing.assert_close(found["contrastive"][0], expected.contrastive_loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["diversity"][0], expected.diversity_loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["perplexity"][0] / len(masked.index), expected.codevector_perplexity)
    total = sum(weight * found[name][0] for name, weight in contrastive.WEIGHTS.items())
    torch.testing.assert_close(total, expected.loss, rtol=1e-4, atol=1e-4)
    assert {number for _, number in found.values()} == {int(masked.mask.sum())} != {0}


def test_pretraining_names_there_and_back():
    theirs, ours = pretraining()
    state = contrastive.to_transformers(ours.state_dict())
    expected = theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert spatio_temporal.from_transformers(expected).keys() == ours.encoder.state_dict().keys()
    with pytest.raises(Mistake, match="lm_tail"):
        contrastive.from_transformers({**expected, "lm_tail": torch.zeros(1)})


@pytest.mark.parametrize("training", [True, False])
def test_the_quantiser_is_transformers(training):
    theirs, ours = (model.quantizer.train(training) for model in pretraining())
    theirs.temperature, rows = 0.7, some().flatten(0, 1)
    found = []
    for act in (lambda: theirs(rows[None], torch.ones(1, len(rows), dtype=torch.bool)), lambda: ours(rows, 0.7)):
        torch.manual_seed(2)
        found.append(act())
    (vectors, expected), codes = found
    torch.testing.assert_close(codes.vectors, vectors[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(perplexity(codes.shares.sum(0), len(rows)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes.shares.sum(2), torch.ones(len(rows), 2))
    vectors.square().sum().backward()
    codes.vectors.square().sum().backward()
    torch.testing.assert_close(ours.codebook.grad, theirs.codevectors.grad[0], rtol=1e-4, atol=1e-4)
    if training:
        torch.testing.assert_close(ours.choose.weight.grad, theirs.weight_proj.weight.grad, rtol=1e-3, atol=1e-4)


def test_logits_as_a_loop():
    generator = torch.Generator().manual_seed(0)
    context, targets = (torch.randn(4, 6, generator=generator) for _ in range(2))
    chosen = torch.tensor([[0, 1], [0, 1], [2, 1], [0, 3]])
    negatives = torch.tensor([[1, 2], [3, 0], [0, 1], [2, 2]])
    found = contrastive.contrastive_logits(context, targets, chosen, negatives)
    for m in range(4):
        for k, other in enumerate([m, *negatives[m].tolist()]):
            a, b = context[m].double(), targets[other].double()
            cosine = (a @ b / a.norm() / b.norm()).item()
            same = k > 0 and chosen[m].tolist() == chosen[other].tolist()
            assert found[m, k].item() == (-math.inf if same else pytest.approx(cosine / 0.1, abs=1e-4))


def test_losses_by_hand():
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [1.0, 3.0, 0.0], [1.0, 1.0, 0.0],
                           [4.0, -torch.inf, -torch.inf]])
    usage = torch.tensor([[4.0, 0, 0, 0], [1.0, 1, 1, 1]])
    found = losses(Contrast(logits, usage))
    e = math.exp
    rows = [e(2) / (e(2) + e(1)), e(1) / (e(1) + e(3) + 1), e(1) / (2 * e(1) + 1), 1]
    assert found["contrastive"][0].item() == pytest.approx(-sum(map(math.log, rows)), rel=1e-5)
    assert found["perplexity"][0].item() / 4 == pytest.approx(1 + 4)
    assert found["diversity"][0].item() / 4 == pytest.approx((8 - 5) / 8)
    assert found["accuracy"] == (1, 4)  # the last frame's negatives are all its own code: no proof of anything


def test_a_batch_in_which_nothing_is_masked():
    model, frames = Contrastive(small(), **CODES).train(), valid([1, 1, 1])
    masked = draw_masked(frames, rngs())
    assert not masked.mask.any() and masked.negatives.shape == (0, 10)
    found = losses(model(some(), frames, masked, 2.0))
    assert all(value.item() == 0 and number == 0 for value, number in found.values())
    (found["contrastive"][0] + found["diversity"][0]).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_an_item_s_logits_are_those_that_it_has_alone():
    model, lengths = Contrastive(small(), **CODES).eval(), [STEPS, 2, 5]
    masked = draw_masked(valid(lengths), rngs(), SEEN)
    whole, before = model(some(), valid(lengths), masked, 1.0).logits, 0
    for item, length, rng in zip(some(), lengths, rngs(), strict=True):
        frames = valid([length], length)
        alone = model(item[None, :length], frames, draw_masked(frames, [rng], SEEN), 1.0).logits
        torch.testing.assert_close(alone, whole[before:before + len(alone)], rtol=1e-4, atol=1e-4)
        before += len(alone)
    assert before == len(whole)


def test_a_tiny_set_is_learned_by_heart():
    torch.manual_seed(0)
    lengths = [12, 9, 10]
    frames, features = valid(lengths, 12), torch.randn(3, 12, WIDTH)
    model = Contrastive(SpatioTemporalEncoder(WIDTH, dropout=0.0, layerdrop=0.0, **SMALL), groups=2, codes=8, dim=16,
                        compared=16)
    masked = draw_masked(frames, rngs())
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)

    def figures() -> dict[str, float]:
        with torch.no_grad():
            found = losses(model.eval()(features, frames, masked, 1.0))
        model.train()
        return {name: float(value) / number for name, (value, number) in found.items()}

    before = figures()
    for step in range(150):
        found = losses(model(features, frames, masked, max(0.5, 2 * 0.98 ** step)))
        optimiser.zero_grad()
        sum(weight * found[name][0] / found[name][1] for name, weight in contrastive.WEIGHTS.items()).backward()
        optimiser.step()
    after = figures()
    assert after["contrastive"] < 0.3 < 1.0 < before["contrastive"]
    assert after["accuracy"] > 0.9 > 0.5 > before["accuracy"] and after["perplexity"] > 5
