"""preprocess.py --stats: the counts, the pictures that show them, and what is never written over."""

import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import preprocess
import pytest

from slr.datasets import hearai, hearai_pictures
from slr.datasets.hearai_pictures import count, draw_statistics, names_beside
from slr.errors import Mistake
from slr.hamnosys import HEADS

ROWS = ["a 0 7 0 1 1 1 1 1 1 1", "b 3 9 8 1 3 5 17 7 4 36", "c 0 99 8 -1 1 1 1 1 1 1"]


def write(folder: Path, *rows: str, name: str = "test_hamnosys.txt") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


def table(folder: Path) -> dict[tuple[str, int], tuple[str, int]]:
    with (folder / "counts.csv").open() as stream:
        return {(row["head"], int(row["class"])): (row["name"], int(row["count"])) for row in csv.DictReader(stream)}


def test_every_head_is_drawn_and_counted(tmp_path):
    file = write(tmp_path / "set", *ROWS)
    (tmp_path / "symbols.json").write_text(json.dumps({"hand_location_x": ["far left", "left"]}))
    said = draw_statistics(file, tmp_path / "out")
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {*HEADS, "overview"}
    for path in (tmp_path / "out").glob("*.png"):
        assert min(cv2.imread(str(path)).shape[:2]) > 100
    counts = table(tmp_path / "out")
    assert len(counts) == sum(HEADS.values())
    assert counts["symmetry_operator", 8] == ("", 2) and counts["hand_shape_base_form", 1] == ("", 2)
    assert counts["hand_location_x", 1] == ("left", 2) and counts["hand_location_x", 0] == ("far left", 0)
    assert "3 signs of 3 names" in said and "hand shape base form: 2 labels, 12 classes" in said
    assert "1 rows without" in said and "1:left = 2" in said and "no column" not in said


def test_many_glosses_with_names(tmp_path):
    labels = [i * i % 600 for i in range(900)]
    file = write(tmp_path, *(f"s{i} 0 9 {label}" for i, label in enumerate(labels)), name="test_gloss2.txt")
    write(tmp_path, "gloss,name,symmetry_operator", "0,TEA,1", "2399,WINTER,2", name="dictionary.csv")
    said = draw_statistics(file, tmp_path / "out")
    counts, expected = table(tmp_path / "out"), Counter(labels)
    assert {label: n for (_, label), (_, n) in counts.items()} == {i: expected[i] for i in range(2400)}
    assert counts["gloss", 0] == ("TEA", expected[0]) and "900 labels, 2,400 classes" in said
    assert min(cv2.imread(str(tmp_path / "out" / "gloss.png")).shape[:2]) > 700


def test_numbers_of_glosses_may_be_any(tmp_path):
    rows, _ = hearai.read_annotations(write(tmp_path, "a 0 1 999999999", "b 0 1 7"), {"gloss": 10**9})
    (head,) = count(rows, {})
    assert head.names == ["7", "999999999"] and head.counts.tolist() == [1, 1]


def test_separator_header_and_distance(tmp_path):
    file = write(tmp_path, "name;start;end;hand_location_distance;symmetry_operator", "a b;0;3;6;2", "c;0;3;;2")
    draw_statistics(file, tmp_path / "out", ";")
    counts = table(tmp_path / "out")
    assert counts["hand_location_distance", 6] == ("", 1) and counts["symmetry_operator", 2] == ("", 2)
    assert {head for head, _ in counts} == {"symmetry_operator", "hand_location_distance"}


def test_real_sample(shared, tmp_path):
    """10 7 17 0 5 1 0 0 6 0 4, under a header of quoted words."""
    draw_statistics(shared / "hearai_sample_input" / "test_hamnosys.txt", tmp_path / "out")
    counts = table(tmp_path / "out")
    assert [label for (_, label), (_, n) in counts.items() if n] == [0, 5, 1, 0, 0, 6, 0, 4]


def test_own_files_are_renewed_and_others_stay(tmp_path):
    file, out = write(tmp_path, *ROWS), tmp_path / "out"
    draw_statistics(file, out)
    write(tmp_path, "a 0 1 5", name="gloss.txt")
    draw_statistics(tmp_path / "gloss.txt", out)  # its heads are others: the earlier pictures go
    assert {path.name for path in out.iterdir()} == {"gloss.png", "overview.png", "counts.csv", "statistics.json"}
    (out / "counts.csv").write_text("mine\n")
    before = (out / "overview.png").read_bytes()
    with pytest.raises(Mistake, match="nothing was written"):
        draw_statistics(file, out)
    assert (out / "counts.csv").read_text() == "mine\n" and (out / "overview.png").read_bytes() == before
    (out / "counts.csv").unlink()
    (out / "statistics.json").write_text("{}")
    with pytest.raises(Mistake, match="is of something else"):
        draw_statistics(file, out)


def test_foreign_picture_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overview.png").write_bytes(b"mine")
    with pytest.raises(Mistake, match="no --stats wrote it"):
        draw_statistics(write(tmp_path, *ROWS), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overview.png"]


def test_nothing_to_count(tmp_path):
    with pytest.raises(Mistake, match="no labels"):
        draw_statistics(write(tmp_path, "a 0 1 -1 -1 -1 -1 -1 -1 -1 -1"), tmp_path / "out")
    assert names_beside(tmp_path / "x.txt") == {} and hearai_pictures.TOP < hearai_pictures.NAMED


def test_command(tmp_path, capsys):
    file = write(tmp_path, *(row.replace(" ", ",") for row in ROWS))
    assert preprocess.main(["--stats", str(file), str(tmp_path / "out"), "--separator", ","]) == 0
    assert "symmetry operator: 3 labels" in capsys.readouterr().out
    for words, says in ((["--stats", str(file), str(file)], "OUTPUT_DIR is no folder"),
                        (["--stats", str(tmp_path / "no.txt"), str(tmp_path / "o")], "cannot read"),
                        (["--stats", str(file), str(tmp_path / "o"), "-as", "demo"], "does nothing with --stats"),
                        (["-as", "demo", "--separator", ","], "does nothing without --stats")):
        if says.startswith("OUTPUT"):
            words += ["--separator", ","]
        with pytest.raises(Mistake, match=says) as caught:
            preprocess.main(words)
        assert caught.value.code == 2
