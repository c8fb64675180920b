"""slr/plots.py: every picture at every size, without a warning and without a display."""

import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slr import plots
from slr.metrics import topk

ODD = ["thank you very much indeed, my dear", "dieťa / čakať", "谢谢", "كتاب", "$x_1$ {", "_under", "",
       "a\nb\t c"]


@pytest.fixture(autouse=True)
def no_warning_and_no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def results(classes, clips, share=0.5, seed=0):
    """(matrix, report, names) of a model that is right for `share` of the clips."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=clips)
    predicted = np.where(rng.random(clips) < share, labels, rng.integers(classes, size=clips))
    names = (ODD + [f"sign {i}" for i in range(classes)])[:classes]
    return topk.confusion(labels, predicted, classes), topk.per_class(labels, predicted, names), names


def all_three(classes, clips, folder, share=0.5):
    matrix, report, names = results(classes, clips, share)
    return [plots.confusion_matrix(matrix, names, folder / "matrix.png", "S3D demo 001"),
            plots.per_class_bars(report, names, folder / "bars.png", "S3D demo 001"),
            plots.per_class_heatmap(report, names, folder / "heat.png", "S3D demo 001")]


def size(path):
    with Image.open(path) as picture:
        picture.verify()
        return picture.format, *picture.size


@pytest.mark.parametrize("classes", [1, 2, plots.FEW, plots.FEW + 1, plots.MANY + 1])
def test_pictures_of_every_size_are_png_and_leave_nothing_beside(classes, tmp_path):
    folder = tmp_path / "results"  # made by the first
    for path in all_three(classes, 2 * classes, folder):
        kind, width, height = size(path)
        assert kind == "PNG" and 500 < width < 4500 and 280 < height < 3500
    assert sorted(p.name for p in folder.iterdir()) == ["bars.png", "heat.png", "matrix.png"]


def test_two_thousand_classes_take_seconds(tmp_path):
    start = time.process_time()
    matrix, bars, heat = all_three(2000, 2800, tmp_path)
    assert time.process_time() - start < 20
    assert size(matrix)[1] > 2500 and size(bars)[1] > 1500 and size(heat)[1] > 1500


def test_a_perfect_model_has_no_confused_classes(tmp_path):
    for path in all_three(plots.FEW + 5, 100, tmp_path, share=1.0):
        assert size(path)[0] == "PNG"


def test_nothing_to_draw_is_a_picture_that_says_so(tmp_path):
    nothing = {"precision": [], "recall": [], "f1": [], "support": []}
    absent = {"precision": [0.0], "recall": [0.0], "f1": [0.0], "support": [0]}
    for path in (plots.confusion_matrix(np.zeros((0, 0)), [], tmp_path / "a.png"),
                 plots.confusion_matrix([[0]], ["book"], tmp_path / "b.png"),
                 plots.per_class_bars(nothing, [], tmp_path / "c.png"),
                 plots.per_class_heatmap(absent, ["book"], tmp_path / "d.png"),
                 plots.curves([], tmp_path / "e.png"), plots.per_signer({}, tmp_path / "f.png")):
        assert size(path) == ("PNG", 660, 264)


def test_a_matrix_that_does_not_fit_the_classes_is_refused(tmp_path):
    with pytest.raises(ValueError):
        plots.confusion_matrix([[1, 0], [0, 1]], ["only one"], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    target = plots.confusion_matrix([[1]], ["book"], tmp_path / "a.png")
    before = target.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plots.confusion_matrix([[2]], ["book"], tmp_path / "a.png")
    assert target.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_classes_confused_most_keep_the_two_of_a_pair_together():
    matrix = np.zeros((5, 5), dtype=np.int64)
    matrix[4, 1], matrix[0, 3], matrix[2, 2] = 3, 2, 9
    assert plots._confused(matrix) == [(4, 1), (0, 3)]


def test_blocks_of_classes_cover_all_and_stay_few():
    for n in (121, 250, 251, 2000, 9999):
        starts = plots._blocks(n)
        assert starts[0] == 0 and len(starts) <= 250 and starts[-1] < n


def test_extremes_of_equal_scores_are_those_with_more_clips():
    scores = np.tile([[0.0], [1.0], [0.0], [1.0]], (1, 3))
    (_, best), (_, worst), (_, more) = plots._extremes(scores, np.array([1, 2, 5, 9]))
    assert best.tolist() == [3, 1, 2, 0] and worst.tolist() == [2, 0, 3, 1] and not len(more)


def test_names_are_cut_and_lose_what_no_font_has():
    names = plots._names(["x" * 40, "a\nb", "\U000e0041", "ok \U000e0041", "", "e\u0301"])
    assert names == ["x" * 21 + "…", "a b", "class 2", "ok □", "class 4", "é"]


# --- curves and signers -------------------------------------------------------------------------------------


def row(epoch, **more):
    rates = {"backbone": 1e-4 / epoch, "classifier": 1e-3 / epoch}
    return {"epoch": epoch, "train": {"loss": 2.0 / epoch, "acc": 10.0 * epoch},
            "val": {"loss": 2.5 / epoch, "acc": 9.0 * epoch}, "lr": rates, "seconds": 4.2, **more}


@pytest.mark.parametrize("log, panels", [
    ([row(1)], 3),
    ([row(e, val=None) for e in range(1, 50)], 3),
    ([row(1), row(2, val={"wer": 40.0, "loss": math.nan, "note": "text"})], 4),
    ([row(1, lr={}, seconds=None), {"event": "resumed"}, row(1, lr={})], 2),
    ([{"epoch": 1, "train": {}, "val": None, "lr": {"all": 0.0}}], 2),
    ([{"epoch": 1, "train": {"loss": math.nan}, "lr": {"all": None}}], 2),
])
def test_curves_of_odd_logs(log, panels, tmp_path):
    kind, width, _ = size(plots.curves(log, tmp_path / "curves.png", "S3D demo 001"))
    assert kind == "PNG" and width == round(plots.DPI * 5.4 * min(3, panels))


def test_the_marked_epoch_is_the_lowest_validation_loss_or_the_last():
    rows = [row(1), row(2), row(3, val={"loss": 9.0}), row(4, val=None), row(5, val={"loss": math.nan})]
    assert plots._best_epoch(rows) == (2, "the lowest validation loss")
    assert plots._best_epoch([row(1, val=None), row(2, val={"wer": 3.0})]) == (2, "the last")


def test_metrics_come_loss_first_and_only_with_numbers():
    rows = [row(1, train={"wer": 3, "acc": 1.0, "loss": 2.0, "part": "a"}, val={"bleu": None, "chrf": 1.5})]
    assert plots._metric_names(rows) == ["loss", "acc", "wer", "chrf"]


def test_learning_rates_are_written_short():
    assert [plots._rate(x) for x in (0.00025, 1e-3, 0)] == ["2.5e-4", "1e-3", "0"]
    assert [plots._minor_rate(x) for x in (2e-4, 3e-4, 5e-4)] == ["2e-4", "", "5e-4"]


def test_signers_few_and_many(tmp_path):
    rng = np.random.default_rng(1)
    for signers in ([None] * 3, rng.integers(150, size=900).tolist()):
        acc = topk.per_signer(rng.random(len(signers)) < 0.7, signers, resamples=50)
        assert size(plots.per_signer(acc, tmp_path / "signers.png", "S3D demo 001"))[0] == "PNG"


# --- display ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_show_without_a_display_says_where_the_pictures_are(capsys):
    assert plots.show([Path("r/a.png"), "r/b.png"]) is False
    assert capsys.readouterr().out == "no display: nothing is shown; the pictures are r/a.png, r/b.png\n"


def test_show_opens_each_picture_where_there_is_a_display(monkeypatch, capsys):
    opened = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: opened.append(words))
    monkeypatch.setattr(plots.shutil, "which", lambda name: None)
    assert plots.show(["a.png"]) is False and "no xdg-open" in capsys.readouterr().out
    monkeypatch.setattr(plots.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert plots.show(["a.png", Path("b.png")]) is True
    assert opened == [["xdg-open", "a.png"], ["xdg-open", "b.png"]]


def test_importing_plots_loads_no_drawing_library():
    code = "import sys, slr.plots; print([m for m in ('matplotlib', 'seaborn', 'torch') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONPATH": str(Path(plots.__file__).parents[1])})
    assert found.stdout.strip() == "[]"
