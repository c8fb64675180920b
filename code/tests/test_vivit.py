"""ViViT: against transformers' VivitModel on the same weights; padding, folders."""

import json

import pytest
import torch
from test_video_mae import EXACT, LENGTHS, NAN, some_clips, stir

from slr.errors import Mistake
from slr.models.video_mae import Sizes
from slr.models.vivit import SIZES, ViViT

SMALL = Sizes(frames=8, size=24, patch=8, tubelet=2, width=24, layers=2, heads=3, ffn=32, gelu="tanh", eps=1e-6)


def small() -> ViViT:
    torch.manual_seed(0)
    return stir(ViViT(SMALL))


def their_config(**changes):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.VivitConfig(
        image_size=24, num_frames=8, tubelet_size=[2, 8, 8], hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=32, **changes)


def test_the_number_of_parameters():
    """Of google/vivit-b-16x2 without pooler and classifier: 12 blocks, 1,568 x 2 places and the class token's."""
    with torch.device("meta"):
        model = ViViT()
    block = 4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    expected = 12 * block + 1536 * 768 + 768 + 2 * 768 + 768 + (1 + 16 * 196) * 768
    assert sum(p.numel() for p in model.parameters()) == expected == 88_646_400
    assert model.sizes == SIZES and (SIZES.steps, SIZES.cells) == (16, 196)


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu_fast", "gelu"])
def test_it_is_transformers(tmp_path, act):
    from transformers import VivitModel

    theirs = stir(VivitModel(their_config(hidden_act=act)))
    theirs.save_pretrained(tmp_path)
    ours = ViViT.from_folder(tmp_path).eval()
    clips = torch.randn(2, 3, 8, 24, 24)
    found, lengths = ours(clips, torch.tensor([8, 8]))
    torch.testing.assert_close(found, theirs(clips.transpose(1, 2)).last_hidden_state, **EXACT)
    assert found.shape == (2, 37, 24) and lengths.tolist() == [37, 37]
    assert ours.sizes == Sizes(**{**vars(SMALL), "gelu": "tanh" if act == "gelu_fast" else "none"})


@torch.no_grad()
def test_the_encoder_of_a_classifier(tmp_path):
    from transformers import VivitForVideoClassification

    theirs = stir(VivitForVideoClassification(their_config()))
    theirs.save_pretrained(tmp_path)
    clips = torch.randn(1, 3, 8, 24, 24)
    found, _ = ViViT.from_folder(tmp_path).eval()(clips, torch.tensor([8]))
    torch.testing.assert_close(found, theirs.vivit(clips.transpose(1, 2)).last_hidden_state, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_transformers_reads_what_we_write(tmp_path, gelu):
    from transformers import VivitModel

    their_config()
    model, clips = stir(ViViT(Sizes(**{**vars(SMALL), "gelu": gelu}))), torch.randn(2, 3, 8, 24, 24)
    model.to_folder(tmp_path)
    theirs, info = VivitModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    vectors, _ = model(clips, torch.tensor([8, 8]))
    torch.testing.assert_close(theirs.eval()(clips.transpose(1, 2)).last_hidden_state, vectors, **EXACT)
    assert torch.equal(ViViT.from_folder(tmp_path).eval()(clips, torch.tensor([8, 8]))[0], vectors)


@torch.no_grad()
def test_padding_and_the_batch_change_nothing():
    model = small()
    together, lengths = model(some_clips(NAN), LENGTHS)
    assert lengths.tolist() == [37, 19, 10] and together.isfinite().all()
    for item, frames in enumerate(LENGTHS.tolist()):
        alone, count = model(some_clips()[item:item + 1, :, :frames], LENGTHS[item:item + 1])
        assert count.tolist() == [alone.shape[1]] == [lengths[item]]
        torch.testing.assert_close(together[item, :lengths[item]], alone[0], **EXACT)
        assert not together[item, lengths[item]:].any()


def test_gradients_are_finite_whatever_the_padding():
    model, clips = small(), some_clips(NAN).requires_grad_(True)
    model(clips, LENGTHS)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    frames = clips.grad.abs().sum((1, 3, 4)) > 0
    assert torch.equal(frames, torch.arange(8) < (LENGTHS // 2 * 2)[:, None])


def test_what_does_not_fit(tmp_path):
    with pytest.raises(Mistake, match="do not fit"):
        small()(torch.zeros(1, 3, 10, 24, 24), torch.tensor([10]))
    small().to_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (({"model_type": "videomae"}, "is no vivit"), ({"hidden_act": "relu"}, "another activation"),
                          ({"qkv_bias": False}, "another kind"), ({"tubelet_size": [2, 8, 4]}, "square"),
                          ({"num_frames": 16}, "embeddings.position_embeddings")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(Mistake, match=match):
            ViViT.from_folder(tmp_path)
