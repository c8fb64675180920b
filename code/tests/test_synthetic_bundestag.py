"""The built-in videos with subtitles: their form, where the sentences are, the same bytes from the same seed."""

import shutil
from pathlib import Path

import numpy as np
import preprocess
import pytest

from slr.datasets import synthetic_bundestag as drawn
from slr.datasets import synthetic_sentences
from slr.datasets.bundestag import read_samples, split
from slr.datasets.subtitles import read_srt, subtitles
from slr.datasets.synthetic_sentences import as_word
from slr.datasets.synthetic_translation import held_out_in, language
from slr.errors import Mistake
from slr.video import probe, read_frames

SPLIT = "demo_bundestag"
PLANS = drawn.plans(SPLIT, drawn.SIZES[SPLIT], 42)
TINY = drawn.Size(3, 2, 32)


def test_a_person_says_twelve_sentences_and_no_sentence_is_said_twice_or_held_out():
    assert [plan.video for plan in PLANS] == [f"demo_bundestag-{k:02d}" for k in range(1, 25)]
    assert len({plan.signer_id for plan in PLANS}) == 24 and {len(plan.said) for plan in PLANS} == {12}
    said = [gloss for plan in PLANS for gloss in plan.said]
    assert len(set(said)) == len(said) == 288 and not any(held_out_in(gloss) for gloss in said)
    assert {gloss for one in said for gloss in one} == {as_word(sign) for sign in synthetic_sentences.signs()}
    assert PLANS[0].texts == [language()[gloss].text for gloss in PLANS[0].said]


def test_another_seed_or_split_says_other_things():
    size = drawn.SIZES["demo_bundestag_small"]
    assert drawn.plans("a", size, 1) == drawn.plans("a", size, 1)
    assert drawn.plans("a", size, 1)[0].said != drawn.plans("a", size, 2)[0].said != drawn.plans("b", size, 2)[0].said


@pytest.fixture(scope="module")
def film() -> drawn.Film:
    return drawn.film_of(PLANS[0], 32)


def test_a_film_lasts_about_a_minute_and_rests_between_its_sentences(film):
    assert 45 < len(film.motion.poses) / drawn.FPS < 90
    spans = film.motion.spans
    assert len(spans) == 12 and all(stop - start >= 12 for start, stop in spans)
    gaps = [start - stop for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)]
    assert min(gaps) >= 8 and 0 < spans[0][0] and spans[-1][1] < len(film.motion.poses)
    hands = film.motion.poses[:, :, :2]  # where both are; at rest they are low
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        lowest = hands[stop:start, :, 1].min(axis=1).max()
        assert lowest > 0.9 * hands[0, :, 1].min(), (stop, start)


def test_nothing_jumps_where_sentences_are_joined(film):
    """Between any two frames the hands move no farther than within a sentence alone."""
    steps = np.linalg.norm(np.diff(film.motion.poses[..., :3], axis=0), axis=-1).max(axis=1)
    plans = [synthetic_sentences.Plan("x", "train", 0, (k, k + 1), k, PLANS[0].seed) for k in range(6)]
    alone = [synthetic_sentences.film(plan, 32).motion for plan in plans]
    assert steps.max() < 1.5 * max(np.linalg.norm(np.diff(one.poses[..., :3], axis=0), axis=-1).max() for one in alone)
    assert np.abs(np.diff(film.motion.body[:, 0])).max() < 0.1


def test_joined_motions_keep_their_frames():
    motions = [synthetic_sentences.film(synthetic_sentences.Plan("x", "train", 0, (k,), k, (1, 2)), 32).motion
               for k in range(3)]
    whole, lengths = drawn._joined(motions, [4, 9]), [len(one.poses) for one in motions]
    assert len(whole.poses) == len(whole.body) == sum(lengths) + 13
    starts = [0, lengths[0] + 4, lengths[0] + lengths[1] + 13]
    for at, one, span in zip(starts, motions, whole.spans, strict=True):
        assert np.array_equal(whole.poses[at:at + len(one.poses)], one.poses)
        assert span == (one.spans[0][0] + at, one.spans[-1][1] + at)
    assert drawn._joined(motions[:1], []).spans == motions[0].spans


# --- files --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    drawn.draw(root, SPLIT, size=TINY, workers=0)
    return root


def contents(place: Path) -> dict[Path, tuple[bytes, int]]:
    return {path.relative_to(place): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in place.rglob("*") if path.is_file()}


def test_the_reader_takes_it_whole(root):
    place, made = root / "BUNDESTAG" / SPLIT, drawn.plans(SPLIT, TINY, 42)
    found = read_samples(place, thorough=True)
    assert not found.left_out and [sample.text for sample in found.samples] == [t for plan in made for t in plan.texts]
    films = {plan.video: drawn.film_of(plan, TINY.pixels) for plan in made}
    assert [(s.start, s.end + 1) for s in found.samples] == [span for f in films.values() for span in f.motion.spans]
    for video, film in films.items():
        info = probe(place / "videos" / f"{video}.mp4")
        assert (info.frames, info.header_frames) == (len(film.motion.poses),) * 2
        assert (info.fps, info.width, info.height) == (16, 32, 32)
    assert {part: len(own) for part, own in split(found.samples).items()} == {"train": 2, "val": 2, "test": 2}


def test_the_frames_are_those_of_the_film(root):
    plan = drawn.plans(SPLIT, TINY, 42)[1]
    frames = drawn.film_of(plan, TINY.pixels).frames()
    seen = read_frames(root / "BUNDESTAG" / SPLIT / "videos" / f"{plan.video}.mp4", range(0, len(frames), 7))
    assert np.abs(seen.astype(int) - frames[::7]).mean() < 8


def test_preprocess_makes_the_same_table_of_its_subtitles(root, tmp_path):
    place = root / "BUNDESTAG" / SPLIT
    done = subtitles(place / "videos", tmp_path)
    assert len(done.written) == 3 and not done.failed and list(done.notices) == ["metadata.csv"]
    assert (tmp_path / "metadata.csv").read_bytes() == (place / "metadata.csv").read_bytes()
    plan = drawn.plans(SPLIT, TINY, 42)[0]
    assert [one.text for one in read_srt(place / "videos" / f"{plan.video}.srt").subtitles] == plan.texts
    with pytest.raises(Mistake, match="is left alone"):
        subtitles(place / "videos", place)


def test_a_second_run_keeps_the_files_and_mends_what_is_missing(root):
    place = root / "BUNDESTAG" / SPLIT
    before = contents(place)
    (place / "videos" / "demo_bundestag-02.mp4").unlink()
    (place / "videos" / ".demo_bundestag-03.17.mp4").write_text("left by a killed run")
    (place / "metadata.csv").unlink()
    assert drawn.draw(root, SPLIT, size=TINY, workers=0) == place
    after = contents(place)
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    anew = {path.name for path in after if after[path][1] != before[path][1]}
    assert anew == {"drawn.json", "demo_bundestag-02.mp4", "metadata.csv"}


def test_other_parameters_draw_anew(root, tmp_path):
    own = tmp_path / "BUNDESTAG" / SPLIT
    shutil.copytree(root / "BUNDESTAG" / SPLIT, own)
    before = contents(own)
    drawn.draw(tmp_path, SPLIT, seed=7, size=drawn.Size(2, 1, 32), workers=0)
    after = contents(own)
    assert {path.name for path in after} == {"drawn.json", "metadata.csv", *(
        f"demo_bundestag-0{k}.{suffix}" for k in (1, 2) for suffix in ("mp4", "srt"))}
    assert all(after[path][0] != before[path][0] for path in after)


def test_what_was_not_drawn_here_is_left_alone(tmp_path):
    place = tmp_path / "BUNDESTAG" / "demo_bundestag_mine"
    place.mkdir(parents=True)
    (place / "metadata.csv").write_text("mine")
    with pytest.raises(Mistake, match="not drawn here"):
        drawn.draw(tmp_path, "demo_bundestag_mine", size=TINY, workers=0)
    assert [path.name for path in place.iterdir()] == ["metadata.csv"]


def test_preprocess_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn, "SIZES", {SPLIT: TINY, "demo_bundestag_small": drawn.Size(2, 1, 32)})
    where = ["--data", str(tmp_path), "--workers", "0"]
    assert preprocess.main(["-as", SPLIT, "--dry_run", *where]) == 0
    assert "3 videos, a person each, of 2 sentences" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert preprocess.main(["-as", "demo_bundestag_small", "--seed", "3", *where]) == 0
    assert len(read_samples(tmp_path / "BUNDESTAG" / "demo_bundestag_small").samples) == 2
    with pytest.raises(Mistake, match="there are demo_bundestag, demo_bundestag_small"):
        preprocess.main(["-as", "demo_bundestag7", *where])
    with pytest.raises(Mistake, match="--limit does nothing here"):
        preprocess.main(["-as", SPLIT, "--limit", "3", *where])
