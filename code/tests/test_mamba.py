"""MambaSLR: its size is the paper's, packed and padded are one, sequences never meet, and each part is its formula."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, layer_norm, pad, silu, softplus

from slr.errors import Mistake
from slr.models import mamba
from slr.models.classifier import parameter_groups
from slr.models.mamba import (
    Attention,
    Direction,
    Heads,
    SpatialMixer,
    Stem,
    TemporalMixer,
    build,
    halve,
    pack,
    roll,
    unroll,
)
from slr.models.scan import scan_loop

SMALL = {"dim": 16, "depth": 3, "headdim": 4, "attn_heads": 2, "attn_layers": (1,), "spatial_state": 3,
         "temporal_state": 5, "stem_depth": 1}
LENGTHS = [5, 1, 8]


def small(classes=6, **options):
    torch.manual_seed(0)
    return build(classes, **{**SMALL, **options}).double()


def batch(channels=3, lengths=LENGTHS, height=40, width=56):
    """Padded clips with what must not be looked at behind every end, and their lengths."""
    torch.manual_seed(1)
    clips = torch.randn(len(lengths), channels, max(lengths) + 2, height, width, dtype=torch.float64)
    for clip, length in zip(clips, lengths, strict=True):
        clip[:, length:] = torch.nan
    return clips, torch.tensor(lengths)


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


# --- as the paper has it ----------------------------------------------------------------------------------------

def test_parameter_counts():
    with torch.device("meta"):
        model = build(1296)
    assert size(model) == 57_154_016
    assert size(model.backbone.stem) == 3_483_008
    assert [size(block.temporal) for block in model.backbone.blocks] == [1_130_160] * 12
    spatial = [block.spatial for block in model.backbone.blocks]
    assert [size(mixer) for number, mixer in enumerate(spatial) if number != 4] == [1_135_920] * 11
    assert isinstance(spatial[4], Attention) and size(spatial[4]) == 4 * 512 * 512 + 4 * 512
    assert [round(block.drop_path, 6) for block in model.backbone.blocks] == [round(0.4 * i / 11, 6) for i in range(12)]
    assert model.classifier[0].p == 0.1 and model.head.in_features == 1024


def test_stem_steps_and_widths():
    with torch.device("meta"):
        stem = Stem(3, 512, 3)
        cells = stem(torch.empty(2, 3, 224, 224))
    assert cells.shape == (2, 14, 14, 512)
    shrunk = [layer.conv.weight.shape for layer in stem.stages if isinstance(layer, mamba.Shrink)]
    assert stem.conv.weight.shape == (128, 3, 7, 7) and shrunk == [(256, 128, 3, 3), (512, 256, 3, 3)]


def test_full_size_runs():
    """Two sequences of one frame each at 224 pixels: 197 tokens through all 12 blocks."""
    torch.manual_seed(0)
    model, seen = build(1296).eval(), []
    model.backbone.blocks[11].register_forward_hook(lambda block, given, tokens: seen.append(tokens.shape))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))
    assert logits.shape == (2, 1296) and logits.isfinite().all() and seen == [(2, 197, 512)]


def test_initial_values():
    torch.manual_seed(0)
    heads = Heads(4000)
    dt, decay = softplus(heads.dt_bias).detach(), heads.A_log.exp().detach()
    assert 0.001 * 0.999 <= dt.min() and dt.max() <= 0.1 * 1.001
    assert abs(float(dt.log().mean()) - math.log(0.01)) < 0.1  # uniform in the logarithm
    assert 1 <= decay.min() and decay.max() <= 16.001 and abs(float(decay.mean()) - 8.5) < 0.3
    assert (heads.D == 1).all()


# --- packed and padded ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"downsample": (1,)}, {"downsample": (0, 2, 2)}], ids=str)
def test_packed_is_padded_is_alone(options):
    model = small(**options).eval()
    clips, lengths = batch()
    frames, seq_idx = pack(clips, lengths)
    assert len(frames) == sum(LENGTHS) and seq_idx.tolist() == [0] * 5 + [1] + [2] * 8
    packed = model(frames, seq_idx)
    padded, steps = model.padded(clips, lengths)
    assert steps.tolist() == [math.ceil(length / model.stride) for length in LENGTHS]
    assert padded.shape == (3, max(steps), 6) and len(packed) == sum(steps)
    rows = packed.split(steps.tolist())
    for item, length in enumerate(LENGTHS):
        alone = model(clips[item, :, :length].transpose(0, 1), torch.zeros(length))
        assert torch.allclose(rows[item], alone, rtol=0, atol=1e-10)
        assert torch.equal(padded[item, : steps[item]], rows[item])
        assert (padded[item, steps[item] :] == 0).all()


def test_single_precision_packed_is_alone():
    model, (clips, lengths) = small().float().eval(), batch()
    packed = model(*pack(clips.float(), lengths))
    alone = [model(clips[i, :, :n].transpose(0, 1).float(), torch.zeros(n)) for i, n in enumerate(LENGTHS)]
    assert torch.allclose(packed, torch.cat(alone), rtol=0, atol=1e-5)


def test_packed_is_padded_in_training_too():
    model = small(drop_path=0.5).train()
    clips, lengths = batch()
    torch.manual_seed(5)
    packed = model(*pack(clips, lengths))
    torch.manual_seed(5)
    padded, steps = model.padded(clips, lengths)
    assert torch.equal(torch.cat([row[:n] for row, n in zip(padded, steps, strict=True)]), packed)


@pytest.mark.parametrize("options", [{}, {"downsample": (1,)}], ids=str)
def test_sequences_never_meet_and_frames_of_one_do(options):
    """No gradient from one sequence to another; from every frame to every row of its own, in either direction."""
    model = small(**options).eval()
    clips, lengths = batch()
    frames, seq_idx = pack(clips, lengths)
    frames.requires_grad_()
    logits = model(frames, seq_idx)
    owner = torch.arange(3).repeat_interleave(-(-lengths // model.stride))
    for row in range(len(logits)):
        felt = torch.autograd.grad(logits[row].sum(), frames, retain_graph=True)[0].flatten(1).abs().amax(1)
        own = seq_idx == owner[row]
        assert (felt[own] > 1e-8).all() and (felt[~own] < 1e-18).all()  # that is what rounding leaves of a - a


def test_numbers_need_not_go_up():
    model, frames = small().eval(), batch()[0][0, :, :5].transpose(0, 1)
    assert torch.equal(model(frames, torch.tensor([3, 3, 0, 3, 3])), model(frames, torch.tensor([0, 0, 1, 2, 2])))


def test_the_padded_model_has_the_same_weights_under_the_same_names():
    clips, lengths = batch()
    model, padded = small().eval(), small(padded=True).eval()
    padded.load_state_dict(model.state_dict())
    for found, expected in zip(padded(clips, lengths), model.padded(clips, lengths), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 11], [3]])
def test_lengths_out_of_range(lengths):
    with pytest.raises(Mistake):
        small().padded(torch.zeros(2, 3, 10, 32, 32).double(), torch.tensor(lengths + [99] * (len(lengths) == 1)))


def test_frames_of_another_kind():
    for frames, seq_idx in ((torch.zeros(4, 4, 32, 32), torch.zeros(4)), (torch.zeros(4, 3, 32, 32), torch.zeros(3))):
        with pytest.raises(ValueError, match="built for frames"):
            small()(frames.double(), seq_idx)


# --- heatmaps and time ------------------------------------------------------------------------------------------

def test_heatmaps_enter_the_model():
    model, (clips, lengths) = small(heatmaps=2).eval(), batch(channels=5)
    frames, seq_idx = pack(clips, lengths)
    plain = model(frames, seq_idx)
    for channel in (3, 4):
        changed = frames.clone()
        changed[2, channel] += 1
        difference = (model(changed, seq_idx) - plain).abs().amax(1)
        assert (difference[:5] > 1e-6).all() and (difference[5:] < 1e-14).all()
    assert small(heatmaps=2).backbone.stem.conv.in_channels == 5


def test_halving():
    tokens = torch.tensor([1.0, 2, 4, 10, 20, 7]).view(6, 1, 1)
    found, numbers = halve(tokens, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert found.flatten().tolist() == [1.5, 4, 15, 7] and numbers.tolist() == [0, 0, 1, 2]


# --- the parts are their formulas -------------------------------------------------------------------------------

def by_formula(heads, x, raw, B, C):
    """y of one group of heads: x (L, E), raw (L, H), B and C (L, M)."""
    dt, A = softplus(raw + heads["dt_bias"]), -heads["A_log"].exp()
    x = x.unflatten(1, (len(heads["D"]), -1))
    return scan_loop(x[None], dt[None], A, B[None, :, None], C[None, :, None], heads["D"])[0].flatten(1)


def test_temporal_mixer_by_its_formula():
    """Every token of every sequence by itself: causal convolution over 4 frames, SiLU, the loop; then backward."""
    torch.manual_seed(0)
    mixer = TemporalMixer(12, 24, 3, 5).double()
    assert mixer.sizes == (22, 22, 4, 4)
    lengths = [6, 1, 3]
    tokens = torch.randn(sum(lengths), 2, 12, dtype=torch.float64)
    found = mixer(tokens, torch.arange(3).repeat_interleave(torch.tensor(lengths)))
    for rows, expected in zip(tokens.split(lengths), found.split(lengths), strict=True):
        for place in range(2):
            ahead, back, raw_ahead, raw_back = (rows[:, place] @ mixer.in_proj.weight.T).split((22, 22, 4, 4), dim=1)
            y = torch.cat([one_direction(mixer.ahead, ahead, raw_ahead),
                           one_direction(mixer.back, back.flip(0), raw_back.flip(0)).flip(0)], dim=1)
            y = layer_norm(y, (24,), mixer.norm.weight, mixer.norm.bias) @ mixer.out_proj.weight.T
            assert torch.allclose(y, expected[:, place], rtol=0, atol=1e-12)


def one_direction(direction: Direction, mixed, raw):
    mixed = conv1d(pad(mixed.T, (3, 0)), direction.weight, direction.bias, groups=22)
    x, B, C = silu(mixed.T).split((12, 5, 5), dim=1)
    return by_formula(dict(direction.heads.named_parameters()), x, raw, B, C)


def test_spatial_mixer_by_its_formula():
    """Each quarter by itself in its order; CLS passes the convolution and the SiLU by, and is scanned last."""
    torch.manual_seed(0)
    height, width = 2, 3
    mixer = SpatialMixer(8, 16, 2, 3).double()
    tokens = torch.randn(2, 7, 8, dtype=torch.float64)
    grid = torch.arange(6).view(height, width)
    orders = [grid.flatten(), grid.flatten().flip(0), grid.T.flatten(), grid.T.flatten().flip(0)]
    for frame, found in zip(tokens, mixer(tokens, (height, width)), strict=True):
        mixed, raw = (frame @ mixer.in_proj.weight.T).split((40, 8), dim=1)
        image = mixed[:6].T.view(1, 40, height, width)
        image = conv2d(image, mixer.conv.weight, mixer.conv.bias, padding=1, groups=40)
        x, B, C = torch.cat([silu(image[0].flatten(1).T), mixed[6:]]).split((16, 12, 12), dim=1)
        y = torch.zeros(7, 16, dtype=torch.float64)
        for quarter, order in enumerate(orders):
            order = torch.cat([order, torch.tensor([6])])
            heads = {name: value[2 * quarter : 2 * quarter + 2] for name, value in mixer.heads.named_parameters()}
            own, state = slice(4 * quarter, 4 * quarter + 4), slice(3 * quarter, 3 * quarter + 3)
            rows = x[order, own], raw[order, 2 * quarter : 2 * quarter + 2], B[order, state], C[order, state]
            y[order, own] = by_formula(heads, *rows)
        y = layer_norm(y, (16,), mixer.norm.weight, mixer.norm.bias) @ mixer.out_proj.weight.T
        assert torch.allclose(y, found, rtol=0, atol=1e-12)


def test_the_four_orders():
    """2 rows of 3 patches, numbered by rows; 6 is CLS."""
    tokens = torch.arange(7).view(1, 7, 1, 1).expand(1, 7, 4, 1)
    found = unroll(tokens, (2, 3))
    assert found[0, :, :, 0].T.tolist() == [[0, 1, 2, 3, 4, 5, 6], [5, 4, 3, 2, 1, 0, 6],
                                            [0, 3, 1, 4, 2, 5, 6], [5, 2, 4, 1, 3, 0, 6]]
    tokens = torch.randn(2, 7, 4, 5)
    assert torch.equal(roll(unroll(tokens, (2, 3)), (2, 3)), tokens)


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, torchs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    torchs.load_state_dict({"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
                            "out_proj.weight": ours.out_proj.weight, "out_proj.bias": ours.out_proj.bias})
    tokens = torch.randn(2, 7, 12)
    assert torch.allclose(ours(tokens, (2, 3)), torchs(tokens, tokens, tokens)[0], atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------

def test_drop_path_is_per_sequence():
    block = small(drop_path=0.4).backbone.blocks[-1].train()
    numbers = torch.arange(400).repeat_interleave(3)
    factors = block.drop(torch.ones(1200, 2, 1), numbers).view(400, 6)
    assert (factors == factors[:, :1]).all() and factors.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert abs(float((factors[:, 0] == 0).float().mean()) - 0.4) < 0.08
    branch = torch.randn(1200, 2, 1)
    assert block.eval().drop(branch, numbers) is branch


def test_everything_learns():
    model = small(drop_path=0.0).train()
    model(*pack(*batch())).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_recomputed_gradients_are_the_same():
    clips, lengths = batch(lengths=[3, 2], height=32, width=32)
    found = []
    for recompute in (False, True):
        model = small(recompute=recompute, drop_path=0.5).train()
        torch.manual_seed(4)
        model(*pack(clips, lengths)).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
def test_the_residual_stays_in_float32(way):
    model, (clips, lengths) = small().float().eval(), batch()
    frames, seq_idx = pack(clips.float(), lengths)
    expected, types = model(frames, seq_idx), []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda block, given, tokens: types.append((given[0].dtype, tokens.dtype)))
    if way == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(frames, seq_idx)
    else:
        found = model.bfloat16()(frames.bfloat16(), seq_idx)
    assert types == [(torch.float32, torch.float32)] * 3 and found.dtype == torch.bfloat16
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 0.03


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_groups(layer_decay):
    """All parameters once; only dt_bias, A_log and D without weight decay; layers as layer decay counts them."""
    model = small()
    groups, layers = parameter_groups(model, layer_decay), model.layers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [id(parameter) for group in groups.values() for parameter in group.params]
    assert len(found) == len(set(found)) == len(names)
    for group in groups.values():
        for name in (names[id(parameter)] for parameter in group.params):
            assert group.decay == (name.split(".")[-1] not in ("dt_bias", "A_log", "D"))
            assert group.scale == pytest.approx(layer_decay ** (4 - layers[name]))
            assert name.startswith(group.part)
    assert len(groups) == 3 or layer_decay != 1


def test_layers():
    model = small()
    expected = {"backbone.stem.conv.weight": 0, "backbone.cls": 0, "backbone.blocks.0.norm1.weight": 1,
                "backbone.blocks.2.temporal.back.heads.D": 3, "backbone.norm.weight": 4, "classifier.1.bias": 4}
    layers = model.layers()
    assert {name: layers[name] for name in expected} == expected
    assert set(layers.values()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("options", "found"), [
    ({"headdim": 16}, "multiple of 4 headdim"), ({"attn_heads": 3}, "attn_heads"), ({"attn_layers": (3,)}, "0 to 2"),
    ({"downsample": (-1,)}, "downsample"), ({"dim": 18}, "multiple")])
def test_sizes_that_do_not_go_together(options, found):
    with pytest.raises(Mistake, match=found):
        small(**options)
