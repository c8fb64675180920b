"""Published weights under our names: against the published layers written out here, and row by row."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import s3d as torchvision_s3d

from slr.errors import Mistake
from slr.models import published, s3d, s3d_ctc
from slr.models.published import convert, find, our_name, read, read_gloss_embeddings, weights_in
from slr.models.sentence import GlossHead, TemporalBlock, sinusoids

GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # our clips as theirs, but for the order of the colours
GLOSSES = {"<si>": 0, "<unk>": 1, "<pad>": 2, "regen": 3, "schnee": 4, "nord": 5}
CLASSES = ["<blank>", "NORD", "WIND", "REGEN"]


# --- the published S3D, from its layers' names (modelling/models_3d/S3D/model.py) -----------------------------

def s3d_names(last: int) -> dict[str, str]:
    """{torchvision's name of a convolution or batch-norm: SLRT's} of the layers before `last`."""
    names = {}

    def conv(ours: str, theirs: str) -> None:
        names.update({f"{ours}.0": f"{theirs}.conv", f"{ours}.1": f"{theirs}.bn"})

    def separable(ours: str, theirs: str) -> None:
        names.update({f"{ours}.0.0": f"{theirs}.conv_s", f"{ours}.0.1": f"{theirs}.bn_s",
                      f"{ours}.1.0": f"{theirs}.conv_t", f"{ours}.1.1": f"{theirs}.bn_t"})

    separable("features.0", "base.0")
    conv("features.2", "base.2")
    separable("features.3", "base.3")
    for layer in (5, 6, 8, 9, 10, 11, 12, 14, 15):
        ours, theirs = f"features.{layer}", f"base.{layer}"
        conv(f"{ours}.branch0", f"{theirs}.branch0.0")
        for branch in ("branch1", "branch2"):
            conv(f"{ours}.{branch}.0", f"{theirs}.{branch}.0")
            separable(f"{ours}.{branch}.1", f"{theirs}.{branch}.1")
        conv(f"{ours}.branch3.1", f"{theirs}.branch3.1")
    return {ours: theirs for ours, theirs in names.items() if int(ours.split(".")[1]) < last}


def random_s3d(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = torchvision_s3d(num_classes=7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def as_published(net: nn.Module, prefix: str, last: int = 13) -> dict[str, Tensor]:
    names = s3d_names(last)
    state = {}
    for name, value in net.state_dict().items():
        layer, _, tensor = name.rpartition(".")
        if layer in names:
            state[f"{prefix}{names[layer]}.{tensor}"] = value
    return state


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return random_s3d()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """Pictures, RGB, from 0 to 1: (2, 3, 16, 40, 48)."""
    return torch.rand(2, 3, 16, 40, 48, generator=torch.Generator().manual_seed(4))


def model_of(classes: int = 4) -> s3d_ctc.S3DSentence:
    torch.manual_seed(9)
    return s3d_ctc.build(classes, frames=16, size=40, width=16).eval()


@pytest.mark.parametrize("content", [
    lambda state: {f"module.{name}": value for name, value in state.items()},  # s3ds_actioncls_ckpt
    lambda state: {"epoch": 1, "state_dict": {f"backbone.{name}": value for name, value in state.items()}},
    lambda state: {"model_state": {f"recognition_network.visual_backbone.backbone.{name}": value
                                   for name, value in state.items()}},
])
@torch.no_grad()
def test_backbone_sees_what_the_published_one_does(net, clips, content):
    """Every form of the file; theirs are the pictures as BGR from -1 to 1."""
    model = model_of()
    state, report = convert(content(as_published(net, "")), model.state_dict(), parts=("backbone",), **GREY)
    model.load_state_dict(state, strict=False)
    theirs = net.features[:13]((2 * clips - 1).flip(1)).mean((3, 4)).transpose(1, 2)
    ours, _ = model.features((clips - 0.5) / 0.5, torch.tensor([16, 16]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not report.missing and not report.left
    assert set(report.taken) == {name for name in model.state_dict() if name.startswith("backbone.")}


@torch.no_grad()
def test_stem_takes_up_the_normalisation(net, clips):
    """Of our usual clips: exact in the middle; only the three pixels at the border see another padding."""
    model = model_of()
    state, _ = convert(as_published(net, "module."), model.state_dict(), parts=("backbone",))
    model.load_state_dict(state, strict=False)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in ((0.43216, 0.394666, 0.37645),
                                                                          (0.22803, 0.22145, 0.216989)))
    theirs = net.features[0][0]((2 * clips - 1).flip(1))
    ours = model.backbone.features[0][0]((clips - mean) / std)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours[..., 0, :], theirs[..., 0, :], atol=1e-3)


@torch.no_grad()
def test_isolated_model_takes_the_action_classes(net, clips):
    content = {**as_published(net, "module.", 16), "module.fc.0.weight": net.classifier[1].weight,
               "module.fc.0.bias": net.classifier[1].bias}
    model = s3d.build(7, frames=16, size=40).eval()
    state, report = convert(content, model.state_dict(), **GREY)
    model.load_state_dict(state, strict=False)
    theirs = net.classifier[1](s3d.pool(net.features((2 * clips - 1).flip(1)))).mean((2, 3, 4))
    torch.testing.assert_close(model((clips - 0.5) / 0.5), theirs, atol=1e-5, rtol=1e-4)
    assert not report.missing and not report.left
    with pytest.raises(Mistake, match="another model"):
        convert(content, s3d.build(9, frames=16, size=40).state_dict())
    state, report = convert(content, s3d.build(9, frames=16, size=40).state_dict(), parts=("backbone",))
    assert sorted(report.left) == ["fc.0.bias", "fc.0.weight"]


def test_deeper_layers_are_left(net):
    _, report = convert(as_published(net, "module.", 16), model_of().state_dict(), parts=("backbone",))
    assert report.left and all(name.startswith(("base.14.", "base.15.")) for name in report.left)


# --- the published head (modelling/Visualhead.py, utils.py) ---------------------------------------------------

WIDTH, CHANNELS, COUNT = 16, 832, 6


def head_state(seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"fc1.weight": (WIDTH, CHANNELS), "fc1.bias": (WIDTH,), "bn1.norm.weight": (WIDTH,),
              "bn1.norm.bias": (WIDTH,), "bn1.norm.running_mean": (WIDTH,), "bn1.norm.running_var": (WIDTH,),
              "feedforward.layer_norm.weight": (WIDTH,), "feedforward.layer_norm.bias": (WIDTH,),
              "feedforward.pwff_layer.0.weight": (4 * WIDTH, WIDTH, 3), "feedforward.pwff_layer.0.bias": (4 * WIDTH,),
              "feedforward.pwff_layer.3.weight": (WIDTH, 4 * WIDTH, 3), "feedforward.pwff_layer.3.bias": (WIDTH,),
              "layer_norm.weight": (WIDTH,), "layer_norm.bias": (WIDTH,), "pe.pe": (1, 50, WIDTH),
              "gloss_output_layer.weight": (COUNT, WIDTH), "gloss_output_layer.bias": (COUNT,)}
    state = {name: torch.randn(*shape, generator=draw) / 4 for name, shape in shapes.items()}
    state["bn1.norm.running_var"] = state["bn1.norm.running_var"].square() + 0.5
    return state | {"bn1.norm.num_batches_tracked": torch.tensor(5)}


def published_head(s: dict[str, Tensor], x: Tensor) -> Tensor:
    """(N, T, 832) -> (N, T, K), all valid, in evaluation."""
    x = F.linear(x, s["fc1.weight"], s["fc1.bias"])
    bn = [s[f"bn1.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = F.batch_norm(x.flatten(0, 1), *bn).view_as(x).relu()
    x = x + sinusoids(x.shape[1], WIDTH)
    y = F.layer_norm(x, (WIDTH,), s["feedforward.layer_norm.weight"], s["feedforward.layer_norm.bias"], 1e-6)
    y = F.conv1d(y.mT, s["feedforward.pwff_layer.0.weight"], s["feedforward.pwff_layer.0.bias"], padding="same").relu()
    y = F.conv1d(y, s["feedforward.pwff_layer.3.weight"], s["feedforward.pwff_layer.3.bias"], padding="same").mT + x
    y = F.layer_norm(y, (WIDTH,), s["layer_norm.weight"], s["layer_norm.bias"], 1e-6)
    return F.linear(y, s["gloss_output_layer.weight"], s["gloss_output_layer.bias"])


def s2g(net: nn.Module) -> dict:
    head = {f"recognition_network.visual_head.{name}": value for name, value in head_state().items()}
    return {"epoch": 3, "model_state": {**as_published(net, "recognition_network.visual_backbone.backbone."), **head}}


class PublishedBlock(TemporalBlock):
    """Ours has a ReLU more, as our docs have it."""

    def forward(self, x, frames):
        y = self.widen(frames.zero(self.norm(x), 1).mT).relu()
        return x + self.narrow(frames.zero(y, 2)).mT


@torch.no_grad()
def test_head_says_what_the_published_one_does(net):
    """Rows by gloss: NORD and REGEN are theirs, the blank is the blank, WIND keeps its own."""
    model = model_of()
    model.classifier.block = PublishedBlock(WIDTH, 0.1).eval()
    mine = model.classifier.gloss.weight.clone()
    state, report = convert(s2g(net), model.state_dict(), glosses=GLOSSES, classes=CLASSES)
    model.load_state_dict(state, strict=False)
    features = torch.randn(2, 9, CHANNELS, generator=torch.Generator().manual_seed(2))
    ours, theirs = model.classifier(features, torch.tensor([9, 9])), published_head(head_state(), features)
    torch.testing.assert_close(ours[..., [0, 1, 3]], theirs[..., [0, 5, 3]], atol=1e-4, rtol=1e-4)
    assert torch.equal(model.classifier.gloss.weight[2], mine[2])
    assert report.rows == {f"classifier.gloss.{part}": (3, 4) for part in ("weight", "bias")}
    assert report.left == ["recognition_network.visual_head.pe.pe"] and not report.missing
    assert len(report.taken) == len(model.state_dict())
    assert "3 of 4 rows" in str(report) and "1 left" in str(report) and "no ReLU" in str(report)


def test_sign2text_has_them_below_visual(net):
    """Without a backbone, as it is where features are the input."""
    holder = nn.Module()
    holder.visual = nn.Module()
    holder.visual.classifier = GlossHead(CHANNELS, 4, WIDTH)
    state, report = convert(s2g(net), holder.state_dict(), glosses=GLOSSES, classes=CLASSES)
    assert set(state) == set(holder.state_dict()) and not report.missing
    assert all("visual_backbone" in name or name.endswith("pe.pe") for name in report.left)


def test_numbers_of_the_glosses_are_needed_and_checked(net):
    target = model_of().state_dict()
    with pytest.raises(Mistake, match="gloss2ids.pkl"):
        convert(s2g(net), target)
    with pytest.raises(Mistake, match="do not fit"):
        convert(s2g(net), target, glosses={**GLOSSES, "wind": 6}, classes=CLASSES)
    with pytest.raises(Mistake, match="do not fit"):
        convert(s2g(net), target, glosses=GLOSSES, classes=CLASSES[:3])
    with pytest.raises(Mistake, match="another model"):
        convert(s2g(net), s3d_ctc.build(4, frames=16, size=40, width=32).state_dict(), glosses=GLOSSES, classes=CLASSES)
    with pytest.raises(Mistake, match="no such part"):
        convert(s2g(net), target, parts=("head",))


def test_what_does_not_fit_is_a_mistake():
    with pytest.raises(Mistake, match="nothing of the published weights"):
        convert({"model_state": {"something.weight": torch.zeros(2)}}, model_of().state_dict())
    with pytest.raises(Mistake, match="holds no weights"):
        weights_in({"epoch": 3})
    for name in ("recognition_network.visual_head_keypoint.fc1.weight", "base.0.conv_x.weight", "optimizer.weight",
                 "recognition_network.visual_backbone_twostream.rgb_stream.backbone.base.0.conv_s.weight"):
        assert our_name(name) is None


# --- mapper and translator ------------------------------------------------------------------------------------

TOKENS, DIM = 9, 8
IDS = {0: 0, 1: 1, 2: 2, 3: 3, 50: 4, 60: 5, 70: 6, 80: 7, 90: 8}
OUR_IDS = {0: 0, 1: 1, 2: 2, 3: 3, 50: 4, 55: 5, 80: 6, 60: 7}
ROWS = {"<s>": 0, "<pad>": 1, "</s>": 2, "de_DGS": 3, "regen": 4, "nord": 5}


class Holder(nn.Module):
    """Modules with the names of Sign2Text and Gloss2Text."""

    def __init__(self, tokens: int, embedding: bool):
        super().__init__()
        self.translator = nn.Module()
        self.translator.suffix = nn.Parameter(torch.randn(2, DIM))
        model = self.translator.model = nn.Module()
        model.register_buffer("final_logits_bias", torch.randn(1, tokens))
        model.lm_head = nn.Linear(DIM, tokens, bias=False)
        model.model = nn.Module()
        model.model.shared = nn.Embedding(tokens, DIM)
        model.model.encoder = nn.Module()
        model.model.encoder.layer_norm = nn.LayerNorm(DIM)
        model.model.encoder.embed_tokens = model.model.shared
        model.lm_head.weight = model.model.shared.weight
        self.mapper = nn.Module()
        if embedding:
            self.mapper.embedding = nn.Linear(len(CLASSES), DIM, bias=False)
        else:
            self.mapper.first, self.mapper.second = nn.Linear(5, DIM), nn.Linear(DIM, DIM)
        self.gloss_embedding = nn.Embedding(3, DIM)


def translation(embedding: bool = False) -> dict:
    draw = torch.Generator().manual_seed(5)
    shared = torch.randn(TOKENS, DIM, generator=draw)
    state = {f"translation_network.model.{name}": shared for name in
             ("model.shared.weight", "model.encoder.embed_tokens.weight", "lm_head.weight")}
    state["translation_network.model.final_logits_bias"] = torch.randn(1, TOKENS, generator=draw)
    state["translation_network.model.model.encoder.layer_norm.weight"] = torch.randn(DIM, generator=draw)
    state["translation_network.model.model.encoder.layer_norm.bias"] = torch.randn(DIM, generator=draw)
    state["translation_network.gloss_embedding.weight"] = torch.randn(len(ROWS), DIM, generator=draw)
    if embedding:
        state["vl_mapper.mapping.weight"] = torch.randn(DIM, COUNT, generator=draw)
    else:
        for layer, width in ((0, 5), (2, DIM)):
            state[f"vl_mapper.mapping.{layer}.weight"] = torch.randn(DIM, width, generator=draw)
            state[f"vl_mapper.mapping.{layer}.bias"] = torch.randn(DIM, generator=draw)
    return {"model_state": state, "best_score": np.float64(28.5)}


EVERYTHING = {"glosses": GLOSSES, "classes": CLASSES, "row_glosses": ROWS, "rows": ["REGEN", "WIND", "NORD"],
              "gloss_language": "de_DGS"}


def test_translator_of_the_same_vocabulary():
    model, content = Holder(TOKENS, False), translation()
    state, report = convert(content, model.state_dict(), **EVERYTHING)
    again, _ = convert(content, model.state_dict(), ids=IDS, our_ids=IDS, **EVERYTHING)
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    theirs, mine = content["model_state"], model.gloss_embedding.weight.clone()
    model.load_state_dict(state, strict=False)
    ours = model.state_dict()
    for name, value in theirs.items():
        if name.startswith("translation_network.model."):
            assert torch.equal(ours[name.replace("translation_network", "translator")], value)
    assert torch.equal(ours["mapper.first.weight"], theirs["vl_mapper.mapping.0.weight"])
    assert torch.equal(ours["mapper.second.bias"], theirs["vl_mapper.mapping.2.bias"])
    table = theirs["translation_network.gloss_embedding.weight"]
    assert torch.equal(ours["gloss_embedding.weight"], torch.stack([table[4], mine[1], table[5]]))
    assert torch.equal(ours["translator.suffix"], table[[2, 3]])
    assert not report.left and not report.missing and report.rows["gloss_embedding.weight"] == (2, 3)
    assert model.translator.model.lm_head.weight is model.translator.model.model.shared.weight


def test_translator_of_another_vocabulary():
    """Rows go by mBART's own numbers; what theirs lacks (55) keeps our row."""
    model, content = Holder(len(OUR_IDS), True), translation(True)
    mine = {name: value.clone() for name, value in model.state_dict().items()}
    for maps in ({}, {"ids": IDS}, {"ids": IDS, "our_ids": IDS}, {"ids": OUR_IDS, "our_ids": OUR_IDS},
                 {"ids": {**IDS, 90: 7}, "our_ids": OUR_IDS}):
        with pytest.raises(Mistake, match="id maps"):
            convert(content, mine, **maps, **EVERYTHING)
    state, report = convert(content, mine, ids=IDS, our_ids=OUR_IDS, **EVERYTHING)
    shared = content["model_state"]["translation_network.model.model.shared.weight"]
    bias = content["model_state"]["translation_network.model.final_logits_bias"]
    for whole, number in OUR_IDS.items():
        row = shared[IDS[whole]] if whole in IDS else mine["translator.model.model.shared.weight"][number]
        assert torch.equal(state["translator.model.lm_head.weight"][number], row)
        expected = bias[0, IDS[whole]] if whole in IDS else mine["translator.model.final_logits_bias"][0, number]
        assert state["translator.model.final_logits_bias"][0, number] == expected
    assert report.rows["translator.model.model.shared.weight"] == (7, 8)
    columns = content["model_state"]["vl_mapper.mapping.weight"]
    assert torch.equal(state["mapper.embedding.weight"][:, [0, 1, 3]], columns[:, [0, 5, 3]])
    assert torch.equal(state["mapper.embedding.weight"][:, 2], mine["mapper.embedding.weight"][:, 2])


def test_suffix_without_a_table_is_said_to_be_missing():
    model = Holder(TOKENS, False)
    state, report = convert(translation(), model.state_dict(), parts=("translator",))
    assert "translator.suffix" not in state and report.missing == ["translator.suffix"]
    assert "translation_network.gloss_embedding.weight" in report.left
    with pytest.raises(Mistake, match="no such language"):
        convert(translation(), model.state_dict(), parts=("translator",), row_glosses=ROWS, gloss_language="zh_CSL")


def test_target_keeps_its_values(net):
    target = model_of().state_dict()
    before = {name: value.clone() for name, value in target.items()}
    convert(s2g(net), target, glosses=GLOSSES, classes=CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in target.items())


# --- files ----------------------------------------------------------------------------------------------------

def test_files_are_found(tmp_path):
    files = {"s3ds_actioncls_ckpt/S3D_kinetics400.pt": "s3d actions",
             "s3ds_glosscls_ckpt/epoch_5.pth.tar": "s3d glosses",
             "mBart_de/gloss_embeddings.bin": "gloss embeddings", "mBart_de/gloss2ids.pkl": "gloss numbers",
             "mBart_de/map_ids.pkl": "id map", "phoenix-2014t_s2g/ckpts/best.ckpt": "s2g",
             "phoenix-2014t_g2t/ckpts/best.ckpt": "g2t", "x/phoenix-2014t_s2t/ckpts/best.ckpt": "s2t",
             "phoenix-2014t_s2g/ckpts/step_9.ckpt": "", "mBart_de/config.json": ""}
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(piece.path.relative_to(tmp_path)): piece.kind for piece in find(tmp_path)}
    assert found == {name: kind for name, kind in files.items() if kind}
    assert find(tmp_path / "nowhere") == []


def test_checkpoints_are_read_as_data(tmp_path):
    content = translation()
    torch.save(content, tmp_path / "best.ckpt")
    assert read(tmp_path / "best.ckpt")["best_score"] == 28.5
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert set(weights_in(read(tmp_path / "old.ckpt"))) == set(content["model_state"])
    torch.save(OrderedDict(a=torch.ones(1)), tmp_path / "bare.pt")
    assert list(weights_in(read(tmp_path / "bare.pt"))) == ["a"]


class Hostile:
    """A pickle that would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_hostile_and_damaged_files_are_refused(tmp_path):
    torch.save({"model_state": Hostile(tmp_path / "made")}, tmp_path / "hostile.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps({"x": Hostile(tmp_path / "made")}, 2))
    whole = tmp_path / "whole.ckpt"
    torch.save(translation(), whole)
    (tmp_path / "short.ckpt").write_bytes(whole.read_bytes()[:900])
    torch.save([1], tmp_path / "list.ckpt")
    for name in ("hostile", "bare", "short", "list", "nowhere"):
        with pytest.raises(Mistake):
            read(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "made").exists()


def test_published_gloss_embeddings(tmp_path):
    table = torch.randn(40, DIM)
    rows = {"</s>": table[2], "regen": table[5:7].mean(0), "de_DGS": table[9]}  # views of one table, as theirs are
    torch.save(rows, tmp_path / "gloss_embeddings.bin")
    found = read_gloss_embeddings(tmp_path / "gloss_embeddings.bin")
    assert list(found) == list(rows) and all(torch.equal(found[name], rows[name]) for name in rows)
    for wrong in ({"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.zeros(2, 2)}, {"a": 3}, {}):
        torch.save(wrong, tmp_path / "wrong.bin")
        with pytest.raises(Mistake, match="no table of gloss embeddings"):
            read_gloss_embeddings(tmp_path / "wrong.bin")


def test_id_maps_are_checked():
    assert published.id_map({0: 0, 250003: 4}) == {0: 0, 250003: 4}
    for wrong in ([0, 1], {"0": 0}, {0: 0.0}, {0: True}, None):
        with pytest.raises(Mistake, match="no id map"):
            published.id_map(wrong)
