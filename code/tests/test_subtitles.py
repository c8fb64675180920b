"""SubRip files to frames: any text is read or refused, no frame is shared or lost, no foreign file is written over."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import preprocess
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import grey_frames, write_video

from slr.datasets import subtitles as subs
from slr.datasets.subtitles import Row, Subtitle, frames_of, parse_srt, plain, read_srt, rows_of, srt_text, times_of
from slr.errors import Mistake

ONE = "1\n00:00:01,000 --> 00:00:02,500\nGuten Tag.\n"


def texts(text: str) -> list[str]:
    return [one.text for one in parse_srt(text).subtitles]


# --- SubRip -------------------------------------------------------------------------------------------------

def test_a_block():
    assert parse_srt(ONE) == subs.Subtitles([Subtitle(1000, 2500, "Guten Tag.", 1)], [])


@pytest.mark.parametrize("text", [
    "\ufeff" + ONE, ONE.replace("\n", "\r\n"), ONE.replace("\n", "\r"), "\n \n" + ONE, ONE + "\n\n\n", ONE.rstrip(),
    ONE.removeprefix("1\n"), ONE.replace(",", "."), ONE.replace(" --> ", "-->"), ONE.replace("00:00:01,000", "0:0:1"),
    ONE.replace("500", "5"), ONE.replace("2,500", "2,500  X1:10 X2:20 Y1:1 Y2:2"), ONE.replace("1\n0", " 1 \n 0"),
    ONE.replace("Guten", "<i>Guten</i>"), ONE.replace("Guten ", '<font color="#ff0">Guten</font>\n<b></b> '),
    ONE.replace("Guten", "{\\an8}Guten"), ONE.replace("Guten ", "Guten\n\t"), ONE.replace("Guten", "<i<b>>Guten")])
def test_all_these_are_the_same(text):
    (one,) = parse_srt(text).subtitles
    assert (one.start, one.stop, one.text) == (1000, 2500, "Guten Tag.")


def test_what_is_no_tag_stays():
    assert plain("1 < 2 > 1, <3 und {so} & so &amp; <- ->") == "1 < 2 > 1, <3 und {so} & so &amp; <- ->"


def test_blocks_may_overlap_and_stand_in_any_order():
    later = "2\n00:00:03,000 --> 00:00:05,000\nb\n"
    earlier = "1\n00:00:01,000 --> 00:00:04,000\na\n"
    assert texts(f"{later}\n{earlier}") == ["a", "b"]
    assert [one.line for one in parse_srt(f"{later}\n{earlier}").subtitles] == [5, 1]


def test_a_number_can_be_the_text():
    assert texts("7\n00:00:01,000 --> 00:00:02,000\n2024\n") == ["2024"]


@pytest.mark.parametrize(("block", "says"), [
    ("2\n00:00:09,000 --> 00:00:08,000\nx", "it ends before it begins, 00:00:09,000 --> 00:00:08,000"),
    ("2\n00:00:09,000 --> 00:00:09,000\nx", "it ends when it begins"),
    ("2\n00:00:60,000 --> 00:01:09,000\nx", "is no time"),
    ("2\n00:00:01,000 -> 00:00:02,000\nx", "no times, but '00:00:01,000 -> 00:00:02,000'"),
    ("2", "no times, but '2'"), ("and what follows an empty line", "no times, but 'and what"),
    ("2\n00:00:01,000 --> 00:00:02,000", "there is no text"),
    ("2\n00:00:01,000 --> 00:00:02,000\n<i> </i>", "there is no text"),
    ("2\n00:00:01,000 --> 00:00:02,000\nx\n3\n00:00:02,000 --> 00:00:03,000\ny", "an empty line is missing"),
])
def test_a_bad_block_is_left_out_by_file_and_line(tmp_path, block, says):
    file = tmp_path / "a.srt"
    file.write_text(f"{ONE}\n{block}\n\n{ONE}", encoding="utf-8")
    found = read_srt(file)
    assert [one.line for one in found.subtitles] == [1, 7 + block.count("\n")]
    (left,) = found.left_out
    assert left.startswith(f"{file}, line 5: ") and says in left


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_codings(tmp_path, coding):
    (tmp_path / "a.srt").write_bytes(ONE.replace("Tag", "Tag, Mäuse 你好").encode(coding))
    assert [one.text for one in read_srt(tmp_path / "a.srt").subtitles] == ["Guten Tag, Mäuse 你好."]


@pytest.mark.parametrize(("data", "says"), [
    (b"", "has no subtitles: it is empty"), (b"<html>gone</html>", "has no subtitles: .*line 1: no times"),
    (ONE.replace("Tag", "Mäuse").encode("latin-1"), "line 3 is no UTF-8"), (b"\xff\xfea", "is no UTF-16")])
def test_a_file_that_cannot_be_used(tmp_path, data, says):
    (tmp_path / "a.srt").write_bytes(data)
    with pytest.raises(Mistake, match=says) as caught:
        read_srt(tmp_path / "a.srt")
    assert caught.value.found and caught.value.do
    with pytest.raises(Mistake, match="cannot read"):
        read_srt(tmp_path / "none.srt")


PIECES = ("1", "00:00:01,000 --> 00:00:02,000", "00:00:03,5-->0:0:2", "99:99:99,999", " --> ", "\n", "\r\n", "\r",
          "\ufeff", "<i>", "{\\an8}", "text", "\x0b", "\u2028", "٣", "\0")
SRT_LIKE = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@given(st.one_of(st.text(), SRT_LIKE))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse_srt(text)
    except Mistake as error:
        assert error.do and "has no subtitles" in error.wrong
        return
    assert found.subtitles == sorted(found.subtitles, key=lambda one: (one.start, one.stop))
    for one in found.subtitles:
        assert 0 <= one.start < one.stop and one.text == plain(one.text) != "" and one.line >= 1
    assert all(re.match(r"subtitles, line [0-9]+: ", left) for left in found.left_out)


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.srt"
    file.write_bytes(data)
    try:
        assert read_srt(file).subtitles
    except Mistake as error:
        assert error.wrong


TEXT = st.text(min_size=1).map(plain).filter(lambda text: text and not subs._TIMES.fullmatch(text))
SUBTITLE = st.builds(lambda start, long, text: Subtitle(start, start + long, text), st.integers(0, 10**10),
                     st.integers(1, 10**7), TEXT).filter(lambda one: one.stop < 9999 * 3600 * 1000)


@given(st.lists(SUBTITLE, min_size=1, max_size=6))
def test_round_trip(said):
    found = parse_srt(srt_text(said))
    expected = sorted(said, key=lambda one: (one.start, one.stop))
    assert [(one.start, one.stop, one.text) for one in found.subtitles] == [
        (one.start, one.stop, one.text) for one in expected]
    assert not found.left_out


# --- frames -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("start", "stop", "fps", "frames"), [
    (0, 40, 25, (0, 0)), (1000, 2000, 25, (25, 49)), (1019, 2000, 25, (25, 49)), (1021, 2000, 25, (26, 49)),
    (1000, 1001, 25, (25, 25)), (80, 160, 12.5, (1, 1)), (1001, 2002, 30000 / 1001, (30, 59))])
def test_frames_of_times(start, stop, fps, frames):
    assert frames_of(start, stop, fps) == frames


@given(st.integers(0, 10**6), st.integers(0, 10**4), st.sampled_from([12.5, 16.0, 23.976, 25.0, 29.97, 50.0, 60.0]))
def test_milliseconds_lose_no_frame(first, more, fps):
    assert frames_of(*times_of(first, first + more, fps), fps) == (first, first + more)


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3, unique=True).map(sorted), st.floats(5, 120))
def test_neighbours_share_a_frame_only_where_one_has_no_other(edges, fps):
    (_, before), (after, _) = (frames_of(start, stop, fps) for start, stop in zip(edges, edges[1:], strict=False))
    assert after == before + 1 or after <= before <= after + 1 and (edges[1] - edges[0]) * fps < 1000


def test_rows_end_with_the_video():
    said = [Subtitle(0, 1000, "a"), Subtitle(1000, 3000, "b"), Subtitle(3000, 4000, "c")]
    assert list(rows_of("v", said, 10, 25)) == [Row("v", "a", 0, 9), Row("v", "b", 10, 24)]


# --- the command --------------------------------------------------------------------------------------------

def write_at(path: Path, count: int, fps: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (64, 48))
    for frame in grey_frames(count):
        writer.write(frame)
    writer.release()
    return path


def table(folder: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO((folder / "metadata.csv").read_text(encoding="utf-8"))))


def run(source: Path, output: Path) -> int:
    return preprocess.main(["--subtitles", str(source), str(output)])


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with `videos`: v2 of 25 and v10 of 12.5 frames a second."""
    videos = tmp_path / "set" / "videos"
    write_at(videos / "v10.mp4", 30, 12.5)
    write_at(videos / "v2.mp4", 60, 25)
    (videos / "v10.srt").write_text(ONE + "\n2\n00:00:02,100 --> 00:00:09,000\nbis \"zum\" Ende,\nund weiter\n"
                                    "\n3\n00:00:09,000 --> 00:00:10,000\nspäter\n", encoding="utf-8")
    (videos / "v2.srt").write_text("\ufeff" + ONE.replace("\n", "\r\n"), encoding="utf-8")
    return videos.parent


def test_pairs_to_a_table(place, capsys):
    assert run(place / "videos", place) == 0
    assert table(place) == [["VideoID", "SubtitleLine", "StartFrame", "EndFrame"], ["v2", "Guten Tag.", "25", "59"],
                            ["v10", "Guten Tag.", "13", "29"], ["v10", 'bis "zum" Ende, und weiter', "26", "29"]]
    said = capsys.readouterr().out
    for words in ("notice: v10: 1 of 3 subtitles begin past the video's end",
                  "2 of 3 subtitles reach past the video's end",
                  "1 of 3 subtitles begin before the one before them ends", "notice: v2: 1 of 1", "2 written"):
        assert words in said, words
    assert "training looks" not in said


def test_bad_pairs_are_skipped_and_named(place, capsys):
    videos = place / "videos"
    (videos / "lonely.srt").write_text(ONE)
    write_video(videos / "silent.mp4", 3)
    (videos / "broken.mp4").write_text("<html>gone</html>")
    shutil.copy(videos / "v2.srt", videos / "broken.srt")
    shutil.copy(videos / "v2.mp4", videos / "other.mp4")
    (videos / "other.srt").write_text(ONE.replace("00:00:0", "01:00:0"))
    shutil.copy(videos / "v2.mp4", videos / "empty.mp4")
    (videos / "empty.srt").write_text("")
    (videos / "notes.txt").write_text("x")
    (videos / "v2.srt").write_text(ONE + "\n2\n00:00:02,000 --> 00:00:01,000\nx\n")
    assert run(videos, place / "out") == 0
    said = capsys.readouterr().out
    for words in ("skipped: lonely: no video: lonely.mp4 is missing", "skipped: broken: cannot read",
                  "skipped: silent: no subtitles: silent.srt is missing", "skipped: other: ", "is of another video",
                  "skipped: empty: ", "2 written, 0 were there, 5 skipped", "v2.srt, line 5: it ends before it begins",
                  "training looks for"):
        assert words in said, words
    assert [row[0] for row in table(place / "out")[1:]] == ["v2", "v10", "v10"]


def test_overlaps_and_many_bad_blocks_are_counted(place, capsys):
    videos = place / "videos"
    (videos / "v10.srt").write_text("\n".join([ONE, *["no block\n"] * 8, ONE]), encoding="utf-8")
    assert run(videos, place) == 0
    said = capsys.readouterr().out
    assert said.count("no block") == 5 and "and 3 more" in said
    assert "1 of 2 subtitles begin before the one before them ends" in said


def test_the_same_command_keeps_and_a_new_video_is_added(place, capsys):
    run(place / "videos", place)
    before = (place / "metadata.csv").stat().st_mtime_ns
    assert run(place / "videos", place) == 0
    assert "0 written, 2 were there" in capsys.readouterr().out
    assert (place / "metadata.csv").stat().st_mtime_ns == before
    for suffix in ("mp4", "srt"):
        shutil.copy(place / "videos" / f"v2.{suffix}", place / "videos" / f"v3.{suffix}")
    run(place / "videos", place)
    assert [row[0] for row in table(place)[1:]] == ["v2", "v3", "v10", "v10"]


def test_a_foreign_file_is_never_written_over(place):
    file = place / "metadata.csv"
    for content in ("VideoID,SubtitleLine,StartFrame,EndFrame\n", "mine"):
        file.write_text(content)
        with pytest.raises(Mistake, match="is left alone"):
            run(place / "videos", place)
        assert file.read_text() == content
    file.unlink()
    run(place / "videos", place)
    file.write_text(file.read_text() + "v2,by hand,1,2\n")
    with pytest.raises(Mistake, match="was changed since"):
        run(place / "videos", place)
    assert "by hand" in file.read_text()
    for other in ("[]", "no json", '{"sha256": 3}', '{"sha256": null}'):
        (place / "metadata.json").write_text(other)
        with pytest.raises(Mistake, match="is left alone"):
            run(place / "videos", place)


def test_killed_between_hash_and_table_the_next_run_goes_on(place, monkeypatch):
    run(place / "videos", place)
    old, put = (place / "metadata.csv").read_bytes(), subs.put
    (place / "videos" / "v2.srt").write_text(ONE.replace("Tag", "Abend"))

    def killed(path: Path, content: str | bytes) -> None:
        if path.suffix == ".csv":
            raise KeyboardInterrupt
        put(path, content)

    monkeypatch.setattr(subs, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        subs.subtitles(place / "videos", place)
    monkeypatch.undo()
    assert (place / "metadata.csv").read_bytes() == old
    run(place / "videos", place)
    assert table(place)[1][1] == "Guten Abend." and json.loads((place / "metadata.json").read_text())["sha256"]


def test_wrong_places(place, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nothing").mkdir()
    write_video(tmp_path / "bad" / "a.mp4", 2)
    for source, output, says in ((tmp_path / "none", tmp_path / "o", "VIDEOS_FOLDER is no folder"),
                                 (tmp_path / "nothing", tmp_path / "o", "no videos and no subtitles"),
                                 (place / "videos", tmp_path / "file", "OUTPUT_DIR is no folder"),
                                 (tmp_path / "bad", tmp_path / "o", "nothing could be made")):
        with pytest.raises(Mistake, match=says) as caught:
            run(source, output)
        assert caught.value.found and caught.value.do
    assert not (tmp_path / "o").exists()
    with pytest.raises(Mistake, match="--limit does nothing with --subtitles"):
        preprocess.main(["--subtitles", str(place), str(place), "--limit", "3"])
