"""A stream says what the whole video says, each gloss once, however its window moves."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slr import streaming
from slr.decoding import Span
from slr.errors import Mistake
from slr.streaming import TOLERANCE, Committer, Direct, Live, Pace, Summary, paced, stream, ticks, timed


def spans_of(path: list[int]) -> list[Span]:
    """The labels of a path (0 is the blank) with the steps that emit them."""
    edges = [t for t in range(len(path) + 1) if t in (0, len(path)) or path[t] != path[t - 1]]
    return [Span(path[a], a, b, 0.0) for a, b in zip(edges, edges[1:], strict=False) if path[a]]


def shifted(spans: list[Span], by: int) -> list[Span]:
    return [Span(span.label, span.start + by, span.stop + by, span.score) for span in spans]


# --- what is certain ----------------------------------------------------------------------------------------

@st.composite
def movements(draw) -> tuple[list[int], int, int, int]:
    """(A path of runs, the reach of a local model, window, hop), windows overlapping as `Pace.of` has them."""
    runs = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, draw(st.sampled_from([3, 40])))), max_size=25))
    reach, hop = draw(st.integers(0, 5)), draw(st.integers(1, 12))
    window = hop + 2 * (reach + 1 + TOLERANCE) + draw(st.integers(0, 15))
    return [label for label, count in runs for _ in range(count)], reach, window, hop


@given(movements(), st.randoms(use_true_random=False), st.integers(0, 30))
def test_a_local_models_stream_says_exactly_what_the_whole_video_says(movement, rng, first):
    """Up to `reach` steps from a border inside the video, a window sees nonsense."""
    path, reach, window, hop = movement
    committer, said = Committer(reach + 1), []
    for edge in [*range(1 + first % window, len(path), hop), len(path)]:
        begin, last = max(0, edge - window), edge == len(path)
        seen = [path[t] if (not begin or t >= begin + reach) and (last or t < edge - reach) else rng.randint(0, 3)
                for t in range(begin, edge)]
        found = committer.update(shifted(spans_of(seen), begin), begin, edge, last)
        assert last or all(span.stop <= edge - reach - 1 for span in found)
        said += found
    assert said == spans_of(path)


@given(st.lists(st.integers(1, 3), max_size=12), st.integers(1, 4), st.integers(2, 4), st.integers(0, 12),
       st.randoms(use_true_random=False))
def test_glosses_that_move_a_step_from_window_to_window_are_said_once(labels, hop, margin, room, rng):
    """Each is a step long, 6 apart; every window sees each of them up to a step early or late."""
    window, length = hop + 2 * (margin + TOLERANCE) + room, 7 * len(labels) + 3
    committer, said = Committer(margin), []
    for edge in [*range(1, length, hop), length]:
        begin = max(0, edge - window)
        moved = [(label, 7 * i + 4 + rng.randint(-1, 1)) for i, label in enumerate(labels)]
        spans = [Span(label, at, at + 1, 0.0) for label, at in moved if begin <= at < edge]
        said += committer.update(spans, begin, edge, edge == length)
    assert [span.label for span in said] == labels


@given(st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 2), max_size=20)), max_size=8), st.integers(1, 5))
def test_whatever_windows_say_glosses_come_in_order_and_apart(windows, margin):
    """Windows that contradict each other, and that leave steps out."""
    committer, said, edge, begin = Committer(margin), [], 0, 0
    for ahead, path in windows:
        edge = max(edge + ahead, begin + len(path))
        begin = max(begin, edge - len(path))
        said += committer.update(shifted(spans_of(path), begin), begin, edge)
    said += committer.update([], begin, edge, last=True)
    assert all(a.stop <= b.start for a, b in zip(said, said[1:], strict=False))
    assert all(span.start < span.stop <= edge for span in said)


def test_what_only_one_window_has_seen_waits_for_the_next():
    committer = Committer(2)
    assert committer.update([], 0, 8) == []
    sudden = [Span(1, 6, 7, 0.0)]
    assert committer.update(sudden, 0, 10) == []  # the window before had nothing there
    assert committer.update(sudden, 0, 12) == sudden
    assert committer.update([], 0, 14) == [] and committer.update(sudden, 0, 16) == []


def test_a_gloss_that_vanishes_is_never_said():
    committer = Committer(2)
    assert committer.update([Span(1, 6, 7, 0.0)], 0, 8) == []
    assert committer.update([], 0, 12, last=True) == []


def test_what_is_kept_does_not_grow():
    committer = Committer(3)
    for edge in range(20, 4000, 2):
        begin = edge - 20
        committer.update([Span(1 + t % 2, t, t + 2, 0.0) for t in range(begin, edge - 1, 4)], begin, edge)
        assert len(committer.path) < 12


# --- the stream ---------------------------------------------------------------------------------------------

def frames_of(path: list[int], stride: int) -> list[np.ndarray]:
    """Frames of one pixel that show the label of their step."""
    return [np.full((1, 1, 3), label, np.uint8) for label in path for _ in range(stride)]


def look(stride: int, reach: int, slow: float = 0.0):
    """A model that sees the label on each frame, but nothing near the borders of what it looks at."""
    def see(frames: np.ndarray) -> list[Span]:
        time.sleep(slow)
        path = frames[::stride, 0, 0, 0].tolist()
        return spans_of([0] * reach + path[reach:len(path) - reach] + [0] * min(reach, len(path)))
    return see


PATH = [0] * 4 + [1] * 3 + [0, 2, 0, 2, 2] + [0] * 9 + [3] * 2 + [1] + [0] * 30 + [2] * 25 + [0] * 5


@pytest.mark.parametrize("hop", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_stream_over_a_file(hop, stride):
    pace, summary = Pace(8.0, stride, hop + 10, hop, 3), Summary()
    source = Direct(ticks(timed(frames_of(PATH, stride), 8.0), 8.0))
    said = list(stream(source, look(stride, 2), pace, summary))
    assert [Span(s.label, round(s.start * 8 / stride), round(s.stop * 8 / stride), 0.0) for s in said] == spans_of(PATH)
    assert len(PATH) * stride / 8 == summary.seconds and summary.dropped == 0
    steps = [s.latency * 8 / stride for s in said]
    assert all(3 <= latency <= 3 + 2 * hop for latency in steps[1:])  # the first window is a longer wait
    assert summary.figures()["latency_worst"] == pytest.approx(max(steps) * stride / 8, abs=1e-4)
    assert len(summary.computes) == 1 + -(-(len(PATH) - min(hop + 10, 6)) // hop)


def test_a_stream_of_no_or_few_frames():
    pace = Pace(8.0, 4, 20, 2, 3)
    for count in (0, 1, 3, 5):
        summary = Summary()
        source = Direct(ticks(timed([np.ones((1, 1, 3), np.uint8)] * count, 8.0), 8.0))
        said = list(stream(source, look(4, 0), pace, summary))
        assert [(s.start, s.stop) for s in said] == ([(0.0, count / 8)] if count else [])
        assert summary.figures()["glosses"] == len(said)


def test_live_frames_that_nobody_takes_are_dropped_oldest_first():
    held = threading.Event()

    def frames():
        yield from ((number, number) for number in range(100))
        held.wait(5)

    source = Live(frames(), 40)
    while source.dropped < 60:
        time.sleep(0.001)
    assert [number for number, _ in source.take(3)] == list(range(60, 100))
    held.set()
    assert source.take(3) == [] and source.dropped == 60
    source.close()


class Scripted:
    """Frames of which some never come: what `Live` gives when looking takes too long."""

    dropped = 7

    def __init__(self, *parts: range):
        self.parts = list(parts)

    def take(self, least: int) -> list:
        return [(n, np.full((1, 1, 3), n // 8 % 3, np.uint8)) for n in self.parts.pop(0)] if self.parts else []

    def now(self, newest: float) -> float:
        return newest + 0.25


def test_after_a_gap_a_stream_goes_on_with_true_times():
    """Steps of 4 frames say 0 0 1 1 2 2 …; the frames 50 to 136 are lost, 137 to 139 begin no step."""
    summary, pace = Summary(), Pace(4.0, 4, 12, 2, 2)
    source = Scripted(range(24), range(24, 50), range(137, 180), range(180, 188))
    said = list(stream(source, look(4, 0), pace, summary))
    assert [(s.label, s.start) for s in said] == [(1, 2), (2, 4), (1, 8), (2, 10), (1, 38), (2, 40), (1, 44), (2, 46)]
    assert summary.dropped == 7 and all(s.latency >= 0.25 for s in said)


def test_a_paced_video_waits_for_each_frames_time(monkeypatch):
    clock = SimpleNamespace(at=100.0, slept=[])
    fake = SimpleNamespace(monotonic=lambda: clock.at, sleep=lambda s: setattr(clock, "at", clock.at + s))
    monkeypatch.setattr(streaming, "time", fake)
    seen = []
    for at, _ in paced(timed([np.zeros(1)] * 4, 2.0)):
        seen.append((at, clock.at - 100))
        clock.at += 0.7 if at == 0.5 else 0.1  # frame 1 takes longer than its time
    assert seen == [(0.0, 0.0), (0.5, 0.5), (1.0, pytest.approx(1.2)), (1.5, 1.5)]


@pytest.mark.parametrize("live", [True, False])
def test_a_stream_that_is_stopped_says_what_it_has_seen(live):
    def endless():
        number = 0
        while True:
            yield number, np.full((1, 1, 3), number >= 8, np.uint8)
            number += 1
            time.sleep(0.001)

    pace, summary = Pace(100.0, 1, 20, 2, 3), Summary()
    source = Live(endless(), 20) if live else Direct(endless())

    def see(frames: np.ndarray) -> list[Span]:
        if len(summary.computes) == 8:
            source.stop()
        return look(1, 0)(frames)

    said = list(stream(source, see, pace, summary))
    source.close()
    assert [s.label for s in said] == [1] and 9 <= len(summary.computes) <= 10


def test_what_goes_wrong_while_reading_is_told():
    def broken():
        yield 0, np.zeros((1, 1, 3), np.uint8)
        raise Mistake("the camera burns")

    with pytest.raises(Mistake, match="burns"):
        list(stream(Live(broken(), 20), look(1, 0), Pace(8.0, 1, 20, 2, 3), Summary()))


# --- rates --------------------------------------------------------------------------------------------------

@given(st.sampled_from([5.0, 12.5, 16.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]),
       st.sampled_from([4.0, 16.0, 25.0, 30.0]), st.integers(1, 300))
def test_ticks_are_the_first_frames_that_are_not_before(fps, rate, count):
    found = list(ticks(((i / fps, i) for i in range(count)), rate))
    assert [tick for tick, _ in found] == list(range(len(found)))
    for tick, i in found:
        assert i / fps >= tick / rate - 1e-5 and (i == 0 or (i - 1) / fps < tick / rate)
    assert len(found) == int((count - 1) / fps * rate + 1e-5) + 1


@pytest.mark.parametrize(("rate", "stride", "most"), [(25.0, 4, 400), (16.0, 4, 200), (8.0, 4, 96), (25.0, 1, 400)])
def test_the_pace_that_is_meant_when_nothing_is_said(rate, stride, most):
    pace = Pace.of(rate, stride, most)
    assert pace.window >= pace.hop + 2 * (pace.margin + TOLERANCE) and pace.window * stride <= most
    assert pace.window * stride / rate == pytest.approx(4, abs=1.5)


@pytest.mark.parametrize(("seconds", "wrong"), [
    ({"window": 20.0}, "too long"), ({"window": 1.0}, "overlap too little"), ({"hop": 5.0}, "seconds|overlap|long"),
    ({"hop": 0.0}, "above 0"), ({"window": -1.0}, "above 0"), ({"margin": float("nan")}, "above 0"),
    ({"hop": 60.0}, "overlap too little")])
def test_a_pace_that_cannot_be(seconds, wrong):
    if seconds == {"hop": 5.0}:  # a longer window is meant then
        assert Pace.of(25.0, 4, 400, **seconds).hop == 31
        return
    with pytest.raises(Mistake, match=wrong):
        Pace.of(25.0, 4, 400, **seconds)
