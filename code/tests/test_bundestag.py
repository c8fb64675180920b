"""Long videos with subtitles: strict rows, what is left out, splits by video, stride before cut, padded batches."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from little_videos import level, write_video

from slr.datasets import bundestag
from slr.datasets.bundestag import Sample, read_samples, sample_indices, split
from slr.datasets.bundestag_clips import SubtitleDataset, padded
from slr.errors import Mistake
from slr.loading import EpochBatches, Key, build_loader
from slr.transforms import Augment, crop_resize

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


# --- which frames -------------------------------------------------------------------------------------------

def test_stride_comes_before_the_cut():
    assert sample_indices(10, 29, num_frames=4, stride=3).tolist() == [13, 16, 19, 22]
    assert sample_indices(10, 29, num_frames=40, stride=3).tolist() == [10, 13, 16, 19, 22, 25, 28]
    assert sample_indices(7, 7, num_frames=4, stride=3).tolist() == [7]
    with pytest.raises(ValueError, match="cannot take"):
        sample_indices(7, 6, num_frames=4)


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_indices_are_within_the_subtitle(start, more, most, stride, seed):
    end = start + more
    still = sample_indices(start, end, num_frames=most, stride=stride)
    drawn = sample_indices(start, end, num_frames=most, stride=stride, rng=np.random.default_rng(seed))
    assert len(still) == min(most, len(range(start, end + 1, stride)))
    assert len(still) - 1 <= len(drawn) <= len(still)
    for indices in (still, drawn):
        assert 1 <= len(indices) and start <= indices[0] and indices[-1] <= end and set(np.diff(indices)) <= {stride}


def test_training_sees_every_frame_some_time():
    rng = np.random.default_rng(0)
    seen = {int(i) for _ in range(300) for i in sample_indices(3, 22, num_frames=3, stride=2, rng=rng)}
    assert seen == set(range(3, 23))


# --- the data set -------------------------------------------------------------------------------------------

def test_items(place):
    found = read_samples(place).samples
    data = SubtitleDataset(found, num_frames=4, frame_size=32, stride=2)
    assert len(data) == 3 and data.lengths(0) == [4, 4, 1]
    item = data[Key(0, 1)]
    assert item["frames"].shape == (4, 32, 32, 3) and item["frames"].dtype == np.uint8
    assert [level(frame) for frame in item["frames"]] == item["indices"].tolist() == [9, 11, 13, 15]
    assert (item["ids"], item["texts"], item["lengths"], item["ghost"]) == ("b/5-19", "Danke", 4, False)
    assert item["draws"].tolist() == [0, 1, 1, 1, 0, 1]


def test_whole_frames_are_stretched_in_evaluation(place):
    """As sentences are: red on the left and blue on the right stay."""
    sample = read_samples(place).samples[0]
    frame = SubtitleDataset([sample], num_frames=1, frame_size=32)[Key(0, 0)]["frames"][0]
    whole = bundestag.probe(sample.file)
    assert (whole.width, whole.height) == (64, 48)
    assert frame[:, :2, 0].min() > 150 and frame[:, -2:, 2].min() > 150 and frame[:, :2, 2].max() < 100


def test_training_draws_one_crop_and_repeats_itself(place):
    sample = replace(read_samples(place).samples[0], end=35)
    augment = Augment(min_scale=0.3, max_aspect=1.3, hflip=0.5, jitter=(0.1, 0.1, 0.1, 0.1))
    data = SubtitleDataset([sample], num_frames=6, frame_size=32, stride=2, seed=3, augment=augment)
    items = [data[Key(epoch, 0)] for epoch in range(8)]
    again = data[Key(5, 0)]
    assert np.array_equal(again["frames"], items[5]["frames"]) and np.array_equal(again["draws"], items[5]["draws"])
    assert len({item["indices"].tobytes() for item in items}) > 3
    assert len({item["frames"][:, :, 0].tobytes() for item in items}) == 8
    assert {item["lengths"].item() for item in items} == {6} and data.lengths(5) == [len(again["frames"])]
    for item in items:
        assert [level(crop_resize([f], (10, 0, 22, 32), 32)[0]) for f in item["frames"]] == item["indices"].tolist()


def test_batches_are_padded_to_their_longest(place):
    found = read_samples(place).samples
    data = SubtitleDataset(found, num_frames=7, frame_size=16)
    items = [data[Key(0, i)] for i in range(3)]
    batch = padded(items, multiple=2)
    assert batch["frames"].shape == (3, 8, 16, 16, 3) and batch["frames"].dtype == torch.uint8
    assert batch["lengths"].tolist() == [7, 7, 1] and batch["draws"].shape == (3, 6) and batch["ghost"] is False
    assert batch["texts"] == [sample.text for sample in found] and batch["indices"][2] == [12]
    for row, item in zip(batch["frames"], items, strict=True):
        assert np.array_equal(row[:len(item["frames"])].numpy(), item["frames"]) and not row[len(item["frames"]):].any()
    assert padded(items[2:])["frames"].shape[1] == 1 and padded(items[:1])["frames"].shape[1] == 7


def test_an_epoch_through_the_loader(place):
    found = read_samples(place).samples
    data = SubtitleDataset(found, num_frames=5, frame_size=16, augment=Augment())
    batches = EpochBatches(3, 2, shuffle=True, seed=0, lengths=data.lengths)
    loader = build_loader(data, batches, workers=0, prefetch=2, pin_memory=False, collate_fn=padded)
    ids = [name for batch in loader for name in batch["ids"]]
    assert sorted(ids) == sorted(sample.id for sample in found)


def test_a_video_shorter_than_its_header_is_named(place, monkeypatch):
    monkeypatch.setattr(bundestag, "header_frames", lambda file: 100)
    late = next(sample for sample in read_samples(place).samples if sample.id == "b/5-20")
    with pytest.raises(Mistake, match="b.mp4 is too short"):
        SubtitleDataset([late], num_frames=16, frame_size=16)[Key(0, 0)]


def test_shuffled_rows_give_the_same_sets(place):
    found = read_samples(place).samples
    mixed = random.Random(1).sample(found, len(found))
    assert split(mixed, (0.5, 0.5, 0), 7) == split(found, (0.5, 0.5, 0), 7)
