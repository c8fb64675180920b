"""Readers of PHOENIX-2014, 2014T and CSL-Daily, and the unpickler under them: real files, made and hostile ones."""

import codecs
import contextlib
import copyreg
import gzip
import io
import ntpath
import pickle
import posixpath
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slr.datasets import phoenix, unpickle
from slr.datasets.phoenix import Entry
from slr.datasets.sentences import is_inside
from slr.datasets.unpickle import load_npy, load_pickle
from slr.errors import Mistake

LETTER = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="|/\\{}@;%<>:\ufeff")
WORD = st.text(LETTER, min_size=1, max_size=8).filter(lambda word: word.split() == [word] and word not in (".", ".."))
TEXT = st.lists(WORD, max_size=5).map(" ".join)
ENTRY = st.builds(Entry, id=WORD, set=st.just("val"), signer=st.integers(0, 99).map("Signer{:02d}".format),
                  gloss=st.lists(WORD, max_size=6).map(tuple), text=TEXT,
                  folder=WORD.map("{}/1/*.png".format), num_frames=st.integers(0, 500))


@pytest.fixture(scope="module")
def real(shared) -> Path:
    return shared / "phoenix"


@pytest.fixture(scope="module")
def forms(real) -> dict[str, dict[str, list[Entry]]]:
    """Every form of both real annotations, {"phoenix2014": {"csv": entries, ...}, ...}."""
    return {name: {form: phoenix.read_form(form, files)
                   for form, files in phoenix.find_annotations(real / name).items()}
            for name in ("phoenix2014", "phoenix2014T")}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def counts(entries: list[Entry]) -> dict[str, tuple[int, int]]:
    """{set: (sentences, glosses)}."""
    return {part: (len(own), sum(len(e.gloss) for e in own)) for part in ("train", "val", "test")
            if (own := [e for e in entries if e.set == part])}


# --- the real files -----------------------------------------------------------------------------------------

def test_both_annotations_are_there_in_four_forms(forms):
    for found in forms.values():
        assert list(found) == ["csv", "npy", "slrt", "stm"]
    sizes = {name: counts(found["stm"]) for name, found in forms.items()}
    assert sizes["phoenix2014"]["val"] == (540, 5540) and sizes["phoenix2014"]["test"] == (629, 6504)
    assert sizes["phoenix2014T"]["val"] == (519, 3748) and sizes["phoenix2014T"]["test"] == (642, 4264)
    assert sizes["phoenix2014"]["train"][0] == 5671 and sizes["phoenix2014T"]["train"][0] == 7096


def test_the_one_sentence_that_npy_and_stm_lack(forms):
    found = forms["phoenix2014"]
    lost = "13April_2011_Wednesday_tagesschau_default-14"
    assert [len([e for e in found[form] if e.set == "train"]) for form in found] == [5672, 5671, 5672, 5671]
    for form in ("npy", "stm"):
        assert phoenix.differences(found["csv"], found[form])["not_there"] == [f"train/{lost}"]
    entry, = (e for e in found["slrt"] if e.id == lost)
    assert (entry.num_frames, len(entry.gloss)) == (16, 16)


def test_all_forms_agree(forms):
    for name, found in forms.items():
        for form, entries in found.items():
            same = phoenix.differences(found["csv"], entries)
            assert same["only_there"] == [], (name, form)
            cleaned = {"train": 4582} if (name, form) == ("phoenix2014", "stm") else {}
            assert same["other_glosses"] == cleaned, (name, form)
        csv = {(e.set, e.id): e for e in found["csv"]}
        frames = {(e.set, e.id): e.num_frames for e in found["slrt"]}
        for entry in found["npy"]:
            beside = csv[entry.set, entry.id]
            assert (entry.signer, entry.text) == (beside.signer, beside.text)
            assert entry.num_frames == frames[entry.set, entry.id]
        assert {e.signer for e in found["stm"]} == {f"Signer{n:02d}" for n in range(1, 10)}


def test_double_spaces_leave_no_empty_gloss(forms, real):
    info = load_npy(real / "phoenix2014/preprocessed/dev_info.npy")
    assert sum("  " in value["label"] for value in info.values() if isinstance(value, dict)) == 41
    assert all(entry.gloss and "" not in entry.gloss for found in forms.values() for e in found.values() for entry in e)


def test_translations_are_the_same_in_all_forms(forms):
    found = forms["phoenix2014T"]
    for form in ("npy", "slrt"):
        assert [e.text for e in found[form]] == [e.text for e in found["csv"]]
    assert found["csv"][0].text.endswith("donnerstag den zwölften august")


def test_gloss_numbers(real, forms):
    for name, size in (("phoenix2014", 1295), ("phoenix2014T", 1115)):
        numbers = phoenix.read_gloss_numbers(real / name / "preprocessed/gloss_dict.npy")
        assert list(numbers.values()) == list(range(1, size + 1))
        assert {gloss for e in forms[name]["csv"] for gloss in e.gloss} == set(numbers)


def test_two_glosses_with_one_number(real, tmp_path):
    file = real / "phoenix2014/slrt/gloss2ids.pkl"
    assert phoenix.shared_numbers(load_pickle(file)) == [["<mask>", "REGEN"]]
    numbers = phoenix.read_gloss_numbers(file)
    assert numbers["REGEN"] == 4 and "<mask>" not in numbers and len(set(numbers.values())) == len(numbers) == 1231
    with pytest.raises(Mistake, match="REGEN and SONNE have one number"):
        phoenix.read_gloss_numbers(write(tmp_path / "g.pkl", pickle.dumps({"REGEN": 4, "SONNE": 4})))


def test_the_empty_tensor_of_neccam(real):
    found = load_pickle(real / "phoenix2014T/neccam_slt/phoenix14t.dev")
    assert found[0]["sign"].shape == (0,) and found[0]["sign"].dtype == np.float32
    assert set(found[0]) == {"name", "signer", "gloss", "text", "sign", "num_frames", "alignments"}


def test_torch_is_not_imported(real):
    program = ("import sys; from pathlib import Path; from slr.datasets import phoenix, sentences_prepare\n"
               f"print(len(phoenix.read_slrt(Path({str(real)!r}) / 'phoenix2014T/neccam_slt/phoenix14t.dev')))\n"
               "print('heavy:', *{'torch', 'cv2', 'matplotlib'} & set(sys.modules))")
    ran = subprocess.run([sys.executable, "-c", program], cwd=Path(phoenix.__file__).parents[2], capture_output=True,
                         text=True)
    assert ran.stdout == "519\nheavy:\n", ran.stderr


# --- made files: round trips --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("made")


@given(entries=st.lists(ENTRY, max_size=5), translated=st.booleans())
def test_csv_comes_back(place, entries, translated):
    file = write(place / "dev.corpus.csv", phoenix.corpus_text(entries, translated))
    plain = [Entry(e.id, e.set, e.signer, e.gloss, e.text if translated else "", e.folder) for e in entries]
    assert phoenix.read_corpus(file, "val") == plain
    write(file, file.read_text().replace("\n", "\r\n"))
    assert phoenix.read_corpus(file, "val") == plain


@given(entries=st.lists(ENTRY, max_size=5))
def test_stm_comes_back(place, entries):
    file = write(place / "groundtruth-dev.stm", ";; a comment\n" + phoenix.stm_text(entries))
    assert phoenix.read_stm(file, "val") == [Entry(e.id, e.set, e.signer, e.gloss) for e in entries]


@given(words=st.dictionaries(st.text("abc-_1", min_size=1), st.lists(WORD, min_size=1, max_size=4), max_size=4))
def test_ctm_comes_back(place, words):
    timed = {name: [(i / 4, 0.25, word) for i, word in enumerate(spoken)] for name, spoken in words.items()}
    assert phoenix.read_ctm(write(place / "hyp.ctm", phoenix.ctm_text(timed))) == timed


@given(entries=st.lists(ENTRY, max_size=4), protocol=st.integers(0, 5))
def test_npy_and_pickles_come_back(place, entries, protocol):
    info = {i: {"fileid": e.id, "folder": e.folder, "signer": e.signer, "label": "  ".join(e.gloss),
                "num_frames": e.num_frames, "original_info": f"{e.id}|x|-1|-1|{e.signer}|y|{e.text}"}
            for i, e in enumerate(entries)}
    np.save(place / "dev_info.npy", {"prefix": "/elsewhere", **info}, allow_pickle=True)
    assert phoenix.read_info(place / "dev_info.npy", "val") == entries
    rows = [{"name": f"dev/{e.id}", "signer": e.signer, "gloss": list(e.gloss) if i % 2 else " ".join(e.gloss),
             "text": f"{e.text} .", "folder": e.folder, "num_frames": e.num_frames} for i, e in enumerate(entries)]
    for packed in (gzip.compress, bytes):
        file = write(place / "phoenix14t.dev", packed(pickle.dumps(rows, protocol)))
        assert phoenix.read_slrt(file, "val") == entries


def test_csl_daily_in_its_own_form(tmp_path):
    write(tmp_path / "video_map.txt", "index|name|length|gloss|char|word|postag\n"
          "0|S000000_P0004_T00|52|你们 好|你 们 好 ！|你们 好 ！|r a w\n1|S000001_P0000_T00|40|我 是|我 是|我 是|r v\n"
          "2|S005870_P0006_T00|40|谁|谁|谁|r\n")
    write(tmp_path / "split_1.txt", "name|split\nS000000_P0004_T00|train\nS000001_P0000_T00|dev\n")
    forms = phoenix.find_annotations(tmp_path)
    one, two, three = phoenix.read_form("map", forms["map"])
    assert one == Entry("S000000_P0004_T00", "train", "P0004", ("你们", "好"), "你们好！")
    assert (two.set, three.set) == ("val", "")
    write(tmp_path / "split_1.txt", "name|split\nS000000_P0004_T00|elsewhere\n")
    with pytest.raises(Mistake, match="line 2"):
        phoenix.read_form("map", forms["map"])


def test_csl_daily_pickle_and_csv(tmp_path):
    rows = [{"name": "S000196_P0004_T00", "gloss": "你们 好", "text": "你们好。", "num_frames": 52}]
    file = write(tmp_path / "csl-daily.train", gzip.compress(pickle.dumps(rows)))
    wanted = Entry("S000196_P0004_T00", "train", "P0004", ("你们", "好"), "你们好。", "S000196_P0004_T00", 52)
    assert phoenix.read_form("slrt", phoenix.find_annotations(tmp_path)["slrt"]) == [wanted]
    file.unlink()
    write(tmp_path / "CSL-Daily.train.corpus.csv", "name|video|start|end|speaker|orth|translation\n"
          "S000196_P0004_T00|S000196_P0004_T00/*.jpg|-1|-1|P0004|你们 好|你们好。\n")
    entry, = phoenix.read_form("csv", phoenix.find_annotations(tmp_path)["csv"])
    assert (entry.id, entry.signer, entry.gloss, entry.text) == (wanted.id, "P0004", wanted.gloss, wanted.text)


def test_feature_pickles(tmp_path):
    torch = pytest.importorskip("torch")
    batch = torch.randn(2, 14, 832)
    rows = [{"name": f"train/{name}", "gloss": "A", "text": "a .", "num_frames": 53, "sign": batch[i]}
            for i, name in enumerate("ab")]
    file = write(tmp_path / "train.pkl", gzip.compress(pickle.dumps(rows)))
    found = phoenix.read_features(file)
    assert list(found) == ["a", "b"] and all(type(f) is np.ndarray and f.dtype == np.float32 for f in found.values())
    assert np.array_equal(found["b"], batch[1].numpy())
    half = [{**rows[0], "sign": batch[0].half()}, {**rows[1], "sign": batch[1].bfloat16()}]
    found = phoenix.read_features(write(file, gzip.compress(pickle.dumps(half))))
    assert np.array_equal(found["a"], batch[0].half().float().numpy())
    assert np.array_equal(found["b"], batch[1].bfloat16().float().numpy())
    for wrong in ([rows[0], rows[0]], [rows[0], {**rows[1], "sign": torch.randn(14, 512)}],
                  [{**rows[0], "sign": torch.randn(832)}], [{"name": "a"}], {"name": "a"}):
        with pytest.raises(Mistake, match="no annotation of sentences"):
            phoenix.read_features(write(file, gzip.compress(pickle.dumps(wrong))))
    with pytest.raises(Mistake, match="more than 1000 bytes"):
        phoenix.read_features(write(file, gzip.compress(pickle.dumps(rows))), limit=1000)


def test_keypoint_pickles(tmp_path):
    points = np.random.default_rng(0).random((5, 79, 3)).astype(np.float32)
    rows = {"fullFrame-210x260px/train/a": {"keypoints": points},
            "fullFrame-210x260px/train/b_default-0/1/b": {"keypoints": points.astype(np.float64)}}
    found = phoenix.read_keypoints(write(tmp_path / "k.pkl", pickle.dumps(rows)))
    assert list(found) == ["a", "b_default-0"] and np.array_equal(found["a"][0], points)
    assert found["b_default-0"][0].dtype == np.float32 and found["a"][1] == (210, 260)
    assert phoenix.read_keypoints(write(tmp_path / "k.pkl", pickle.dumps({"a": rows.popitem()[1]})))["a"][1] is None
    twice = {f"{folder}/a": {"keypoints": points} for folder in ("train", "dev")}
    for wrong in ([1], twice, {"a": points}, {"a": {"keypoints": points[0]}}, {"../a": {"keypoints": points}},
                  {3: {"keypoints": points}}):
        with pytest.raises(Mistake, match="no annotation of sentences"):
            phoenix.read_keypoints(write(tmp_path / "k.pkl", pickle.dumps(wrong)))


# --- wrong files --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, text, said", [
    ("dev.corpus.csv", "id|folder|signer\n", "without a name or glosses"),
    ("dev.corpus.csv", "", "without a name or glosses"),
    ("dev.corpus.csv", "id|folder|signer|annotation\na|b|c\n", "line 2 has 3 fields instead of 4"),
    ("dev.corpus.csv", "id|folder|signer|annotation\n\na|b|c|d|e\n", "line 3 has 5 fields instead of 4"),
    ("dev.corpus.csv", "id|folder|signer|annotation\n../a|b|c|d\n", "no path below a folder"),
    ("dev.corpus.csv", "id|folder|signer|annotation\na|/etc/1/*.png|c|d\n", "no path below a folder"),
    ("dev.corpus.csv", "id|folder|signer|annotation\na b|b|c|d\n", "has the id 'a b'"),
    ("dev.corpus.csv", "name|video|start|end|speaker|orth|translation\na|a|3|9|S|G|t\n", "only -1, the whole"),
    ("x-groundtruth-dev.stm", "a 1 Signer01 0.0\n", "line 1: an STM line has at least five fields"),
    ("x-groundtruth-dev.stm", "a 1 Signer01 nan 1.0 G\n", "line 1: this is no number"),
    ("x-groundtruth-dev.stm", "a 1 Signer01 2.0 1.0 G\n", "line 1: the segment ends before it starts"),
    ("x-groundtruth-dev.stm", "../../a 1 Signer01 0.0 1.0 G\n", "no path below a folder"),
    ("x-groundtruth-dev.stm", ";; nothing\n", "has no entry"),
])
def test_wrong_text_is_named(tmp_path, name, text, said):
    file = write(tmp_path / name, text)
    with pytest.raises(Mistake, match=said) as caught:
        phoenix.read_form(phoenix.form_of(file)[0], {"val": file})
    assert name in str(caught.value)


def test_text_that_is_none(tmp_path):
    with pytest.raises(Mistake, match="no UTF-8"):
        phoenix.read_corpus(write(tmp_path / "dev.corpus.csv", b"id|folder|signer|annotation\na|a|b|\xff\n"))
    with pytest.raises(Mistake, match="cannot be read"):
        phoenix.read_stm(tmp_path / "nothing.stm")
    with pytest.raises(Mistake, match="cannot read"):
        phoenix.read_corpus(tmp_path / "nothing.csv")
    for name, gloss in (("a|b", "C"), ("a", "C\nD")):
        with pytest.raises(ValueError, match="cannot stand"):
            phoenix.corpus_text([Entry(name, gloss=(gloss,))])
    for entry in (Entry("a b"), Entry("a", gloss=("<x>",)), Entry("a", gloss=("<A><B>", "C")), Entry("a", gloss=("",))):
        with pytest.raises(ValueError):
            phoenix.stm_text([entry])


def test_other_spaces_part_glosses_too(tmp_path):
    file = write(tmp_path / "a.stm", "a 1 Signer01 0.0 1.0 HEUTE\u00a0NORD\n")
    assert [entry.gloss for entry in phoenix.read_stm(file)] == [("HEUTE", "NORD")]


def test_labels_of_sclite_are_no_glosses(tmp_path):
    file = write(tmp_path / "a.stm", "a 1 Signer01 0.0 1.0 <O,M> A <B> C\nb 1 signer2 0 1\n")
    assert [(e.signer, e.gloss) for e in phoenix.read_stm(file)] == [("Signer01", ("A", "<B>", "C")), ("Signer02", ())]


@pytest.mark.parametrize("entries, said", [
    ([1], "holds list"), ({0: {"fileid": "a"}}, "has no label"), ({0: "a"}, "is str, no entry"),
    ({1: {"fileid": "a", "label": "A"}}, "not numbered"), ({"other": 1}, "not numbered"),
    ({0: {"fileid": "../a", "label": "A"}}, "no path below"),
    ({0: {"fileid": "a", "label": 3}}, "glosses that are int"),
    ({0: {"fileid": "a", "label": "A", "folder": "/etc"}}, "no path below"),
    ({0: {"fileid": "a", "label": "A", "num_frames": -1}}, "'-1' frames"),
    ({0: {"fileid": ["a"], "label": "A"}}, "no path below"),
])
def test_wrong_npy_is_named(tmp_path, entries, said):
    np.save(tmp_path / "dev_info.npy", _object(entries), allow_pickle=True)
    with pytest.raises(Mistake, match=said):
        phoenix.read_info(tmp_path / "dev_info.npy", "val")


def _object(value: object) -> np.ndarray:
    array = np.empty((), object)
    array[()] = value
    return array


def test_which_files_count(tmp_path):
    with pytest.raises(Mistake, match="no annotation"):
        phoenix.find_annotations(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.corpus.csv", "id|folder|signer|annotation\na|a|b|c\n")
        write(tmp_path / folder / "train.SI5.corpus.csv", "")
    with pytest.raises(Mistake, match="two annotations of the same csv form"):
        phoenix.find_annotations(tmp_path)
    write(tmp_path / "a" / "dev_info.npy", "")
    assert list(phoenix.find_annotations(tmp_path / "a")) == ["csv", "npy"]
    assert phoenix.find_annotations(tmp_path / "a" / "train.corpus.csv") == {
        "csv": {"train": tmp_path / "a" / "train.corpus.csv"}}


@given(st.text(alphabet=st.sampled_from("ab./\\:C\0 ~%"), max_size=12))
def test_no_path_leads_out(name):
    if is_inside(name):
        for path in (posixpath, ntpath):
            whole = path.normpath(path.join(path.sep + "root", name))
            assert whole.startswith(path.sep + "root" + path.sep), name
        assert "\0" not in name
    else:
        for key in ("id", "folder"):
            row = {"id": "a", "folder": "a", key: name}
            if "\n" not in name and name.strip():
                with pytest.raises(Mistake):
                    phoenix._corpus_row([row["id"], row["folder"], "A"], 3, {"id": 0, "folder": 1, "gloss": 2}, "val",
                                        Path("x.csv"), "line 2", [])


# --- the unpickler ------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    | st.lists(inner, max_size=4).map(tuple) | st.sets(st.integers() | st.text(max_size=2), max_size=3), max_leaves=12)


def machine(data: bytes) -> object:
    return unpickle._Machine.load(io.BytesIO(data))


@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values_come_back(value, protocol):
    assert machine(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_numbers_come_back(protocol):
    values = [np.arange(12, dtype=">f4").reshape(3, 4), np.asfortranarray(np.arange(12.0).reshape(3, 4)),
              np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("ä"), np.array(["a", "bcd"]),
              np.zeros((0, 3), np.int16),
              np.array([True, False]), np.array([1, "b", None], dtype=object), OrderedDict(a=1), np.array(b"ab")]
    found = machine(pickle.dumps(values + values, protocol))
    for value, again in zip(pickle.loads(pickle.dumps(values + values, protocol)), found, strict=True):
        if isinstance(value, np.ndarray):
            assert again.dtype == value.dtype and again.shape == value.shape and np.array_equal(again, value)
        else:
            assert again == value
    assert type(found[2]) is float and type(found[3]) is int and type(found[10]) is dict


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_come_back_as_arrays(protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    values = [base, base.t()[1:3], base[::2, 1::3], torch.tensor(3.5), torch.zeros(0, 3), torch.arange(5),
              torch.tensor([True, False]), base.double(), base.half(), base.to(torch.uint8), base.requires_grad_()]
    for value, again in zip(values, machine(pickle.dumps(values, protocol)), strict=True):
        assert type(again) is np.ndarray and np.array_equal(again, value.detach().numpy())
        assert again.dtype == value.detach().numpy().dtype
    assert np.array_equal(machine(pickle.dumps(base.bfloat16(), protocol)), base.detach().numpy())


@given(value=PLAIN, data=st.data())
def test_damaged_pickles_end_in_a_mistake(place, value, data):
    whole = bytearray(pickle.dumps([value, np.arange(3.0), {"a": np.float32(1)}], data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for hostile in (bytes(whole), bytes(whole[:cut])):
        try:
            load_pickle(write(place / "damaged.pkl", hostile))
        except Mistake as error:
            assert "damaged.pkl is not read" in str(error)


PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, np.ndarray,
         np.generic)


@given(st.binary(max_size=60))
def test_noise_is_a_mistake_or_plain_data(place, noise):
    heads = ((load_pickle, b""), (load_pickle, b"\x1f\x8b"), (load_npy, b""), (load_npy, b"\x93NUMPY\x01\x00"))
    for read, head in heads:
        with contextlib.suppress(Mistake):  # or it happens to be data, and then it is plain
            assert isinstance(read(write(place / "noise", head + noise)), PLAIN)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object):
        self.whole = function, arguments

    def __reduce__(self) -> tuple:
        return self.whole


class Thing:
    pass


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("value, named", [
    (Call(print, "you were had"), "builtins.print"), (Call(eval, "1 + 1"), "builtins.eval"),
    (Call(getattr, {}, "clear"), "builtins.getattr"), (Call(subprocess.Popen, ["true"]), ".Popen"),
    (Call(codecs.lookup, "utf8"), "codecs.lookup"),
    (Call(copyreg._reconstructor, Thing, object, None), "reconstructor"),
    (Counter("aa"), "collections.Counter"), (Path("a"), "pathlib"), (Thing, "Thing"), (Thing(), ""),
    (np.random.default_rng, "default_rng"), (np.dtype([("a", "O"), ("b", "i4")]), "array of"),
    (np.zeros(2, [("a", "O"), ("b", "i4")]), "array of"), (np.datetime64("2020-01-01"), "array of"),
])
def test_whatever_is_no_data_is_refused_by_name(tmp_path, capsys, value, named, protocol):
    with pytest.raises(Mistake, match="is not read") as caught:
        load_pickle(write(tmp_path / "hostile.train", gzip.compress(pickle.dumps([value], protocol))))
    assert named in caught.value.found and "code" in caught.value.do
    np.save(tmp_path / "hostile_info.npy", _object({0: value}), allow_pickle=True)
    with pytest.raises(Mistake, match="is not read") as caught:
        phoenix.read_info(tmp_path / "hostile_info.npy")
    assert named in caught.value.found and capsys.readouterr().out == ""


def test_a_system_call_in_an_npy_never_runs(tmp_path):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|O", "fortran_order": False, "shape": ()})
    program = b"cposix\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
    with pytest.raises(Mistake, match="it names posix.system"):
        load_npy(write(tmp_path / "dev_info.npy", data.getvalue() + program))
    assert not (tmp_path / "ran").exists()


def test_a_value_may_hold_itself():
    found = machine(b"\x80\x02}q\x00(K\x01h\x00u.")
    assert isinstance(found, dict) and found[1] is found


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
FLOAT = b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"


@pytest.mark.parametrize("program, said", [
    (b"P1\n.", "PERSID"), (b"I1\nQ.", "BINPERSID"), (b"\x82\x01.", "EXT1"), (b"(ios\nsystem\n.", "INST"),
    (b"(cos\nsystem\no.", "it names os.system"), (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"), (b"2.", "DUP"),
    (b"\x80\x05\x97.", "NEXT_BUFFER"), (b"}}b.", "a state for a dict"), (b"]}b.", "a state for a list"),
    (b"]I1\nI2\ns.", "items for a list"), (b"I1\n(I2\ne.", "items for a int"), (b"](I1\n\x90.", "items for a list"),
    (b"cnumpy\nndarray\n)R.", "a call of a object"), (b"cnumpy\ndtype\nI1\nR.", "a call of a _Callable"),
    (b"cnumpy\ndtype\n}b.", "a state for a _Callable"),
    (b"cnumpy\ndtype\n(S'O8'\ntR(I3\nS'|'\nN(S'a'\nt}I8\nI8\nI0\ntb.", "an array of records"),
    (b"cnumpy\ndtype\n(S'V8'\ntR.", "an array of 'V8'"),
    (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'abcdefgh'\ntR.", "an array of objects"),
    (ARRAY + b"(I1\n(I3\nt" + FLOAT + b"I00\nS'abcdefgh'\ntb.", "8 bytes for an array"),
    (ARRAY + b"(I1\n(I-3\nt" + FLOAT + b"I00\nS'abcdefgh'\ntb.", "without a shape"),
    (ARRAY + b"(I1\n(I9\ntcnumpy\ndtype\n(S'O8'\ntRI00\n(I1\nltb.", "9 objects without them"),
    (ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\nS'abcdefgh'\ntb.", "1 objects without them"),
    (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "else than latin-1"),
    (b"ctorch\nFloatStorage\n.", "it names torch.FloatStorage"),
    (b"ctorch.storage\n_load_from_bytes\n(S'abc'\ntR.", "damaged"),
    (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"), (b"h\x09.", "damaged"), (b"\x85.", "damaged"), (b"(I1\n", "damaged"),
    (b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.", "damaged"),
])
def test_hostile_instructions(tmp_path, program, said):
    with pytest.raises(Mistake) as caught:
        load_pickle(write(tmp_path / "a.pkl", program))
    assert said in caught.value.found


def test_a_key_that_takes_for_ever_to_hash(tmp_path):
    """A tuple of a tuple of … each twice: 2 ** 100 steps."""
    laughs = b"}(I1\n" + b"0" + b")" + b"".join(b"p%d\ng%d\n\x86" % (i, i) for i in range(100)) + b"I1\nu."
    with pytest.raises(Mistake, match="a key that is a tuple"):
        load_pickle(write(tmp_path / "a.pkl", laughs))


def test_a_small_gzip_of_much(tmp_path):
    file = write(tmp_path / "a.train", gzip.compress(pickle.dumps("a" * 3_000_000)))
    assert file.stat().st_size < 10_000
    with pytest.raises(Mistake, match="more than 1000000 bytes"):
        load_pickle(file, limit=1_000_000)
    with pytest.raises(Mistake, match="is not read"):
        load_pickle(write(file, file.read_bytes()[:-100]))


def storage(count: int = 4, kind: bytes = b"FloatStorage", name: bytes = b"storage") -> bytes:
    """What torch.save writes of a storage, with a count that may lie."""
    head = pickle.dumps(unpickle.TORCH_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    object_ = b"\x80\x02(U\x07" + name + b"ctorch\n" + kind + b"\nU\x011U\x03cpuK\x04NtQ."
    return head + object_ + pickle.dumps(["1"], 2) + struct.pack("<q", count) + np.arange(4, dtype="<f4").tobytes()


def tensor(data: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    inner = pickle.dumps(data, 3)[2:-1]
    arguments = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride, False))
    return (b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n" + inner + b"\x85R"
            + arguments + b"ccollections\nOrderedDict\n)RtR.")


def test_tensors_stay_inside_their_numbers(tmp_path):
    assert machine(tensor(storage(), 1, (3,), (1,))).tolist() == [1, 2, 3]
    one = 0, (1,), (1,)
    views = ((2, (3,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (10**9, 10**9), (0, 0)), (0, (4,), (-1,)),
             (0, (2,), (1, 1)))
    lies = (storage(5), storage(-1), storage(kind=b"UntypedStorage"), storage(name=b"another"), b"PK\x03\x04")
    for program in [tensor(storage(), *view) for view in views] + [tensor(lie, *one) for lie in lies]:
        with pytest.raises(Mistake, match="is not read"):
            load_pickle(write(tmp_path / "a.pkl", program))


def test_npy_that_is_none(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert load_npy(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    np.save(tmp_path / "b.npy", np.zeros(2, [("a", "O")]), allow_pickle=True)
    for file in (tmp_path / "b.npy", write(tmp_path / "c.npy", "no"), tmp_path / "nothing.npy",
                 write(tmp_path / "d.npy", (tmp_path / "a.npy").read_bytes()[:-1])):
        with pytest.raises(Mistake, match="is not read"):
            load_npy(file)
