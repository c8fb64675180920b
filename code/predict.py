"""Name the sign in any video file, or folder of frames; of a model for sentences: say its glosses with their times.

    python predict.py S3D asl100 4 my_video.mp4            the likeliest glosses with their probabilities
    python predict.py --checkpoint best.pth a.mp4 b.mp4 --json
    python predict.py S3D demo 1 frames/ -k 3 --first 10 --last 60
    python predict.py S3D_CTC phoenix2014t 1 sentence.mp4            glosses, begin and end, confidence
    python predict.py S3D_CTC phoenix2014t 1 camera:0 --stream       the same while it is signed, with the latency
    python predict.py SignTransformer demo_multihead 2 sign.mp4      a symbol for each head, and the glosses that fit
    python predict.py Sign2Text phoenix2014t 1 sentence.mp4          glosses, and the spoken sentence
    python predict.py SpatioTemporal phoenix2014 1 sentence.mp4      glosses, without times
    python predict.py Gloss2Text phoenix2014t 1 "REGEN MORGEN"       the spoken sentence of glosses
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slr import errors
from slr.catalogue import MODELS
from slr.errors import Mistake
from slr.trained import find_trained, rebuild

ADVICE = "try --device cpu, or a checkpoint that takes fewer or smaller frames"
TOP = 5
CAMERA = "camera:"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] MODEL SPLIT EXP_NO VIDEO [VIDEO ...]\n"
              "       %(prog)s [options] --checkpoint FILE VIDEO [VIDEO ...]")
    add = parser.add_argument
    add("words", nargs="+", metavar="MODEL SPLIT EXP_NO VIDEO", help=f"MODEL is one of {', '.join(MODELS)}")
    add("--checkpoint", type=Path, metavar="FILE", help="instead of MODEL SPLIT EXP_NO")
    add("-k", "--top", type=int, metavar="K", help=f"how many glosses, of single signs (default {TOP})")
    add("--first", type=int, metavar="N", help="first frame of the sign or sentence, counted from 1")
    add("--last", type=int, metavar="N", help="last frame of the sign or sentence (default: the video's last)")
    add("--box", type=int, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="where the signer is (default: the frame)")
    add("--json", action="store_true", help="one JSON list instead of a table; of a stream one object a line")
    add("--device", default="auto", help="cpu, cuda or cuda:N")
    add = parser.add_argument_group("sentences").add_argument
    add("--fps", type=float, metavar="F", help="frames a second (default: the file's own; of a folder, [decoding] fps)")
    add("--stream", action="store_true", help="VIDEO is a file, or camera:0: glosses are said as they become certain")
    add("--window", type=float, metavar="S", help="seconds that the model sees at once (default 4)")
    add("--hop", type=float, metavar="S", help="seconds from one window to the next (default 0.5)")
    add("--margin", type=float, metavar="S", help="seconds that have to follow a gloss's end (default 0.75)")
    add("--realtime", action="store_true", help="play a file at its own pace instead of as fast as possible")
    args = parser.parse_args(words)
    own = 0 if args.checkpoint else 3
    if len(args.words) <= own:
        parser.error("give MODEL SPLIT EXP_NO and at least one VIDEO, or --checkpoint FILE and a VIDEO")
    args.experiment, args.videos = args.words[:own], [Path(word) for word in args.words[own:]]
    return args


def check_options(args: argparse.Namespace) -> None:
    """What can be told before the model is loaded."""
    if args.top is not None and args.top < 1:
        raise Mistake("-k is at least 1", str(args.top), "give -k 5")
    if args.fps is not None and not 0 < args.fps < math.inf:
        raise Mistake("--fps is above 0", str(args.fps), "give the frames a second of the video")
    if not args.stream:
        _refuse(args, ("window", "hop", "margin", "realtime"), "without --stream", "give --stream too")
    else:
        _refuse(args, ("first", "last"), "with --stream", "a stream is looked at from its beginning to its end")
        if len(args.videos) > 1:
            raise Mistake("one stream at a time", ", ".join(map(str, args.videos)), "give one file or camera")
    cameras = [str(video) for video in args.videos if str(video).startswith(CAMERA)]
    if cameras and not args.stream:
        raise Mistake("a camera has no end", cameras[0], "give --stream too")
    if cameras:
        _refuse(args, ("fps", "realtime"), "with a camera", "its frames are taken when they come")


def check_videos(args: argparse.Namespace) -> None:
    """Before the model is built, which takes a while."""
    missing = [str(video) for video in args.videos if not video.exists() and not str(video).startswith(CAMERA)]
    if missing:
        raise Mistake("there is no such video", ", ".join(missing), "check the path")


def _refuse(args: argparse.Namespace, names: Sequence[str], where: str, do: str) -> None:
    given = [f"--{name}" for name in names
             if getattr(args, name) is not None and getattr(args, name) is not False]
    if given:
        raise Mistake(f"{', '.join(given)} has no meaning {where}", "", do)


def read_clip(video: Path, args: argparse.Namespace, task: Any) -> Any:
    """(T, S, S, 3) uint8: the video's frames as a test clip has them."""
    from slr.transforms import center_box, crop_resize
    from slr.video import probe, read_frames, sample_indices

    data, info = task.config.data, probe(video)
    frames = info.frames
    first, last = _from(args), frames if args.last is None else args.last
    if not 0 <= first < last <= frames:
        raise Mistake("there are no such frames", f"{first + 1} to {last} of {video}, which has {frames}",
                      "give --first and --last within the video")
    check_box(args.box, video, info.width, info.height)
    indices = first + sample_indices(last - first, data.num_frames)
    clip = read_frames(video, indices, tuple(args.box) if args.box else None)
    height, width = clip.shape[1:3]
    return crop_resize(clip, center_box(height, width, data.eval_resize), data.frame_size)


def _from(args: argparse.Namespace) -> int:
    """The first frame, counted from 0."""
    return 0 if args.first is None else args.first - 1


def check_box(box: Sequence[int] | None, video: Path, width: int, height: int) -> None:
    """Mistake where --box is no part of the video's frames; sizes in pixels."""
    if not box:
        return
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise Mistake("there is no such box", f"{x0} {y0} {x1} {y1} of {video}, which is {width} x {height}",
                      "give --box X0 Y0 X1 Y1 within the frame, X0 < X1 and Y0 < Y1")


def predict(task: Any, runtime: Any, clip: Any) -> list[tuple[str, float]]:
    """Every gloss with its probability, the likeliest first."""
    import torch

    from slr.transforms import no_draw

    batch = {"ids": ["clip"], "frames": torch.from_numpy(clip)[None], "draws": torch.from_numpy(no_draw())[None],
             "labels": torch.zeros(1, dtype=torch.long), "ghost": False}
    task.model.eval()
    with torch.no_grad():
        shares = task.model(task.prepare(batch, train=False)["inputs"]).double().softmax(1)[0]
    order = shares.argsort(descending=True, stable=True).tolist()
    return [(task.classes[k], float(shares[k])) for k in order]


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    check_options(args)
    answers, code = answer(args)
    if args.json and not args.stream:
        json.dump(answers, sys.stdout, indent=1, ensure_ascii=False)
        print()
    return code


def answer(args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """What is said of every video that can be read, printed as it comes (but with --json), and the exit code."""
    from slr.engine import memory_explained

    model, split, exp_no = args.experiment or (None, None, None)
    reads_glosses = model == "Gloss2Text"
    if not reads_glosses and not args.checkpoint:
        check_videos(args)
    trained = find_trained(model, split, exp_no, args.checkpoint)
    if trained.config.model == "Gloss2Text":
        return translate(trained, args), errors.DONE
    check_videos(args)
    if trained.config.experiment.task == "pretraining":
        raise Mistake("a pre-trained model says nothing of a video", trained.config.model,
                      "train a model that starts from it; testing.py shows what it has learnt")
    if trained.config.experiment.task == "transcription" and args.stream:
        raise Mistake("this model says a sentence when it is over", trained.config.model,
                      "leave --stream out, or give a model whose name ends in _CTC")
    name = {"isolated": name_sign, "multihead": name_symbols}.get(trained.config.experiment.task)
    if name:
        _refuse(args, ("stream", *(("fps",) if name is name_sign else ())), "for a model of single signs",
                "give a model for sentences")
    else:
        _refuse(args, ("top",), "for a model of sentences", "leave it out")
    with memory_explained(ADVICE):
        task, runtime = rebuild(trained, args.device, seed=42)
        reader = None if name is name_sign else reader_of(args, task, runtime)
    if args.stream:
        with memory_explained(ADVICE):
            say_stream(args, reader)
        return [], errors.DONE
    answers, code = [], errors.DONE
    for video in args.videos:
        try:
            with memory_explained(ADVICE):
                answers.append(name(video, args, reader or (task, runtime)) if name else
                               say_sentence(video, args, reader))
        except Mistake as error:  # one bad video does not cost the others' answers
            print(f"error: {error}", file=sys.stderr)
            code = max(code, error.code)
    return answers, code


def name_sign(video: Path, args: argparse.Namespace, model: tuple[Any, Any]) -> dict[str, Any]:
    """The likeliest glosses of one sign."""
    task, runtime = model
    found = predict(task, runtime, read_clip(video, args, task))[:args.top or TOP]
    if not args.json:
        print(f"{video}")
        print("\n".join(f"  {100 * p:5.1f} %  {gloss}" for gloss, p in found))
    return {"video": str(video), "glosses": [{"gloss": g, "probability": round(p, 6)} for g, p in found]}


def name_symbols(video: Path, args: argparse.Namespace, reader: Any) -> dict[str, Any]:
    """The likeliest symbol of each head, and the glosses of the dictionary that fit best."""
    found = reader.read(video, _from(args), args.last, args.fps)
    glosses = found["glosses"][:args.top or TOP]
    if not args.json:
        wide = max(map(len, found["heads"]))
        print(f"{video}")
        print("\n".join(f"  {head:<{wide}}  {100 * rows[0][1]:5.1f} %  {rows[0][0]}"
                        for head, rows in found["heads"].items()))
        fits = [f"{row['apart']} symbols differ" if row["apart"] else "all symbols fit" for row in glosses]
        print("\n".join(f"  {row['name']}: {how}" for row, how in zip(glosses, fits, strict=True)))
    return {"video": str(video), "glosses": glosses,
            "heads": {head: [{"symbol": symbol, "probability": round(p, 6)} for symbol, p in rows]
                      for head, rows in found["heads"].items()}}


# --- sentences ----------------------------------------------------------------------------------------------

def note(text: str) -> None:
    if text:
        print(f"note: {text}", file=sys.stderr)


def translate(trained: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The text of each sentence of glosses."""
    _refuse(args, ("fps", "stream", "top", "first", "last", "box"), "for glosses", "leave it out")
    sentences = [words.split() for words in args.words[len(args.experiment):]]
    if not all(sentences):
        raise Mistake("a sentence has no gloss", "one of the words is empty", 'give them as in "REGEN MORGEN"')
    task, _ = rebuild(trained, args.device, seed=42)
    unknown = sorted({gloss for glosses in sentences for gloss in glosses if gloss not in task.numbers})
    if unknown and not any(gloss in task.numbers for glosses in sentences for gloss in glosses):
        raise Mistake("the model knows none of these glosses", " ".join(unknown),
                      f"give glosses as SPLIT writes them, each sentence in quotes: \"{' '.join(task.classes[1:4])}\"")
    note(f"the model does not know {', '.join(unknown)}" if unknown else "")
    texts = task.translate(sentences)
    if not args.json:
        print("\n".join(f"{' '.join(glosses)}\n  {text}" for glosses, text in zip(sentences, texts, strict=True)))
    return [{"glosses": glosses, "text": text} for glosses, text in zip(sentences, texts, strict=True)]


def reader_of(args: argparse.Namespace, task: Any, runtime: Any) -> Any:
    box = tuple(args.box) if args.box else None
    if task.config.experiment.task == "translation":
        from slr.tasks.sign2text_predict import TranslationReader

        return TranslationReader(task, runtime, box)
    if task.config.experiment.task == "multihead":
        from slr.tasks.multihead_predict import SymbolReader

        return SymbolReader(task, runtime, box)
    if task.config.experiment.task == "transcription":
        from slr.tasks.transcription_predict import TranscriptReader

        return TranscriptReader(task, runtime, box)
    from slr.tasks.continuous_predict import SentenceReader

    return SentenceReader(task, runtime, box)


def say_sentence(video: Path, args: argparse.Namespace, reader: Any) -> dict[str, Any]:
    """The glosses of one sentence with their times."""
    from slr.video import playing

    first, last = _from(args), args.last
    if first < 0 or (last is not None and last <= first):
        raise Mistake("there are no such frames", f"{first + 1} to {'the last' if last is None else last}",
                      "give --first and --last within the video")
    with playing(video) as (found, images):
        fps = reader.rate_of(video, found, args.fps)
        note(reader.note_on(video, fps))
        record = reader.read(reader.frames(images, fps, first, last))
    if record["windows"] > 1:
        note(f"{video} has more than the {reader.most} frames that the model looks at (data.num_frames): it is looked "
             f"at in {record['windows']} windows that overlap")
    if record.get("cut"):
        note(f"{video} has more than the {reader.most} frames that the model looks at (data.num_frames): those in the "
             "middle are taken")
    # Of a video slower than the model's rate one frame can be several time steps.
    spans = [(gloss, start, max(stop, start + 1), score) for gloss, start, stop, score in record["spans"]]
    glosses = [{"gloss": gloss, "begin": round(start / fps, 3), "end": round(stop / fps, 3), "first": start + 1,
                "last": stop, "confidence": round(math.exp(score), 4)} for gloss, start, stop, score in spans]
    if not args.json:
        print(f"{video}")
        for row in glosses:
            print(f"  {row['begin']:8.2f} - {row['end']:8.2f} s  frames {row['first']:5d} - {row['last']:5d}  "
                  f"{100 * row['confidence']:5.1f} %  {row['gloss']}")
        print(f"  {' '.join(record['hypothesis']) or 'no gloss'}")
        if "translation" in record:
            print(f"  {record['translation'] or 'no text'}")
    text = {"text": record["translation"]} if "translation" in record else {}
    return {"video": str(video), "fps": fps, "sentence": record["hypothesis"], "log_probability": record["score"],
            "glosses": glosses, **text}


def say_stream(args: argparse.Namespace, reader: Any) -> None:
    """The glosses of a running video as they become certain, then what the stream was like."""
    from slr import streaming

    if reader.task.config.experiment.task == "translation":
        note("a stream has no end: glosses are said, not the spoken sentence")

    seconds = {name: getattr(args, name) for name in ("window", "hop", "margin") if getattr(args, name) is not None}
    pace = streaming.Pace.of(reader.rate, reader.stride, reader.most, **seconds)
    reader.warm_up(pace.window * pace.stride)
    place, summary, sentence = str(args.videos[0]), streaming.Summary(), []
    live = args.realtime or place.startswith(CAMERA)
    frames = reader.coming(place, args.fps, args.realtime, note)
    source = streaming.Live(frames, pace.window * pace.stride) if live else streaming.Direct(frames)
    with stopped_by_ctrl_c(source):
        for said in streaming.stream(source, reader.best_path, pace, summary):
            sentence.append(reader.task.classes[said.label])
            print(_as_json(said, sentence[-1]) if args.json else _as_line(said, sentence[-1]), flush=True)
    if args.json:
        print(json.dumps({"sentence": sentence, **summary.figures()}, ensure_ascii=False))
    else:
        print(f"{' '.join(sentence) or 'no gloss'}\n{_in_words(summary.figures())}")


@contextmanager
def stopped_by_ctrl_c(source: Any) -> Iterator[None]:
    """Ctrl-C ends the stream, not the program; a second one ends that too."""
    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        source.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        source.close()


def _as_line(said: Any, gloss: str) -> str:
    return (f"  {said.start:8.2f} - {said.stop:8.2f} s  {100 * math.exp(said.score):5.1f} %  {gloss:<20}  "
            f"latency {said.latency:.2f} s, window {said.compute:.3f} s")


def _as_json(said: Any, gloss: str) -> str:
    return json.dumps({"gloss": gloss, "begin": round(said.start, 3), "end": round(said.stop, 3),
                       "confidence": round(math.exp(said.score), 4), "latency": round(said.latency, 3),
                       "compute": round(said.compute, 4)}, ensure_ascii=False)


def _in_words(figures: dict[str, Any]) -> str:
    latency = (f"latency median {figures['latency_median']:.2f} s, worst {figures['latency_worst']:.2f} s"
               if figures["glosses"] else "no latency")
    if not figures["windows"]:
        return "no frame was looked at"
    return (f"{figures['glosses']} glosses in {figures['seconds']:.2f} s of video; {latency}\n"
            f"{figures['windows']} windows, each median {figures['compute_median']:.3f} s, worst "
            f"{figures['compute_worst']:.3f} s; real-time factor {figures['real_time_factor']:.2f}; "
            f"{figures['dropped_frames']} frames dropped")


if __name__ == "__main__":
    errors.run(main)
