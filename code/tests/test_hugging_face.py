"""Hugging Face data sets to sentences: what a parquet file holds is what training reads, and no row ends it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import preprocess
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slr import paths
from slr.datasets import hugging_face as hf
from slr.datasets import sentences_pictures as pictures
from slr.datasets.phoenix import read_form
from slr.datasets.sentences import load_sentences, load_vocabulary, read_frames
from slr.datasets.sentences_prepare import read_source
from slr.errors import Interrupted, Mistake

SPLIT = "mine"
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, with its lock files in the test's folder."""
    package = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return package


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The data folder; the pictures of a split are drawn in test_sentences.py, not here."""
    for name in ("contact_sheet", "statistics_sheet"):
        monkeypatch.setattr(pictures, name, lambda *_: None)
    monkeypatch.setenv("SLR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def picture(number: int, suffix: str = ".png", width: int = 26, height: int = 20) -> bytes:
    """An image in colours that tell red from blue and one frame from the next."""
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def pixels(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def row(name: Any, words: Any = "A B", frames: Any = 5, **how: Any) -> dict[str, Any]:
    """`frames`: the images, or how many."""
    if isinstance(frames, int):
        start = sum(map(ord, str(name)))
        frames = [picture(start + i, **how) for i in range(frames)]
    return {"id": name, "transcription": words, "frames": frames}


def corpus() -> Rows:
    return {"train": [row("a-1", "A B"), row("a-2", "B  C ", suffix=".jpg"), row("1", "C A", 6)],
            "validation": [row("b-1", "A X")], "test": [row("c-1", "C", suffix=".webp"), row("c-2", "A")]}


def write(folder: Path, rows: Rows, datasets: Any, images: bool = True, group: int = 2) -> Path:
    """Parquet files as the hub has them; `images`: structs of datasets.Image, else bytes alone."""
    from pyarrow import Table, parquet
    stored = datasets.Image() if images else datasets.Value("binary")
    features = datasets.Features({"id": datasets.Value("string"), "transcription": datasets.Value("string"),
                                  "frames": datasets.List(stored), "extra": datasets.Value("int64")})
    for part, there in rows.items():
        made = [{**one, "extra": 1, "frames": _wrapped(one["frames"]) if images else one["frames"]} for one in there]
        files = [made[:2], made[2:]] if part == "train" else [made]
        for number, some in enumerate(files):
            file = folder / f"{part}-{number:05d}-of-{len(files):05d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(Table.from_pylist(some, schema=features.arrow_schema), file, row_group_size=group)
    return folder


def _wrapped(frames: Any) -> Any:
    return [{"bytes": one, "path": None} if isinstance(one, bytes) else one for one in frames or ()]


def run(*words: Any) -> int:
    return preprocess.main([*map(str, words), "--workers", "0"])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left_out(root: Path, part: str = "train", split: str = SPLIT) -> dict[int, str]:
    rows = hf.read_report(paths.hugging_face(root, split))["sets"][part]["left_out"]
    return {one["row"]: one["reason"] for one in rows}


def ids(place: Path) -> list[str]:
    return [entry.id for entry in read_source(place).entries]


# --- from parquet to training -------------------------------------------------------------------------------

@pytest.mark.parametrize("images", [True, False])
def test_the_whole_chain(tmp_path, root, datasets, capsys, images):
    rows = corpus()
    source = write(tmp_path / "clone" / "data", rows, datasets, images)
    assert run("--hf_dataset", source.parent, "-as", SPLIT) == 0
    assert "train: 3 rows, 3 sentences (3 written, 0 were there), 0 left out" in capsys.readouterr().out
    assert load_vocabulary(root, SPLIT) == ["<blank>", "A", "B", "C"]
    for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        found = {sentence.id: sentence for sentence in load_sentences(root, SPLIT, part)}
        assert found.keys() == {one["id"] for one in rows[name]}
        for one in rows[name]:
            sentence = found[one["id"]]
            assert sentence.gloss == tuple(one["transcription"].split())
            expected = np.stack([pixels(data) for data in one["frames"]])
            np.testing.assert_array_equal(read_frames(sentence, range(sentence.num_frames)), expected)


def test_png_and_jpg_stay_as_they_are_and_others_become_png(tmp_path, root, datasets):
    rows = corpus()
    place = hf.convert(write(tmp_path / "source", rows, datasets), root, SPLIT)
    assert place == paths.hugging_face(root, SPLIT)
    for name, suffix, one in (("train/a-1", ".png", rows["train"][0]), ("train/a-2", ".jpg", rows["train"][1])):
        expected = {f"{i:06d}{suffix}": data for i, data in enumerate(one["frames"])}
        assert tree(place / "features" / name) == expected
    webp = tree(place / "features" / "test" / "c-1")
    assert list(webp) == [f"{i:06d}.png" for i in range(5)]
    for data, original in zip(webp.values(), rows["test"][0]["frames"], strict=True):
        assert data.startswith(b"\x89PNG")
        np.testing.assert_array_equal(pixels(data), pixels(original))


def test_split_is_phoenix2014_and_afterwards_like_any_other(tmp_path, root, datasets, capsys):
    source = write(tmp_path / "source", corpus(), datasets)
    assert run("--hf_dataset", source) == 0
    first = load_sentences(root, "phoenix2014", "train")
    shutil.rmtree(paths.sentences(root, "phoenix2014"))
    shutil.rmtree(source)
    assert run("-as", "phoenix2014") == 0
    assert load_sentences(root, "phoenix2014", "train") == first and len(first) == 3
    with pytest.raises(Mistake, match="no data for phoenix2014"):  # what it is of can still be said
        run("-as", "phoenix2014", "-ds", "PHOENIX2014")


def test_twice_is_the_same(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    one, two = (hf.convert(source, root / name, SPLIT) for name in ("x", "y"))
    assert tree(one) == tree(two)
    before = {path: path.stat().st_mtime_ns for path in (one / "features").rglob("*.*")}
    hf.convert(source, root / "x", SPLIT)
    assert before == {path: path.stat().st_mtime_ns for path in (one / "features").rglob("*.*")}
    assert tree(one) == tree(two)


NAME = st.text(st.characters(categories=["L", "Nd"], include_characters="_-.+/ |*"), min_size=1, max_size=12)
GLOSSES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5).map(" ".join)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named=st.dictionaries(NAME, GLOSSES, min_size=1, max_size=5))
def test_any_id_and_glosses_come_back_or_are_left_out_by_name(tmp_path, datasets, named):
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    safe = {"id": "safe", "transcription": "A", "frames": [picture(0)]}
    rows = [safe, *({"id": name, "transcription": words, "frames": [picture(0)]} for name, words in named.items()
                    if name != "safe")]
    place = hf.convert(write(folder / "source", {"train": rows}, datasets), folder, SPLIT)
    found = {entry.id: entry.gloss for entry in read_source(place).entries}
    gone = left_out(folder)
    assert len(found) + len(gone) == len(rows)
    for number, one in enumerate(rows):
        assert (one["id"] in found) != (number in gone)
        if one["id"] in found:
            assert found[one["id"]] == tuple(one["transcription"].split())
            assert tree(place / "features" / "train" / one["id"]) == {"000000.png": picture(0)}


# --- rows that cannot be used -------------------------------------------------------------------------------

BAD = {
    "no_frames": ("it has no frames", {"frames": []}),
    "nothing": ("it has no frames", {"frames": None}),
    "junk": ("cannot read frame 1: 4 bytes that are no image", {"frames": [picture(0), b"junk"]}),
    "cut": ("cannot read frame 0", {"frames": [picture(0)[:40]]}),
    "a_path": ("frame 0 holds no bytes of an image", {"frames": [{"bytes": None, "path": __file__}]}),
    "empty": ("frame 0 holds no bytes of an image", {"frames": [b""]}),
    "sizes": ("its frames are of 2 sizes", {"frames": [picture(0), picture(1, width=30)]}),
    "out": ("its id is no name of a folder: '../out'", {"id": "../out"}),
    "absolute": ("its id is no name of a folder: '/tmp/x'", {"id": "/tmp/x"}),
    "hidden": ("its id is no name of a folder: '.x'", {"id": ".x"}),
    "long": ("its id is no name of a folder", {"id": "x" * 201}),
    "none": ("its id is no name of a folder: 'None'", {"id": None}),
    "taken": ("its id would be taken for a set", {"id": "features"}),
    "video": ("its id would be taken for a set or a video", {"id": "a.MP4"}),
    "no_text": ("its transcription is no text", {"transcription": None}),
    "bar": ("its glosses hold |", {"transcription": "A|B"}),
    "blank": ("its glosses hold | or <blank>", {"transcription": "A <blank>"}),
    "twice": ("its id stands twice; the first one stays", {"id": "a-1"}),
}


def test_bad_rows_are_left_out_and_named(tmp_path, root, datasets, capsys):
    bad = [{**row(name), **changes} for name, (_, changes) in BAD.items()]
    rows = {**corpus(), "test": [*corpus()["train"], *bad, row("last")]}
    source = write(tmp_path / "source", rows, datasets)
    assert run("--hf_dataset", source, "-as", SPLIT, "-ve") == 0
    out = capsys.readouterr().out
    gone = left_out(root, "test")
    assert len(gone) == len(BAD)
    for (number, reason), (expected, _) in zip(gone.items(), BAD.values(), strict=True):
        assert expected in reason
        assert f"left out: row {number} (" in out and reason in out
    place = paths.hugging_face(root, SPLIT)
    assert {sentence.id for sentence in load_sentences(root, SPLIT, "test")} == {"a-1", "a-2", "1", "last"}
    assert {path.name for path in (place / "features" / "test").iterdir()} == {"a-1", "a-2", "1", "last"}
    assert not (tmp_path / "out").exists() and not list(root.rglob("out"))


def test_a_file_elsewhere_is_not_read(tmp_path, root, datasets):
    """An image that a row only names could be any file of this machine."""
    (tmp_path / "secret.png").write_bytes(picture(7))
    rows = {"train": [row("a"), row("b", frames=[{"bytes": None, "path": str(tmp_path / "secret.png")}])]}
    place = hf.convert(write(tmp_path / "source", rows, datasets), root, SPLIT)
    assert ids(place) == ["a"] and list(left_out(root)) == [1]
    assert picture(7) not in tree(place).values()


def test_nothing_usable_is_a_mistake(tmp_path, root, datasets):
    source = write(tmp_path / "source", {"train": [row("a", frames=[b"junk"])]}, datasets)
    with pytest.raises(Mistake, match=r"no sentence of .* can be used: row 0: cannot read frame 0"):
        hf.convert(source, root, SPLIT)
    assert left_out(root)


# --- stopping and going on ----------------------------------------------------------------------------------

@pytest.mark.parametrize("stop", [0, 2, 5])
def test_it_goes_on_where_it_was_stopped(tmp_path, root, datasets, monkeypatch, stop):
    source = write(tmp_path / "source", corpus(), datasets)
    expected = hf.convert(source, root / "straight", SPLIT)
    real, calls = hf._decoded, []

    def interrupted(stored):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return real(stored)

    monkeypatch.setattr(hf, "_decoded", interrupted)
    with pytest.raises(Interrupted, match="the same command goes on"):
        run("--hf_dataset", source, "-as", SPLIT)
    place = paths.hugging_face(root, SPLIT)
    with pytest.raises(Mistake, match=f"is not whole.*\n  go on with it: --hf_dataset {source}"):
        run("-as", SPLIT)
    assert not paths.sentences(root, SPLIT).exists()
    calls.clear()
    monkeypatch.setattr(hf, "_decoded", lambda stored: calls.append(1) or real(stored))
    assert hf.convert(source, root, SPLIT) == place
    assert len(calls) == 6 - stop, "what is whole is not decoded again"
    for folder in ("features", "annotations"):
        assert tree(place / folder) == tree(expected / folder)


def test_half_a_folder_is_never_taken_for_a_whole_one(tmp_path, root, datasets, monkeypatch):
    source = write(tmp_path / "source", corpus(), datasets)
    expected = hf.convert(source, root / "straight", SPLIT)
    real = Path.write_bytes

    def full(path, data):
        if path.name == "000003.png":
            raise OSError(28, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            hf.convert(source, root, SPLIT)
    place = hf.convert(source, root, SPLIT)
    assert tree(place) == tree(expected), "and nothing is left of the half"


def test_what_was_damaged_since_is_written_anew_when_a_set_is_read_again(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    place = hf.convert(source, root, SPLIT)
    whole = tree(place / "features")
    (place / "features" / "train" / "a-1" / "000002.png").write_bytes(b"")
    (place / "features" / "train" / "stray").mkdir()
    report = hf.read_report(place)
    del report["sets"]["train"]
    (place / hf.REPORT).write_text(json.dumps(report))
    hf.convert(source, root, SPLIT)
    assert tree(place / "features") == whole and not (place / "features" / "train" / "stray").exists()
    assert "(1 written, 2 were there)" in hf.summary(place)


def test_new_files_of_the_source_are_taken_in(tmp_path, root, datasets):
    rows = corpus()
    source = write(tmp_path / "source", {"train": rows["train"][:1], "test": rows["test"]}, datasets)
    place = hf.convert(source, root, SPLIT)
    shutil.rmtree(source)
    write(source, {"train": rows["train"]}, datasets)
    assert hf.convert(source, root, SPLIT) == place
    assert sorted(ids(place)) == ["1", "a-1", "a-2"]


def test_limit_takes_the_first_rows_and_can_be_lifted(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    assert run("--hf_dataset", source, "-as", SPLIT, "--limit", 1) == 0
    assert [s.id for s in load_sentences(root, SPLIT, "train")] == ["a-1"]
    assert run("--hf_dataset", source, "-as", SPLIT) == 0
    assert len(load_sentences(root, SPLIT, "train")) == 3
    with pytest.raises(Mistake, match="from other sentences: --limit was not given"):
        run("--hf_dataset", source, "-as", SPLIT, "--limit", 1)
    assert run("--hf_dataset", source, "-as", SPLIT, "--limit", 1, "--replace") == 0
    assert len(load_sentences(root, SPLIT, "train")) == 1
    assert len(ids(paths.hugging_face(root, SPLIT))) == 6, "what was converted stays"


# --- what is in the way -------------------------------------------------------------------------------------

def test_another_source_needs_replace(tmp_path, root, datasets):
    first = write(tmp_path / "one", corpus(), datasets)
    other = write(tmp_path / "two", {"train": [row("z-1", "Z")]}, datasets)
    place = hf.convert(first, root, SPLIT)
    before = tree(place)
    with pytest.raises(Mistake, match="was made from another data set.*\n.*--replace"):
        hf.convert(other, root, SPLIT)
    assert tree(place) == before
    moved = first.rename(tmp_path / "moved")
    assert hf.convert(moved, root, SPLIT) == place, "the same files elsewhere are the same data set"
    hf.convert(other, root, SPLIT, replace=True)
    assert ids(place) == ["z-1"] and set(tree(place / "features")) == {f"train/z-1/{i:06d}.png" for i in range(5)}


def test_nothing_of_others_is_written_over(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    foreign = paths.hugging_face(root, SPLIT) / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(Mistake, match="is not written into"):
        hf.convert(source, root, SPLIT)
    assert tree(foreign.parent) == {"notes.txt": b"mine"}


def test_labels_of_another_annotation_are_seen_before_the_work(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    labels = paths.sentences(root, SPLIT)
    labels.mkdir(parents=True)
    (labels / "report.json").write_text('{"annotations": "PHOENIX-2014", "limit": 0}')
    with pytest.raises(Mistake, match="from another annotation: PHOENIX-2014"):
        run("--hf_dataset", source, "-as", SPLIT)
    assert not paths.hugging_face(root, SPLIT).exists()
    assert run("--hf_dataset", source, "-as", SPLIT, "--replace") == 0


def test_a_missing_column_is_a_mistake(tmp_path, root, datasets):
    from pyarrow import parquet, table
    (tmp_path / "source").mkdir()
    parquet.write_table(table({"id": ["a"], "text": ["A"]}), tmp_path / "source" / "train.parquet")
    with pytest.raises(Mistake, match="it has no transcription, frames, but id, text"):
        hf.convert(tmp_path / "source", root, SPLIT)
    assert not root.exists(), "nothing is begun"


@pytest.mark.parametrize(("content", "says"), [
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git lfs\n.*git lfs pull"), (b"", "cut short"),
    (b"PAR1", "cannot open the parquet files of test"), (None, "cut short")])
def test_a_damaged_file_is_named(tmp_path, root, datasets, content, says):
    source = write(tmp_path / "source", corpus(), datasets)
    file = source / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    with pytest.raises(Mistake, match=says):
        hf.convert(source, root, SPLIT)


def test_a_file_damaged_in_its_middle_ends_it_and_goes_on_when_mended(tmp_path, root, datasets):
    source = write(tmp_path / "source", corpus(), datasets)
    file = source / "train-00001-of-00002.parquet"
    good = file.read_bytes()
    file.write_bytes(good[:100] + bytes(2000) + good[2100:])
    with pytest.raises(Mistake, match="cannot read on in train: .*\n.*goes on where it stopped"):
        hf.convert(source, root, SPLIT)
    file.write_bytes(good)
    place = hf.convert(source, root, SPLIT)
    assert "train: 3 rows, 3 sentences (1 written, 2 were there)" in hf.summary(place)


# --- which files, which names -------------------------------------------------------------------------------

def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"PAR1 PAR1")
    return folder


@pytest.mark.parametrize(("name", "part"), [
    ("train.parquet", "train"), ("data/train-00000-of-00005.parquet", "train"), ("validation/0000.parquet", "val"),
    ("partial-train/0000.parquet", "train"), ("dev-00000.parquet", "val"), ("Val_1.parquet", "val"),
    ("valid.parquet", "val"), ("phoenix.test.parquet", "test"), ("tests-are-here/train1.parquet", "train")])
def test_sets_of_files(tmp_path, name, part):
    files(tmp_path, name, "training.parquet", "latest.parquet", "README.md", ".cache/test.parquet")
    assert hf.parquet_files(tmp_path) == {part: [tmp_path / name]}


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    names = [f"train-{i:05d}-of-00012.parquet" for i in range(12)]
    assert [path.name for path in hf.parquet_files(files(tmp_path, *names))["train"]] == names


def test_several_configurations_are_not_mixed(tmp_path):
    files(tmp_path, "multisigner/train/0.parquet", "multisigner/test/0.parquet", "pre-training/train/0.parquet")
    with pytest.raises(Mistake, match="several data sets .* parquet files in multisigner, pre-training"):
        hf.parquet_files(tmp_path)
    assert hf.parquet_files(tmp_path / "multisigner").keys() == {"train", "test"}


def test_a_folder_without_parquet_files_says_what_to_do(tmp_path):
    with pytest.raises(Mistake, match=r"no \*\.parquet of train.*\n.*refs/convert/parquet"):
        hf.parquet_files(tmp_path)


def test_folders_of_any_name(tmp_path, root, datasets):
    source = write(tmp_path / "a [b] *c", corpus(), datasets)
    assert len(ids(hf.convert(source, root, SPLIT))) == 6


# --- the hub ------------------------------------------------------------------------------------------------

def test_a_name_on_the_hub_is_streamed(tmp_path, root, datasets, monkeypatch):
    source = write(tmp_path / "source", corpus(), datasets)
    real, asked = datasets.load_dataset, []

    def load(*words, **options):
        asked.append((words, options))
        return real("parquet", data_files={"train": str(source / "train*"), "dev": str(source / "val*"),
                                           "extra": str(source / "test*")}, streaming=True)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load)
        assert run("--hf_dataset", "someone/some_set:multisigner", "-as", SPLIT) == 0
    assert asked == [(("someone/some_set", "multisigner"), {"streaming": True})]
    assert [len(load_sentences(root, SPLIT, part)) for part in paths.SETS] == [3, 1, 0]
    assert tree(hf.convert(source, tmp_path / "else", SPLIT) / "features" / "train") == \
        tree(paths.hugging_face(root, SPLIT) / "features" / "train")


@pytest.mark.parametrize("sets", [{"pretraining": ()}, {"dev": (), "validation": ()}])
def test_sets_of_the_hub_that_cannot_be_told(root, datasets, monkeypatch, sets):
    rows = datasets.Dataset.from_dict({name: ["x"] for name in hf.COLUMNS}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dict.fromkeys(sets, rows))
    with pytest.raises(Mistake, match="has no set to train or test on|has two sets for val"):
        hf.convert("someone/some_set", root, SPLIT)


@pytest.mark.parametrize("error", [FileNotFoundError("no such set"), RuntimeError("scripts are no longer supported"),
                                   ValueError("pick a config"), ConnectionError("offline"), Exception("anything")])
def test_what_the_hub_says_is_said(root, datasets, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(Mistake, match=f"no folder is called someone/x, .*: {type(error).__name__}: {error}"):
        hf.convert("someone/x", root, SPLIT)


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "../x", "/tmp/nowhere", "a/b:", "", "http://x/y", __file__])
def test_no_name_of_a_data_set(root, datasets, monkeypatch, source):
    monkeypatch.chdir(root.parent)  # what lies beside the project may be called so
    with pytest.raises(Mistake, match="no such data set"):
        hf.convert(source or "not here", root, SPLIT)


# --- the command --------------------------------------------------------------------------------------------

def test_without_the_package_it_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Mistake, match="need the package datasets.*\n  pip install datasets"):
        run("--hf_dataset", "someone/some_set")


@pytest.mark.parametrize(("words", "says"), [
    (["--dry_run"], "--dry_run does nothing with --hf_dataset"), (["-ds", "PHOENIX2014"], "--dataset does nothing"),
    (["--annotations", "x"], "--annotations does nothing"), (["--no_frames"], "--no_frames does nothing"),
    (["--store", "raw"], "--store does nothing"), (["-as", "a", "b"], "--hf_dataset is of one split"),
    (["-as", "demo_multihead"], "name of built-in data"), (["-as", "../x"], "SPLIT is no name of a split"),
    (["--prune_mbart", "x"], "--prune_mbart does nothing")])
def test_what_does_not_go_with_it(words, says):
    with pytest.raises(Mistake, match=says):
        preprocess.main(["--hf_dataset", "someone/x", *words])


def test_an_empty_name_is_a_mistake():
    with pytest.raises(Mistake, match="names no data set"):
        preprocess.main(["--hf_dataset", ""])


def test_as_a_program_it_ends_with_a_sentence_and_two(tmp_path):
    """No traceback; and the package's threads do not crash the interpreter at its end."""
    script = Path(preprocess.__file__)
    done = subprocess.run([sys.executable, str(script), "--hf_dataset", str(tmp_path), "--data", str(tmp_path)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_a_csv_of_the_conversion_is_one_of_phoenix(tmp_path, root, datasets):
    place = hf.convert(write(tmp_path / "source", corpus(), datasets), root, SPLIT)
    found = {part: place / "annotations" / f"{name}.corpus.csv" for part, name in hf.FOLDERS.items()}
    assert [(e.id, e.set, e.gloss) for e in read_form("csv", found)][:2] == [("a-1", "train", ("A", "B")),
                                                                            ("a-2", "train", ("B", "C"))]
