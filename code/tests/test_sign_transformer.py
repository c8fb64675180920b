"""SignTransformer: every extractor with every net over time, no item touches another, padding, both inputs, weights."""

import itertools

import pytest
import torch
from test_models import stir
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import ResNet50_Weights, resnet50

from slr.errors import Mistake
from slr.hamnosys import HEADS, landmark_size
from slr.models import extractors, landmark_nets, over_time
from slr.models.masked import Frames
from slr.models.sign_transformer import FeatureExtractor, SignTransformer, build

CPU = torch.device("cpu")
PARTS = ("right_hand", "left_hand", "pose")
LANDMARKS = landmark_size(PARTS)
TWO = {"hand_shape_bending": 6, "hand_location_x": 5}
WIDTH, OUT, STEPS, SIZE = 8, 10, 4, (32, 40)
LENGTHS = [4, 2, 3]
SEEN = {"cnn_extractor": "test_resnet", "resnet50_extractor": "", "r2plus1d_extractor": ""}
KINDS = [*SEEN, *landmark_nets.LANDMARK_NETS, "both"]
SMALL = {"feedforward": 16, "attention_heads": 2, "layers": 1, "hidden": 32, "dropout": 0.0}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def timm():
    return pytest.importorskip("timm")


def extractor_of(kind: str) -> FeatureExtractor:
    torch.manual_seed(0)
    name = "cnn_extractor" if kind == "both" else kind
    if name == "cnn_extractor":
        timm()
    frames = extractors.build(name, WIDTH, frames=STEPS, size=SIZE, model_path=SEEN[name]) if name in SEEN else None
    points = "landmark_extractor" if kind == "both" else kind
    landmarks = landmark_nets.build(points, WIDTH, PARTS) if points not in SEEN else None
    return stir(FeatureExtractor(frames, landmarks, WIDTH))  # timm begins with residual branches that are 0


@pytest.fixture(scope="module", params=KINDS)
def extractor(request):
    """One alive at a time; tests leave its weights as they are."""
    return extractor_of(request.param)


def model_of(extractor: FeatureExtractor, transformer: str = "sign_language_transformer") -> SignTransformer:
    torch.manual_seed(1)
    return SignTransformer(extractor, over_time.build(transformer, WIDTH, OUT, frames=STEPS, **SMALL), OUT, TWO)


def a_batch(model: SignTransformer, padding: float = 0.0):
    """Frames and landmarks as the model takes them, and lengths; `padding` stands behind the items' ends."""
    generator = torch.Generator().manual_seed(2)
    inside = Frames(torch.tensor(LENGTHS), STEPS, CPU).valid
    frames = torch.randn(3, 3, STEPS, *SIZE, generator=generator)
    points = torch.rand(3, STEPS, LANDMARKS // 8, 8, generator=generator)
    points[..., 3:5] = 0
    points[0, 1, :21, 3:5] = 1  # no right hand there
    frames = torch.where(inside[:, None, :, None, None], frames, padding)
    landmarks = torch.where(inside[..., None], points.flatten(2), padding)
    parts = model.feature_extractor
    return (None if parts.frames is None else frames), (None if parts.landmarks is None else landmarks), \
        torch.tensor(LENGTHS)


def rows(batch, where):
    return tuple(None if x is None else x[where] for x in batch)


def joined(logits: dict[str, torch.Tensor]) -> torch.Tensor:
    assert {name: x.shape[1] for name, x in logits.items()} == TWO
    return torch.cat(list(logits.values()), 1)


def mixing(model, batch) -> list[tuple[int, int]]:
    """Pairs (output, input) of different items such that the input has a gradient from the output."""
    given = [None if x is None else x.clone().requires_grad_() for x in batch[:2]]
    outputs, found = joined(model(*given, batch[2])), []
    for item in range(len(outputs)):
        inputs = [x for x in given if x is not None]
        for gradient in torch.autograd.grad(outputs[item].sum(), inputs, retain_graph=True):
            assert gradient.isfinite().all() and gradient[item].ne(0).any()
            found += [(item, other) for other in range(len(gradient)) if other != item and gradient[other].ne(0).any()]
    return found


# ---- every extractor


@pytest.mark.parametrize("transformer", over_time.TRANSFORMERS)
def test_one_step_reaches_every_parameter(extractor, transformer):
    if transformer == "hubert_transformer":
        pytest.importorskip("transformers")
    model = model_of(extractor, transformer).train()
    model.zero_grad()
    batch = a_batch(model, float("nan"))
    logits = model(*batch)
    loss = sum(cross_entropy(x, torch.tensor([0, 2, 4])) for x in logits.values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias of all keys alike changes no attention.
        assert parameter.grad.ne(0).any() or ".key.bias" in name or ".k_proj.bias" in name, name


def test_no_item_touches_another(extractor):
    model = model_of(extractor).eval()
    assert mixing(model, a_batch(model)) == []


def test_padding_order_and_company_do_not_matter(extractor):
    model = model_of(extractor).eval()
    batch = a_batch(model)
    with torch.no_grad():
        expected = joined(model(*batch))
        torch.testing.assert_close(joined(model(*a_batch(model, float("nan")))), expected, rtol=0, atol=0)
        turned = torch.tensor([2, 0, 1])
        torch.testing.assert_close(joined(model(*rows(batch, turned))), expected[turned], **CLOSE)
        for item, length in enumerate(LENGTHS):
            frames, landmarks, _ = rows(batch, slice(item, item + 1))
            alone = model(None if frames is None else frames[:, :, :length],
                          None if landmarks is None else landmarks[:, :length], torch.tensor([length]))
            torch.testing.assert_close(joined(alone)[0], expected[item], **CLOSE)


def test_a_vector_a_frame(extractor):
    model = model_of(extractor).eval()
    frames, landmarks, lengths = a_batch(model)
    with torch.no_grad():
        found = extractor(frames, landmarks, Frames(lengths, STEPS, CPU))
    assert found.shape == (3, STEPS, WIDTH)
    for row, length in zip(found, LENGTHS, strict=True):
        assert row[length:].eq(0).all()
        assert not any(torch.allclose(row[a], row[b]) for a, b in itertools.combinations(range(length), 2))


class Mixed(nn.Module):
    """As HearAI's LSTM did: the memory of (N, T, C) read as (T, N, C)."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(WIDTH, WIDTH), nn.Linear(STEPS * WIDTH, OUT)

    def forward(self, x, valid):
        return self.linear(self.lstm(x.reshape(x.shape[1], -1, WIDTH))[0].reshape(len(x), -1))


def test_the_old_program_s_mixing_of_items_would_be_found():
    model = model_of(extractor_of("landmark_extractor")).eval()
    model.transformer = Mixed()
    assert mixing(model, a_batch(model))


# ---- extractors of frames


@pytest.mark.parametrize("kind", SEEN)
def test_batch_norm_in_training_counts_valid_frames_only(kind):
    """Pictures: the net on the valid frames, packed. Clips: that padding and its length change no statistic."""
    net = extractor_of(kind).frames.train()
    model = model_of(FeatureExtractor(net, None, WIDTH))
    clips, _, lengths = a_batch(model, float("nan"))
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def statistics(seen) -> dict[str, torch.Tensor]:
        net.load_state_dict(start)
        with torch.no_grad():
            seen()
        return {name: value.clone() for name, value in net.named_buffers() if "running" in name}

    found = statistics(lambda: net(clips, Frames(lengths, STEPS, CPU)))
    if kind == "r2plus1d_extractor":
        longer = torch.cat([clips, torch.full_like(clips, 7.0)], 2)
        expected = statistics(lambda: net(longer, Frames(lengths, 2 * STEPS, CPU)))
    else:
        packed = torch.cat([clip[:, :length].movedim(1, 0) for clip, length in zip(clips, LENGTHS, strict=True)])
        expected = statistics(lambda: net.net(packed))
    for name, value in expected.items():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_r2plus1d_sees_movement_and_keeps_every_frame():
    net = extractor_of("r2plus1d_extractor").frames.eval()
    strides = {layer.stride[0] for layer in net.net.modules() if isinstance(layer, nn.Conv3d)}
    clips, whole = torch.randn(1, 3, STEPS, *SIZE), Frames(torch.tensor([STEPS]), STEPS, CPU)
    other = clips.clone()
    other[:, :, 0] += 1
    with torch.no_grad():
        before, after = net(clips, whole), net(other, whole)
    assert strides == {1} and before.shape == (1, STEPS, WIDTH)
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_pictures_are_seen_one_by_one():
    net = extractor_of("resnet50_extractor").frames.eval()
    clips = torch.randn(2, 3, 2, *SIZE)
    with torch.no_grad():
        found = net(clips, Frames(torch.tensor([2, 2]), 2, CPU))
        for item, step in itertools.product(range(2), range(2)):
            alone = net.project(net.net(clips[item:item + 1, :, step]))[0]
            torch.testing.assert_close(found[item, step], alone, **CLOSE)


def test_any_timm_model_of_any_frame_size():
    timm()
    for name in ("test_vit", "test_convnext", "mobilenetv3_small_050"):  # fixed positions; none; a wider head
        net = extractors.build("cnn_extractor", WIDTH, frames=2, size=(48, 32), model_path=name).eval()
        with torch.no_grad():
            assert net(torch.randn(1, 3, 2, 48, 32), Frames(torch.tensor([2]), 2, CPU)).shape == (1, 2, WIDTH)
    assert extractors.normalisation("cnn_extractor", "vit_tiny_patch16_224") == ((0.5,) * 3, (0.5,) * 3)
    assert extractors.normalisation("resnet50_extractor") == extractors.IMAGENET
    assert extractors.normalisation("r2plus1d_extractor") == extractors.KINETICS


# ---- published weights


def failing(*_, **__):
    raise OSError("no route to host")


def told(**options) -> str:
    choice = {"extractor": "resnet50_extractor", "representation": WIDTH, "transformer": "lstm", "output_size": OUT,
              "frames": STEPS, "size": SIZE} | options
    with pytest.raises(Mistake) as caught:
        build(TWO, **choice)
    return str(caught.value)


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", failing)
    said = told(pretrained=True)
    assert "no route to host" in said and str(tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth") in said
    assert "no route to host" in told(extractor="r2plus1d_extractor", pretrained=True)
    monkeypatch.setattr(timm(), "create_model", failing)
    said = told(extractor="cnn_extractor", model_path="resnet18", pretrained=True)
    assert "weights of timm's resnet18 cannot be had: no route to host" in said and "local-dir:FOLDER" in said


def test_published_weights_of_resnet50_are_used(monkeypatch):
    torch.manual_seed(5)
    state = resnet50().state_dict()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, **_: state)
    net = extractors.build("resnet50_extractor", WIDTH, frames=2, size=SIZE, pretrained=True)
    mine = net.net.state_dict()
    assert set(state) - set(mine) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[name]) for name, value in mine.items())


def test_weights_of_timm_in_a_folder(tmp_path):
    library = timm()
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(5)
    theirs = library.create_model("test_resnet")
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 1000, '
                                          '"pretrained_cfg": {"num_classes": 1000, "classifier": "fc", '
                                          '"first_conv": "conv1.0", "input_size": [3, 160, 160]}}')
    net = extractors.build("cnn_extractor", WIDTH, frames=2, size=SIZE, model_path=f"local-dir:{tmp_path}",
                           pretrained=True).net
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in net.state_dict().items())


# ---- the whole


@pytest.mark.parametrize(("extractor", "parts"), [("cnn_extractor", PARTS), ("cnn_extractor", ()), ("", PARTS)],
                         ids=["both", "frames", "landmarks"])
def test_built_with_the_heads_of_hamnosys(extractor, parts):
    if extractor:
        timm()
    model = build(HEADS, extractor=extractor, representation=WIDTH, transformer="sign_language_transformer",
                  output_size=OUT, frames=STEPS, size=SIZE, parts=parts, model_path=SEEN.get(extractor, ""), **SMALL)
    logits = model(*a_batch(model))
    assert {name: tuple(x.shape) for name, x in logits.items()} == {name: (3, k) for name, k in HEADS.items()}
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {
        "feature_extractor", "transformer", "heads"}
    assert (model.feature_extractor.fuse is not None) == bool(extractor and parts)


def of_landmarks(**options) -> SignTransformer:
    choice = {"extractor": "", "representation": WIDTH, "transformer": "lstm", "output_size": OUT, "frames": STEPS,
              "size": SIZE, "parts": PARTS} | options
    return build(TWO, **choice)


def test_pre_training_gives_its_extractor_to_the_main_stage():
    before, after = of_landmarks(pre_training=True), of_landmarks(representation=WIDTH)
    assert before.transformer is None
    _, landmarks, lengths = batch = a_batch(before)
    features = before.feature_extractor(None, landmarks, Frames(lengths, STEPS, CPU))
    means = torch.stack([row[:length].mean(0) for row, length in zip(features, LENGTHS, strict=True)])
    torch.testing.assert_close(before(*batch)["hand_location_x"], before.heads["hand_location_x"](means))
    taken = after.load_extractor(before.state_dict())
    assert sorted(taken) == sorted(name for name in before.state_dict() if name.startswith("feature_extractor."))
    assert torch.equal(after.feature_extractor(None, landmarks, Frames(lengths, STEPS, CPU)), features)


def test_an_extractor_of_another_kind_is_refused_and_nothing_changes():
    model = of_landmarks()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for other in ({"landmark_net": "gcn_extractor"}, {"representation": 4}, {"parts": ("pose",)}):
        with pytest.raises(Mistake, match="feature extractor is another one"):
            model.load_extractor(of_landmarks(**other).state_dict())
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_inputs_that_the_model_does_not_take():
    model, points, frames = of_landmarks(), torch.zeros(2, STEPS, LANDMARKS), torch.zeros(2, 3, STEPS, 8, 8)
    for given, said in (((None, None), "looks at landmarks"), ((frames, points), "not look at frames"),
                        ((None, points[:1]), "of different batches")):
        with pytest.raises(Mistake, match=said):
            model(*given, torch.tensor([STEPS, 1]))
    with pytest.raises(Mistake, match="from 1 to the 4 frames"):
        model(None, points, torch.tensor([STEPS + 1, 1]))


@pytest.mark.parametrize(("options", "said"), [
    ({"extractor": ""}, "frames or landmarks to look at"), ({"extractor": "vgg"}, "there are cnn_extractor"),
    ({"extractor": "cnn_extractor"}, "model_path names cnn_extractor's model"),
    ({"model_path": "resnet18"}, "model_path names cnn_extractor's model"),
    ({"transformer": "gpt"}, "no such transformer"),
    ({"parts": ("pose",), "landmark_net": "cnn"}, "no such net for landmarks")], ids=str)
def test_mistakes(options, said):
    assert said in told(**options)


def test_unknown_and_unfit_timm_models():
    timm()
    options = {"extractor": "cnn_extractor"}
    assert "resnet18" in told(model_path="net18", **options)
    assert "no such model" in told(model_path="no_such_net", **options)
    assert "cannot be built for frames of 3 x 3" in told(model_path="test_convnext", size=(3, 3), **options)


def test_cnn_extractor_without_timm(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in told(extractor="cnn_extractor", model_path="resnet18")
