"""VideoMAE: against transformers' models on the same weights and masks; padding, tubes, the loss, folders."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slr.errors import Mistake
from slr.models.video_mae import (
    Sizes,
    VideoMAE,
    VideoMAEPretrain,
    cut,
    pick,
    places,
    reconstruction,
    split,
    tubes,
)

EXACT = {"rtol": 1e-5, "atol": 1e-5}
NAN = float("nan")
SMALL = Sizes(frames=8, size=24, patch=8, tubelet=2, width=24, layers=2, heads=3, ffn=32)
LENGTHS = torch.tensor([8, 5, 2])
DECODER = {"width": 16, "layers": 1, "heads": 2, "ffn": 24}


def stir(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases that do something."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def small(norm: bool = True) -> VideoMAE:
    torch.manual_seed(0)
    return stir(VideoMAE(SMALL, norm=norm))


def pretraining(norm: bool = True) -> VideoMAEPretrain:
    return stir(VideoMAEPretrain(small(norm), **DECODER))


def some_clips(padding: float = 0.0, frames: int = 8, lengths: torch.Tensor = LENGTHS) -> torch.Tensor:
    clips = torch.randn(len(lengths), 3, 8, 24, 24, generator=torch.Generator().manual_seed(1))
    clips = clips.masked_fill((torch.arange(8) >= lengths[:, None])[:, None, :, None, None], padding)
    return clips[:, :, :frames]


def some_masks(items: int = 3) -> torch.Tensor:
    return tubes(torch.rand(items, SMALL.cells, generator=torch.Generator().manual_seed(2)), 0.7)


def their_config(norm: bool = True):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.VideoMAEConfig(
        image_size=24, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=32, use_mean_pooling=not norm, decoder_hidden_size=16,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=24)


# --- sizes --------------------------------------------------------------------------------------------------

def test_the_number_of_parameters():
    with torch.device("meta"):
        for norm, count in ((False, 86_225_664), (True, 86_227_200)):
            encoder = VideoMAE(norm=norm)
            assert sum(p.numel() for p in encoder.parameters()) == count
        model = VideoMAEPretrain(encoder)
    block = 4 * 384**2 + 3 * 384 + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
    head = 384 * 1536 + 1536
    assert sum(p.numel() for p in model.parameters()) == count + 768 * 384 + 384 + 4 * block + 2 * 384 + head
    assert (encoder.sizes.steps, encoder.sizes.cells, encoder.sizes.pixels) == (8, 196, 1536)


@pytest.mark.parametrize("sizes", [{"frames": 7}, {"size": 25}, {"width": 25}, {"patch": 0}, {"frames": 0}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(Mistake, match="no multiple of"):
        Sizes(**{**vars(SMALL), **sizes})


def test_cut():
    clips = some_clips()
    parts = cut(clips, SMALL)
    assert parts.shape == (3, 4, 9, 3, 2, 8, 8)
    for step, row, column in ((0, 0, 0), (3, 1, 2), (2, 2, 0)):
        expected = clips[:, :, 2 * step:2 * step + 2, 8 * row:8 * row + 8, 8 * column:8 * column + 8]
        assert torch.equal(parts[:, step, 3 * row + column], expected)
    assert torch.equal(cut(clips[:, :, :7], SMALL), parts[:, :3])


def test_places():
    table = places(1568, 6)
    for place, channel in ((0, 0), (1567, 0), (1567, 1), (900, 4), (31, 5)):
        angle = place / 10000 ** (channel // 2 * 2 / 6)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[place, channel].item() == pytest.approx(expected, abs=1e-6)


# --- against transformers -----------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_it_is_transformers_encoder(tmp_path, norm):
    from transformers import VideoMAEModel

    theirs = stir(VideoMAEModel(their_config(norm)))
    theirs.save_pretrained(tmp_path)
    ours = VideoMAE.from_folder(tmp_path).eval()
    clips = torch.randn(2, 3, 8, 24, 24)
    found, lengths = ours(clips, torch.tensor([8, 8]))
    torch.testing.assert_close(found, theirs(clips.transpose(1, 2)).last_hidden_state, **EXACT)
    assert ours.sizes == SMALL and found.shape == (2, 36, 24) and lengths.tolist() == [36, 36]
    assert (ours.norm is not None) == norm


@torch.no_grad()
def test_it_is_transformers_pre_training(tmp_path):
    from transformers import VideoMAEForPreTraining

    theirs = stir(VideoMAEForPreTraining(their_config()))
    theirs.save_pretrained(tmp_path)
    ours = VideoMAEPretrain.from_folder(tmp_path).eval()
    clips, masked = torch.randn(3, 3, 8, 24, 24), some_masks()
    expected = theirs(clips.transpose(1, 2), bool_masked_pos=masked.repeat(1, 4))
    predicted, steps = ours(clips, torch.full((3,), 8), masked)
    torch.testing.assert_close(predicted.flatten(1, 2), expected.logits, **EXACT)
    total, count = reconstruction(predicted, ours.targets(clips, masked), steps)
    assert count == masked.sum() * 4 and predicted.shape == (3, 4, 6, 384)
    torch.testing.assert_close(total / count, expected.loss, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_transformers_reads_what_we_write(tmp_path, norm):
    """The encoder alone, the pre-training model, and the encoder out of that; and so do we."""
    from transformers import VideoMAEForPreTraining, VideoMAEModel

    their_config()
    model, clips, masked = pretraining(norm), torch.randn(2, 3, 8, 24, 24), some_masks(2)
    whole = torch.tensor([8, 8])
    model.to_folder(tmp_path / "whole")
    model.encoder.to_folder(tmp_path / "encoder")
    vectors, predicted = model.encoder(clips, whole)[0], model(clips, whole, masked)[0]
    theirs, info = VideoMAEForPreTraining.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = theirs.eval()(clips.transpose(1, 2), bool_masked_pos=masked.repeat(1, 4)).logits
    torch.testing.assert_close(found, predicted.flatten(1, 2), **EXACT)
    for name in ("whole", "encoder"):
        theirs = VideoMAEModel.from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(theirs(clips.transpose(1, 2)).last_hidden_state, vectors, **EXACT)
        assert torch.equal(VideoMAE.from_folder(tmp_path / name).eval()(clips, whole)[0], vectors)
    again = VideoMAEPretrain.from_folder(tmp_path / "whole").eval()
    assert torch.equal(again(clips, whole, masked)[0], predicted)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["config.json", "model.safetensors"]


@torch.no_grad()
def test_the_encoder_of_a_classifier(tmp_path):
    from transformers import VideoMAEForVideoClassification

    theirs = stir(VideoMAEForVideoClassification(their_config(norm=False)))
    theirs.save_pretrained(tmp_path)
    clips = torch.randn(1, 3, 8, 24, 24)
    found, _ = VideoMAE.from_folder(tmp_path).eval()(clips, torch.tensor([8]))
    torch.testing.assert_close(found, theirs.videomae(clips.transpose(1, 2)).last_hidden_state, **EXACT)


# --- padding ------------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_padding_and_the_batch_change_nothing(norm):
    model = small(norm)
    together, lengths = model(some_clips(NAN), LENGTHS)
    assert lengths.tolist() == [36, 18, 9] and together.isfinite().all()
    for item, frames in enumerate(LENGTHS.tolist()):
        alone, count = model(some_clips()[item:item + 1, :, :frames], LENGTHS[item:item + 1])
        assert count.tolist() == [alone.shape[1]] == [lengths[item]]
        torch.testing.assert_close(together[item, :lengths[item]], alone[0], **EXACT)
        assert not together[item, lengths[item]:].any()


@torch.no_grad()
def test_padding_is_neither_seen_nor_predicted():
    model, masked = pretraining(), some_masks()
    together, steps = model(some_clips(NAN), LENGTHS, masked)
    assert steps.tolist() == [4, 2, 1]
    total, count = reconstruction(together, model.targets(some_clips(NAN), masked), steps)
    assert total.isfinite() and count == 6 * (4 + 2 + 1)
    parts = []
    for item, frames in enumerate(LENGTHS.tolist()):
        clip, rows = some_clips()[item:item + 1, :, :frames], slice(item, item + 1)
        alone, step = model(clip, LENGTHS[rows], masked[rows])
        torch.testing.assert_close(together[item, :steps[item]], alone[0], **EXACT)
        parts.append(reconstruction(alone, model.targets(clip, masked[rows]), step))
    torch.testing.assert_close(total, sum(part for part, _ in parts), **EXACT)
    assert count == sum(number for _, number in parts)


def test_gradients_are_finite_whatever_the_padding():
    model, masked = pretraining(), some_masks()
    clips = some_clips(NAN).requires_grad_(True)
    predicted, steps = model(clips, LENGTHS, masked)
    total, count = reconstruction(predicted, model.targets(clips, masked), steps)
    (total / count).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    seen = cut(clips.grad, SMALL).flatten(3).abs().sum(3) > 0
    valid = torch.arange(4) < (LENGTHS // 2)[:, None]
    assert torch.equal(seen, valid[:, :, None] & ~masked[:, None])  # visible tubelets, and nothing else, were looked at


@pytest.mark.parametrize(("shape", "lengths"), [((1, 3, 10, 24, 24), [10]), ((1, 3, 8, 16, 24), [8]),
                                                ((1, 1, 8, 24, 24), [8]), ((2, 3, 8, 24, 24), [8, 1]),
                                                ((1, 3, 8, 24, 24), [9])])
def test_clips_that_do_not_fit(shape, lengths):
    with pytest.raises(Mistake):
        small()(torch.zeros(shape), torch.tensor(lengths))


# --- tubes and their pixels ---------------------------------------------------------------------------------

@given(st.integers(1, 5), st.integers(2, 200), st.integers(1, 99), st.integers(0, 99))
def test_tubes_hide_the_same_number_of_cells(items, cells, percent, seed):
    draws = torch.rand(items, cells, generator=torch.Generator().manual_seed(seed))
    count = percent * cells // 100
    if not count:
        with pytest.raises(Mistake, match="hides nothing"):
            tubes(draws, percent / 100)
        return
    masked = tubes(draws, percent / 100)
    assert masked.sum(1).tolist() == [count] * items
    assert (draws.masked_fill(~masked, 2.0).amin(1) >= draws.masked_fill(masked, -1.0).amax(1)).all()
    assert torch.equal(tubes(draws[-1:], percent / 100)[0], masked[-1])
    seen, hidden = split(masked)
    for row, mask in enumerate(masked):
        assert seen[row].tolist() == (~mask).nonzero()[:, 0].tolist()
        assert hidden[row].tolist() == mask.nonzero()[:, 0].tolist()


def test_every_cell_is_hidden_as_often():
    masked = tubes(torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)), 0.9)
    assert (masked.float().mean(0) - 0.9).abs().max() < 0.03


@pytest.mark.parametrize("masked", [torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True]]),
                                    torch.tensor([[False, False]]), torch.tensor([[1, 0]])])
def test_masks_that_do_not_fit(masked):
    with pytest.raises(Mistake, match="masks of a batch"):
        split(masked)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, NAN, 0.1])
def test_ratios_that_hide_nothing_or_everything(ratio):
    with pytest.raises(Mistake, match="hides nothing, or everything"):
        tubes(torch.rand(2, 9), ratio)


@torch.no_grad()
def test_targets_are_of_each_tubelet_and_colour():
    """Mean 0 and variance 1, whatever the clip's brightness and contrast; an even tubelet is about 0."""
    model, masked, clips = pretraining(), some_masks(), some_clips()
    clips[0] = 0.3
    pixels = model.targets(clips, masked).unflatten(3, (2, 8, 8, 3)).flatten(3, 5)
    assert pixels[0].abs().max() < 0.1  # what rounding leaves, divided by the 1e-6
    torch.testing.assert_close(pixels[1, :2].mean(2), torch.zeros(2, 6, 3), **EXACT)
    torch.testing.assert_close(pixels[1, :2].var(2), torch.ones(2, 6, 3), rtol=1e-3, atol=1e-3)
    brighter = model.targets(3 * clips + 2, masked)
    torch.testing.assert_close(brighter[1, :2], model.targets(clips, masked)[1, :2], rtol=1e-3, atol=1e-3)


def test_it_learns_to_draw_what_is_hidden():
    """Four clips of a grating each, which a visible tubelet tells."""
    place = torch.arange(24.0)
    waves = torch.stack([(place * rate).sin() for rate in (0.3, 0.7, 1.1, 1.5)])
    clips = waves[:, None, None, None, :].expand(4, 3, 8, 24, 24).contiguous()
    torch.manual_seed(0)
    model, masked, lengths = VideoMAEPretrain(VideoMAE(SMALL), **DECODER), some_masks(4), torch.full((4,), 8)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        predicted, steps = model(clips, lengths, masked)
        total, count = reconstruction(predicted, model.targets(clips, masked), steps)
        (total / count).backward()
        optimizer.step()
        losses.append(total.item() / count)
    assert losses[-1] < 0.3 < 0.8 < losses[0]


# --- folders ------------------------------------------------------------------------------------------------

def test_folders_that_do_not_serve(tmp_path):
    with pytest.raises(Mistake, match="no folder of a model"):
        VideoMAE.from_folder(tmp_path / "nowhere")
    small().to_folder(tmp_path)
    with pytest.raises(Mistake, match="not those of this model"):
        VideoMAEPretrain.from_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (({"model_type": "vit"}, "is no videomae"), ({"num_channels": 1}, "is no videomae"),
                          ({"hidden_act": "relu"}, "another activation"), ({"qv_bias": False}, "another kind"),
                          ({"image_size": [24, 32]}, "square"), ({"num_hidden_layers": 3}, "not those of this model"),
                          ({"hidden_size": 48}, "not those of this model")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(Mistake, match=match):
            VideoMAE.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_pix_loss": False}))
    with pytest.raises(Mistake, match="pixels as they are"):
        VideoMAEPretrain.from_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(Mistake, match="cannot be read"):
        VideoMAE.from_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Mistake, match="weights file is missing"):
        VideoMAE.from_folder(tmp_path)


@torch.no_grad()
def test_older_folders(tmp_path):
    """pytorch_model.bin, and heights and widths of their own."""
    from safetensors.torch import load_file

    model = small()
    model.to_folder(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": [24, 24], "patch_size": [8, 8]}))
    again = VideoMAE.from_folder(tmp_path)
    assert again.sizes == SMALL
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_pick():
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(pick(x, torch.tensor([[3, 0], [1, 2]])), torch.stack([x[0, :, [3, 0]], x[1, :, [1, 2]]]))
