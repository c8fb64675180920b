"""predict.py on sentences: what evaluation says, with times, of videos of any length and rate, and of a stream."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import predict
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inis import OPTIMIZER
from torch import nn

from slr import checkpoint, decoding, streaming, video
from slr.catalogue import builder_of
from slr.config import parse_config
from slr.datasets.sentence_clips import SentenceDataset, packed
from slr.datasets.sentences import Frames, Sentence
from slr.errors import Mistake
from slr.loading import Key
from slr.paths import Experiment
from slr.runtime import Runtime
from slr.tasks.continuous import Continuous
from slr.tasks.continuous_predict import SentenceReader, camera_of

INI = f"""
[experiment]
task = 'continuous'
[training]
batch_size = 4
update_per_step = 1
max_epoch = 1
{OPTIMIZER}[model_params]
drop_p = 0.1
pretrained = False
[data]
num_frames = 96
frame_size = 32
workers = 0
[decoding]
fps = 16
beam_width = 4
"""
CLASSES = ["<blank>", "ONE", "TWO", "THREE"]
CPU = ("--device", "cpu")


def config_of(**changes: object):
    changes = {name.replace("__", "."): str(value) for name, value in changes.items()}
    return parse_config(INI, Experiment("S3D_CTC", "signs_of_grey", "1"), changes)


class Grey(nn.Module):
    """A sentence model that looks at one frame a step: the class is the brightness, in quarters."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride
        self.backbone, self.classifier = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, clips: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level = clips[:, 1, ::self.stride].mean((2, 3)) * 0.22145 + 0.394666  # green, as S3D_CTC normalises it
        logits = -40 * (level[:, :, None] - torch.tensor([0.125, 0.375, 0.625, 0.875])).abs()
        return logits, -(-lengths // self.stride)


def a_reader(stride: int = 4, box=None, **changes: object) -> SentenceReader:
    runtime = Runtime.start("cpu", 1)
    return SentenceReader(Continuous(config_of(**changes), runtime, Grey(stride), CLASSES), runtime, box)


def images_of(path: list[int], every: int = 4) -> list[np.ndarray]:
    """Frames of 16 x 12 pixels: each label of the path `every` times."""
    return [np.full((12, 16, 3), 32 + 64 * label, np.uint8) for label in path for _ in range(every)]


def spans_of(path: list[int], every: int = 4) -> list[tuple[str, int, int]]:
    edges = [t for t in range(len(path) + 1) if t in (0, len(path)) or path[t] != path[t - 1]]
    return [(CLASSES[path[a]], every * a, every * b) for a, b in zip(edges, edges[1:], strict=False) if path[a]]


def said(record: dict) -> list[tuple[str, int, int]]:
    return [span[:3] for span in record["spans"]]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from([1, 2, 4]),
       st.sampled_from([4, 12, 20, 96]))
def test_a_sentence_of_any_length_is_said_whole(path, stride, most):
    """Longer than the model looks at: in windows, and no gloss is lost, cut or said twice."""
    reader = a_reader(stride, data__num_frames=most)
    record = reader.read(reader.frames(images_of(path), 16.0))
    assert said(record) == spans_of(path) and record["hypothesis"] == [gloss for gloss, *_ in spans_of(path)]
    assert (record["windows"] > 1) == (4 * len(path) > most)


def test_every_frame_is_looked_at_as_evaluation_does(tmp_path):
    """Frames, geometry, record: those of the data set and of the task's own decoding."""
    rng = np.random.default_rng(1)
    for i in range(21):
        cv2.imwrite(str(tmp_path / f"f{i:02d}.png"), rng.integers(0, 256, (30, 46, 3), np.uint8))
    reader = a_reader(2, data__frame_stride=2, data__eval_resize=1.143, decoding__fps=25)
    data = reader.data
    sentence = Sentence("a", "test", ("ONE",), 21, Frames("folder", tmp_path.name, "f%02d.png"), root=tmp_path.parent)
    item = SentenceDataset([sentence], reader.task.numbers, num_frames=data.num_frames, frame_size=data.frame_size,
                           frame_stride=2, stride=2, eval_resize=data.eval_resize)[Key(0, 0)]
    with video.playing(tmp_path) as (fps, images):
        found = list(reader.frames(images, reader.rate_of(tmp_path, fps, None)))
    assert [number for number, _ in found] == item["indices"].tolist() == list(range(0, 21, 2))
    assert np.array_equal(np.stack([frame for _, frame in found]), item["frames"])
    batch = reader.task.prepare(packed([item]), train=False)
    expected = reader.task.decode(reader.task.forward(reader.task.model, batch), batch)[0]
    record = reader.read(found)
    assert {key: record[key] for key in ("hypothesis", "greedy", "score", "spans", "steps")} == {
        key: expected[key] for key in ("hypothesis", "greedy", "score", "spans", "steps")}


@pytest.mark.parametrize(("fps", "every"), [(32.0, 8), (8.0, 2), (16.0, 4), (15.99, 4)])
def test_a_video_of_another_rate_keeps_its_own_times(fps, every):
    reader, path = a_reader(), [0, 1, 1, 0, 2, 3, 0, 0, 3, 0]
    found = said(reader.read(reader.frames(images_of(path, every), fps)))
    assert [gloss for gloss, *_ in found] == ["ONE", "TWO", "THREE", "THREE"]
    for (_, *times), (_, *expected) in zip(found, spans_of(path, every), strict=True):
        assert np.abs(np.subtract(times, expected)).max() <= 1  # a frame of the video
    assert ("resampled" in reader.note_on("a.mp4", fps)) == (abs(fps - 16) > 1)


def test_a_part_of_a_video_has_the_videos_own_numbers():
    reader = a_reader()
    assert said(reader.read(reader.frames(images_of([1, 0, 2, 0, 3]), 16.0, first=4, last=16))) == [("TWO", 8, 12)]
    for first, last in ((20, None), (4, 21), (30, 40)):
        with pytest.raises(Mistake, match="no such frames"):
            list(reader.frames(images_of([1, 0, 2, 0, 3]), 16.0, first, last))


def test_rates_boxes_and_cameras_that_cannot_be(tmp_path):
    reader = a_reader(box=(0, 0, 17, 5))
    with pytest.raises(Mistake, match="16 x 12"):
        reader.cropped(images_of([1])[0])
    assert a_reader(box=(2, 2, 10, 9)).cropped(images_of([1])[0]).shape == (32, 32, 3)
    assert (reader.rate_of(tmp_path, 0.0, None), reader.rate_of("a.mp4", 30.0, None)) == (16.0, 30.0)
    assert reader.rate_of("a.mp4", 0.0, 12.0) == 12
    for rate in (0.0, 90000.0, float("nan")):
        with pytest.raises(Mistake, match="give --fps"):
            reader.rate_of("a.mp4", rate, None)
    assert (camera_of("camera:2"), camera_of("camera.mp4")) == (2, None)
    with pytest.raises(Mistake, match="camera:0"):
        camera_of("camera:front")


@pytest.mark.parametrize("hop", [0.25, 0.5, 1.75])
def test_the_stream_says_what_the_whole_says(hop):
    """The model looks at one frame a step, so offline's best path and the stream's are the same."""
    reader, path = a_reader(), [0, 1, 1, 0, 1, 2, 0, 3, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 0, 1, 3, 1, 0, 0, 0, 3]
    pace = streaming.Pace.of(reader.rate, reader.stride, reader.most, hop=hop, margin=0.5)
    frames = reader._ticked(streaming.timed(images_of(path), 16.0))
    found = list(streaming.stream(streaming.Direct(frames), reader.best_path, pace, streaming.Summary()))
    whole = reader.read(reader.frames(images_of(path), 16.0))
    assert [(CLASSES[s.label], round(s.start * 16), round(s.stop * 16)) for s in found] == said(whole)
    log_probs = torch.log_softmax(reader.logits(np.stack([reader.cropped(i) for i in images_of(path)])), 1)[None]
    assert [s.label for s in found] == list(decoding.greedy(log_probs, torch.tensor([log_probs.shape[1]]))[0])


# --- the script ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory) -> Path:
    """An S3D_CTC of random weights that says TWO on every step."""
    config = config_of()
    torch.manual_seed(1)
    model = builder_of("S3D_CTC")(len(CLASSES), frames=96, size=32)
    with torch.no_grad():
        model.classifier.gloss.bias[2] = 9.0
    path = tmp_path_factory.mktemp("run") / "best.pth"
    checkpoint.save(path, {"model": "S3D_CTC", "split": "signs_of_grey", "task": "continuous", "epoch": 1,
                           "config": config.as_dict(), "metrics": {}, "versions": checkpoint.versions(),
                           "meta": {"classes": CLASSES}, "model_state_dict": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """40 frames at 16 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 16, (32, 32))
    for i in range(40):
        writer.write(np.full((32, 32, 3), 6 * i, np.uint8))
    writer.release()
    return path


def ask(checkpoint_file: Path, *words: str) -> int:
    return predict.main(["--checkpoint", str(checkpoint_file), *words, *CPU])


def test_glosses_with_their_times(checkpoint_file, clip, tmp_path, capsys):
    """Two videos and one that is none."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((9, 9, 3), np.uint8))
    assert ask(checkpoint_file, str(clip), str(bad), str(tmp_path), "--json", "--fps", "32") == 2
    out, err = capsys.readouterr()
    whole, frame = json.loads(out)
    assert "bad.mp4" in err and "32 frames a second" in err
    assert whole["video"] == str(clip) and whole["sentence"] == ["TWO"] and whole["fps"] == 32
    (gloss,) = whole["glosses"]
    assert (gloss["gloss"], gloss["begin"], gloss["first"]) == ("TWO", 0.0, 1)
    assert gloss["last"] in (39, 40) and gloss["end"] == round(gloss["last"] / 32, 3) and gloss["confidence"] > 0.9
    assert frame["glosses"][0]["end"] == pytest.approx(1 / 32, abs=1e-3)


def test_a_table_and_a_stream_for_a_person(checkpoint_file, clip, capsys):
    assert ask(checkpoint_file, str(clip)) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "      0.00 -     2.50 s  frames     1 -    40  100.0 %  TWO", "  TWO"]
    assert ask(checkpoint_file, str(clip), "--stream", "--window", "2.5", "--hop", "0.5", "--margin", "0.25") == 0
    first, sentence, glosses, windows = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["0.00", "-", "2.50", "s"] and "latency 0.00 s" in first and sentence == "TWO"
    assert glosses.startswith("1 glosses in 2.50 s of video") and "real-time factor" in windows


@pytest.mark.parametrize("words", [(), ("--realtime",)])
def test_a_stream_for_a_program(checkpoint_file, clip, words, capsys):
    assert ask(checkpoint_file, str(clip), "--stream", "--json", "--window", "2.5", "--margin", "0.25", *words) == 0
    gloss, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(gloss) == {"gloss", "begin", "end", "confidence", "latency", "compute"} and gloss["gloss"] == "TWO"
    assert summary["sentence"] == ["TWO"] and summary["seconds"] == 2.5 and summary["windows"] >= 2


def test_ctrl_c_ends_a_stream_with_its_summary(checkpoint_file, clip, monkeypatch, capsys):
    """At the second window (the first look warms up); the next Ctrl-C does what it did before."""
    before, looks, look = signal.getsignal(signal.SIGINT), [], SentenceReader.best_path

    def pressed(self, frames):
        looks.append(len(frames))
        if len(looks) == 2:
            signal.raise_signal(signal.SIGINT)
        return look(self, frames)

    monkeypatch.setattr(SentenceReader, "best_path", pressed)
    seconds = ("--window", "2.5", "--hop", "0.25", "--margin", "0.25")
    assert ask(checkpoint_file, str(clip), "--stream", "--json", *seconds) == 0
    gloss, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(looks) == summary["windows"] == 2 and gloss["end"] == summary["seconds"] == looks[1] / 16
    assert signal.getsignal(signal.SIGINT) is before


def test_a_camera_runs_until_it_is_switched_off(clip, monkeypatch):
    """A film in the camera's place, half a second between frames."""
    clock, sleep = iter(np.arange(0, 40, 0.5)), streaming.time
    monkeypatch.setattr(streaming, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=sleep))
    filming = video.filming
    monkeypatch.setattr(video, "filming", lambda number: filming(str(clip)))
    reader = a_reader(decoding__fps=4)
    found = list(reader.coming("camera:0", None, False, lambda text: pytest.fail(text)))
    assert [tick for tick, _ in found] == list(range(79))  # 40 frames, every second one twice
    assert found[0][1].mean() < 6 and 230 < found[-1][1].mean()


@pytest.mark.parametrize(("words", "wrong"), [
    (("nowhere.mp4",), "no such video"),
    (("camera:0",), "a camera has no end"),
    (("camera:front", "--stream"), "no camera"),
    (("camera:99", "--stream"), "no camera 99"),
    (("CLIP", "CLIP", "--stream"), "one stream at a time"),
    (("CLIP", "--window", "3"), "--window has no meaning without --stream"),
    (("CLIP", "--realtime"), "--realtime has no meaning without --stream"),
    (("CLIP", "--stream", "--first", "3"), "--first has no meaning with --stream"),
    (("CLIP", "--stream", "--window", "1"), "overlap too little"),
    (("CLIP", "--stream", "--window", "0"), "seconds are above 0"),
    (("CLIP", "--hop", "0"), "--hop has no meaning without --stream"),
    (("CLIP", "--stream", "--last", "0"), "--last has no meaning with --stream"),
    (("camera:0", "--stream", "--fps", "9"), "--fps has no meaning with a camera"),
    (("CLIP", "--stream", "--window", "30"), "too long for this model"),
    (("CLIP", "--stream", "--box", "0", "0", "33", "2"), "no such box"),
    (("CLIP", "-k", "3"), "--top has no meaning for a model of sentences"),
    (("CLIP", "--fps", "0"), "--fps is above 0"),
    (("CLIP", "--first", "0"), "no such frames"),
    (("CLIP", "--last", "0"), "no such frames"),
    (("CLIP", "--last", "41"), "no such frames"),
])
def test_mistakes(checkpoint_file, clip, words, wrong, capsys):
    try:
        code = ask(checkpoint_file, *(str(clip) if word == "CLIP" else word for word in words))
    except Mistake as error:
        assert wrong in str(error)
    else:
        assert code == 2 and wrong in capsys.readouterr().err


def test_a_model_that_wants_keypoints_is_refused():
    reader = a_reader()
    object.__setattr__(reader.data, "heatmap", "max")
    with pytest.raises(Mistake, match="keypoints"):
        SentenceReader(reader.task, reader.runtime)
