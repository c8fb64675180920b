"""Glosses out of a running video: a window slides over the frames as they come, and a gloss is said once it is certain.

    with video.playing("clip.mp4") as (fps, frames):
        source = Direct(ticks(timed(frames, fps), pace.rate))
        for said in stream(source, look, pace, summary):     # look: frames (T, H, W, 3) -> spans in time steps
            print(said.label, said.start, said.latency)

Windows, margins and spans count time steps from the stream's beginning. A model sees only what its window holds, so
what it says of the steps at a window's borders may change with the next one: `Committer` tells what is certain.
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from slr.decoding import Span
from slr.errors import Mistake

TOLERANCE = 2  # time steps by which a gloss may move from one window to the next and still be the same
WINDOW, HOP, MARGIN = 4.0, 0.5, 0.75  # seconds, unless a person says otherwise
SLACK = 1e-6  # seconds, for times that were computed in different ways


# --- what is certain ----------------------------------------------------------------------------------------

class Committer:
    """Spans of one window after the other in, each gloss out once.

    A gloss is committed when it ends at least `margin` steps before the newest edge, and the window before has seen it
    too (the same label, `tolerance` steps away at most) or had already looked that far: a place that two windows could
    judge is decided by the newer. Glosses come in the order of time, and one that waits holds back those behind it.

    The spans of all windows become one path: a window has its say from `margin` behind its begin on, before that the
    path stays as it was. So a gloss may last longer than a window. What begins before `settled` is decided, and a
    committed gloss that later windows see a little later is not said again.

    Where the steps further than `margin` - 1 from a window's borders are what the whole video gives, and windows
    overlap by 2 x margin or more, the committed spans are exactly those of the whole video.
    """

    def __init__(self, margin: int, tolerance: int = TOLERANCE):
        self.margin, self.tolerance = margin, tolerance
        self.settled = 0  # what begins before this step is decided
        self.horizon = 0  # how far the last window could judge
        self.path: list[Span] = []  # of all windows so far, where it still matters
        self.newest: Span | None = None  # the last that was committed

    def update(self, spans: Sequence[Span], begin: int, edge: int, last: bool = False) -> list[Span]:
        """What became certain by a window over the steps [begin, edge), whose best path has these spans.

        Spans are in order and apart; windows neither shrink nor go back. last: nothing comes behind `edge`, which
        makes all of it certain.
        """
        cut = begin + self.margin if begin else 0
        path, before = self._joined(spans, cut), self.path
        horizon = edge if last else max(self.horizon, edge - self.margin)
        found: list[Span] = []
        for span in path:
            if span.start < self.settled:
                continue
            if self._is_moved(span, path, cut):
                self.settled = span.stop
                continue
            if span.stop > horizon or not (last or span.stop <= self.horizon or self._saw(before, span)):
                self._settle(min(horizon, span.start))
                break
            found.append(span)
            self.newest, self.settled = span, span.stop
        else:
            self._settle(horizon)
        self.path, self.horizon = self._kept(path, begin), horizon
        return found

    def _joined(self, spans: Sequence[Span], cut: int) -> list[Span]:
        """The path as it was up to `cut`, and from there on as the window sees it."""
        old = [replace(span, stop=min(span.stop, cut)) for span in self.path if span.start < cut]
        new = [replace(span, start=max(span.start, cut)) for span in spans if span.stop > cut]
        if old and new and old[-1].stop == new[0].start == cut and old[-1].label == new[0].label:
            new[0] = replace(new[0], start=old.pop().start)
        return old + new

    def _is_moved(self, span: Span, path: list[Span], cut: int) -> bool:
        """Whether this is the gloss that was committed last, which the window no longer sees where it was."""
        newest = self.newest
        if newest is None or newest.label != span.label or newest.start < cut:
            return False
        first, near = newest.start - self.tolerance, span.start - newest.stop <= self.tolerance
        return near and not any(first <= other.start < span.start and other.label == span.label for other in path)

    def _saw(self, before: list[Span], span: Span) -> bool:
        """Whether the window before saw this gloss at about this time."""
        return any(other.label == span.label and other.start - self.tolerance < span.stop
                   and span.start < other.stop + self.tolerance for other in before)

    def _settle(self, step: int) -> None:
        """Nothing begins before `step` any more, but for what moves."""
        self.settled = max(self.settled, step - self.tolerance)

    def _kept(self, path: list[Span], begin: int) -> list[Span]:
        """The part of the path that a later window may still join, or that tells whether a gloss has moved."""
        visible = self.newest is not None and self.newest.stop > begin
        since = min(self.settled, self.newest.start - self.tolerance) if self.newest and visible else self.settled
        return [span for span in path if span.stop > since]


# --- frames as they come ------------------------------------------------------------------------------------

Timed = tuple[float, np.ndarray]  # when it was filmed, in seconds from the first frame on; the frame
Ticked = tuple[int, np.ndarray]


def timed(frames: Iterable[np.ndarray], fps: float) -> Iterator[Timed]:
    """The frames of a video with their times."""
    return ((number / fps, frame) for number, frame in enumerate(frames))


def filmed(frames: Iterable[np.ndarray]) -> Iterator[Timed]:
    """The frames of a camera with the times at which they come."""
    began = None
    for frame in frames:
        now = time.monotonic()
        began = now if began is None else began
        yield now - began, frame


def ticks(frames: Iterable[tuple[float, Any]], rate: float) -> Iterator[tuple[int, Any]]:
    """As many frames a second as `rate`: for the times 0, 1 / rate, 2 / rate ... the first frame that is not before.

    Where frames are filmed at that rate, these are all frames as they are.
    """
    tick = 0
    for at, frame in frames:
        while tick / rate <= at + SLACK:
            yield tick, frame
            tick += 1


class Source(Protocol):
    """Where `stream` has its frames from."""

    dropped: int  # frames that came and were never handed out

    def take(self, least: int) -> list[Ticked]:
        """The next frames, `least` or more; fewer at the end only."""

    def now(self, newest: float) -> float:
        """The time in the stream, `newest` being that of the newest frame taken."""

    def stop(self) -> None:
        """Nothing comes any more, as if the video ended here. Safe in a signal handler."""


class Direct:
    """Frames as fast as they are wanted: the stream's clock stands still while they are looked at."""

    dropped = 0

    def __init__(self, frames: Iterator[Ticked]):
        self.frames = frames

    def take(self, least: int) -> list[Ticked]:
        return [ticked for _, ticked in zip(range(least), self.frames, strict=False)]

    def now(self, newest: float) -> float:
        return newest

    def stop(self) -> None:
        self.frames = iter(())

    close = stop


class Live:
    """Frames that come when they come, read by a thread of their own; `room` of them wait at most.

    When more come, the oldest are dropped. Whatever goes wrong while reading, `take` raises.
    """

    def __init__(self, frames: Iterator[Ticked], room: int):
        self.waiting: deque[Ticked] = deque()
        self.room, self.dropped, self.began = room, 0, 0.0
        self._over = False
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(frames,), daemon=True)
        self._thread.start()

    def _read(self, frames: Iterator[Ticked]) -> None:
        try:
            for ticked in frames:
                if self._over:
                    return
                with self._news:
                    self._enter(ticked)
        except Exception as error:  # the other thread raises it
            self._error = error
        finally:
            with self._news:
                self._over = True
                self._news.notify()

    def _enter(self, ticked: Ticked) -> None:
        self.began = self.began or time.monotonic()
        self.waiting.append(ticked)
        while len(self.waiting) > self.room:
            self.waiting.popleft()
            self.dropped += 1
        self._news.notify()

    def take(self, least: int) -> list[Ticked]:
        with self._news:
            while len(self.waiting) < least and not self._over:
                self._news.wait(0.2)  # and look whether it was stopped
            if self._error:
                raise self._error
            found = list(self.waiting)
            self.waiting.clear()
        return found

    def now(self, newest: float) -> float:
        return max(newest, time.monotonic() - self.began)

    def stop(self) -> None:
        self._over = True

    def close(self) -> None:
        """Stop reading, and wait for that; not for a camera that hangs."""
        self.stop()
        self._thread.join(2)


def paced(frames: Iterable[Timed]) -> Iterator[Timed]:
    """Each frame when its time has come."""
    began = None
    for at, frame in frames:
        began = time.monotonic() - at if began is None else began
        time.sleep(max(0.0, began + at - time.monotonic()))
        yield at, frame


# --- the stream ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Pace:
    """How a window moves, in time steps of `stride` frames each, `rate` frames a second."""

    rate: float
    stride: int
    window: int
    hop: int
    margin: int

    @classmethod
    def of(cls, rate: float, stride: int, most: int, window: float | None = None, hop: float = HOP,
           margin: float = MARGIN) -> "Pace":
        """From seconds; `most` frames at once are what the model was trained on, and the window unless it is given.

        Raises Mistake where windows would be too long for the model, or would not overlap enough.
        """
        wanted = WINDOW if window is None else window
        if not all(0 < part < float("inf") for part in (wanted, hop, margin)):
            raise Mistake("seconds are above 0", f"--window {wanted:g}, --hop {hop:g}, --margin {margin:g}")
        second, longest = rate / stride, most // stride
        steps = [max(1, round(part * second)) for part in (wanted, hop, margin)]
        least = steps[1] + 2 * (steps[2] + TOLERANCE)
        if window is None:
            steps[0] = min(max(steps[0], least), longest)
        if steps[0] > longest:
            raise Mistake("the window is too long for this model", f"{window:g} s, it looks at {longest / second:g} s "
                          "at once (data.num_frames)", "give a shorter --window")
        if steps[0] < least:
            raise Mistake("the windows overlap too little",
                          f"{steps[0] / second:g} s with --hop {hop:g} and --margin {margin:g}",
                          f"give --window {least / second:.2f} or more, or less of the others")
        return cls(rate, stride, *steps)

    def seconds(self, step: int, edge: int) -> float:
        """When a step begins, of a stream of which `edge` frames have come."""
        return min(step * self.stride, edge) / self.rate


@dataclass(frozen=True)
class Said:
    """A gloss that became certain: when it was signed, and how long after its end it is said, in seconds."""

    label: int
    start: float
    stop: float
    score: float
    latency: float
    compute: float  # seconds that the window took which settled it


@dataclass
class Summary:
    """What a stream was like, kept while it runs."""

    latencies: list[float] = field(default_factory=list)
    computes: list[float] = field(default_factory=list)  # seconds of each window
    seconds: float = 0.0  # of video
    dropped: int = 0

    @property
    def factor(self) -> float:
        """The real-time factor: seconds of computing for one of video. Above 1 it cannot keep up."""
        return sum(self.computes) / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """Plain numbers; None where there is nothing to take them of."""
        return {"glosses": len(self.latencies), "seconds": round(self.seconds, 3), "windows": len(self.computes),
                **_middle_and_worst("latency", self.latencies), **_middle_and_worst("compute", self.computes),
                "real_time_factor": round(self.factor, 4), "dropped_frames": self.dropped}


def _middle_and_worst(name: str, values: list[float]) -> dict[str, float | None]:
    return {f"{name}_median": round(statistics.median(values), 4) if values else None,
            f"{name}_worst": round(max(values), 4) if values else None}


Look = Callable[[np.ndarray], Sequence[Span]]  # frames (T, H, W, 3) -> the spans of their best path, from step 0 on


class Sliding:
    """The frames of the window, and where in the stream they are."""

    def __init__(self, pace: Pace):
        self.pace = pace
        self.frames: list[np.ndarray] = []
        self.first = 0  # number of the first frame held, a multiple of the stride

    @property
    def edge(self) -> int:
        return self.first + len(self.frames)

    def add(self, came: list[Ticked]) -> None:
        """The frames behind the newest; where some are missing, everything before is forgotten."""
        stride = self.pace.stride
        for number, frame in came:
            if number != self.edge:
                self.frames, self.first = [], number
            if not self.frames and self.first % stride:
                self.first += 1  # steps begin at multiples of the stride
            else:
                self.frames.append(frame)
        surplus = len(self.frames) - self.pace.window * stride
        if surplus > 0:
            drop = -(-surplus // stride) * stride
            self.first, self.frames = self.first + drop, self.frames[drop:]


def stream(source: Source, look: Look, pace: Pace, summary: Summary) -> Iterator[Said]:
    """Each gloss of a running video as soon as it is certain; `summary` is kept up to date.

    What is stopped (`Source.stop`) has ended there: what was seen is still said.
    """
    sliding, committer = Sliding(pace), Committer(pace.margin)
    spans: list[Span] = []
    least, over = min(pace.window, 2 * pace.margin) * pace.stride, False
    while not over:
        came = source.take(least)
        over, least = len(came) < least, pace.hop * pace.stride
        sliding.add(came)
        if came:
            began = time.perf_counter()
            spans = _seen(look, sliding)
            summary.computes.append(time.perf_counter() - began)
        yield from _said(committer, spans, sliding, source, summary, over)


def _seen(look: Look, sliding: Sliding) -> list[Span]:
    if not sliding.frames:
        return []
    shift = sliding.first // sliding.pace.stride
    return [replace(span, start=span.start + shift, stop=span.stop + shift) for span in look(np.stack(sliding.frames))]


def _said(committer: Committer, spans: list[Span], sliding: Sliding, source: Source, summary: Summary,
          last: bool) -> Iterator[Said]:
    pace, edge = sliding.pace, sliding.edge
    newest = edge / pace.rate
    summary.seconds, summary.dropped = newest, source.dropped
    steps = -(-edge // pace.stride) if last else edge // pace.stride
    for span in committer.update(spans, sliding.first // pace.stride, steps, last):
        start, stop = (pace.seconds(step, edge) for step in (span.start, span.stop))
        latency = source.now(newest) - stop
        summary.latencies.append(latency)
        yield Said(span.label, start, stop, span.score, latency, summary.computes[-1])
