"""Long videos with subtitles: strict rows, what is left out, splits by video."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import write_video

from slr.datasets.bundestag import Sample, read_samples, split
from slr.errors import Mistake

HEADER = "VideoID,SubtitleLine,StartFrame,EndFrame\n"


def write(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Videos a of 40 and b of 20 frames, one that is none, and one that is not there."""
    folder = tmp_path_factory.mktemp("data") / "set"
    write_video(folder / "videos" / "a.mp4", 40)
    write_video(folder / "videos" / "b.mp4", 20)
    (folder / "videos" / "bad.mp4").write_text("<html>gone</html>")
    return write(folder, HEADER + 'a,"Guten Tag, Frau\nPräsidentin",0,9\nb,Danke,5,19\nb,zu kurz,5,20\na,"",12,12\n'
                 'bad,x,0,1\ngone,x,0,1\n\na,noch einmal,0,9\n')


# --- reading ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("thorough", [False, True])
def test_reading(place, thorough):
    found = read_samples(place, thorough=thorough)
    a, b = (place / "videos" / f"{name}.mp4" for name in "ab")
    assert found.samples == [Sample("a/0-9", "a", 0, 9, "Guten Tag, Frau Präsidentin", a),
                             Sample("b/5-19", "b", 5, 19, "Danke", b), Sample("a/12-12", "a", 12, 12, "", a)]
    assert [sample.num_frames for sample in found.samples] == [10, 15, 1]
    assert list(found.left_out) == ["b/5-20", "bad/0-1", "gone/0-1", "a/0-9, line 10"]
    assert "b.mp4 has 20 frames, and none of number 20" in found.left_out["b/5-20"]
    assert "cannot read" in found.left_out["bad/0-1"] and "gone.mp4 is missing" in found.left_out["gone/0-1"]
    assert "line 2 already" in found.left_out["a/0-9, line 10"]
    assert str(found).endswith("3 subtitles of 2 videos, 4 left out") and "left out: gone/0-1: " in str(found)


def test_columns_by_name_and_numbers_as_pandas_writes_them(tmp_path):
    write_video(tmp_path / "videos" / "v.mp4", 4)
    write(tmp_path, "\ufeffEndFrame,id,VideoID,SubtitleLine,StartFrame\r\n3.0,7,v,ja,1.0\r\n")
    (one,) = read_samples(tmp_path).samples
    assert (one.video, one.text, one.start, one.end) == ("v", "ja", 1, 3)


@pytest.mark.parametrize(("text", "says"), [
    ("", "line 1 .*a header with VideoID"), ("VideoID,StartFrame,EndFrame\nv,0,1\n", "line 1 .*SubtitleLine is not"),
    (HEADER.strip() + ",VideoID\n", "line 1 .*VideoID is not in"), (HEADER + "v,x,0\n", "line 2 .*3 fields are too"),
    (HEADER + 'v,"a\nb",0,1\nv,x,-1,4\n', "line 4 .*numbers from 0 up, not '-1' and '4'"),
    (HEADER + "v,x,0,1.5\n", "line 2 .*numbers from 0"), (HEADER + "v,x,,\n", "line 2 .*numbers from 0"),
    (HEADER + "v,x,0,9999999999\n", "line 2 .*numbers from 0"), (HEADER + "\nv,x,5,4\n", "line 3 .*ends before it"),
    (HEADER + "../v,x,0,1\n", "line 2 .*is no VideoID"), (HEADER + ",x,0,1\n", "line 2 .*is no VideoID"),
    (HEADER + "a\\b,x,0,1\n", "line 2 .*is no VideoID"), (HEADER + '"a\0",x,0,1\n', "line 2 cannot be used"),
    (HEADER + 'v,"x,0,1\n', "line 2 cannot be used"), (HEADER.encode() + b"v,M\xe4use,0,1\n", "is no UTF-8")])
def test_a_bad_row_is_named_by_file_and_line(tmp_path, text, says):
    with pytest.raises(Mistake, match=says) as caught:
        read_samples(write(tmp_path, text))
    assert str(tmp_path / "metadata.csv") in caught.value.wrong and caught.value.found and caught.value.do


def test_no_table(tmp_path):
    with pytest.raises(Mistake, match="cannot read .*metadata.csv") as caught:
        read_samples(tmp_path)
    assert "--subtitles" in caught.value.do


@given(st.text(alphabet=st.sampled_from('v0123456789,"\n\r.-x \0é'), max_size=60))
def test_any_table_is_read_or_refused(tmp_path_factory, text):
    folder = write(tmp_path_factory.getbasetemp() / "any", HEADER + text)
    try:
        found = read_samples(folder)
    except Mistake as error:
        assert error.do
        return
    assert not found.samples  # there is no video


# --- splits -------------------------------------------------------------------------------------------------

def samples(videos: int, each: int = 3) -> list[Sample]:
    return [Sample(f"v{k}/{10 * i}-{10 * i + 9}", f"v{k}", 10 * i, 10 * i + 9, "", Path(f"v{k}.mp4"))
            for k in range(videos) for i in range(each)]


@given(st.integers(3, 60), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_split_is_by_video_whatever_the_order(videos, seed, rng):
    some = samples(videos)
    sets = split(some, seed=seed)
    assert sorted(sample.id for part in sets.values() for sample in part) == sorted(sample.id for sample in some)
    of = {part: {sample.video for sample in own} for part, own in sets.items()}
    assert list(of) == ["train", "val", "test"] and sum(map(len, of.values())) == videos and of["train"]
    assert len(of["val"]) == len(of["test"]) == max(1, round(videos / 20))
    mixed = some.copy()
    rng.shuffle(mixed)
    assert split(mixed, seed=seed) == sets


def test_ninety_five_five():
    sets = split(samples(100, 1), seed=1)
    assert {part: len(own) for part, own in sets.items()} == {"train": 90, "val": 5, "test": 5}
    assert split(samples(100, 1), seed=2) != sets
    assert [sample.video for sample in sets["val"]] == sorted(sample.video for sample in sets["val"])


def test_shares():
    assert {part: len(own) for part, own in split(samples(4, 2), (0.5, 0.5, 0), 3).items()} == {
        "train": 4, "val": 4, "test": 0}
    for shares in ((0.9, 0.1), (0.9, 0.2, 0.1), (1.1, -0.1, 0)):
        with pytest.raises(Mistake, match="no shares"):
            split(samples(5), shares)
    with pytest.raises(Mistake, match="2 videos are too few for 3 sets"):
        split(samples(2))


def test_shuffled_rows_give_the_same_sets(place):
    found = read_samples(place).samples
    mixed = random.Random(1).sample(found, len(found))
    assert split(mixed, (0.5, 0.5, 0), 7) == split(found, (0.5, 0.5, 0), 7)
