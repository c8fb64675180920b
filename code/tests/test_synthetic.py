"""The synthetic signer: the same bytes from the same seed, and only the movement tells the classes apart."""

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from slr.datasets import signer as figure
from slr.datasets import signs as hands
from slr.datasets import synthetic
from slr.errors import Mistake

TEN = synthetic.inventory(10)
PEOPLE = {"train": 60, "val": 10, "test": 24}


def a_signer(number: int = 0) -> figure.Signer:
    return synthetic.make_signer(np.random.default_rng(number))


def a_clip(label: int, person: int, number: int, size: int = 64) -> np.ndarray:
    return synthetic.draw(TEN[label], a_signer(person), np.random.default_rng([7, number]), size)


# ---------------------------------------------------------------- signs

def test_the_first_ten_signs_are_the_demos_and_shorter_inventories_are_beginnings():
    sixty = synthetic.inventory(60, seed=1)
    assert sixty[:10] == list(hands.DEMO) == TEN
    assert synthetic.inventory(25, seed=1) == sixty[:25]
    assert synthetic.inventory(3) == TEN[:3]
    assert synthetic.inventory(60, seed=2)[10:] != sixty[10:]
    assert len({sign.gloss for sign in sixty}) == 60


def test_some_glosses_have_several_words():
    assert any(" " in sign.gloss for sign in TEN)
    glosses = [hands._word(i) for i in range(3000)]
    assert len(set(glosses)) == 3000 and not set(glosses) & {sign.gloss for sign in TEN}


def test_at_least_three_pairs_differ_in_the_order_alone():
    pairs = [(a, b) for a in TEN for b in TEN if a.gloss < b.gloss and replace(a.reverse(b.gloss)) == b]
    assert len(pairs) >= 3
    u, rest = np.linspace(0, 1, 21), hands.rest_pose()
    for a, b in pairs:
        assert np.allclose(hands.stroke(a, u, rest), hands.stroke(b, 1 - u, rest), atol=1e-12)
        assert not np.allclose(hands.stroke(a, u, rest), hands.stroke(b, u, rest), atol=0.1)


def test_no_two_signs_look_alike():
    rest = hands.rest_pose()
    courses = [hands._course(sign, rest) for sign in synthetic.inventory(80)]
    assert min(np.abs(a - b).max() for i, a in enumerate(courses) for b in courses[:i]) > 1


def test_labels_are_in_the_range_of_every_head():
    signs = synthetic.inventory(150)
    for sign in signs:
        labels = sign.labels()
        assert list(labels) == list(hands.HEADS)
        assert all(0 <= label < hands.HEADS[name] for name, label in labels.items())
    assert len({sign.labels()["hand_shape_base_form"] for sign in signs}) == 12
    assert len({sign.symmetry for sign in signs}) == 9 and len({sign.path for sign in signs}) >= 8
    assert len({sign.y for sign in signs}) >= 6


def test_the_lists_have_the_heads_lengths():
    lists = (hands.SYMMETRIES, hands.SHAPES, hands.THUMBS, hands.BENDINGS, hands.DIRECTIONS, hands.PALMS,
             hands.LOCATIONS_X, hands.LOCATIONS)
    assert [len(names) for names in lists] == list(hands.HEADS.values()) == [9, 12, 4, 6, 18, 8, 5, 37]


def test_labels_of_a_reversed_sign_begin_with_its_first_shape():
    sign = hands.Sign("a", "flat", shape_to="fist")
    assert sign.labels()["hand_shape_base_form"] == hands.SHAPES.index("flat")
    assert sign.reverse("b").labels()["hand_shape_base_form"] == hands.SHAPES.index("fist")


@pytest.mark.parametrize("path", hands.PATHS)
@pytest.mark.parametrize("symmetry", hands.SYMMETRIES)
def test_every_path_and_symmetry_gives_finite_poses_with_unit_rotations(path, symmetry):
    sign = hands.Sign("a", "cee12", path=path, symmetry=symmetry, direction="out", fingers="up-left")
    poses = hands.stroke(sign, np.linspace(0, 1, 30), hands.rest_pose())
    assert poses.shape == (30, 2, 27) and np.isfinite(poses).all()
    assert np.allclose(np.linalg.norm(poses[..., hands.ROTATION], axis=-1), 1)


def test_every_orientation_points_where_it_says():
    for name in hands.DIRECTIONS:
        for palm in hands.PALMS:
            axes = hands.matrices(hands.orientation(name, palm))
            assert np.allclose(axes[:, 2], hands.direction_vector(name), atol=1e-9)
            assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    front = hands.matrices(hands.orientation("up", "front"))
    assert np.allclose(front[:, 1], [0, 0, 1], atol=1e-9) and np.allclose(front[:, 0], [1, 0, 0], atol=1e-9)


@pytest.mark.parametrize(("symmetry", "x", "y"), [("mirror", -1, 1), ("parallel", 1, 1),
                                                  ("mirror opposed", -1, -1)])
def test_symmetries_move_the_other_hand_as_they_say(symmetry, x, y):
    sign = hands.Sign("a", x="right", path="arc", direction="up-right", symmetry=symmetry)
    place = hands.stroke(sign, np.linspace(0, 1, 15), hands.rest_pose())[..., hands.POSITION]
    moves = np.diff(place, axis=0)
    assert np.allclose(moves[:, 1], moves[:, 0] * [x, y, 1], atol=1e-12)


# ---------------------------------------------------------------- figure

@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3), st.floats(0.5, 0.9), st.floats(0.5, 0.9))
def test_inverse_kinematics_keeps_the_links_lengths(target, upper, fore):
    shoulder, wish = np.array([[-0.47, 0.03, 0.0]]), np.array([target])
    elbow, wrist = figure.elbows(shoulder, wish, upper, fore)
    assert np.linalg.norm(elbow - shoulder) == pytest.approx(upper, abs=1e-3)
    assert np.linalg.norm(wrist - elbow) == pytest.approx(fore, abs=1e-3)
    distance = np.linalg.norm(wish - shoulder)
    if abs(upper - fore) + 0.02 < distance < 0.995 * (upper + fore):
        assert np.allclose(wrist, wish, atol=1e-6)


def test_hand_shapes_differ_and_fingers_keep_their_lengths():
    angles = np.stack([hands.finger_angles(shape) for shape in hands.SHAPES])
    joints = figure.hand_joints(angles)
    assert joints.shape == (12, 5, 4, 3)
    links = np.linalg.norm(np.diff(joints, axis=2), axis=-1)
    assert np.allclose(links, links[:1], atol=1e-9)
    tips = joints[:, :, -1].reshape(12, -1)
    assert min(np.abs(a - b).max() for i, a in enumerate(tips) for b in tips[:i]) > 0.05


def test_a_left_handed_signer_mirrors():
    rng = np.random.default_rng(3)
    right = replace(a_signer(), left_handed=False, hanging=True)
    scene = replace(synthetic.make_scene(right, rng, 96), jitter=0.0, drift=(0.0, 0.0), place=(48.0, 34.0))
    poses = hands.stroke(TEN[0], np.array([1.0]), hands.rest_pose(True))
    still = np.zeros((1, figure.BODY))
    one = figure.render(right, scene, poses, still)[0].astype(int)
    other = figure.render(replace(right, left_handed=True), scene, poses, still)[0].astype(int)
    changed = np.abs(one - other).max(axis=2) > 40
    assert changed[:, :40].any() and changed[:, 56:].any()


# ---------------------------------------------------------------- clips

@pytest.mark.parametrize("size", [64, 112, 200])
def test_the_same_seed_gives_the_same_bytes(size):
    first, again, other = a_clip(0, 1, 5, size), a_clip(0, 1, 5, size), a_clip(0, 1, 6, size)
    assert first.dtype == np.uint8 and first.shape[1:] == (size, size, 3) and 24 <= len(first) <= 48
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_sentence_aligns_every_sign_in_order():
    signs = [TEN[0], TEN[3], TEN[8], TEN[5]]
    motion = synthetic.sentence(signs, a_signer(), np.random.default_rng(0))
    at = motion.alignment()
    assert at[0] == at[-1] == -1 and len(at) == len(motion.poses) == len(motion.body)
    order = at[at >= 0]
    assert set(order.tolist()) == {0, 1, 2, 3} and (np.diff(order) >= 0).all()
    assert all((at == k).sum() >= 8 for k in range(4)) and (at == -1).sum() > 10
    steps = np.abs(np.diff(motion.poses[..., hands.POSITION], axis=0))
    assert steps.max() < 0.5 and np.isfinite(motion.poses).all()


def test_a_sentence_begins_and_ends_at_rest():
    rest = hands.rest_pose()
    motion = synthetic.sentence(TEN[:2], a_signer(), np.random.default_rng(1), frames=60, rest=rest)
    assert len(motion.poses) == 60
    assert np.allclose(motion.poses[[0, -1], :, 3:], rest[:, 3:], atol=0.02)
    assert np.allclose(motion.poses[[0, -1], :, :3], rest[:, :3], atol=0.3)  # idle movement


def test_a_single_pose_does_not_tell_the_members_of_a_pair_apart():
    """The true poses, without drawing: no picture of them can say more."""
    rng, people = np.random.default_rng(0), [replace(a_signer(k), left_handed=False) for k in range(120)]
    for first in range(0, 10, 2):
        poses, labels = [], []
        for k, person in enumerate(people):
            label = k % 2
            track = synthetic.sentence([TEN[first + label]], person, rng, 36).poses
            turns = hands.matrices(track[..., hands.ROTATION]).reshape(36, -1)  # q and -q are one rotation
            others = np.delete(track, np.r_[hands.ROTATION], axis=2).reshape(36, -1)
            poses.append(np.concatenate([turns, others], axis=1))
            labels += [label] * 36
        x, y, half = np.concatenate(poses), np.array(labels), 60 * 36
        score = KNeighborsClassifier(15).fit(x[:half], y[:half]).score(x[half:], y[half:])
        assert score < 0.6, TEN[first].gloss


# ---------------------------------------------------------------- what the class must not reach

def all_plans(people: dict[str, int] | None = None) -> list[synthetic.Plan]:
    return synthetic.plans("demo", TEN, people or PEOPLE, 1, 42)


def test_sets_are_split_by_signer_and_every_signer_shows_every_sign():
    defaults = {k: v.default for k, v in inspect.signature(synthetic.write_wlasl).parameters.items()}
    assert {k: defaults[f"{k}_signers"] for k in PEOPLE} == PEOPLE and defaults["signs"] == 10
    made = all_plans()
    people = {name: {p.signer_id for p in made if p.set == name} for name in PEOPLE}
    assert not people["train"] & people["test"] and not people["train"] & people["val"]
    assert not people["val"] & people["test"]
    assert sum(p.set == "test" for p in made) >= 200 and len(people["test"]) >= 4
    assert len({p.video_id for p in made}) == len(made)
    for person in range(94):
        assert sorted(p.label for p in made if p.signer_id == person) == list(range(10))


def test_the_same_plan_with_another_class_has_the_same_look_room_length_and_box():
    for plan in all_plans()[:40]:
        shown = tuple(TEN[9 - TEN.index(sign)] for sign in plan.shown)
        other = replace(plan, label=9 - plan.label, shown=shown)
        one, two = synthetic.recording(plan, 32), synthetic.recording(other, 32)
        assert one.signer == two.signer and (one.first, one.last) == (two.first, two.last)
        assert one.scene.box(one.signer) == two.scene.box(two.signer)
        for field in fields(figure.Scene):
            assert np.array_equal(getattr(one.scene, field.name), getattr(two.scene, field.name)), field.name
        assert np.array_equal(one.motion.body, two.motion.body)
        assert not np.array_equal(one.motion.poses, two.motion.poses)


def test_the_length_of_a_clip_says_nothing_about_its_class():
    """A permutation test on the spread of the classes' mean lengths, and a classifier on the length."""
    made = all_plans()
    spans = [synthetic.recording(plan, 16) for plan in made]
    lengths, labels = np.array([r.last - r.first + 1 for r in spans]), np.array([p.label for p in made])
    assert lengths.min() >= 24 and lengths.max() <= 48 and lengths.std() > 2
    rng = np.random.default_rng(0)

    def spread(y: np.ndarray) -> float:
        return float(np.var([lengths[y == k].mean() for k in range(10)]))

    beaten = np.mean([spread(rng.permutation(labels)) >= spread(labels) for _ in range(500)])
    assert beaten > 0.01
    train = np.array([p.set == "train" for p in made])
    model = KNeighborsClassifier(15).fit(lengths[train, None], labels[train])
    assert model.score(lengths[~train, None], labels[~train]) < 0.2


@pytest.fixture(scope="module")
def small_set() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """150 clips at 64 px, labels, and which of them are by the ten training signers."""
    clips = [a_clip(label, person, 10 * person + label) for person in range(15) for label in range(10)]
    return clips, np.tile(np.arange(10), 15), np.repeat(np.arange(15) < 10, 10)


def test_the_nearest_centroid_of_mean_frames_stays_under_40_percent(small_set):
    clips, labels, train = small_set
    for pixels in (8, 64):
        x = np.stack([cv2.resize(c.mean(axis=0), (pixels, pixels), interpolation=cv2.INTER_AREA).ravel()
                      for c in clips])
        centres = np.stack([x[train & (labels == k)].mean(axis=0) for k in range(10)])
        guess = np.linalg.norm(x[~train][:, None] - centres, axis=2).argmin(axis=1)
        assert np.mean(guess == labels[~train]) < 0.4


def test_classifiers_of_single_frames_stay_under_60_percent(small_set):
    clips, labels, train = small_set
    x = np.stack([cv2.resize(c[t], (16, 16), interpolation=cv2.INTER_AREA).ravel() / 255
                  for c in clips for t in np.linspace(0, len(c) - 1, 8).round().astype(int)])
    y, use = np.repeat(labels, 8), np.repeat(train, 8)
    for model in (LogisticRegression(C=0.02, max_iter=300), KNeighborsClassifier(5)):
        assert model.fit(x[use], y[use]).score(x[~use], y[~use]) < 0.6


# ---------------------------------------------------------------- files

SMALL = {"split": "demo", "signs": 3, "train_signers": 6, "val_signers": 1, "test_signers": 2, "size": 48,
         "progress": False}


def frames_of(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    return count


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    synthetic.write_wlasl(root, workers=1, **SMALL)
    return root / "WLASL"


def test_the_split_file_has_wlasls_form(written):
    split = json.loads((written / "splits/demo.json").read_text())
    assert [entry["gloss"] for entry in split] == [sign.gloss for sign in TEN[:3]]
    instances = [i for entry in split for i in entry["instances"]]
    assert len(instances) == 27 and all(len(entry["instances"]) == 9 for entry in split)
    for i in instances:
        assert set(i) == {"bbox", "fps", "frame_end", "frame_start", "instance_id", "signer_id", "source",
                          "split", "url", "variation_id", "video_id"}
        x0, y0, x1, y1 = i["bbox"]
        assert 0 <= x0 < x1 <= 48 and 0 <= y0 < y1 <= 48 and (x1 - x0) * (y1 - y0) > 0.5 * 48 * 48
        assert i["fps"] == 25 and i["source"] == "synthetic" and not i["video_id"][0].isdigit()


def test_frame_ranges_lie_in_the_files_and_some_are_true_parts(written):
    split = json.loads((written / "splits/demo.json").read_text())
    parts = 0
    for i in (i for entry in split for i in entry["instances"]):
        frames = frames_of(written / "WLASL2000" / f"{i['video_id']}.mp4")
        if i["frame_end"] == -1:
            assert i["frame_start"] == 1 and 24 <= frames <= 48
        else:
            parts += 1
            assert 1 < i["frame_start"] < i["frame_end"] < frames
            assert 24 <= i["frame_end"] - i["frame_start"] + 1 <= 48
    assert parts > 0


def test_a_second_run_keeps_the_files_and_mends_what_is_missing(tmp_path):
    few = {**SMALL, "train_signers": 2, "val_signers": 0, "test_signers": 1}
    synthetic.write_wlasl(tmp_path, workers=1, **few)
    folder, split = tmp_path / "WLASL/WLASL2000", tmp_path / "WLASL/splits/demo.json"
    before, text = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}, split.read_text()
    gone = sorted(before)[4]
    gone.unlink()
    split.unlink()
    (folder / ".d00002.1.mp4").write_bytes(b"left by a killed run")
    synthetic.write_wlasl(tmp_path, workers=1, **few)
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert split.read_text() == text and set(after) == set(before)
    assert all(after[p][0] == before[p][0] for p in before)  # the same seed, the same bytes
    assert {p for p in before if after[p][1] != before[p][1]} == {gone}


def test_other_parameters_redraw_and_leave_other_videos_alone(tmp_path):
    few = {**SMALL, "signs": 2, "train_signers": 1, "val_signers": 0, "test_signers": 1}
    synthetic.write_wlasl(tmp_path, workers=1, **few)
    folder = tmp_path / "WLASL/WLASL2000"
    (folder / "69241.mp4").write_bytes(b"a real one")
    first = (folder / "d00001.mp4").read_bytes()
    synthetic.write_wlasl(tmp_path, workers=1, **few, seed=7)
    synthetic.write_wlasl(tmp_path, workers=1, **{**few, "split": "other"})
    assert (folder / "d00001.mp4").read_bytes() != first and (folder / "69241.mp4").exists()
    others = list(folder.glob(f"{synthetic.prefix('other')}*.mp4"))
    assert len(list(folder.glob("d*.mp4"))) == len(others) == 4


def test_several_processes_draw_what_one_draws(tmp_path):
    few = {**SMALL, "signs": 10, "train_signers": 7, "val_signers": 0, "test_signers": 0, "size": 32}
    for name, workers in (("one", 1), ("two", 2)):
        synthetic.write_wlasl(tmp_path / name, workers=workers, **few)
    one, two = ({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
                for name in ("one", "two"))
    assert len(one) == 72 and one == two  # 70 clips, the split and the manifest


def test_a_split_that_was_not_drawn_here_is_left_alone(tmp_path):
    target = tmp_path / "WLASL/splits/asl100.json"
    target.parent.mkdir(parents=True)
    target.write_text("[]")
    with pytest.raises(Mistake, match="not drawn here"):
        synthetic.write_wlasl(tmp_path, "asl100", progress=False)
    assert target.read_text() == "[]"
