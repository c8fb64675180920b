"""What is written about a set of several heads."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from test_heads import SIZES, made, record

from slr import plots
from slr.errors import Mistake
from slr.hamnosys import HEADS
from slr.metrics import heads
from slr.tasks import isolated_report, multihead_report

SYMBOLS = {"shape": ["flat", "fist", "two, crossed", "dieťa"], "place": ["chin"]}


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_score_is_that_of_the_metrics_with_names():
    rows, dictionary = made(30, gloss=5)
    found = multihead_report.score(rows, SYMBOLS, dictionary)
    label = found["heads"]["shape"]["majority"].pop("label")
    assert found["heads"]["shape"]["majority"].pop("name") == f"{label} {SYMBOLS['shape'][label]}"
    assert found["heads"]["turn"]["majority"]["name"] in ("0", "1")  # a head without symbols
    plain = heads.score(rows, dictionary)
    assert (found["mean_macro_f1"], found["lookup"]) == (plain["mean_macro_f1"], plain["lookup"])
    json.dumps(found)


def test_names():
    name = multihead_report.label_name
    assert [name("place", label, SYMBOLS, None) for label in (0, 1)] == ["0 chin", "1"]
    assert name("gloss", 7, None, {7: ("BOOK", {})}) == "7 BOOK" and name("gloss", 8, None, {7: ("BOOK", {})}) == "8"


def test_summary_has_every_head_beside_its_baseline():
    rows, dictionary = made(60, gloss=5)
    found = multihead_report.score(rows, SYMBOLS, dictionary)
    text = multihead_report.summary(rows, SYMBOLS, dictionary)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    for head, row in found["heads"].items():
        assert lines[head][1:] == [
            str(row["clips"]), f"{row['classes_present']}/{row['classes']}",
            *(f"{100 * value:.1f}" for value in (
                row["macro_f1"], row["majority"]["macro_f1"], row["macro_f1_frequent"],
                row["majority"]["macro_f1_frequent"], row["accuracy"], row["majority"]["accuracy"], row["chance"]))]
    assert f"exact match: {100 * found['exact_match']:.1f} % [" in " ".join(text.split())
    assert f"top-1  {100 * found['lookup']['distance']['top1']:.1f} %" in text and "all labels right" in text


def test_summary_of_little():
    rows = [record("a", {"x": 0}, {"x": [0.9, 0.1], "y": [0.5, 0.5]})]
    text = multihead_report.summary(rows, dictionary={1: ("A", {"x": 0})})
    assert "no clip has a label of y" in text and "no gloss look-up" in text and "frequent" in text
    assert "look-up" not in multihead_report.summary(rows)
    gloss = [record("a", {"gloss": 1}, {"gloss": [0.9, 0.1]})]
    assert "gloss head: top-1   0.0 %  top-5 100.0 %" in multihead_report.summary(gloss)


def test_files_of_a_set(tmp_path):
    rows, dictionary = made(40, gloss=6)
    made_files = multihead_report.write(rows, tmp_path / "results", "best_test", SYMBOLS, dictionary, title="Some run")
    expected = ["predictions.csv", "details.json", "bargraph.png",
                *(f"{head}-confmat.{end}" for head in SIZES for end in ("csv", "png")), "confmats.png"]
    assert [path.name for path in made_files] == [f"best_test-{name}" for name in expected]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(path.name for path in made_files)
    for path in made_files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.format == "PNG" and min(picture.size) > 300
    found = json.loads((tmp_path / "results/best_test-details.json").read_text())
    score = multihead_report.score(rows, SYMBOLS, dictionary)
    assert {key: found[key] for key in score} == score
    low, high = found["intervals"]["mean_macro_f1"]
    assert low <= found["mean_macro_f1"] <= high
    assert set(found["intervals"]["lookup"]) == {
        f"{order}_top{k}" for order in ("distance", "log_p") for k in (1, 5, 10)}
    assert list(found["reports"]) == list(SIZES)
    report = found["reports"]["shape"]
    assert report["f1"] == pytest.approx(heads.per_label(*heads.answers_of(rows).pairs("shape"))["f1"])
    assert report["classes"][0] == "0 flat"
    assert np.mean(report["f1"]) == pytest.approx(score["heads"]["shape"]["macro_f1"])


def test_confusion_tables_have_what_occurs_by_name(tmp_path):
    rows = [record(f"c{i}", {"shape": 3}, {"shape": [0, 0, 1, 0] if i else [0, 0, 0, 1]}) for i in range(3)]
    made_files = multihead_report.write(rows, tmp_path, "t", SYMBOLS, graphs=())
    assert [path.name for path in made_files] == ["t-predictions.csv", "t-details.json", "t-shape-confmat.csv"]
    assert list(csv.reader(made_files[2].open(encoding="utf-8"))) == [
        ["true \\ predicted", "2 two, crossed", "3 dieťa"], ["2 two, crossed", "0", "0"], ["3 dieťa", "2", "1"]]


def test_pictures_alone(tmp_path):
    rows = made(12)[0]
    assert [path.name for path in multihead_report.write(rows, tmp_path, "t", graphs=("bargraph",), tables=False)] == [
        "t-bargraph.png"]
    assert multihead_report.write(rows, tmp_path, "t", graphs=(), tables=False) == []


def test_pictures_of_thirty_seven_classes_and_titles_longer_than_small_pictures(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(37, size=300)
    labels, matrix = heads.confusion(truth, np.where(rng.random(300) < 0.6, truth, rng.integers(37, size=300)))
    names = [f"{label} extended finger direction upwards left" for label in labels]
    title = "SignTransformer on demo_multihead, hand_position_finger_direction"
    sizes = []
    for path in (plots.confusion_matrix(matrix, names, tmp_path / "a.png", title, whose="labels"),
                 plots.confusion_matrix(matrix[:4, :4] + 1, names[:4], tmp_path / "b.png", title),
                 plots.confusion_matrix(matrix[:4, :4] + 1, names[:4], tmp_path / "c.png", "short")):
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] > 2000 and sizes[1][0] > sizes[2][0]


def test_predictions_have_a_line_a_clip():
    same = {"shape": 1, "place": 0}
    entries = {4: ("TREE", same), 9: ("HOUSE", same), 5: ("", {"shape": 0, "place": 1})}
    scores = {"shape": [0.2, 0.7, 0.1, 0], "place": [0.25, 0.75]}
    rows = [record("d/a", {"shape": 1}, scores, 9, "s1"), record("d/b", {"place": 0}, scores, None)]
    first, second = table(multihead_report.predictions(rows, SYMBOLS, entries))
    assert first | {"rank_by_log_p": "1.5", "found_by_log_p": "TREE"} == {
        "id": "d/a", "signer": "s1", "gloss": "9", "gloss_name": "HOUSE", "rank_by_distance": "1.5",
        "found_by_distance": "TREE", "rank_by_log_p": "1.5", "found_by_log_p": "TREE", "shape_true": "1",
        "shape_predicted": "1", "shape_p": "0.700000", "place_true": "", "place_predicted": "1", "place_p": "0.750000",
        "shape_true_name": "fist", "shape_predicted_name": "fist", "place_true_name": "", "place_predicted_name": ""}
    assert [second[key] for key in multihead_report.FIRST] == ["d/b", "", "", "", "", "", "", ""]
    assert (second["shape_true"], second["place_true"], second["place_true_name"]) == ("", "0", "chin")
    assert "shape_true_name" not in multihead_report.predictions(rows).splitlines()[0]


def test_predictions_are_read_as_they_were(tmp_path):
    rows, dictionary = made(25, gloss=4, missing=0.3)
    path = tmp_path / "p.csv"
    path.write_text(multihead_report.predictions(rows, SYMBOLS, dictionary), encoding="utf-8")
    read, answers = multihead_report.read_predictions(path), heads.answers_of(rows)
    assert read.ids == answers.ids and list(read.truth) == list(SIZES) and multihead_report.holds_heads(path)
    for head in SIZES:
        assert (read.truth[head] == answers.truth[head]).all()
        assert (read.predicted[head] == answers.predicted[head]).all()
    assert heads.compare(read, answers, resamples=10)["difference"] == 0


def test_files_that_are_no_predictions_of_heads(tmp_path):
    path = tmp_path / "p.csv"
    isolated_report.write(np.eye(3), np.arange(3), list("abc"), [None] * 3, list("xyz"), tmp_path, "s", graphs=())
    assert not multihead_report.holds_heads(tmp_path / "s-predictions.csv")
    with pytest.raises(Mistake, match="no results of several heads"):
        multihead_report.read_predictions(tmp_path / "s-predictions.csv")
    for text, said in (("", "p.csv no results"), ("id,signer,x_true,x_predicted,x_p\na,,0,one,0.5\n", "line 2"),
                       ("id,signer,x_true,x_predicted,x_p\na,,0\n", "line 2")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(Mistake, match=said):
            multihead_report.read_predictions(path)


def test_signers_only_where_known():
    rows = made(30)[0]
    answers = heads.answers_of(rows)
    found = multihead_report.per_signer(answers, [row["signer"] for row in rows])
    right, known = heads.exact(answers)
    assert list(found) == ["s0", "s1", "s2"] and sum(row["clips"] for row in found.values()) == known.sum()
    assert sum(row["exact"] for row in found.values()) == right.sum()
    mine = [row for row in rows if row["signer"] == "s1" and "turn" in row["labels"]]
    share = sum(row["scores"]["turn"].argmax() == row["labels"]["turn"] for row in mine) / len(mine)
    assert found["s1"]["accuracy"]["turn"] == pytest.approx(share)
    assert multihead_report.per_signer(answers, [None] * 30) == {}
    assert "unknown" in multihead_report.per_signer(answers, [None, *["a"] * 29])
    json.dumps(found)


def test_the_seeds_heads_in_one_overview(tmp_path):
    rows = made(30, sizes=HEADS)[0]
    path = plots.per_head(multihead_report.score(rows), tmp_path / "bars.png", "SignTransformer")
    with Image.open(path) as picture:
        assert picture.size[0] > 1000 and picture.size[1] > 700
