"""The nets over time: attention and layers against references, Hubert against transformers' own, padding, sizes."""

import copy
import json
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, layer_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from slr.errors import Mistake
from slr.models.masked import Frames
from slr.models.over_time import (
    TRANSFORMERS,
    ConvolvedLayer,
    Flattened,
    WideAttention,
    WideLayer,
    build,
    mean_over,
    with_positions,
)

CPU = torch.device("cpu")
WIDTH, OUT, STEPS = 12, 5, 6
LENGTHS = [6, 1, 4]
SMALL = {"feedforward": 16, "attention_heads": 2, "layers": 2, "hidden": 32}


def valid(lengths=LENGTHS, steps: int = STEPS) -> Frames:
    return Frames(torch.tensor(lengths), steps, CPU)


def some(width: int = WIDTH, padding: float = 0.0) -> torch.Tensor:
    x = torch.randn(len(LENGTHS), STEPS, width, generator=torch.Generator().manual_seed(3))
    return torch.where(valid().valid[..., None], x, padding)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, WIDTH, OUT, frames=STEPS, **SMALL).eval()


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# ---- against references


def looped(layer: WideAttention, x: torch.Tensor) -> torch.Tensor:
    """Attention of one item (T, width), head by head and step by step."""
    width, rows = x.shape[1], []
    for query in layer.query(x):
        heads = []
        for head in range(layer.heads):
            of = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[of] @ key[of] / math.sqrt(width) for key in layer.key(x)]).softmax(0)
            heads.append(sum(score * value[of] for score, value in zip(scores, layer.value(x), strict=True)))
        rows.append(layer.output(torch.cat(heads)))
    return torch.stack(rows)


def test_attention_with_heads_of_the_full_width_as_a_loop():
    torch.manual_seed(0)
    layer, x = WideAttention(WIDTH, 3, 0.0), some()
    found = layer(x, valid())
    for row, item, length in zip(found, x, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length], looped(layer, item[:length]))


def test_with_one_head_the_layer_is_torch_s():
    torch.manual_seed(0)
    ours = WideLayer(WIDTH, 1, 16, 0.0)
    torchs = nn.TransformerEncoderLayer(WIDTH, 1, 16, 0.0, "gelu", batch_first=True, norm_first=True)
    attention = ours.attention
    torchs.load_state_dict({
        "self_attn.in_proj_weight": torch.cat([x.weight for x in (attention.query, attention.key, attention.value)]),
        "self_attn.in_proj_bias": torch.cat([x.bias for x in (attention.query, attention.key, attention.value)]),
        "self_attn.out_proj.weight": attention.output.weight, "self_attn.out_proj.bias": attention.output.bias,
        "linear1.weight": ours.feedforward[0].weight, "linear1.bias": ours.feedforward[0].bias,
        "linear2.weight": ours.feedforward[3].weight, "linear2.bias": ours.feedforward[3].bias,
        **{f"norm{k}.{part}": getattr(norm, part) for k, norm in ((1, ours.first_norm), (2, ours.second_norm))
           for part in ("weight", "bias")}})
    expected = torchs(some(), src_key_padding_mask=~valid().valid)
    torch.testing.assert_close(valid().zero(ours(some(), valid()), 1), valid().zero(expected, 1))


def test_convolution_of_each_channel_by_itself_and_torch_s_layer():
    torch.manual_seed(0)
    layer, x = ConvolvedLayer(WIDTH, 2, 16, 0.0).eval(), some(padding=9.0)
    found = layer(x, valid())
    for row, item, length in zip(found, x, LENGTHS, strict=True):
        alone = item[:length].T
        channels = [conv1d(alone[None, c:c + 1], layer.convolution.weight[c:c + 1], layer.convolution.bias[c:c + 1],
                           padding=2)[0, 0] for c in range(WIDTH)]
        seen = (alone + gelu(torch.stack(channels))).T
        torch.testing.assert_close(row[:length], layer.encoder(seen[None])[0], rtol=1e-4, atol=1e-5)


def test_the_whole_encoder_from_its_parts():
    net, x = small("sign_language_transformer"), some()
    seen = with_positions(x)
    for layer in net.layers:
        seen = layer(seen, valid())
    seen = layer_norm(seen, (WIDTH,), net.norm.weight, net.norm.bias)
    flat = torch.zeros(len(x), STEPS * WIDTH)
    for item, length in enumerate(LENGTHS):
        flat[item, :length * WIDTH] = seen[item, :length].flatten()
    linear = net.flattened.linear
    torch.testing.assert_close(net(x, valid()), flat @ linear.weight.T + linear.bias)


@pytest.mark.parametrize("width", [4, 7])
def test_positions(width):
    places = with_positions(torch.zeros(1, 5, width))[0]
    for t in range(5):
        for c in range(width):
            angle = t / 10000 ** ((c - c % 2) / (width + width % 2))
            assert places[t, c].item() == pytest.approx(math.cos(angle) if c % 2 else math.sin(angle), abs=1e-5)


def test_lstm_as_torch_s_on_packed_sequences():
    net, x = small("lstm"), some(padding=float("nan"))
    packed = pack_padded_sequence(some(), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    outputs, _ = pad_packed_sequence(net.lstm(packed)[0], batch_first=True, total_length=STEPS)
    torch.testing.assert_close(net(x, valid()), net.flattened.linear(outputs.flatten(1)))


def test_the_mean_is_over_the_valid_steps():
    x = some(padding=float("nan"))
    expected = torch.stack([item[:length].mean(0) for item, length in zip(x, LENGTHS, strict=True)])
    torch.testing.assert_close(mean_over(x, valid()), expected)
    net = small("fake_transformer")
    torch.testing.assert_close(net(x, valid()), net.linear(expected))


# ---- Hubert


def little_hubert(**options):
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.HubertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                                  conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,), **options)
    return library.HubertModel(config).eval()


@pytest.mark.parametrize("stable", [False, True], ids=["base", "large"])
def test_hubert_is_transformers_own(tmp_path, stable):
    theirs = little_hubert(do_stable_layer_norm=stable)
    theirs.save_pretrained(tmp_path)
    ours = build("hubert_transformer", WIDTH, OUT, frames=STEPS, folder=str(tmp_path)).eval()
    whole = valid([STEPS] * 3)
    embeddings = ours.enter(some())
    theirs.feature_extractor = nn.Identity()  # whose output HubertModel turns round
    theirs.feature_projection = nn.Identity()
    with torch.no_grad():
        expected = theirs(embeddings.transpose(1, 2)).last_hidden_state
        found = ours.encoder(embeddings.clone()).last_hidden_state
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours(some(), whole), ours.flattened.linear(expected.flatten(1)))
        for row, item, length in zip(ours(some(padding=float("nan")), valid()), embeddings, LENGTHS, strict=True):
            alone = theirs(item[None, :length].transpose(1, 2)).last_hidden_state.flatten(1)
            weight, bias = ours.flattened.linear.weight[:, :alone.shape[1]], ours.flattened.linear.bias
            torch.testing.assert_close(row[None], alone @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_a_folder_of_hubert_that_does_not_serve(tmp_path):
    def refusal(**options) -> str:
        with pytest.raises(Mistake) as caught:
            build("hubert_transformer", WIDTH, OUT, frames=STEPS, folder=str(tmp_path / "h"), **options)
        return str(caught.value)

    assert "the folder of Hubert is missing" in refusal()
    little_hubert().save_pretrained(tmp_path / "h")
    assert "has other sizes: {'num_hidden_layers': 2}" in refusal(layers=3, attention_heads=2)
    config = json.loads((tmp_path / "h" / "config.json").read_text())
    (tmp_path / "h" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "not those of its config.json: encoder.layers.2" in refusal()
    (tmp_path / "h" / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be read" in refusal()


def test_hubert_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Mistake, match="pip install transformers"):
        build("hubert_transformer", WIDTH, OUT, frames=STEPS)


# ---- all of them


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_padding_and_neighbours_do_not_matter(name):
    net = small(name)
    expected = net(some(), valid())
    torch.testing.assert_close(net(some(padding=float("nan")), valid()), expected, rtol=0, atol=0)
    for item, row, length in zip(some(), expected, LENGTHS, strict=True):
        alone = net(item[None, :length], valid([length], length))
        torch.testing.assert_close(alone[0], row, rtol=1e-4, atol=1e-5)
    assert expected.shape == (3, OUT)


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name != "fake_transformer"])
def test_the_order_of_the_frames_matters(name):
    net, x, whole = small(name), some(), valid([STEPS] * 3)
    assert not torch.allclose(net(x, whole), net(x.flip(1), whole), atol=1e-3)


def test_more_steps_than_the_weights_are_for():
    with pytest.raises(Mistake, match="give up to 3"):
        Flattened(WIDTH, OUT, 3)(some(), valid())


@pytest.mark.parametrize(("name", "options", "told"), [
    ("bert", {}, "there are sign_language_transformer"), ("lstm", {"folder": "here"}, "only hubert_transformer"),
    ("sign_language_cnn_transformer", {"attention_heads": 5}, "a multiple of the heads"),
    ("hubert_transformer", {"hidden": 40}, "a multiple of 48")])
def test_mistakes(name, options, told):
    with pytest.raises(Mistake) as caught:
        build(name, WIDTH, OUT, frames=STEPS, **options)
    assert told in str(caught.value)


def test_parameters_of_the_default_sizes():
    c, f, h, out, steps = 512, 1024, 8, 1024, 8
    flat = steps * c * out + out
    wide = 3 * (c * h * c + h * c) + h * c * c + c
    feedforward = c * f + f + f * c + c
    sizes = {"frames": steps}
    assert count(build("sign_language_transformer", c, out, **sizes)) == wide + feedforward + 4 * c + 2 * c + flat
    shared = 4 * (c * c + c)
    assert count(build("sign_language_cnn_transformer", c, out, **sizes)) == (
        5 * c + c + shared + feedforward + 4 * c + 2 * c + flat)
    assert count(build("lstm", c, out, **sizes)) == 4 * (f * (c + f) + 2 * f) + steps * f * out + out
    assert count(build("fake_transformer", c, out, **sizes)) == c * out + out


@pytest.mark.slow
def test_parameters_of_hubert_s_base():
    net, c, hidden, inner = build("hubert_transformer", 512, 1024, frames=8), 512, 768, 3072
    convolution = hidden * hidden // 16 * 128 + 128 + hidden  # direction, a length each place of the kernel, bias
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    assert count(net.encoder) == convolution + 2 * hidden + 12 * layer
    assert count(net) == count(net.encoder) + 2 * c + c * hidden + hidden + 8 * hidden * 1024 + 1024


def test_dropout_only_in_training():
    net, x = build("sign_language_transformer", WIDTH, OUT, frames=STEPS, **SMALL, dropout=0.5), some()
    assert not torch.equal(net(x, valid()), net(x, valid()))
    still = copy.deepcopy(net).eval()
    assert torch.equal(still(x, valid()), still(x, valid()))
