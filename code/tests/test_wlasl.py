"""WLASL-form annotations: every form read, every mistake named, every trap of the real videos met."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_videos import crash_on_three, write_video

from slr import paths
from slr.datasets.wlasl import (
    Annotations,
    Clip,
    data_hash,
    find_annotations,
    load_classes,
    load_clips,
    read_annotations,
    read_class_list,
    split_name,
    videos_folder,
)
from slr.datasets.wlasl_prepare import (
    Facts,
    Prepared,
    adopt,
    details,
    fit_box,
    guard,
    judge,
    prepare,
    spread,
    summary,
    write_labels,
    write_store,
)
from slr.errors import Mistake
from slr.video import FrameStore, StoreSettings, VideoInfo

GOOD = {"video_id": "00001", "split": "train", "frame_start": 1, "frame_end": -1, "bbox": [0, 0, 9, 9]}


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


# --- reading ------------------------------------------------------------------------------------------------

def test_list_form(tmp_path):
    long = {"video_id": 7, "split": "test", "frame_start": 12, "frame_end": 40, "bbox": [1.4, 2, 30, 40.6],
            "signer_id": 3, "width": 640, "height": 360}
    file = write(tmp_path / "x.json", [{"gloss": "thank  you", "instances": [GOOD, long]},
                                       {"gloss": "book", "instances": []}])
    found = read_annotations(file)
    assert (found.form, found.classes, found.sizes) == ("wlasl", ["thank you", "book"], {"7": (640, 360)})
    assert found.clips == [Clip("00001", "thank you", 0, 0, None, (0, 0, 9, 9), None, "train"),
                           Clip("7", "thank you", 0, 11, 40, (1, 2, 30, 41), 3, "test")]


def test_nslt_form(tmp_path):
    data = {"5": {"subset": "val", "action": [1, 1, 55]}, "6": {"subset": "train", "action": [0, 3, 9]}}
    assert read_annotations(write(tmp_path / "mine.json", data)).classes == ["0", "1"]
    assert len(read_annotations(write(tmp_path / "nslt_100.json", data)).classes) == 100
    write(tmp_path / "class_list.txt", "0\tthank you\n1 book\n")
    assert read_annotations(tmp_path / "mine.json").classes == ["thank you", "book"]
    write(tmp_path / "wlasl_class_list.txt", "".join(f"{n}\tgloss {n}\n" for n in range(2000)))
    found = read_annotations(tmp_path / "nslt_100.json")
    assert found.form == "nslt" and found.classes == [f"gloss {n}" for n in range(100)]
    assert found.clips[0] == Clip("5", "gloss 1", 1, 0, 55, set="val")
    write(tmp_path / "mine_class_list.txt", "0\tbook\n")
    with pytest.raises(Mistake, match="1 names for 2 classes"):
        read_annotations(tmp_path / "mine.json")


def test_class_list_beside_other_splits_is_nobodys(tmp_path):
    data = {"5": {"subset": "val", "action": [0, 1, 55]}}
    write(tmp_path / "splits" / "class_list.txt", "0\tbook\n")
    assert read_annotations(write(tmp_path / "splits" / "mine.json", data)).classes == ["0"]


def test_older_labels(tmp_path):
    row = {"label_num": 1, "frame_start": 3, "frame_end": 30, "video_id": "00010", "bbox": [1, 2, 30, 40]}
    file = write(tmp_path / "train_instances_fixed_frange_bboxes_len.json", [row])
    other = {**row, "video_id": "00011", "label_num": 0}
    write(tmp_path / "val_instances_fixed_frange_bboxes_len.json", [other])
    for place in (file, tmp_path):
        found = read_annotations(place)
        assert (found.form, found.classes) == ("labels", ["0", "1"])
        assert found.clips == [Clip("00010", "1", 1, 2, 30, (1, 2, 30, 40), set="train"),
                               Clip("00011", "0", 0, 2, 30, (1, 2, 30, 40), set="val")]
    write(tmp_path / "class_list.txt", "0\tno\n1\tthank you\n")
    assert read_annotations(tmp_path).clips[0].gloss == "thank you"


def test_a_video_named_twice_gives_two_clips(tmp_path):
    file = write(tmp_path / "x.json", [{"gloss": "a", "instances": [GOOD, {**GOOD, "frame_start": 20}]}])
    first, second = read_annotations(file).clips
    assert (first.id, first.stem, second.id, second.stem) == ("00001", "00001", "00001.2", "00001")


def broken(**change: object) -> list:
    instance = {key: value for key, value in {**GOOD, **change}.items() if value != "none"}
    return [{"gloss": "book", "instances": [instance]}]


@pytest.mark.parametrize("data, said", [
    ("{", "is no JSON"), ("[]", "not a list of glosses"), ("3", "not a list of glosses"),
    ([{"instances": []}], "entry 0 has no 'gloss', only 'instances'"), (["book"], "entry 0 is str"),
    ([{"gloss": "book"}], "entry 0 ('book') has no 'instances'"),
    ([{"gloss": " ", "instances": []}], "entry 0 has an empty 'gloss'"),
    ([{"gloss": "a", "instances": []}] * 2, "entries 0 and 1 are both 'a'"),
    (broken(video_id="none"), "instance 0 of 'book' has no 'video_id'"),
    (broken(video_id="../1"), "'../1', which is no file name"),
    (broken(split="dev"), "instance 0 of 'book' (video 00001) has split = 'dev'"),
    (broken(split="none"), "(video 00001) has no 'split'"),
    (broken(frame_start="1"), "has frame_start = '1'"), (broken(frame_end=1.5), "has frame_end = 1.5"),
    (broken(frame_end=float("inf")), "has frame_end = inf"), (broken(signer_id=True), "has signer_id = True"),
    (broken(bbox=[1, 2, 3]), "bbox = [1, 2, 3], which is not four numbers"),
    (broken(bbox=[1, 2, 3, float("nan")]), "which is not four numbers"), (broken(bbox="x"), "bbox = 'x'"),
    ({"1": {"action": [0, 1, 2]}}, "clip '1' has no 'subset'"), ({"1": []}, "clip '1' is list"),
    ({"1": {"subset": "train", "action": [0, 1]}}, "clip '1' has action = [0, 1]"),
    ({"1": {"subset": "train", "action": [-1, 1, 2]}}, "has action = [-1, 1, 2]"),
])
def test_mistakes_name_the_file_and_the_entry(tmp_path, data, said):
    with pytest.raises(Mistake) as caught:
        read_annotations(write(tmp_path / "bad.json", data))
    assert "bad.json" in str(caught.value) and said in str(caught.value)


def test_mistakes_in_labels_and_class_lists(tmp_path):
    cases = (({}, "dict, not a list"), ([{"video_id": "1"}], "has no 'label_num'"), ([], "no clips in"))
    for data, said in cases:
        write(tmp_path / "train_instances.json", data)
        with pytest.raises(Mistake, match=said):
            read_annotations(tmp_path)
    write(tmp_path / "class_list.txt", "0\tbook\n2\tdrink\n")
    with pytest.raises(Mistake, match="line 2 is '2.tdrink'"):
        read_class_list(tmp_path / "class_list.txt")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(Mistake, match="is no text"):
        read_annotations(tmp_path / "latin.json")
    for nowhere in (tmp_path / "nowhere.json", tmp_path / "train_instances.json" / "x.json"):
        with pytest.raises(Mistake):
            read_annotations(nowhere)


def test_real_annotations(shared):
    meta = {name: read_annotations(shared / "wlasl_meta" / f"{name}.json")
            for name in ("asl100", "asl300", "nslt_100", "nslt_300", "nslt_2000")}
    assert [(len(a.classes), len(a.clips)) for a in meta.values()] == [
        (100, 2038), (300, 5117), (100, 2038), (300, 5118), (2000, 21095)]
    assert Counter(clip.set for clip in meta["asl100"].clips) == {"train": 1442, "val": 338, "test": 258}
    assert meta["asl100"].classes == meta["nslt_100"].classes
    labels = [{clip.id: clip.label for clip in meta[name].clips} for name in ("asl100", "nslt_100")]
    assert labels[0] == labels[1]
    assert "thank you" in meta["asl300"].classes or "thank you" in meta["nslt_2000"].classes
    outside = [clip for clip in meta["asl100"].clips if fit_box(clip.box, 256, 256)[1] == "ignored"]
    assert 1600 < len(outside) <= 1619  # those by no more than two pixels are cut to fit


# --- judging ------------------------------------------------------------------------------------------------

def facts(frames: int, width: int = 64, height: int = 48, sha256: str = "") -> Facts:
    return Facts(VideoInfo(frames, width, height, 25.0, frames), sha256)


@pytest.mark.parametrize("start, stop, frames, outcome", [
    (0, None, 30, (0, 30, False)), (0, 30, 30, (0, 30, False)), (5, 20, 30, (5, 20, False)),
    (0, 99, 30, (0, 30, True)), (20, 99, 30, (20, 30, True)), (0, None, 10, (0, 10, False)),
    (0, None, 9, "too_short"), (21, 99, 30, "too_short"), (0, 9, 30, "too_short"),
    (30, None, 30, "out_of_range"), (40, 60, 30, "out_of_range"), (-1, 20, 30, "out_of_range"),
    (10, 10, 30, "out_of_range"), (10, 5, 30, "out_of_range"), (0, -2, 30, "out_of_range"),
])
def test_ranges(start, stop, frames, outcome):
    verdict = judge(Clip("1", "a", 0, start, stop), facts(frames))
    if verdict.clip is None:
        assert verdict.reason == outcome and f"of {frames}" in verdict.detail
    else:
        assert (verdict.clip.start, verdict.clip.stop, verdict.clamped) == outcome


def test_boxes():
    assert fit_box(None, 256, 256) == (None, "none")
    assert fit_box((0, 0, 256, 256), 256, 256) == ((0, 0, 256, 256), "kept")
    assert fit_box((-2, 3, 258, 200), 256, 256) == ((0, 3, 256, 200), "kept")
    assert fit_box((385, 37, 885, 720), 256, 256) == (None, "ignored")
    assert fit_box((385, 37, 885, 720), 256, 256, (1280, 720)) == ((77, 13, 177, 256), "rescaled")
    assert fit_box((9, 9, 9, 20), 256, 256) == fit_box((20, 9, 9, 20), 256, 256) == (None, "ignored")


edge = st.integers(-50, 2000)


@given(box=st.tuples(edge, edge, edge, edge), size=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
       source=st.none() | st.tuples(st.integers(16, 2000), st.integers(16, 2000)))
def test_a_box_that_is_kept_lies_in_the_frame(box, size, source):
    found, how = fit_box(box, *size, source)
    assert (found is None) == (how == "ignored")
    if found:
        assert 0 <= found[0] < found[2] <= size[0] and 0 <= found[1] < found[3] <= size[1]


# --- a split ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Good, bad and missing videos, two of the same bytes, a signer in two sets."""
    root = tmp_path_factory.mktemp("split")
    videos = root / "WLASL" / "WLASL2000"
    write_video(videos / "good.mp4", 30)
    write_video(videos / "copy.mp4", 30)
    write_video(videos / "brief.mp4", 6)
    write_video(videos / "wide.mp4", 20, 96, 48)
    (videos / "page.mp4").write_text("<html>gone</html>")
    clips = [Clip("good", "book", 0, 0, 99, (0, 0, 40, 48), 1, "train"),
             Clip("copy", "thank you", 1, 2, signer=1, set="test"),
             Clip("wide", "book", 0, 4, 18, (100, 0, 500, 400), 2, "val"), Clip("brief", "book", 0),
             Clip("page", "book", 0), Clip("gone", "book", 0), Clip("good.2", "book", 0, 40, video="good")]
    found = Annotations(write(root / "mine.json", "[]"), "wlasl", ["book", "thank you"], clips)
    return prepare("mine", found, videos, workers=0, root=root)


def test_every_left_out_clip_has_its_reason(prepared):
    report = prepared.report
    assert [clip.id for clip in prepared.clips] == ["good", "copy", "wide"]
    assert {row["clip_id"]: row["reason"] for row in report["left_out"]} == {
        "brief": "too_short", "page": "unreadable", "gone": "missing", "good.2": "out_of_range"}
    assert report["left_out_by_reason"] == {"missing": 1, "unreadable": 1, "out_of_range": 1, "too_short": 1}
    assert (report["clips"], report["kept"], report["clamped"], report["header_lies"]) == (7, 3, 1, 0)
    assert report["boxes"] == {"kept": 1, "rescaled": 0, "ignored": 1, "none": 1}
    assert report["videos"] == "WLASL/WLASL2000" and report["annotations"] == "mine.json"


def test_what_stands_in_two_places(prepared):
    report = prepared.report
    assert report["duplicates"] == [{
        "clips": [{"clip_id": "good", "gloss": "book", "set": "train"},
                  {"clip_id": "copy", "gloss": "thank you", "set": "test"}],
        "across_glosses": True, "across_sets": True}]
    assert report["signers_in_two_sets"] == {"1": ["train", "test"]} and report["videos_in_two_sets"] == {}
    assert report["sets"]["train"]["classes_without_a_clip"] == ["thank you"]
    assert report["sets"]["test"] == {"clips": 1, "classes": 1, "signers": 1,
                                      "frames": {"min": 28, "median": 28, "max": 28},
                                      "classes_without_a_clip": ["book"]}


def test_report_in_words(prepared):
    text = summary(prepared.report)
    assert "3 of 7 clips kept" in text and "1 left out: no such video" in text and "same bytes" in text
    assert "left out: page (book, train): the video does not decode: 17 bytes" in details(prepared.report)
    assert "same bytes: good (book, train) = copy (thank you, test)" in details(prepared.report)


def test_labels_round_trip(prepared, tmp_path):
    folder = paths.labels(tmp_path, "mine")
    write_labels(prepared, folder)
    assert [clip for name in paths.SETS for clip in load_clips(tmp_path, "mine", name)] == sorted(
        prepared.clips, key=lambda clip: paths.SETS.index(clip.set))
    assert load_classes(tmp_path, "mine") == ["book", "thank you"]
    row = json.loads((folder / "train_instances.json").read_text())[0]
    assert row == {"clip_id": "good", "gloss": "book", "label_num": 0, "video_id": "good",
                   "frame_start": 1, "frame_end": 30, "bbox": [0, 0, 40, 48], "signer_id": 1,
                   "frames": 30, "width": 64, "height": 48}
    before = data_hash(tmp_path, "mine")
    write_labels(prepared, folder)
    assert data_hash(tmp_path, "mine") == before and len(list(folder.iterdir())) == 5
    write_labels(prepared.without({"wide": "changed its mind"}), folder)
    assert data_hash(tmp_path, "mine") != before and load_clips(tmp_path, "mine", "val") == []
    assert videos_folder(tmp_path, "mine") == tmp_path / "WLASL" / "WLASL2000"
    assert videos_folder(tmp_path, "other") == paths.wlasl_videos(tmp_path)


def test_the_name_of_labels_given_by_path(prepared, tmp_path):
    """The report's, else the folder's; a name stays what it is."""
    moved, bare = tmp_path / "moved", tmp_path / "bare"
    write_labels(prepared, moved)
    bare.mkdir()
    assert split_name(tmp_path, str(moved)) == "mine" and split_name(tmp_path, str(bare)) == "bare"
    assert split_name(tmp_path, "asl100") == "asl100"
    write(moved / "report.json", [])
    with pytest.raises(Mistake, match="no report"):
        split_name(tmp_path, str(moved))


def test_what_is_not_prepared(tmp_path):
    for call in (load_clips, load_classes, data_hash):
        with pytest.raises(Mistake, match="python preprocess.py -as asl100"):
            call(*(tmp_path, "asl100", "train")[:3 if call is load_clips else 2])
    with pytest.raises(Mistake, match=r"there is none"):
        find_annotations(tmp_path, "asl100")
    write(tmp_path / "splits" / "asl100.json", [])
    assert find_annotations(tmp_path, "asl100") == tmp_path / "splits" / "asl100.json"
    with pytest.raises(Mistake, match="there is asl100"):
        find_annotations(tmp_path, "asl300")
    write(paths.labels(tmp_path, "old") / "val_instances_fixed_frange_bboxes_len.json", [])
    assert find_annotations(tmp_path, "old") == paths.labels(tmp_path, "old")


def test_adopt_copies_and_does_not_write_over(tmp_path):
    data = {"5": {"subset": "val", "action": [0, 1, 55]}}
    file = write(tmp_path / "elsewhere" / "some.json", data)
    write(tmp_path / "elsewhere" / "class_list.txt", "0\tbook\n")
    target = adopt(file, tmp_path, "mine")
    assert target == find_annotations(tmp_path, "mine") and read_annotations(target).classes == ["book"]
    adopt(file, tmp_path, "mine")
    write(file, {**data, "6": data["5"]})
    with pytest.raises(Mistake, match="--replace"):
        adopt(file, tmp_path, "mine")
    assert len(read_annotations(adopt(file, tmp_path, "mine", replace=True)).clips) == 2
    row = {"label_num": 0, "frame_start": 3, "frame_end": 30, "video_id": "00010", "bbox": [1, 2, 30, 40]}
    write(tmp_path / "old" / "train_instances_fixed_frange_bboxes_len.json", [row])
    assert adopt(tmp_path / "old", tmp_path, "older") == find_annotations(tmp_path, "older")


def test_guard(prepared, tmp_path):
    guard(tmp_path, None, 3)
    write_labels(prepared, tmp_path)
    same, other = write(tmp_path / "same.json", "[]"), write(tmp_path / "other.json", "[ ]")
    guard(tmp_path, same, 0)
    for annotation, limit in ((other, 0), (same, 3), (None, 3)):
        with pytest.raises(Mistake, match="--replace"):
            guard(tmp_path, annotation, limit)


def test_limit_takes_from_all_over_each_set(tmp_path):
    clips = [Clip(str(i), str(i // 10), i // 10, set="train" if i % 2 else "test") for i in range(100)]
    found = Annotations(write(tmp_path / "x.json", "[]"), "wlasl", [str(i) for i in range(10)], clips)
    verdicts = prepare("x", found, tmp_path, workers=0, limit=5).verdicts
    assert Counter(clip.set for clip, _ in verdicts) == {"train": 5, "test": 5}
    assert len({clip.label for clip, _ in verdicts}) == 5


def test_store_of_a_split(prepared, tmp_path):
    settings = StoreSettings("jpeg", "box", 32)
    done = write_store(prepared, tmp_path, settings, workers=0)
    assert (done["written"], done["kept"], done["failed"]) == (3, 0, {})
    store = FrameStore.open(tmp_path)
    assert store.read("good", [29]).shape == (1, 38, 32, 3)  # cropped to 40 x 48, then shrunk
    assert store.read("wide", [0]).shape == (1, 32, 64, 3)
    assert [store.frames(clip.id) for clip in prepared.clips] == [30, 28, 14]
    again = write_store(prepared, tmp_path, settings, workers=0, verify=True)
    assert (again["written"], again["kept"], again["bytes"]) == (0, 3, done["bytes"])
    moved = [(clip, replace(verdict, clip=replace(verdict.clip, start=5)) if clip.id == "wide" else verdict)
             for clip, verdict in prepared.verdicts]
    assert write_store(replace(prepared, verdicts=moved), tmp_path, settings, workers=0)["written"] == 1
    lost = replace(prepared, videos=tmp_path)
    failed = write_store(lost, tmp_path / "lost", settings, workers=0)["failed"]
    assert set(failed) == {"good", "copy", "wide"} and prepared.without(failed).clips == []


def test_processes_crash_alone():
    found = dict(spread(crash_on_three, list(range(8)), 2))
    assert found == {item: None if item == 3 else 10 * item for item in range(8)}


def test_real_videos(shared, tmp_path):
    folder = shared / "wlasl_real"
    whole = read_annotations(folder / "nslt_2000.subset.json")
    wanted = {"01377", "21328", "31559", "60308"}
    clips = [clip for clip in whole.clips if clip.id in wanted]
    (tmp_path / "00335.mp4").symlink_to(shared / "corrupt" / "00335.mp4")
    for clip in clips:
        (tmp_path / f"{clip.id}.mp4").symlink_to(folder / "videos" / f"{clip.id}.mp4")
    bad = next(clip for clip in whole.clips if clip.id == "00335")
    report = prepare("x", replace(whole, clips=[*clips, bad]), tmp_path, workers=0).report
    doubles = [{row["clip_id"] for row in group["clips"]} for group in report["duplicates"]]
    assert sorted(map(sorted, doubles)) == [["01377", "21328"], ["31559", "60308"]]
    assert all(group["across_glosses"] and group["across_sets"] for group in report["duplicates"])
    assert report["left_out_by_reason"]["unreadable"] == 1 and report["header_lies"] >= 1


@pytest.mark.slow
def test_all_real_videos(shared):
    folder = shared / "wlasl_real"
    report = prepare("x", read_annotations(folder / "nslt_2000.subset.json"), folder / "videos").report
    assert (report["kept"], report["clamped"], report["header_lies"]) == (131, 34, 37)
