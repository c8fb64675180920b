"""Pruning mBART's vocabulary: what is kept, that nothing else changes, and that the folder is whole or not there."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from little_mbart import GLOSSES, TEXTS, little_mbart

from slr.errors import Mistake
from slr.models import prune as module
from slr.models.gloss_table import TABLE, gloss_means, read_gloss_table
from slr.models.mbart import LANGUAGES, MBartText, build, load_model, read_id_map
from slr.models.prune import prune

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
SEEN = TEXTS[:3]  # the others have sub-tokens that go


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return little_mbart(tmp_path_factory.mktemp("whole") / "mBart")


@pytest.fixture(scope="module")
def pruned(source, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("pruned") / "mBart_de"
    return folder, prune(source, folder, SEEN, GLOSSES, "de_DE", "de_DGS")


def run_prune(source: Path, folder: Path, **changes) -> dict:
    settings = {"texts": SEEN, "glosses": GLOSSES, "language": "de_DE", "gloss_language": "de_DGS", **changes}
    return prune(source, folder, **settings)


def expected_tokens(source: Path) -> set[str]:
    """From SentencePiece's own words, without our numbers."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(source / "sentencepiece.bpe.model"))
    words = {piece for text in [*SEEN, *map(str.lower, GLOSSES)] for piece in pieces.encode(text, out_type=str)}
    return words | {"<s>", "<pad>", "</s>", "<unk>", "<mask>", *LANGUAGES}


def test_kept_are_special_tokens_and_what_was_seen(source, pruned):
    from transformers import MBartTokenizer

    folder, report = pruned
    old = read_id_map(folder / "map_ids.json")
    names = MBartTokenizer.from_pretrained(source).convert_ids_to_tokens(list(old))
    assert set(names) == expected_tokens(source)
    assert report["tokens"] == len(old) == len(names) < report["tokens_before"]
    assert names[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and names[4:29] == list(LANGUAGES) and names[29] == "<mask>"
    assert list(old.values()) == list(range(len(old))) and list(old)[30:] == sorted(list(old)[30:])
    assert report["glosses"] == len(GLOSSES) and report["unknown"] == 0 and report["new"] is True
    assert json.loads((folder / "pruned.json").read_text()) == {k: v for k, v in report.items() if k != "new"}


def test_kept_logits_stay(source, pruned):
    """transformers on both: logits of kept tokens as before, probabilities among the kept ones."""
    whole, small = load_model(source).eval(), load_model(pruned[0]).eval()
    kept = torch.tensor(list(read_id_map(pruned[0] / "map_ids.json")))
    draw = torch.Generator().manual_seed(0)
    new = torch.randint(len(kept), (4, 6), generator=draw)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3])
    with torch.no_grad():
        before = whole(input_ids=kept[new], attention_mask=mask, decoder_input_ids=kept[new.flip(1)]).logits
        after = small(input_ids=new, attention_mask=mask, decoder_input_ids=new.flip(1)).logits
    torch.testing.assert_close(after, before[..., kept], atol=1e-5, rtol=1e-6)
    among = before.softmax(2)[..., kept]
    torch.testing.assert_close(after.softmax(2), among / among.sum(2, keepdim=True), atol=1e-6, rtol=1e-5)


def test_it_is_a_translator(source, pruned):
    folder, report = pruned
    text = MBartText.load(folder, "de_DE")
    translator = build(folder, text, gloss_language="de_DGS").eval()
    assert translator.vocabulary == text.size == report["tokens"] and text.start == 6
    config = translator.model.config
    assert config.vocab_size == text.size and config.decoder_start_token_id == text.start
    assert translator.model.generation_config.decoder_start_token_id == text.start
    assert translator.model.lm_head.weight is translator.model.model.shared.weight
    assert sum(p.numel() for p in translator.parameters()) == report["parameters"] + translator.suffix.numel()
    whole = build(source, MBartText.load(source, "de_DE")).eval()
    kept = torch.tensor(list(read_id_map(folder / "map_ids.json")))
    vectors, lengths, tokens = torch.randn(2, 5, 32), torch.tensor([5, 3]), torch.tensor([[6, 40, 41], [6, 50, 2]])
    with torch.no_grad():
        before = whole(vectors, lengths, kept[tokens])[..., kept]
        torch.testing.assert_close(translator(vectors, lengths, tokens), before, atol=1e-5, rtol=1e-5)


def test_tokens_come_back(source, pruned):
    whole, small = MBartText.load(source, "de_DE"), MBartText.load(pruned[0], "de_DE")
    old = read_id_map(pruned[0] / "map_ids.json")
    for sentence in [*SEEN, *map(str.lower, GLOSSES)]:
        assert small.encode(sentence) == [old[number] for number in whole.encode(sentence)]
        assert small.unknown not in small.encode(sentence) and small.decode(small.encode(sentence)) == sentence
    assert any(small.unknown in small.encode(sentence) for sentence in TEXTS[3:])


def test_gloss_embeddings_are_those_of_the_whole_model(source, pruned):
    text = MBartText.load(source, "de_DE")
    expected = gloss_means(load_model(source).model.shared.weight, text, GLOSSES, "de_DGS")
    found = read_gloss_table(pruned[0] / TABLE)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    suffix = build(pruned[0], MBartText.load(pruned[0], "de_DE"), gloss_language="de_DGS").suffix
    assert torch.equal(suffix, torch.stack([found["</s>"], found["de_DGS"]]))


def test_unknown_signs_are_counted(source, tmp_path):
    report = run_prune(source, tmp_path / "x", texts=[*SEEN, "ж regnet ж ж"], glosses=["Ж"])
    assert report["unknown"] == 4 and 3 in read_id_map(tmp_path / "x" / "map_ids.json").values()


def test_published_form_of_weights(tmp_path, pruned):
    """From pytorch_model.bin the same; the order of texts and glosses, and how often they come, change nothing."""
    source = little_mbart(tmp_path / "mBart", form="bin")
    folder = tmp_path / "deeper" / "mBart_de"
    report = prune(source, folder, [*reversed(SEEN), *SEEN], [*reversed(GLOSSES), "Regen"], "de_DE", "de_DGS")
    assert "250020" not in (folder / "config.json").read_text()
    ours, theirs = load_model(folder).state_dict(), load_model(pruned[0]).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert report["recipe"]["kept"] == pruned[1]["recipe"]["kept"]


def test_again_it_does_nothing(source, tmp_path, monkeypatch):
    first = run_prune(source, tmp_path / "mBart_de")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mBart_de").iterdir()}

    def never(*_words, **_options):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(module, "load_model", never)
    assert run_prune(source, tmp_path / "mBart_de") == {**first, "new": False}
    assert {path.name: path.read_bytes() for path in (tmp_path / "mBart_de").iterdir()} == before
    for changes in ({"texts": TEXTS}, {"glosses": GLOSSES[:2]}, {"language": "zh_CN"}, {"gloss_language": "zh_CSL"}):
        with pytest.raises(Mistake, match="is taken"):
            run_prune(source, tmp_path / "mBart_de", **changes)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mBart_de").iterdir()} == before


def test_a_kill_leaves_nothing_half(source, tmp_path, monkeypatch):
    """Killed before the last step; the next run clears up and does it all."""
    folder = tmp_path / "mBart_de"

    def killed(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", lambda *_words, **_options: None)  # a kill runs no clean-up
    monkeypatch.setattr(module, "_flush", killed)
    with pytest.raises(KeyboardInterrupt):
        run_prune(source, folder)
    monkeypatch.undo()
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    assert run_prune(source, folder)["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["mBart_de"]
    assert not list(folder.glob("*.part"))


def test_a_full_disk_is_a_mistake(source, tmp_path, monkeypatch):
    def full(_old, _new):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(Mistake, match="No space left"):
        run_prune(source, tmp_path / "mBart_de")
    assert not list(tmp_path.iterdir())


def test_mistakes(source, pruned, tmp_path):
    with pytest.raises(Mistake, match="is missing"):
        run_prune(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(Mistake, match="no texts"):
        run_prune(source, tmp_path / "x", texts=[])
    with pytest.raises(Mistake, match="no such language"):
        run_prune(source, tmp_path / "x", language="de_DGS")
    with pytest.raises(Mistake, match="whole vocabulary"):
        run_prune(pruned[0], tmp_path / "x")
    with pytest.raises(Mistake, match="is taken"):
        run_prune(source, source)
    (tmp_path / "mine").mkdir()
    with pytest.raises(Mistake, match="is taken"):
        run_prune(source, tmp_path / "mine")
    shutil.copytree(source, tmp_path / "bert")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(Mistake, match="no mBART"):
        run_prune(tmp_path / "bert", tmp_path / "x")
    assert not (tmp_path / "x").exists()
