"""The encoders of transcription: built from plain sizes and back, and out of folders that transformers has saved."""

import json

import numpy as np
import pytest
import torch

from slr.errors import Mistake
from slr.models import encoders
from slr.models.encoders import Rates, build, from_folder, sizes_of, wrapped
from slr.models.masked import Frames
from slr.models.spatio_temporal import Spans, SpatioTemporalEncoder
from slr.models.transcriber import OverTime, OverTubelets

TIME = {"kind": "SpatioTemporal", "width": 24, "layers": 2, "heads": 3, "ffn": 20, "kernel": 5, "groups": 4}
CLIPS = {"frames": 8, "size": 16, "patch": 8, "tubelet": 2, "width": 24, "layers": 2, "heads": 3, "ffn": 20}
PLAIN = [TIME, {"kind": "VideoMAE", **CLIPS, "gelu": "none", "eps": 1e-12},
         {"kind": "VideoMAE", **CLIPS, "gelu": "tanh", "eps": 1e-5, "norm": False},
         {"kind": "ViViT", **CLIPS, "gelu": "tanh", "eps": 1e-6}]
QUIET = Rates(0.0, 0.0, Spans(0.0, 1))
EXACT = {"rtol": 1e-4, "atol": 1e-5}


def inputs(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn((2, 6, 24) if kind == "SpatioTemporal" else (2, 3, 6, 16, 16)), torch.tensor([6, 4])


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net.eval()


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain["kind"] + ("" if plain.get("norm", True) else "-bare"))
def test_what_sizes_of_says_builds_the_same_net(plain):
    net = shaken(build(plain, QUIET))
    assert sizes_of(net) == plain == json.loads(json.dumps(sizes_of(net)))
    other = build(sizes_of(net), QUIET).eval()
    other.load_state_dict(net.state_dict())
    found, expected = (wrapped(part)(*inputs(plain["kind"])) for part in (other, net))
    assert torch.equal(found[0], expected[0]) and found[1].tolist() == expected[1].tolist()
    assert wrapped(net).width == 24


@pytest.mark.parametrize("kind", ["VideoMAE", "ViViT"])
def test_gelu_and_eps_are_the_models_own_where_nothing_is_said(kind):
    found = sizes_of(build({"kind": kind, **CLIPS}, QUIET))
    assert (found["gelu"], found["eps"]) == {"VideoMAE": ("none", 1e-12), "ViViT": ("tanh", 1e-6)}[kind]


def test_rates_are_of_the_run():
    rates = Rates(0.3, 0.2, Spans(0.4, 3, 1))
    net = build(TIME, rates)
    assert isinstance(net, SpatioTemporalEncoder)
    assert (net.dropout.p, net.layerdrop, net.spans) == (0.3, 0.2, rates.spans)
    for plain in PLAIN[1:]:
        drops = [part.p for part in build(plain, rates).modules() if isinstance(part, torch.nn.Dropout)]
        assert drops and set(drops) == {0.3}


def test_what_is_wrapped_says_which_vectors_are_of_which_moment():
    """VideoMAE: the mean of a time step's four cells; ViViT's class token is of no moment; of time all are."""
    for plain in PLAIN:
        net = shaken(build(plain, QUIET))
        outside = wrapped(net)
        assert isinstance(outside, OverTime if plain["kind"] == "SpatioTemporal" else OverTubelets)
        vectors, lengths = outside(*inputs(plain["kind"]))
        moments, steps = outside.moments(vectors, lengths)
        if plain["kind"] == "SpatioTemporal":
            assert moments is vectors and steps.tolist() == [6, 4]
            continue
        first = int(plain["kind"] == "ViViT")
        assert vectors.shape == (2, first + 12, 24) and lengths.tolist() == [first + 12, first + 8]
        assert moments.shape == (2, 3, 24) and steps.tolist() == [3, 2]
        torch.testing.assert_close(moments[0, 1], vectors[0, first + 4:first + 8].mean(0))


# --- folders ------------------------------------------------------------------------------------------------

def wav2vec2(**options):
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    config = library.Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, num_conv_pos_embeddings=5,
        num_conv_pos_embedding_groups=4, conv_stride=(2,), conv_kernel=(3,), vocab_size=8,
        **{"attn_implementation": "eager", "conv_dim": (24,), **options})
    torch.manual_seed(0)
    return library.Wav2Vec2Model(config)


def test_a_folder_of_wav2vec2(tmp_path):
    theirs = shaken(wav2vec2())
    theirs.save_pretrained(tmp_path)
    net = from_folder("SpatioTemporal", tmp_path, Rates(0.2, 0.1, Spans(0.1, 2))).eval()
    assert sizes_of(net) == TIME and net.dropout.p == 0.2 and net.spans == Spans(0.1, 2)
    features, lengths = inputs("SpatioTemporal")
    with torch.no_grad():
        found = net(features, Frames(lengths, 6, features.device))
        for item, length in enumerate(lengths.tolist()):
            normed = theirs.feature_projection.layer_norm(features[item:item + 1, :length])
            torch.testing.assert_close(found[item, :length], theirs.encoder(normed).last_hidden_state[0], **EXACT)


@pytest.mark.parametrize(("kind", "norm"), [("VideoMAE", True), ("VideoMAE", False), ("ViViT", True)])
def test_a_folder_of_clips(tmp_path, kind, norm):
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"image_size": 16, "num_frames": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
             "intermediate_size": 20}
    torch.manual_seed(0)
    if kind == "VideoMAE":
        theirs = library.VideoMAEModel(library.VideoMAEConfig(**sizes, patch_size=8, use_mean_pooling=not norm))
    else:
        theirs = library.VivitModel(library.VivitConfig(**sizes, tubelet_size=[2, 8, 8]))
    shaken(theirs).save_pretrained(tmp_path)
    net = from_folder(kind, tmp_path, QUIET).eval()
    clips = torch.randn(2, 3, 8, 16, 16)
    with torch.no_grad():
        found, lengths = net(clips, torch.tensor([8, 8]))
        torch.testing.assert_close(found, theirs(clips.transpose(1, 2)).last_hidden_state, **EXACT)
        again = build(sizes_of(net), QUIET).eval()
        again.load_state_dict(net.state_dict())  # as a checkpoint brings it back
        assert torch.equal(again(clips, torch.tensor([8, 8]))[0], found)
    assert {name: sizes_of(net)[name] for name in CLIPS} == CLIPS and lengths.tolist()[0] == 16 + (kind == "ViViT")


@pytest.mark.parametrize(("options", "words"), [
    ({"do_stable_layer_norm": True}, "do_stable_layer_norm is True"), ({"hidden_act": "relu"}, "hidden_act is relu"),
    ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 0.001"), ({}, "its config.json lacks num_attention_heads")])
def test_another_kind_of_wav2vec2(tmp_path, options, words):
    wav2vec2(**options).save_pretrained(tmp_path)
    if not options:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["num_attention_heads"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Mistake, match="is of another kind") as caught:
        from_folder("SpatioTemporal", tmp_path, QUIET)
    assert words in caught.value.found


def test_weights_of_speech_do_not_fit(tmp_path):
    """As wav2vec2-base has it, whose features are narrower than its encoder."""
    wav2vec2(conv_dim=(12,)).save_pretrained(tmp_path)
    with pytest.raises(Mistake):
        from_folder("SpatioTemporal", tmp_path, QUIET)


@pytest.mark.parametrize("kind", ["SpatioTemporal", "VideoMAE", "ViViT"])
def test_folders_that_do_not_serve(tmp_path, kind):
    with pytest.raises(Mistake, match="is no folder of a model"):
        from_folder(kind, tmp_path / "nowhere", QUIET)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(Mistake, match="is no .* of colour clips"):
        from_folder(kind, tmp_path, QUIET)


def test_masks_in_training_come_from_the_items_own_generators():
    net = build({**TIME, "layers": 1}, Rates(0.0, 0.0, Spans(0.5, 2, 1))).train()
    features, lengths = inputs("SpatioTemporal")
    outside = wrapped(net)

    def rngs() -> list[np.random.Generator]:
        return [np.random.default_rng(seed) for seed in (1, 2)]

    both = outside(features, lengths, rngs())[0]
    alone = outside(features[1:, :4], lengths[1:], rngs()[1:])[0]
    torch.testing.assert_close(both[1, :4], alone[0], **EXACT)
    assert encoders.wrapped(net.eval())(features, lengths)[0].isfinite().all()
