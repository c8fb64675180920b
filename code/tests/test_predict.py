"""predict.py names the sign as testing.py does."""

import json

import cv2
import predict
import pytest
from test_testing import CPU, forward, make_run

from slr import paths
from slr.errors import Mistake
from slr.video import read_frames


@pytest.fixture
def video(little):
    return paths.wlasl_videos(paths.data_root()) / "little_test_1.mp4"


def ask(capsys, *words: str) -> list[dict]:
    assert predict.main([*words, "--json", *CPU]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_same_answer_as_by_hand(video, capsys):
    checkpoint = make_run()
    answer = ask(capsys, "S3D", "little", "7", str(video), "-k", "3")[0]
    assert answer == ask(capsys, "--checkpoint", str(checkpoint), str(video))[0]
    expected = sorted(forward(checkpoint, "little_test_1", list(range(8))), reverse=True)
    assert [row["probability"] for row in answer["glosses"]] == pytest.approx(expected, abs=1e-5)
    assert {row["gloss"] for row in answer["glosses"]} == {"sign 0", "sign 1", "sign 2"}


def test_a_folder_of_frames_and_a_part_of_a_video(video, tmp_path, capsys):
    make_run()
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, frame in enumerate(read_frames(video, range(5, 17))):
        cv2.imwrite(str(frames / f"{number}.png"), frame[..., ::-1])
    whole = ask(capsys, "S3D", "little", "7", str(frames))[0]["glosses"]
    part = ask(capsys, "S3D", "little", "7", str(video), "--first", "6", "--last", "17")[0]["glosses"]
    assert whole == part


def test_one_bad_video_does_not_cost_the_others(video, tmp_path, capsys):
    make_run()
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    assert predict.main(["S3D", "little", "7", str(bad), str(video), *CPU]) == 2
    said = capsys.readouterr()
    assert "bad.mp4" in said.err and "sign" in said.out


def test_a_box_is_what_the_model_sees(video, tmp_path, capsys):
    make_run()
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, frame in enumerate(read_frames(video, range(20))):
        cv2.imwrite(str(frames / f"{number}.png"), frame[8:48, 10:64, ::-1])
    boxed = ask(capsys, "S3D", "little", "7", str(video), "--last", "20", "--box", "10", "8", "64", "48")
    assert boxed[0]["glosses"] == ask(capsys, "S3D", "little", "7", str(frames))[0]["glosses"]


def test_no_memory_is_explained(video, monkeypatch, capsys):
    make_run()

    def full_up(*_: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(predict, "predict", full_up)
    assert predict.main(["S3D", "little", "7", str(video), *CPU]) == 76
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["S3D", "little", "7", "nowhere.mp4"], "no such video"),
    (["S3D", "little", "7", "VIDEO", "--last", "900"], "no such frames"),
    (["S3D", "little", "7", "VIDEO", "--box", "0", "0", "65", "48"], "64 x 48"),
    (["S3D", "little", "7", "VIDEO", "--box", "-1", "0", "20", "20"], "no such box"),
    (["S3D", "little", "7", "VIDEO", "--box", "9", "9", "9", "20"], "no such box"),
    (["S3D", "little", "7", "VIDEO", "-k", "0"], "at least 1"),
    (["S3D", "little", "66", "VIDEO"], "checkpoint is missing"),
])
def test_mistakes(video, words, said, capsys):
    make_run()
    try:
        code = predict.main([str(video) if word == "VIDEO" else word for word in words] + list(CPU))
    except Mistake as error:
        assert said in str(error)
    else:
        assert code == 2 and said in capsys.readouterr().err


def test_too_few_words(capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["S3D", "little", "7"])
    assert ended.value.code == 2 and "VIDEO" in capsys.readouterr().err
