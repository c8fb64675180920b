"""Readers of HearAI's files, the frames that are looked at, and who trains: real files, made and hostile ones."""

import itertools
import json
import re
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slr.datasets import hearai
from slr.datasets.hearai import Row, Sample, load_landmarks, read_annotations, read_samples, sample_indices, split
from slr.errors import Mistake
from slr.hamnosys import COLUMNS, DISTANCE, GLOSS, HEADS, PARTS
from slr.runtime import generator

CLASSES = {**HEADS, DISTANCE: 10}
SPOKEN = ["Symmetry operator", "Dom hand - Handshape - base form", "Dom hand - Handhape - Thumb position",
          "Dom hand - Handshape - Bending", "Dom hand - Handposition - Ext finger direction",
          "Dom hand - Handposition - Palm orientation", "Dom hand - Handlocation - Frontal plane l/r",
          "Dom hand - Handlocation - Frontal plane t/b", "Dom hand - Handlocation - Distance from the body"]
NAME = st.text(st.sampled_from("ab19-.ü"), min_size=1, max_size=4).filter(lambda name: name not in (".", "..", "-1"))
THREE = (0.6, 0.2, 0.2)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "test_hamnosys.txt"


def save_landmarks(path: Path, frames: int, parts: tuple[str, ...] = tuple(PARTS)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{part: np.zeros((frames, 8 * PARTS[part])) for part in parts})


def save_pictures(folder: Path, name: str, numbers: range, suffix: str = ".jpg") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / name / f"{name}_{number}{suffix}"), np.full((6, 8, 3), 9 * number, np.uint8))


# --- the real files -----------------------------------------------------------------------------------------

def test_real_annotation_with_a_header(shared):
    rows, notices = read_annotations(shared / "hearai_sample_input" / "test_hamnosys.txt", CLASSES)
    assert rows == [Row("10", 7, 17, dict(zip(HEADS, (0, 5, 1, 0, 0, 6, 0, 4), strict=True)))]
    assert len(notices) == 1 and DISTANCE in notices[0]


def test_real_pictures(shared):
    found = read_samples(shared / "hearai_sanity", "test_hamnosys.txt", HEADS)
    assert [sample.id for sample in found.samples] == [f"hearai_sanity/{n}" for n in (1, 2, 3)]
    assert not found.left_out and not found.notices
    for sample in found.samples:
        assert (sample.start, sample.stop, sample.frames, sample.gloss) == (0, 8, 8, 8)
        assert list(sample.labels.values()) == [0, 1, 1, 1, 1, 1, 1, 1] and list(sample.labels) == list(HEADS)
        assert (sample.fps, sample.signer, sample.landmarks) == (None, None, None)
    gloss = read_samples(shared / "hearai_sanity", "test_gloss.txt", {GLOSS: 2400})
    assert [sample.labels for sample in gloss.samples] == [{GLOSS: 8}] * 3 and gloss.samples[0].gloss == 8
    both = read_samples(shared / "hearai_sanity", "test_hamnosys.txt", {"hand_location_x": 5, GLOSS: 2400})
    assert both.samples[0].labels == {"hand_location_x": 1, GLOSS: 8} and not both.notices


def test_real_landmarks(shared):
    folder = shared / "hearai_sample_input"
    found = read_samples(folder, "test_hamnosys.txt", HEADS, needs_frames=False, needs_landmarks=True)
    (sample,) = found.samples
    assert (sample.start, sample.stop, sample.fps, sample.frames) == (7, 18, 24.0, 0)
    assert sample.landmarks == folder / "10" / "10.npz" and hearai.landmark_frames(sample.landmarks) == 153
    left = read_samples(folder, "test_hamnosys.txt", HEADS).left_out
    assert left == {"hearai_sample_input/10": "11 of its 11 pictures are missing, the first is 10_7.jpg"}
    values = load_landmarks(sample.landmarks, ("left_hand", "right_hand", "face"), 7, 17)
    assert values.shape == (11, 168 + 168 + 1024) and values.dtype == np.float32
    with np.load(sample.landmarks) as theirs:
        assert np.array_equal(values[:, :168], theirs["left_hand"][7:18].astype(np.float32))
        assert np.array_equal(values[:, 336:], theirs["face"][7:18].astype(np.float32))
        assert np.isnan(theirs["right_hand"]).any()
    assert np.array_equal(values[:, 168:336].reshape(11, 21, 8), np.tile([0, 0, 0, 1, 1, 0, 0, 0], (11, 21, 1)))


# --- annotations --------------------------------------------------------------------------------------------

@st.composite
def annotated(draw) -> tuple[list[str], list[Row], str | None]:
    """Columns in any order (some of COLUMNS), rows of them, a separator."""
    heads = draw(st.permutations(COLUMNS).flatmap(lambda p: st.integers(1, 9).map(lambda n: list(p[:n]))))
    frames, rows = st.integers(0, 99), []
    places = draw(st.lists(st.tuples(NAME, frames, frames), min_size=1, max_size=5, unique=True))
    for name, start, more in places:
        labels = {head: draw(st.none() | st.integers(0, CLASSES[head] - 1)) for head in heads}
        rows.append(Row(name, start, start + more, {h: label for h, label in labels.items() if label is not None}))
    return heads, rows, draw(st.sampled_from([None, " ", "\t", ",", ";", "|", ";;", " # "]))


def text_of(columns: list[str], rows: list[Row], separator: str | None, called: dict[str, str]) -> str:
    lines = [[f'"{called[column]}"' for column in columns]]
    for row in rows:
        own = {"name": row.name, "start": str(row.start), "end": str(row.end)}
        missing = "None" if separator is None else ""
        lines.append([own.get(column, str(row.labels.get(column, missing))) for column in columns])
    return "\n".join(("  " if separator is None else separator).join(line) for line in lines)


@given(annotated(), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_rows_come_back_whatever_the_order_of_columns(given_, ours, mixed, random):
    heads, rows, separator = given_
    columns = ["name", "start", "end", *heads]
    if mixed:
        random.shuffle(columns)
    called = {name: name for name in columns} | ({} if ours else dict(zip(COLUMNS, SPOKEN, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.txt", text_of(columns, rows, separator, called))
        found, notices = read_annotations(file, {head: CLASSES[head] for head in heads}, separator)
        assert found == rows and not notices
        wanted = heads[:1]
        found, _ = read_annotations(file, {head: CLASSES[head] for head in wanted}, separator)
        assert found == [Row(r.name, r.start, r.end, {h: x for h, x in r.labels.items() if h in wanted}) for r in rows]


def test_without_a_header_places_decide(file):
    write(file, "a 0 7 0 1 1 1 1 1 1 1 9\nb 0 7 nan -1 None NaN 2.0 -1.0 1 1 0\n")
    rows, notices = read_annotations(file, {"hand_location_y": 37, DISTANCE: 10, "symmetry_operator": 9,
                                            "hand_position_finger_direction": 18})
    assert rows[0].labels == {"hand_location_y": 1, DISTANCE: 9, "symmetry_operator": 0,
                              "hand_position_finger_direction": 1} and not notices
    assert rows[1].labels == {"hand_location_y": 1, DISTANCE: 0, "hand_position_finger_direction": 2}
    write(file, "\ufeffa 0 7 3 1\r\n\r\nb 1 1 2 0\r\n")
    rows, _ = read_annotations(file, {"other": 4, "symmetry_operator": 9})
    assert [row.labels for row in rows] == [{"other": 3, "symmetry_operator": 1}, {"other": 2, "symmetry_operator": 0}]


def test_a_header_that_is_too_short_is_told(file):
    write(file, f'name start end "{SPOKEN[0]}" "{SPOKEN[2]}"\na 0 7 8 11 3 5 17 7 4 36\n')
    rows, notices = read_annotations(file, HEADS)
    assert rows[0].labels == dict(zip(HEADS, (8, 11, 3, 5, 17, 7, 4, 36), strict=True))
    assert len(notices) == 1 and "names 5 columns, its rows have 11" in notices[0]


def test_unknown_and_absent_columns_are_told(file):
    write(file, 'name start end other "Symmetry operator"\na 0 7 words 8\n')
    rows, notices = read_annotations(file, HEADS)
    assert rows == [Row("a", 0, 7, {"symmetry_operator": 8})]
    assert [("other" in notice, "hand_location_x" in notice) for notice in notices] == [(True, False), (False, True)]
    with pytest.raises(Mistake, match="labels none of the heads"):
        read_annotations(file, {GLOSS: 9})


@pytest.mark.parametrize(("row", "found"), [
    ("b 0 7 0 1 1 1 1 1 1", "it has 10 fields instead of 11"), ("b 0 x 0 1 1 1 1 1 1 1", "no numbers"),
    ("b -1 3 0 1 1 1 1 1 1 1", "no numbers"), ("b 5 4 0 1 1 1 1 1 1 1", "ends at frame 4, before it starts at 5"),
    ("b 0 7 9 1 1 1 1 1 1 1", "symmetry_operator is 9, and has the classes 0 to 8"),
    ("b 0 7 0 1 1 1 1 1 1 -2", "hand_location_y is '-2', no number"), ("b 0 7 0 1.5 1 1 1 1 1 1", "no number"),
    ("a 0 7 0 1 1 1 1 1 1 1", "stands in line 1 already"), ("../b 0 7 0 1 1 1 1 1 1 1", "no name"),
    ("b 0 7 0 1 1 1 1 1 1 ٣", "no number"), ("b 0 9999999999 0 1 1 1 1 1 1 1", "no numbers"),
])
def test_a_bad_row_is_told_with_its_line(file, row, found):
    write(file, f"a 0 7 0 1 1 1 1 1 1 1\n\n{row}\n")
    with pytest.raises(Mistake, match=rf"test_hamnosys.txt, line 3 cannot be used: .*{re.escape(found)}"):
        read_annotations(file, HEADS)


@pytest.mark.parametrize("text", ["", "\n \n", "name start end symmetry_operator\n", b"a 0 7 \xff", "a b\n",
                                  "name start end gloss gloss\na 0 1 2 3\n", "name start end gloss\na 0 1\n"])
def test_files_without_a_row(file, text):
    with pytest.raises(Mistake, match=re.escape(file.name)):
        read_annotations(write(file, text), {GLOSS: 9})
    with pytest.raises(Mistake, match="separator"):
        read_annotations(file, HEADS, '"')
    with pytest.raises(Mistake, match="cannot read"):
        read_annotations(file.with_name("other"), HEADS)


TOKENS = st.lists(st.sampled_from(["a", "0", "7", "-1", '"', "x y", "9" * 12, "name", "start", "end", "gloss", " ",
                                   "\t", ",", "\0", "../c", "\n", "\n", "1.0", "é", "\x85", "\r"]), max_size=30)


@given(TOKENS.map("".join) | TOKENS.map(" ".join) | st.binary(max_size=40), st.sampled_from([None, ",", "\t", " "]))
def test_any_text_is_read_or_refused(text, separator):
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.txt", text)
        for reader in (lambda: read_annotations(file, {GLOSS: 9}, separator), lambda: hearai.read_signers(file),
                       lambda: hearai.read_dictionary(file), lambda: hearai.read_symbols(file),
                       lambda: hearai.read_properties(file)):
            try:
                reader()
            except Mistake as error:
                assert "a.txt" in str(error)


# --- what belongs to annotations ----------------------------------------------------------------------------

def test_signers(tmp_path):
    assert hearai.read_signers(write(tmp_path / "a.txt", "1 Ann\n2 \"Bob B\"\n\n1 Ann\n")) == {"1": "Ann", "2": "Bob B"}
    for text in ("1 Ann\n1 Bob\n", "1 Ann\n2\n", "1 Ann\n2 Bob B\n"):
        with pytest.raises(Mistake, match="line 2"):
            hearai.read_signers(write(tmp_path / "a.txt", text))


def test_symbols_and_dictionary(tmp_path):
    (tmp_path / "train").mkdir()
    file = write(tmp_path / "dictionary.csv", 'gloss,name,symmetry_operator,other\n3,"house, old",8,\n0,TREE,-1,400\n')
    assert hearai.find_beside(tmp_path / "train", file.name) == file == hearai.find_beside(tmp_path, file.name)
    assert hearai.find_beside(tmp_path / "train", "symbols.json") is None
    assert hearai.read_dictionary(file) == {3: ("house, old", {"symmetry_operator": 8}), 0: ("TREE", {"other": 400})}
    with pytest.raises(Mistake, match="line 3 .*other is 400"):
        hearai.read_dictionary(file, {**HEADS, "other": 4})
    for row in ("1,a,9", "1,a", "x,a,1", "1,,1", "0,a,1", '1,"a,1'):
        write(file, f"gloss,name,symmetry_operator\n0,a,1\n{row}\n")
        with pytest.raises(Mistake, match=r"dictionary\.csv, line [34] "):
            hearai.read_dictionary(file)
    symbols = {"symmetry_operator": ["none", "both"]}
    assert hearai.read_symbols(write(tmp_path / "symbols.json", json.dumps(symbols))) == symbols
    with pytest.raises(Mistake, match="names no symbols"):
        hearai.read_symbols(write(tmp_path / "symbols.json", '{"a": [1]}'))


def test_properties(tmp_path):
    file = write(tmp_path / "a.json", '{"Frames": 153, "FPS": 24}')
    assert hearai.read_properties(file) == {"Frames": 153, "FPS": 24}
    for text in ('{"FPS": 0}', '{"FPS": "24"}', '{"FPS": NaN}', '{"FPS": true}', "[]", "{", "[" * 100_000):
        with pytest.raises(Mistake, match=r"a\.json"):
            hearai.read_properties(write(file, text))


# --- samples ------------------------------------------------------------------------------------------------

def test_what_a_data_path_holds(tmp_path):
    write(tmp_path / "test_gloss.txt", "a 0 1 5\na 2 3 6\nb 0 3 7\n")
    write(tmp_path / "test_hamnosys.txt", "".join(f"{row} 0 1 1 1 1 1 1 1\n" for row in
                                                  ("a 0 1", "a 2 3", "a 3 6", "b 0 3", "c 0 0", "d 0 2")))
    write(tmp_path / "signers.txt", "a Ann\nb Bob\n")
    save_pictures(tmp_path, "a", range(5))
    save_pictures(tmp_path, "b", range(4), ".png")
    save_pictures(tmp_path, "d", range(1, 3))
    write(tmp_path / "a" / "a_properties.json", '{"FPS": 25}')
    write(tmp_path / "b_properties.json", '{"FPS": "x"}')
    save_landmarks(tmp_path / "a" / "a.npz", 7)
    save_landmarks(tmp_path / "b.npz", 3)
    write(tmp_path / "c.npz", b"nothing")
    name = tmp_path.name
    found = read_samples(tmp_path, "test_hamnosys.txt", HEADS)
    assert [(s.id, s.start, s.stop, s.signer, s.gloss, s.fps, s.frames, s.landmarks) for s in found.samples] == [
        (f"{name}/a_0-1", 0, 2, "Ann", 5, 25, 5, tmp_path / "a" / "a.npz"),
        (f"{name}/a_2-3", 2, 4, "Ann", 6, 25, 5, tmp_path / "a" / "a.npz"),
        (f"{name}/b", 0, 4, "Bob", 7, None, 4, tmp_path / "b.npz")]
    assert found.left_out == {f"{name}/a_3-6": "2 of its 4 pictures are missing, the first is a_5.jpg",
                              f"{name}/c": "1 of its 1 pictures are missing, the first is c_0.jpg",
                              f"{name}/d": "1 of its 3 pictures are missing, the first is d_0.jpg"}
    assert len(found.notices) == 2 and "3 of 6 signs" in found.notices[0] and "b_properties" in found.notices[1]
    assert [hearai.picture(found.samples[k], 3).name for k in (0, 2)] == ["a_3.jpg", "b_3.png"]
    landmarks = read_samples(tmp_path, "test_hamnosys.txt", HEADS, needs_frames=False, needs_landmarks=True)
    assert [s.id for s in landmarks.samples] == [f"{name}/a_0-1", f"{name}/a_2-3", f"{name}/a_3-6"]
    assert landmarks.left_out[f"{name}/b"] == "it ends at frame 3, and there are landmarks of 3 frames"
    assert "cannot read the landmarks" in landmarks.left_out[f"{name}/c"]
    assert landmarks.left_out[f"{name}/d"] == "d.npz is missing"


def test_a_part_that_is_missing_is_a_reason(tmp_path):
    write(tmp_path / "test_hamnosys.txt", "a 0 1 0 1 1 1 1 1 1 1\n")
    save_landmarks(tmp_path / "a.npz", 7, parts=("pose",))
    needs = {"needs_frames": False, "needs_landmarks": True}
    assert read_samples(tmp_path, "test_hamnosys.txt", HEADS, **needs).samples
    found = read_samples(tmp_path, "test_hamnosys.txt", HEADS, **needs, parts=("pose", "face"))
    assert not found.samples and "no landmarks of the face" in found.left_out[f"{tmp_path.name}/a"]


# --- landmarks ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_landmarks_are_what_numpy_reads(tmp_path, kind, order, save):
    rng = np.random.default_rng(1)
    arrays = {part: np.array(rng.normal(size=(6, 8 * PARTS[part])), kind, order=order) for part in PARTS}
    save(tmp_path / "a.npz", **arrays)
    found = load_landmarks(tmp_path / "a.npz", ("pose", "right_hand"), 2, 4)
    wanted = np.concatenate([arrays[part][2:5] for part in ("pose", "right_hand")], 1)
    assert np.array_equal(found, wanted.astype(np.float32)) and found.dtype == np.float32
    with pytest.raises(Mistake, match="too short"):
        load_landmarks(tmp_path / "a.npz", ("pose",), 0, 6)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.sampled_from([0, 1, 2, 5, 6, 7]),
                          st.sampled_from([np.nan, np.inf, 1e300])), max_size=8))
def test_a_point_that_was_not_seen(places):
    values = np.random.default_rng(2).normal(size=(3, 21, 8))
    values[..., 3:5] = 0
    for frame, point, at, odd in places:
        values[frame, point, at] = odd
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "a.npz", left_hand=values.reshape(3, -1))
        found = load_landmarks(Path(folder) / "a.npz", ("left_hand",), 0, 2).reshape(3, 21, 8)
    hit = {place[:2] for place in places}
    for frame, point in itertools.product(range(3), range(21)):
        own = {at for f, p, at, _ in places if (f, p) == (frame, point)}
        wanted = [0 if at in own else 1 if at in (3, 4) and (frame, point) in hit else values[frame, point, at]
                  for at in range(8)]
        assert np.array_equal(found[frame, point], np.array(wanted, np.float32))


@pytest.mark.parametrize("array", [np.zeros((3, 160)), np.zeros((3, 21, 8)), np.zeros((3, 168), np.int64),
                                   np.array([{}], object), np.zeros(3), np.zeros((3, 168), np.complex128)])
def test_other_shapes_are_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", left_hand=array)
    for reader in (lambda: load_landmarks(tmp_path / "a.npz", ("left_hand",), 0, 0),
                   lambda: hearai.landmark_frames(tmp_path / "a.npz")):
        with pytest.raises(Mistake, match="left_hand in .* are no landmarks"):
            reader()
    with pytest.raises(Mistake, match="no such landmarks"):
        load_landmarks(tmp_path / "a.npz", ("foot",), 0, 0)
    np.savez(tmp_path / "a.npz", other=array)
    with pytest.raises(Mistake, match="has no landmarks"):
        hearai.landmark_frames(tmp_path / "a.npz")


@given(st.data())
def test_a_damaged_file_of_landmarks_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.npz"
        np.savez_compressed(file, left_hand=np.zeros((3, 168)))
        raw = bytearray(file.read_bytes())
        for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
            raw[at] = value
        file.write_bytes(raw[:data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
        try:
            assert load_landmarks(file, ("left_hand",), 0, 2).shape == (3, 168)
        except Mistake as error:
            assert "a.npz" in str(error)


# --- which frames -------------------------------------------------------------------------------------------

@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 20), st.none() | st.integers(0, 9))
def test_one_frame_of_every_segment(start, length, segments, seed):
    def take() -> np.ndarray:
        rng = None if seed is None else generator(seed, 0, "x")
        return sample_indices(start, start + length, segments=segments, rng=rng)

    found = take()
    assert found.dtype == np.int64 and np.array_equal(found, take())
    assert len(found) == min(segments, length) and (np.diff(found) > 0).all()
    assert start <= found[0] and found[-1] < start + length
    if length > segments:
        owners = [max(k for k in range(segments) if k * length // segments <= frame - start) for frame in found]
        assert owners == list(range(segments))
    if length > segments and seed is None:
        ends = [start + k * length // segments for k in range(segments + 1)]
        middles = [(first + stop - 1) / 2 for first, stop in itertools.pairwise(ends)]
        assert np.abs(found - middles).max() <= 0.5


def test_every_frame_of_a_segment_is_drawn():
    drawn = [sample_indices(2, 13, segments=3, rng=generator(0, k, "x")) for k in range(200)]
    assert [sorted(set(column)) for column in np.stack(drawn).T.tolist()] == [
        list(range(2, 5)), list(range(5, 9)), list(range(9, 13))]


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 20), st.floats(0.001, 3), st.floats(1, 120))
def test_frames_so_many_seconds_apart(start, length, segments, time, fps):
    found = sample_indices(start, start + length, segments=segments, time=time, fps=fps)
    frame, wanted = start, []
    while frame < start + length and len(wanted) < segments:
        wanted.append(frame)
        frame += max(1, int(fps * time))
    assert found.tolist() == wanted and found.dtype == np.int64


def test_what_cannot_be_sampled():
    with pytest.raises(Mistake, match="frame rate"):
        sample_indices(0, 9, segments=2, time=0.1)
    for start, stop, segments in ((3, 3, 1), (-1, 3, 1), (0, 3, 0)):
        with pytest.raises(ValueError, match="cannot take"):
            sample_indices(start, stop, segments=segments)


# --- who trains ---------------------------------------------------------------------------------------------

def sample(number: int, signer: str | None = None, **labels: int) -> Sample:
    return Sample(f"x/{number}", str(number), Path("x"), 0, 8, labels, signer)


SAMPLES = st.lists(st.tuples(st.sampled_from("ABCDEFG"), st.dictionaries(st.sampled_from("pq"), st.integers(0, 3))),
                   min_size=3, max_size=40).map(
    lambda rows: [sample(k, signer, **labels) for k, (signer, labels) in enumerate(rows)])
SHARES = st.sampled_from([(1, 0, 0), (0.8, 0.2, 0), (0.8, 0.1, 0.1), (0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), THREE])


@given(SAMPLES, SHARES, st.sampled_from(["ratio", "signer", "stratified"]), st.integers(0, 99),
       st.randoms(use_true_random=False))
def test_sets_are_disjoint_complete_and_the_same_for_any_order(samples, shares, by, seed, random):
    wanted = [part for part, share in zip(("train", "val", "test"), shares, strict=True) if share]
    groups = Counter(s.signer for s in samples)
    if by == "signer" and len(groups) < len(wanted):
        with pytest.raises(Mistake, match="too few"):
            split(samples, shares, by, seed)
        return
    found = split(samples, shares, by, seed)
    assert list(found) == ["train", "val", "test"]
    assert sorted(s.id for own in found.values() for s in own) == sorted(s.id for s in samples)
    assert [part for part, own in found.items() if own] == wanted
    assert found == split(random.sample(samples, len(samples)), shares, by, seed)
    for share, own in zip(shares, found.values(), strict=True):
        assert own == sorted(own, key=lambda s: s.id)
        if by == "ratio":
            assert abs(len(own) - share * len(samples)) <= 1.5
        if by == "signer":  # nobody is given to a set that has its share
            assert len(own) < share * len(samples) + max(groups.values()) + 1e-6 or not own
    if by == "signer":
        signers = [{s.signer for s in own} for own in found.values()]
        assert sum(map(len, signers)) == len(set.union(*signers))


@pytest.mark.parametrize("by", ["ratio", "stratified"])
def test_rows_of_one_name_are_in_one_set(by):
    """They may share frames."""
    samples = [replace(sample(number, y=number % 3), id=f"{number}-{start}", name=str(number), start=start)
               for number in range(30) for start in range(1 + number % 3)]
    found = split(samples, THREE, by, 3)
    names = [{row.name for row in found[part]} for part in ("train", "val", "test")]
    assert sum(map(len, names)) == 30 and all(names) and sum(map(len, found.values())) == len(samples)


def test_another_seed_is_another_split():
    samples = [sample(k, f"S{k % 9}", p=k % 3) for k in range(90)]
    for by in ("ratio", "signer", "stratified"):
        assert len({tuple(s.id for s in split(samples, THREE, by, seed)["test"]) for seed in range(5)}) >= 3
        assert split(samples, THREE, by, 1) == split(samples, THREE, by, 1)


def strays(sets: dict[str, list[Sample]], shares: tuple[float, ...]) -> float:
    """How far the sets' labels are from their shares: the sum over all labels and sets, in samples."""
    counts = [Counter(pair for s in own for pair in s.labels.items()) for own in sets.values()]
    total = sum(counts, Counter())
    return sum(abs(own[at] - share * total[at]) for own, share in zip(counts, shares, strict=True) for at in total)


def test_stratified_keeps_the_shares_of_labels():
    rng = np.random.default_rng(3)
    samples = [sample(k, p=int(p), q=int(q), r=int(r)) for k, (p, q, r) in enumerate(zip(
        rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05]), rng.choice(3, 300, p=[0.6, 0.3, 0.1]), rng.integers(2, size=300),
        strict=True))]
    found = split(samples, THREE, "stratified", 4)
    total = Counter(pair for s in samples for pair in s.labels.items())
    for share, own in zip(THREE, found.values(), strict=True):
        assert abs(len(own) - share * 300) <= 6
        counts = Counter(pair for s in own for pair in s.labels.items())
        assert all(abs(counts[pair] / total[pair] - share) <= 0.07 for pair in total if total[pair] >= 30)
    drawn = [strays(split(samples, THREE, "ratio", seed), THREE) for seed in range(20)]
    assert strays(found, THREE) < 0.5 * min(drawn)


def all_splits(samples: list[Sample]) -> list[dict[str, list[Sample]]]:
    """Every way to train on some samples and to validate on the others."""
    return [{"train": [s for s, train in zip(samples, chosen, strict=True) if train],
             "val": [s for s, train in zip(samples, chosen, strict=True) if not train], "test": []}
            for chosen in itertools.product((False, True), repeat=len(samples)) if 0 < sum(chosen) < len(samples)]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.sampled_from([0.5, 0.7, 0.9]), st.integers(0, 9))
def test_stratified_is_the_best_of_all_splits_where_there_is_one_head(labels, share, seed):
    samples, shares = [sample(k, p=label) for k, label in enumerate(labels)], (share, 1 - share, 0)
    best = min(strays(sets, shares) for sets in all_splits(samples))
    assert strays(split(samples, shares, "stratified", seed), shares) == pytest.approx(best, abs=1e-9)


def test_stratified_is_among_the_best_of_all_splits_where_there_are_two():
    samples, shares = [sample(k, p=k % 3, q=k % 2) for k in range(12)], (0.5, 0.5, 0.0)
    every = sorted(strays(sets, shares) for sets in all_splits(samples))
    found = [strays(split(samples, shares, "stratified", seed), shares) for seed in range(20)]
    assert max(found) <= every[len(every) // 10] and min(found) == every[0] == 0


@pytest.mark.parametrize(("samples", "shares", "by", "found"), [
    ([sample(0), sample(1)], THREE, "ratio", "too few"), ([sample(0), sample(0)], (1, 0, 0), "ratio", "one id"),
    ([sample(0, "A"), sample(1)], (0.5, 0.5, 0), "signer", "x/1 is not known"),
    ([sample(0)], (0.5, 0.4, 0), "ratio", "shares"), ([sample(0)], (2, -1, 0), "ratio", "shares"),
    ([sample(0)], (float("nan"), 0, 1), "ratio", "shares"), ([sample(0)], (1, 0, 0), "luck", "stratified"),
])
def test_what_cannot_be_split(samples, shares, by, found):
    with pytest.raises(Mistake, match=found):
        split(samples, shares, by)
