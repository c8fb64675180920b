"""The built-in signs with symbols: balanced values, the same bytes from the same seed, HearAI's form, learnable."""

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest

from slr import hamnosys
from slr.datasets import hearai
from slr.datasets import signer as figure
from slr.datasets import synthetic_multihead as drawn
from slr.datasets.signs import SYMBOLS, rest_pose, stroke
from slr.errors import Mistake
from slr.paths import SETS

SPLIT = "demo_multihead"
PLANS = drawn.plans(SPLIT, drawn.SIZES[SPLIT], 42)
TINY = drawn.Size((2, 1, 1), 48, 12)
SIGNS = drawn.signs()
TRAINED = SIGNS[:-drawn.TEST_ONLY]


# ---------------------------------------------------------------- the signs

def test_forty_eight_signs_of_which_eight_are_new_in_the_test():
    assert len(SIGNS) == len({tuple(sign.labels().values()) for sign in SIGNS}) == 48
    assert len({sign.gloss for sign in SIGNS}) == 48
    shown = {part: {plan.gloss for plan in PLANS if plan.set == part} for part in SETS}
    assert shown["train"] == shown["val"] == set(range(40)) and shown["test"] == set(range(48))


@pytest.mark.parametrize("head", hamnosys.HEADS)
def test_every_head_has_values_that_training_shows_in_several_signs(head):
    trained = Counter(sign.labels()[head] for sign in TRAINED)
    assert 3 <= len(trained) and min(trained.values()) >= 4
    assert {sign.labels()[head] for sign in SIGNS} == set(trained)
    assert max(trained.values()) < 0.8 * len(TRAINED)


def test_values_are_told_by_no_other_value_unless_hands_or_pictures_bind_them():
    """Every value goes with at least two of every other head, but: thumbs and bends are seen on some hands only, and a
    hand on the other side signs alone."""
    labels = [sign.labels() for sign in TRAINED]
    for head, mate in permutations(hamnosys.HEADS, 2):
        for value in {row[head] for row in labels}:
            mates = {row[mate] for row in labels if row[head] == value}
            bound = {head, mate} & {"hand_shape_thumb_position", "hand_shape_bending"}
            alone = (head, mate, SYMBOLS[head][value]) == ("hand_location_x", "symmetry_operator", "left")
            assert len(mates) >= (1 if bound or alone else 2), (head, value, mate)


def test_differences_are_where_the_picture_shows_them():
    for sign in SIGNS:
        edgewise = sign.palm in ("left", "right")
        assert not edgewise or sign.thumb == "default"
        assert not edgewise or "spread" not in sign.shape and sign.shape != "finger2345"
        assert edgewise or sign.shape not in ("pinchall", "ceeall")
        assert sign.bending == "none" or sign.shape in ("flat", "finger2", "finger23spread", "finger2345")
        assert not sign.symmetry.startswith("dominance") or sign.shape != "flat"
        assert sign.path in drawn._PATHS and sign.size <= 0.1


def test_every_signer_shows_each_sign_of_the_set_once_and_is_in_no_other_set():
    assert [sum(plan.set == part for plan in PLANS) for part in SETS] == [24 * 40, 4 * 40, 10 * 48]
    assert [plan.name for plan in PLANS] == [str(k + 1) for k in range(len(PLANS))]
    shown = Counter((plan.set, plan.signer_id, plan.gloss) for plan in PLANS)
    assert set(shown.values()) == {1} and len({plan.signer_id for plan in PLANS}) == 38
    assert len({(plan.set, plan.signer_id) for plan in PLANS}) == 38
    orders = [[plan.gloss for plan in PLANS if plan.signer_id == person] for person in (0, 1)]
    assert orders[0] != orders[1]


def test_every_value_has_ten_clips_of_the_test_set_or_more():
    for head in hamnosys.HEADS:
        assert min(Counter(SIGNS[p.gloss].labels()[head] for p in PLANS if p.set == "test").values()) >= 10


def test_the_small_split_is_trained_on_every_value_that_it_tests():
    small = drawn.plans("x", drawn.SIZES["demo_multihead_small"], 1)
    labels = {part: [SIGNS[plan.gloss].labels() for plan in small if plan.set == part] for part in SETS}
    for head in hamnosys.HEADS:
        values = {part: {row[head] for row in labels[part]} for part in SETS}
        assert values["test"] <= values["train"] and len(values["train"]) >= 3
    assert len({plan.gloss for plan in small if plan.set == "test"}
               - {plan.gloss for plan in small if plan.set == "train"}) >= 3


# ---------------------------------------------------------------- films

@pytest.fixture(scope="module")
def films() -> list[tuple[drawn.Plan, drawn.Film]]:
    return [(plan, drawn.film(plan, 48)) for plan in PLANS[::25]]


def test_a_film_is_rest_sign_rest(films):
    lengths = [len(made.motion.poses) for _, made in films]
    assert 12 <= min(lengths) and max(lengths) <= 24 and 14 < np.mean(lengths) < 20
    for _, made in films:
        (start, stop), = made.motion.spans
        assert 2 <= start and stop <= len(made.motion.poses) - 2 and 5 <= stop - start <= 13
        assert not made.signer.left_handed and not made.signer.hanging
        assert np.allclose(made.motion.poses[0][:, :2], made.motion.poses[-1][:, :2], atol=0.45)


def test_the_times_are_those_of_the_sign(films):
    """In the middle of the times the hands are as the sign has them: it is the nearest of all in nearly every film."""
    templates = np.stack([stroke(sign, np.array([0.5]), rest_pose())[0] for sign in SIGNS])
    right = []
    for plan, made in films:
        (start, stop), = made.motion.spans
        seen = made.motion.poses[(start + stop) // 2]
        away = np.abs(templates[:, 0] - seen[0]).sum(axis=1)
        right.append(plan.gloss in np.argsort(away)[:2])  # of two hands, the dominant one: some signs share its pose
    assert np.mean(right) > 0.9


def test_signing_hands_and_heads_stay_within_the_frame(films):
    for plan, made in films:
        (start, stop), = made.motion.spans
        points = drawn._points(made)[start:stop]
        hands = [drawn._RIGHT] if SIGNS[plan.gloss].symmetry == "one-handed" else [drawn._RIGHT, drawn._LEFT]
        for hand in hands:
            centre = points[:, hand, :2].mean(axis=1)
            assert (centre > 0.03).all() and (centre < 0.97).all(), plan
            inside = (points[:, hand, :2] > -0.02) & (points[:, hand, :2] < 1.02)
            assert inside.all(axis=2).mean() > 0.7, plan
        assert (points[:, :5, :2] > 0).all() and (points[:, :5, :2] < 1).all()


def test_hands_are_large(films):
    for _, made in films:
        points = drawn._points(made)
        bones = np.linalg.norm(np.diff(points[:, drawn._RIGHT][:, [0, 9, 10, 11, 12]], axis=1), axis=2).sum(axis=1)
        assert 0.28 < bones.mean() < 0.45  # of the frame's side, wrist to the middle finger's tip


def test_another_sign_in_a_plan_changes_neither_signer_nor_room_nor_length():
    for plan in PLANS[:4]:
        one, two = drawn.film(plan, 32), drawn.film(replace(plan, gloss=47 - plan.gloss), 32)
        assert one.signer == two.signer and one.motion.spans == two.motion.spans
        assert np.array_equal(one.motion.body, two.motion.body)
        for field in fields(figure.Scene):
            assert np.array_equal(getattr(one.scene, field.name), getattr(two.scene, field.name)), field.name


# ---------------------------------------------------------------- landmarks

def test_spherical_coordinates_give_the_vector_back():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    r, theta, phi = np.moveaxis(drawn.spherical(vectors), -1, 0)
    theta, phi = theta * np.pi, phi * np.pi
    back = np.stack([r * np.sin(theta) * np.cos(phi), r * np.sin(theta) * np.sin(phi), r * np.cos(theta)], axis=1)
    assert np.allclose(back, vectors)
    assert drawn.spherical(np.zeros(3)).tolist() == [0, 0.5, 0]


def test_parents_are_those_of_the_real_file(shared):
    with np.load(shared / "hearai_sample_input" / "10" / "10.npz", allow_pickle=False) as stored:
        for part in ("pose", "left_hand"):
            values = stored[part].reshape(len(stored[part]), -1, hamnosys.VALUES)
            vectors = values[..., :3] - values[:, list(drawn.PARENTS[part])][..., :3]
            assert np.allclose(drawn.spherical(vectors), values[..., 5:], atol=1e-5), part
            assert np.array_equal(values[..., 3], values[..., 4])


def test_landmarks_have_mediapipes_points_and_hearais_numbers(films):
    for plan, made in films[:6]:
        found = drawn.landmarks(made, np.random.default_rng(1))
        assert set(found) == set(hamnosys.PARTS)
        for part, size in hamnosys.PARTS.items():
            assert found[part].shape == (len(made.motion.poses), 8 * size) and found[part].dtype == np.float32
            values = found[part].reshape(len(found[part]), size, 8)
            gone = values[..., 3] == 1
            assert np.array_equal(values[..., 3], values[..., 4]) and set(np.unique(values[..., 3])) <= {0, 1}
            assert np.isnan(values[gone][:, [0, 1, 2, 5, 6, 7]]).all() and np.isfinite(values[~gone]).all()
        pose = found["pose"].reshape(-1, 33, 8)
        assert (pose[:, 23:, 3] == 1).all() and (pose[:, :23, 3] == 0).all()  # hips and legs are not in the picture
        assert (pose[:, 11, 0] > pose[:, 12, 0]).all()  # the left shoulder is on the viewer's right
        assert (pose[:, 9, 0] > pose[:, 10, 0]).all() and (pose[:, 3, 0] > pose[:, 1, 0]).all()
        assert (pose[:, 1, 0] > pose[:, 4, 0]).all() and (pose[:, 4, 0] > pose[:, 6, 0]).all()
        hand = found["right_hand"].reshape(-1, 21, 8)
        there = hand[:, 0, 3] == 0
        assert np.abs(hand[there, 0, :2] - pose[there, 16, :2]).max() < 0.03  # one wrist, seen twice
        assert np.abs(hand[there][:, [17, 5, 2], :2] - pose[there][:, [18, 20, 22], :2]).max() < 1e-5
        (start, stop), = made.motion.spans
        assert (pose[start:stop, 16, 2] < 0).all(), plan  # a signing hand is nearer than the shoulders


def test_about_a_tenth_of_a_hands_frames_is_missed_in_stretches():
    rng = np.random.default_rng(0)
    missed = [drawn._missed(17, rng) for _ in range(3000)]
    assert 0.06 < np.mean(missed) < 0.12
    runs = [len(run) for row in missed for run in "".join("x" if m else " " for m in row[:12]).split()]
    assert 2 <= np.mean(runs) <= 6


# ---------------------------------------------------------------- files

@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    drawn.draw(root, SPLIT, size=TINY, workers=0)
    return root


def test_the_reader_takes_it_whole(root):
    place, made = root / "HEARAI" / SPLIT, drawn.plans(SPLIT, TINY, 42)
    for part in SETS:
        found = hearai.read_samples(place / part, drawn.ANNOTATIONS, hamnosys.HEADS, needs_frames=True,
                                    needs_landmarks=True)
        own = {plan.name: plan for plan in made if plan.set == part}
        assert not found.left_out and [sample.name for sample in found.samples] == list(own)
        for sample in found.samples:
            plan = own[sample.name]
            film = drawn.film(plan, TINY.pixels)
            assert sample.labels == SIGNS[plan.gloss].labels() and sample.fps == drawn.FPS
            assert [(sample.start, sample.stop)] == film.motion.spans and sample.frames == len(film.motion.poses)
            assert sample.signer == f"signer{plan.signer_id + 1:02d}"
        glosses, _ = hearai.read_annotations(place / part / drawn.GLOSSES, {"gloss": 2400})
        assert [row.labels["gloss"] for row in glosses] == [plan.gloss for plan in own.values()]


def test_symbols_and_dictionary_name_everything(root):
    folder = root / "HEARAI" / SPLIT / "train"
    symbols_file, words_file = (hearai.find_beside(folder, name) for name in (drawn.SYMBOLS_FILE, drawn.DICTIONARY))
    assert symbols_file and words_file
    symbols = hearai.read_symbols(symbols_file)
    assert {head: tuple(names) for head, names in symbols.items()} == SYMBOLS
    words = hearai.read_dictionary(words_file)
    assert words == {gloss: (sign.gloss, sign.labels()) for gloss, sign in enumerate(SIGNS)}


def test_frames_and_properties_are_those_of_the_film(root):
    plan = drawn.plans(SPLIT, TINY, 42)[0]
    folder, frames = root / "HEARAI" / SPLIT / plan.set / plan.name, drawn.film(plan, TINY.pixels).frames()
    properties = json.loads((folder / f"{plan.name}_properties.json").read_text())
    assert properties == {"File": f"{plan.name}.mp4", "Codec": "mjpg", "Frames": len(frames), "FPS": 12.5,
                          "Width": 48, "Height": 48}
    for number, frame in enumerate(frames):
        seen = cv2.imread(str(folder / f"{plan.name}_{number}.jpg"))
        assert seen is not None
        seen = cv2.cvtColor(seen, cv2.COLOR_BGR2RGB)
        assert np.abs(seen.astype(int) - frame).mean() < 8


def contents(place: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.rglob("*") if path.is_file()}


def test_a_second_run_keeps_the_files_and_mends_what_is_missing(root):
    place = root / "HEARAI" / SPLIT
    before = contents(place)
    folder = place / "train" / "2"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    (place / "train" / ".3.17").mkdir()  # left by a killed run
    (place / "test" / drawn.ANNOTATIONS).unlink()
    assert drawn.draw(root, SPLIT, size=TINY, workers=0) == place
    after = contents(place)
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    anew = {path for path in after if after[path][1] != before[path][1] and path.name != drawn.MANIFEST}
    assert {path for path in anew if path.parent != folder} == {place / "test" / drawn.ANNOTATIONS}
    assert not (place / "train" / ".3.17").exists()


def test_other_parameters_draw_anew_and_other_processes_the_same(tmp_path, root):
    kept = contents(root / "HEARAI" / SPLIT)
    place = drawn.draw(tmp_path, SPLIT, seed=7, size=TINY, workers=0)
    assert (place / "train" / "1" / "1.npz").read_bytes() != kept[root / "HEARAI" / SPLIT / "train/1/1.npz"][0]
    drawn.draw(tmp_path, SPLIT, size=TINY, workers=0)
    assert {path.relative_to(place): data for path, (data, _) in contents(place).items()} == {
        path.relative_to(root / "HEARAI" / SPLIT): data for path, (data, _) in kept.items()}
    plan = drawn.plans(SPLIT, TINY, 42)[0]
    ((_, span),) = drawn.spread(drawn.functools.partial(drawn._work, tmp_path / "there", 48), [plan], 1)
    assert [span and (span[0], span[1] + 1)] == drawn.film(plan, 48).motion.spans
    for path in (tmp_path / "there" / "train" / "1").iterdir():
        assert path.read_bytes() == (place / "train" / "1" / path.name).read_bytes()


def test_what_was_not_drawn_here_is_left_alone(tmp_path):
    place = tmp_path / "HEARAI" / "demo_multihead_mine"
    place.mkdir(parents=True)
    (place / "test_hamnosys.txt").write_text("1 0 7\n")
    with pytest.raises(Mistake, match="not drawn here"):
        drawn.draw(tmp_path, "demo_multihead_mine", size=TINY, workers=0)
    assert [path.name for path in place.iterdir()] == ["test_hamnosys.txt"]


def test_the_summary_counts_clips_signers_and_new_signs(tmp_path):
    lines = drawn.summary(tmp_path, SPLIT).split("\n")
    assert [line.split(": ")[1] for line in lines] == [
        "960 clips, 24 signers, 40 signs", "160 clips, 4 signers, 40 signs",
        "480 clips, 10 signers, 48 signs, 8 of them in no training clip"]
