"""preprocess.py: one command from an annotation and a folder of videos to checked labels."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import preprocess
import pytest
from little_videos import write_video

from slr import paths
from slr.datasets import synthetic
from slr.datasets.wlasl import load_clips, videos_folder
from slr.errors import Interrupted, Mistake, NothingToTrainOn
from slr.video import FrameStore

SCRIPT = Path(preprocess.__file__)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder with a split of three good videos and one that is none."""
    monkeypatch.setenv("SLR_DATA", str(tmp_path))
    entries = []
    for i, name in enumerate(("train", "train", "test", "train")):
        write_video(tmp_path / "WLASL" / "WLASL2000" / f"{i}.mp4", 12 + i)
        entries.append({"video_id": str(i), "split": name, "bbox": [8, 0, 56, 48], "signer_id": i})
    (tmp_path / "WLASL" / "WLASL2000" / "3.mp4").write_text("<html>gone</html>")
    write_split(tmp_path, entries)
    return tmp_path


def write_split(root: Path, entries: list[dict], name: str = "mine") -> Path:
    file = root / "WLASL" / "splits" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([{"gloss": "thank you", "instances": entries}]))
    return file


def run(*words: str) -> None:
    preprocess.main(["-as", *words, "--workers", "0"])


def report(root: Path, split: str = "mine") -> dict:
    return json.loads((paths.labels(root, split) / "report.json").read_text())


def test_help_answers_at_once():
    program = ("import sys; sys.argv = ['preprocess.py', '--help']; sys.path.insert(0, '.')\n"
               "import preprocess\ntry: preprocess.main()\nexcept SystemExit: pass\n"
               "print('heavy:', *{'cv2', 'torch', 'numpy', 'matplotlib'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert "-as SPLIT" in done.stdout and done.stdout.endswith("heavy:\n")


def test_everything_is_written(root, capsys):
    run("mine", "-ve")
    said = capsys.readouterr().out
    assert "3 of 4 clips kept" in said
    assert "left out: 3 (thank you, train): the video does not decode: 17 bytes that are no video" in said
    assert [len(load_clips(root, "mine", name)) for name in paths.SETS] == [2, 0, 1]
    labels = paths.labels(root, "mine")
    assert (labels / "class_list.txt").read_text() == "0\tthank you\n"
    for name in ("contact_sheet.png", "statistics.png"):
        assert min(cv2.imread(str(labels / name)).shape[:2]) > 200
    assert report(root)["left_out"][0]["clip_id"] == "3" and not (root / "WLASL/preprocessed/store").exists()
    run("mine")
    assert report(root)["kept"] == 3


def test_store_is_written_resumed_and_mended(root, capsys):
    run("mine", "--store", "jpeg", "--short_side", "24")
    folder = paths.store(root, "jpeg", "mine")
    store = FrameStore.open(folder)
    assert store.read("0", [11]).shape == (1, 24, 24, 3) and store.frames("2") == 14
    file = folder / store.clips["1"].file
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    run("mine", "--store", "jpeg", "--short_side", "24")
    assert "0 clips written, 3 were there" in capsys.readouterr().out
    assert list(FrameStore.open(folder).check()) == ["1"]
    run("mine", "--store", "jpeg", "--short_side", "24", "--verify")
    assert "1 clips written, 2 were there" in capsys.readouterr().out and not FrameStore.open(folder).check()
    with pytest.raises(Mistake, match="other settings"):
        run("mine", "--store", "jpeg")
    run("mine", "--store", "raw", "--crop", "frame")
    assert FrameStore.open(paths.store(root, "raw", "mine")).read("0", [0]).shape == (1, 48, 64, 3)


def test_any_annotation_and_any_folder(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_video(elsewhere / "clips" / "0.mp4", 15)
    file = elsewhere / "theirs.json"
    file.write_text(json.dumps({"0": {"subset": "train", "action": [0, 1, 55]}}))
    (elsewhere / "class_list.txt").write_text("0\tbook\n")
    run("theirs", "--annotations", str(file), "--videos", str(elsewhere / "clips"))
    run("theirs")
    clip, = load_clips(root, "theirs", "train")
    assert (clip.gloss, clip.stop, videos_folder(root, "theirs")) == ("book", 15, elsewhere / "clips")
    assert report(root, "theirs")["clamped"] == 1
    file.write_text(json.dumps({"0": {"subset": "val", "action": [0, 1, 55]}}))
    with pytest.raises(Mistake, match="--replace"):
        run("theirs", "--annotations", str(file), "--videos", str(elsewhere / "clips"))


def test_dry_run_and_limit(root, capsys):
    run("mine", "--dry_run", "--limit", "1")
    assert "2 of 2 clips kept" in capsys.readouterr().out and not (root / "WLASL" / "preprocessed").exists()
    run("mine", "--limit", "1")
    assert report(root)["limit"] == 1
    run("mine")
    with pytest.raises(Mistake, match="--replace"):
        run("mine", "--limit", "1")
    run("mine", "--limit", "1", "--replace")
    assert report(root)["kept"] == 2


def test_labels_of_another_annotation_stay(root):
    run("mine")
    write_split(root, [{"video_id": "0", "split": "train"}])
    with pytest.raises(Mistake, match="another annotation"):
        run("mine")
    run("mine", "--replace")
    assert report(root)["clips"] == 1


def test_nothing_left_keeps_the_labels_there(root):
    run("mine")
    for video in (root / "WLASL" / "WLASL2000").glob("*.mp4"):
        video.unlink()
    with pytest.raises(NothingToTrainOn, match="4 missing") as caught:
        run("mine")
    assert caught.value.code == 78 and report(root)["kept"] == 3


@pytest.mark.parametrize("words, said", [
    (["asl100"], "no split asl100"), (["../x"], "no name of a split"),
    (["mine", "--videos", "/nowhere"], "/nowhere is no folder"),
    (["mine", "other", "--videos", "/nowhere"], "of one split"),
    (["mine", "--annotations", "/nowhere.json"], "no annotation /nowhere.json"),
])
def test_mistakes(root, words, said):
    with pytest.raises(Mistake, match=said):
        run(*words)
    for wrong in (["-as", "mine", "--limit", "0"], ["-as", "mine", "--workers", "-1"], []):
        with pytest.raises((Mistake, SystemExit)) as caught:
            preprocess.main(wrong)
        assert getattr(caught.value, "code", 2) == 2


def test_demo_is_drawn_first(root, monkeypatch, capsys):
    draw, calls = synthetic.write_wlasl, []

    def small(where: Path, split: str, **given: object) -> None:
        calls.append((split, given["signs"], given["seed"]))
        draw(where, split, **{**given, "signs": 2}, train_signers=1, val_signers=1, test_signers=1, size=64)

    monkeypatch.setattr(synthetic, "write_wlasl", small)
    run("demo", "demo50", "--seed", "7")
    assert calls == [("demo", 10, 7), ("demo50", 50, 7)]
    assert [len(load_clips(root, "demo", name)) for name in paths.SETS] == [2, 2, 2]
    assert all(clip.box for clip in load_clips(root, "demo", "train"))


def test_a_bad_split_does_not_cost_the_others(root, capsys):
    """The highest code of all: 78, nothing to train on, above 2."""
    write_split(root, [{"video_id": "3", "split": "train"}], "useless")
    assert preprocess.main(["-as", "useless", "nowhere", "mine", "--workers", "0"]) == NothingToTrainOn.code
    said = capsys.readouterr().err
    assert "error: useless: no training clip" in said and "error: nowhere: no split nowhere" in said
    assert report(root)["kept"] == 3 and not paths.labels(root, "useless").exists()
    assert preprocess.main(["-as", "mine", "nowhere", "--workers", "0"]) == Mistake.code


def test_stopped_by_a_signal(root, monkeypatch):
    monkeypatch.setattr(preprocess, "prepare_split", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Interrupted) as caught:
            run("mine")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 75


def test_kill_and_run_again(root):
    """Whole processes: SIGKILL while the store is written; the same command goes on from there."""
    names = [str(i) for i in range(100, 160)]
    for name in names:
        os.link(root / "WLASL" / "WLASL2000" / "0.mp4", root / "WLASL" / "WLASL2000" / f"{name}.mp4")
    write_split(root, [{"video_id": name, "split": "train"} for name in names])
    command = [sys.executable, str(SCRIPT), "-as", "mine", "--store", "raw", "--workers", "1"]
    index = paths.store(root, "raw", "mine") / "index.jsonl"
    running = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (index.exists() and index.read_bytes().count(b"\n") > 5):
        time.sleep(0.002)
    running.kill()
    running.wait()
    done = FrameStore.open(index.parent)
    assert 5 <= len(done) and done.check() == {} and not paths.labels(root, "mine").exists()
    again = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{60 - len(done)} clips written, {len(done)} were there" in again.stdout
    assert len(FrameStore.open(index.parent)) == 60 and FrameStore.open(index.parent).check() == {}


def test_slovak_mit_in_one_command(shared, root):
    folder = shared / "slovak_mit"
    run("slovak_mit", "--annotations", str(folder / "slovak_mit.json"), "--videos", str(folder / "videos"),
        "--limit", "2")
    assert [len(load_clips(root, "slovak_mit", name)) for name in paths.SETS] == [2, 0, 2]
    assert load_clips(root, "slovak_mit", "train")[0].box == (0, 0, 852, 480)
