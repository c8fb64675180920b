"""The built-in sentences: the same bytes from the same seed, in PHOENIX's form; only movement tells the glosses."""

import pickle
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slr.datasets import signer as figure
from slr.datasets import signs as hands
from slr.datasets import synthetic_sentences as spoken
from slr.datasets.sentences import Sentence, load_sentences, load_vocabulary, read_frames, steps_needed, time_steps
from slr.datasets.sentences_prepare import prepare, read_source, write_prepared
from slr.datasets.wlasl_prepare import spread
from slr.errors import Mistake
from slr.metrics import wer
from slr.paths import SETS, sentences
from slr.video import probe

SPLIT = "demo_continuous"
PLANS = spoken.plans(SPLIT, spoken.SIZES[SPLIT], 42)
LITTLE = spoken.Size((40, 6, 16), (8, 2, 4), 48)
TINY = spoken.Size((5, 2, 2), (2, 1, 1), 32)


def of_set(part: str) -> list[spoken.Plan]:
    return [plan for plan in PLANS if plan.set == part]


def error_rate(hypotheses: dict[str, list[str]], plans: list[spoken.Plan]) -> float:
    steps = wer.alignments({plan.id: plan.gloss for plan in plans}, hypotheses, "plain", "none")
    return wer.figures(steps.values(), "")["wer"]


# ---------------------------------------------------------------- what is said

def test_twenty_glosses_of_many_shapes_places_and_paths():
    chosen = spoken.signs()
    assert len({spoken.as_word(sign) for sign in chosen}) == len(spoken.CHOSEN) == 20
    assert all(plan.gloss == tuple(" ".join(plan.gloss).split()) for plan in PLANS)
    assert len({sign.shape for sign in chosen}) >= 9 and len({sign.y for sign in chosen}) >= 9
    assert len({sign.path for sign in chosen}) >= 8 and len({sign.symmetry for sign in chosen}) >= 4
    reversals = [(a, b) for a, b in pairwise(chosen) if replace(a.reverse(b.gloss)) == b]
    assert len(reversals) == 2  # which no single frame tells apart


def test_no_signer_and_no_sentence_is_in_two_sets():
    assert [len(of_set(part)) for part in SETS] == [1200, 100, 200]
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not {p.said for p in of_set(a)} & {p.said for p in of_set(b)}
        assert not {p.signer_id for p in of_set(a)} & {p.signer_id for p in of_set(b)}
    assert len({plan.id for plan in PLANS}) == len(PLANS)
    for part, turns in (("train", 10), ("val", 10), ("test", 10)):
        assert set(Counter(plan.signer_id for plan in of_set(part)).values()) == {turns}


def test_every_gloss_and_every_length_is_as_frequent_as_any_other():
    for part in SETS:
        counts = Counter(gloss for plan in of_set(part) for gloss in plan.gloss)
        lengths = Counter(len(plan.said) for plan in of_set(part))
        assert len(counts) == 20 and max(counts.values()) - min(counts.values()) <= 1
        assert sorted(lengths) == [2, 3, 4, 5, 6, 7] and max(lengths.values()) - min(lengths.values()) <= 1
    assert min(Counter(gloss for plan in of_set("train") for gloss in plan.gloss).values()) >= 250


def test_what_was_said_tells_nothing_of_what_follows_and_repeats_occur():
    pairs = Counter(pair for plan in of_set("train") for pair in pairwise(plan.said))
    assert len(pairs) == 400 and max(pairs.values()) < 30  # 10.5 times each on average
    for part in SETS:
        following = [a == b for plan in of_set(part) for a, b in pairwise(plan.said)]
        assert 0.02 < np.mean(following) < 0.09


@settings(max_examples=40)
@given(st.tuples(*[st.integers(0, 40)] * 3), st.integers(0, 2**32))
def test_sets_of_any_size_share_no_sentence(counts, seed):
    made = spoken.plans("x", spoken.Size(counts, (2, 2, 2)), seed)
    said = {part: {plan.said for plan in made if plan.set == part} for part in SETS}
    assert tuple(sum(plan.set == part for plan in made) for part in SETS) == counts
    assert not said["train"] & said["val"] and not (said["train"] | said["val"]) & said["test"]


def test_more_sentences_than_there_are_is_a_mistake():
    with pytest.raises(Mistake, match="no 6 sentences that no other set has"):
        spoken.plans("x", spoken.Size((30_000, 6, 0), (1, 1, 1)), 1)  # all 400 of two glosses are in train
    with pytest.raises(ValueError, match="nobody"):
        spoken.Size((3, 1, 1), (1, 1, 0))


# ---------------------------------------------------------------- how it is said

@pytest.fixture(scope="module")
def films() -> list[tuple[spoken.Plan, spoken.Film]]:
    return [(plan, spoken.film(plan, 32)) for plan in PLANS[::8]]


def test_a_film_shows_every_gloss_in_order_with_ways_between(films):
    for plan, made in films:
        spans, frames = made.motion.spans, len(made.motion.poses)
        assert len(spans) == len(plan.said) and len(made.motion.body) == frames
        assert 3 <= spans[0][0] and spans[-1][1] <= frames - 3
        assert all(5 <= stop - start <= 18 for start, stop in spans)
        assert all(b[0] - a[1] >= 2 for a, b in pairwise(spans))
    lengths = np.array([len(made.motion.poses) for _, made in films])
    assert 25 <= lengths.min() and lengths.max() <= 220 and 75 < lengths.mean() < 100


def test_the_hands_move_without_a_cut_from_rest_to_rest(films):
    for _, made in films:
        poses = made.motion.poses
        assert np.isfinite(poses).all() and np.isfinite(made.motion.body).all()
        assert np.linalg.norm(np.diff(poses[..., hands.POSITION], axis=0), axis=-1).max() < 1  # 16 a second, fast ones
        assert np.abs(np.diff(made.motion.body[:, :4], axis=0)).max() < 0.06
        assert np.allclose(poses[0][:, :2], poses[-1][:, :2], atol=0.4)  # rest and idle movement
        assert np.allclose(np.linalg.norm(poses[..., hands.ROTATION], axis=-1), 1)


def test_two_halves_join_without_a_cut(films):
    first, second = (made.motion for _, made in films[:2])
    both, last = spoken._joined(first, second, 4), len(first.poses) - 1
    apart = np.abs(second.poses[0] - first.poses[-1])[:, hands.POSITION]
    steps = np.abs(np.diff(both.poses[last:last + 6][..., hands.POSITION], axis=0))
    assert np.allclose(steps, apart / 5) and len(both.body) == len(both.poses) == last + 5 + len(second.poses)
    assert both.alignment().tolist()[last + 5:] == [k + len(first.spans) if k >= 0 else -1 for k in second.alignment()]


def test_speed_varies_and_some_hands_wait(films):
    """In a waiting, hands stand still between two signs; signs themselves take different times."""
    signs = np.array([stop - start for _, made in films for start, stop in made.motion.spans])
    ways = np.array([b[0] - a[1] for _, made in films for a, b in pairwise(made.motion.spans)])
    assert signs.std() > 1 and np.median(ways) < 8
    assert 0.03 < np.mean(ways >= 12) < 0.25 and ways.max() <= 60


def test_ctc_can_say_every_sentence_at_a_stride_of_four(films):
    assert min(time_steps(len(made.motion.poses)) / steps_needed(plan.gloss) for plan, made in films) > 2


def test_the_times_are_those_of_the_signs(films):
    """At the times the hands are where the sign has them: the nearest of all signs is nearly always the right one."""
    templates = np.stack([hands.stroke(sign, np.linspace(0, 1, 5), hands.rest_pose()) for sign in spoken.signs()])
    right = []
    for plan, made in films:
        for label, (start, stop) in zip(plan.said, made.motion.spans, strict=True):
            seen = made.motion.poses[np.linspace(start, stop - 1, 5).round().astype(int)]
            away = np.abs(templates - seen)[..., :2].sum(axis=(1, 2, 3))
            right.append(away.argmin() == label)
    assert np.mean(right) > 0.97


def test_a_sign_said_twice_sinks_in_between():
    water = spoken.CHOSEN.index("water")  # its hand stays where it is
    plan = replace(of_set("test")[0], said=(water, water))
    for index in range(20):
        motion = spoken.film(replace(plan, index=index), 32).motion
        (_, stop), (start, _) = motion.spans
        height = motion.poses[stop - 1:start + 1, 0, 1]
        assert height.max() > max(height[0], height[-1]) + 0.06


def test_other_glosses_in_a_plan_change_neither_signer_nor_room():
    for plan in of_set("val")[:10]:
        one, two = spoken.film(plan, 32), spoken.film(replace(plan, said=tuple(19 - k for k in plan.said)), 32)
        assert one.signer == two.signer and len(one.motion.spans) == len(two.motion.spans)
        for field in fields(figure.Scene):
            assert np.array_equal(getattr(one.scene, field.name), getattr(two.scene, field.name)), field.name


def test_the_same_seed_gives_the_same_bytes():
    plan = of_set("test")[3]
    first, again = spoken.film(plan, 32).frames(), spoken.film(plan, 32).frames()
    assert first.dtype == np.uint8 and first.shape[1:] == (32, 32, 3) and first.tobytes() == again.tobytes()
    assert spoken.plans(SPLIT, TINY, 1) == spoken.plans(SPLIT, TINY, 1)
    assert [p.said for p in spoken.plans(SPLIT, TINY, 1)] != [p.said for p in spoken.plans(SPLIT, TINY, 2)]
    assert [p.said for p in spoken.plans(SPLIT, TINY, 1)] != [p.said for p in spoken.plans("x", TINY, 1)]


# ---------------------------------------------------------------- what guessing comes to

def test_guessing_without_frames_stays_far_above_80_percent():
    """What black frames leave: how often each gloss is said, the sentences of training, and the film's length."""
    train, test = of_set("train"), of_set("test")
    glosses = sorted({gloss for plan in train for gloss in plan.gloss})
    rng = np.random.default_rng(0)
    often = Counter(plan.gloss for plan in train).most_common(1)[0][0]
    assert error_rate({plan.id: list(often) for plan in test}, test) > 85
    assert min(error_rate({plan.id: list(guess.gloss) for plan in test}, test) for guess in train[::20]) > 85
    assert min(error_rate({plan.id: [glosses[0]] * n for plan in test}, test) for n in (1, 2, 4)) > 85
    by_chance = {plan.id: [glosses[int(i)] for i in rng.integers(0, 20, len(plan.said))] for plan in test}
    assert error_rate(by_chance, test) > 85  # though it knows how many


def test_the_length_of_a_film_tells_the_number_of_glosses_at_most(films):
    train, test = ([(plan, made) for plan, made in films if (plan.set == "train") is own] for own in (True, False))
    guesses = {}
    for plan, made in test:
        near = min(train, key=lambda known: abs(len(known[1].motion.poses) - len(made.motion.poses)))
        guesses[plan.id] = list(near[0].gloss)
    assert error_rate(guesses, [plan for plan, _ in test]) > 85


# ---------------------------------------------------------------- files

@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with LITTLE drawn and prepared."""
    root = tmp_path_factory.mktemp("data")
    place = spoken.draw(root, SPLIT, size=LITTLE, workers=0)
    prepared = prepare(SPLIT, read_source(place), place, workers=0, root=root)
    write_prepared(prepared, sentences(root, SPLIT))
    return root


@pytest.fixture(scope="module")
def place(root: Path) -> Path:
    return root / "SYNTHETIC" / SPLIT


def test_the_readers_of_phoenix_take_it_whole(root, place):
    source = read_source(place)
    report = prepare(SPLIT, source, place, workers=0, root=root).report
    assert source.form == "csv" and report["sentences"] == report["kept"] == 62 and report["vocabulary"] == 20
    assert report["differences"] == {"stm": {"not_there": [], "only_there": [], "other_glosses": {}}}
    for nothing in ("infeasible", "signers_in_two_sets", "ids_in_two_sets", "same_frames", "untrained_glosses"):
        assert not report[nothing], nothing
    assert not report["sentences_in_two_sets"] and report["frame_sizes"] == {"48x48": 62}
    words = sorted(spoken.as_word(sign) for sign in spoken.signs())
    assert load_vocabulary(root, SPLIT) == ["<blank>", *words]


def test_times_fit_the_prepared_sentences(root, place):
    times = spoken.read_times(place)
    made = {plan.id: plan for plan in spoken.plans(SPLIT, LITTLE, 42)}
    loaded = [sentence for part in SETS for sentence in load_sentences(root, SPLIT, part)]
    assert [sentence.id for sentence in loaded] == list(times) == list(made)
    for sentence in loaded:
        film = spoken.film(made[sentence.id], 48)
        assert times[sentence.id] == film.motion.spans and sentence.num_frames == len(film.motion.poses)
        assert sentence.gloss == made[sentence.id].gloss and sentence.set == made[sentence.id].set


def test_a_video_holds_the_frames_at_sixteen_a_second(root):
    sentence = load_sentences(root, SPLIT, "test")[0]
    seen = read_frames(sentence, range(sentence.num_frames))
    drawn = spoken.film(next(p for p in spoken.plans(SPLIT, LITTLE, 42) if p.id == sentence.id), 48).frames()
    assert seen.shape == drawn.shape and np.abs(seen.astype(int) - drawn).mean() < 10
    assert probe(sentence.path).fps == 16


def labels_of(sentence: Sentence, times: dict[str, list[tuple[int, int]]], glosses: list[str]) -> np.ndarray:
    """Which gloss every frame belongs to, 0 for none."""
    labels = np.zeros(sentence.num_frames, int)
    for gloss, (start, stop) in zip(sentence.gloss, times[sentence.id], strict=True):
        labels[start:stop] = glosses.index(gloss)
    return labels


def pixels_of(sentence: Sentence, side: int, centred: bool) -> np.ndarray:
    frames = read_frames(sentence, range(sentence.num_frames))
    small = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames])
    flat = small.reshape(len(small), -1) / 255
    return flat - flat.mean(axis=0) if centred else flat


@pytest.mark.parametrize(("side", "centred"), [(8, False), (24, False), (24, True)])
def test_the_nearest_centroid_of_single_frames_stays_above_60_percent(root, place, side, centred):
    """Runs of at least 3, 5 or 7 equal answers are a gloss; whichever of the three does best."""
    times, glosses = spoken.read_times(place), load_vocabulary(root, SPLIT)
    train, test = (load_sentences(root, SPLIT, part) for part in ("train", "test"))
    x = np.concatenate([pixels_of(sentence, side, centred) for sentence in train])
    y = np.concatenate([labels_of(sentence, times, glosses) for sentence in train])
    centres = np.stack([x[y == label].mean(axis=0) for label in range(21)])
    answers = {sentence.id: np.linalg.norm(pixels_of(sentence, side, centred)[:, None] - centres, axis=2).argmin(axis=1)
               for sentence in test}
    rates = []
    for least in (3, 5, 7):
        runs = {key: [(label, len(list(run))) for label, run in groupby(found)] for key, found in answers.items()}
        said = {key: [glosses[label] for label, length in run if label and length >= least]
                for key, run in runs.items()}
        steps = wer.alignments({sentence.id: sentence.gloss for sentence in test}, said, "plain", "none")
        rates.append(wer.figures(steps.values(), "")["wer"])
    assert min(rates) > 60, rates


def test_a_second_run_keeps_the_files_and_mends_what_is_missing(tmp_path):
    place = spoken.draw(tmp_path, SPLIT, size=TINY, workers=0)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.rglob("*.*") if path.is_file()}
    videos = sorted(path for path in before if path.suffix == ".mp4")
    videos[4].unlink()
    (place / "evaluation" / "synthetic-groundtruth-test.stm").unlink()
    videos[0].with_name(".half.17.mp4").write_bytes(b"left by a killed run")
    assert spoken.draw(tmp_path, SPLIT, size=TINY, workers=0) == place
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.rglob("*.*") if path.is_file()}
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    assert [path for path in videos if after[path][1] != before[path][1]] == [videos[4]]


def test_other_parameters_draw_anew(tmp_path):
    place = spoken.draw(tmp_path, SPLIT, size=TINY, workers=0)
    first = {path.name: path.read_bytes() for path in place.rglob("*.mp4")}
    spoken.draw(tmp_path, SPLIT, seed=7, size=TINY, workers=0)
    second = {path.name: path.read_bytes() for path in place.rglob("*.mp4")}
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)
    spoken.draw(tmp_path, SPLIT, seed=7, size=replace(TINY, pixels=40), workers=0)
    assert {path.parts[-3] for path in place.rglob("*.mp4")} == {"fullFrame-40x40px"}


def test_other_processes_draw_what_this_one_draws(tmp_path):
    place, made = spoken.draw(tmp_path, SPLIT, size=TINY, workers=0), spoken.plans(SPLIT, TINY, 42)
    here, there = place / "features" / "fullFrame-32x32px", tmp_path / "there"
    for name in ("train", "dev", "test"):
        (there / name).mkdir(parents=True)
    found = {plan.id: told for plan, told in spread(partial(spoken._work, there, 32), made, 2) if told}
    assert {key: line["spans"] for key, (line, _) in found.items()} == spoken.read_times(place)
    kept = pickle.loads((place / spoken.KEYPOINTS).read_bytes())
    names = {plan.id: f"{here.name}/{plan.video.removesuffix('.mp4')}" for plan in made}
    assert all(np.array_equal(kept[names[key]]["keypoints"], points) for key, (_, points) in found.items())
    assert all((here / plan.video).read_bytes() == (there / plan.video).read_bytes() for plan in made)


def test_what_was_not_drawn_here_is_left_alone(tmp_path):
    place = tmp_path / "SYNTHETIC" / "mine"
    place.mkdir(parents=True)
    (place / "train.corpus.csv").write_text("id|annotation\n")
    with pytest.raises(Mistake, match="not drawn here"):
        spoken.draw(tmp_path, "mine", size=TINY, workers=0)
    assert [path.name for path in place.iterdir()] == ["train.corpus.csv"]
    with pytest.raises(Mistake, match="no times"):
        spoken.read_times(place)
