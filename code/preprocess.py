"""Check the videos of a split and write the labels that training reads. Run it once for every split:

    python preprocess.py -as demo                          draws the built-in data first (demo50: fifty signs)
    python preprocess.py -as demo_continuous               draws the built-in sentences
    python preprocess.py -as demo_translation              draws those that have an English side
    python preprocess.py -as demo_multihead                draws the built-in signs with symbols, in HearAI's form
    python preprocess.py -as demo_bundestag                draws the built-in videos with subtitles
    python preprocess.py -as asl100 -ve                    data/WLASL/splits/asl100.json, WLASL2000/*.mp4
    python preprocess.py -as asl100 asl300 --store jpeg    and writes every clip's frames once, to load faster
    python preprocess.py -as mine --annotations mine.json --videos ~/clips    any WLASL-form file, any folder
    python preprocess.py -ds PHOENIX2014T -ve              sentences: data/PHOENIX-2014-T -> data/SENTENCES/phoenix2014t
    python preprocess.py -ds PHOENIX2014 -as phoenix2014 --videos phoenix-2014-videos.zip    frames in a zip
    python preprocess.py --hf_dataset rwth_phoenix_weather_2014/data    parquet files -> frames, then split phoenix2014

Two commands make the weights ready that a prepared split is translated with, mBART's and those that SLRT published:

    python preprocess.py -as phoenix2014t --prune_mbart facebook/mbart-large-cc25 --to data/pretrained/mBart_de
    python preprocess.py -as phoenix2014t --import_published pretrained_models

And some make the parts of a set of signs in HearAI's form, or show what is in one; folders are as a shell means them:

    python preprocess.py --to_frames ~/videos data/HEARAI/mine             NAME/NAME_0.jpg, ..., NAME_properties.json
    python preprocess.py --cut_movement data/HEARAI/mine data/HEARAI/cut   without the still beginning and end
    python preprocess.py --key_frames data/HEARAI/mine data/HEARAI/keys    the frames of least motion between movements
    python preprocess.py --landmarks data/HEARAI/mine data/HEARAI/mine     NAME/NAME.npz, by MediaPipe
    python preprocess.py --stats data/HEARAI/mine/test_hamnosys.txt charts    how often every symbol occurs

One makes the table of long videos with subtitles, of every name.mp4 with its name.srt:

    python preprocess.py --subtitles data/BUNDESTAG/bundestag/videos data/BUNDESTAG/bundestag    metadata.csv

No bad video ends it: report.json lists every clip that is left out, and why. Beside it lie the labels, the
class list, contact_sheet.png and statistics.png. Nor does a bad split cost the others. Stop it at any time: the
same command goes on.
"""

import argparse
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slr import errors, paths
from slr.errors import Interrupted, Mistake, NothingToTrainOn

DRAWN_SENTENCES = ("demo_continuous", "demo_translation")  # what built-in splits of sentences begin with
DRAWN_SIGNS = "demo_multihead"  # what built-in splits of signs with symbols begin with
DRAWN_VIDEOS = "demo_bundestag"  # what built-in splits of videos with subtitles begin with
WEIGHTS = {"prune_mbart": ("to", "prune_from"), "import_published": ("to", "replace")}  # and what goes with them
TOOLS = {"stats": ("separator",), "to_frames": (), "key_frames": (), "cut_movement": (),
         "landmarks": ("landmark_model",),  # of HearAI's form, and what goes with them
         "subtitles": ()}  # of the Bundestag's
HF_SPLIT = "phoenix2014"  # what --hf_dataset makes, if nothing else is said
HF_OPTIONS = ("asl_split", "hf_dataset", "verbose", "verify", "workers", "limit", "replace", "data")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("-as", "--asl_split", nargs="+", default=[], metavar="SPLIT", help="asl100, demo, phoenix2014, ...")
    add("-ds", "--dataset", choices=("WLASL", *paths.SENTENCE_DATA), help="what SPLIT is of, if its name does not tell")
    add("-ve", "--verbose", action="store_true", help="name every left-out and duplicate clip")
    add("--annotations", type=Path, metavar="FILE",
        help="copied to data/WLASL/splits/SPLIT.json: WLASL's list, nslt json, or a folder of older labels; "
             "of sentences: a folder or file with csv, npy, pickles or STM, read where it is")
    add("--videos", type=Path, metavar="FOLDER",
        help="where the videos are, if not in WLASL2000; of sentences: frames or videos, or a zip of frames")
    add("--hf_dataset", metavar="SOURCE",
        help="sentences of a Hugging Face data set, a folder of parquet files, ACCOUNT/NAME or ACCOUNT/NAME:CONFIG of "
             f"the hub: write their frames once, and prepare them as SPLIT, {HF_SPLIT} by default")
    add("--frames", default="", metavar="LAYOUT", help="sentences: features/fullFrame-256x256px/{set}/{id}/1/*.png")
    add("--no_frames", action="store_true", help="sentences: glosses and text alone, or for extracted features")
    add("--store", choices=("video", "jpeg", "raw"), default="video", help="write a frame store as well")
    add("--crop", choices=("box", "frame"), default="box", help="store: the person's box, or the frame")
    add("--short_side", type=_positive, default=256, metavar="PIXELS", help="store: 256; never enlarged")
    add("--verify", action="store_true",
        help="store: hash what is there, write damaged clips anew; sentences: decode every frame")
    add("--workers", type=int, metavar="N", help="processes; default: one a core, at most 8; 0: none")
    add("--limit", type=_positive, default=0, metavar="N", help="only N clips of each set")
    add("--dry_run", action="store_true", help="look at everything, write nothing")
    add("--replace", action="store_true", help="write over labels that were made from something else")
    add("--data", default="", metavar="ROOT", help="the data folder, if neither data/ nor $SLR_DATA")
    add("--seed", type=int, default=42, help="of the built-in data")
    add("--prune_mbart", metavar="MBART", help="keep of this mBART, a folder or the hub's name, what SPLIT says")
    add("--prune_from", choices=("train", "all"), help="whose texts and glosses that is: the training set's (default)")
    add("--import_published", nargs="+", type=Path, metavar="FOLDER",
        help="write what SLRT published of S3D_CTC, Gloss2Text and Sign2Text as checkpoints for SPLIT")
    add("--to", type=Path, metavar="FOLDER",
        help="where the weights go; what is imported: data/pretrained/SPLIT by default")
    for tool, of, does in (("stats", "ANNOTATIONS", "draw how often every symbol of every head occurs"),
                           ("to_frames", "VIDEO_OR_FOLDER", "videos to frames in HearAI's form"),
                           ("key_frames", "FOLDER", "the frames of every clip that matter"),
                           ("cut_movement", "FOLDER", "every clip without its still beginning and end"),
                           ("landmarks", "FOLDER", "MediaPipe's landmarks of every clip"),
                           ("subtitles", "VIDEOS_FOLDER", "name.mp4 and name.srt to the Bundestag's metadata.csv")):
        add(f"--{tool}", nargs=2, type=Path, metavar=(of, "OUTPUT_DIR"), help=does)
    add("--separator", metavar="S", help="stats: between the annotation's columns; white space by default")
    add("--landmark_model", type=Path, metavar="FILE", help="landmarks: holistic_landmarker.task of newer MediaPipes")
    return p.parse_args(words)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def check(args: argparse.Namespace) -> None:
    """What the options cannot mean together. Without SPLIT it is the data set's own name."""
    if args.hf_dataset is not None:
        check_hugging_face(args)
    if not args.asl_split and not args.dataset:
        raise Mistake("no SPLIT", "neither -as nor -ds was given", "say -as asl100, or -ds PHOENIX2014T")
    args.asl_split = args.asl_split or [args.dataset.lower()]
    for split in args.asl_split:
        if not re.fullmatch(r"\w[\w.+-]*", split):
            raise Mistake("SPLIT is no name of a split", repr(split), "give a name such as asl100")
    check_weights(args)
    if (args.annotations or args.videos) and len(args.asl_split) > 1:
        raise Mistake("--annotations and --videos are of one split", f"-as {' '.join(args.asl_split)}",
                      "run it once for each")
    if args.workers is not None and args.workers < 0:
        raise Mistake("--workers is no number of processes", str(args.workers), "give 0 or more")
    check_kind(args)


def check_weights(args: argparse.Namespace) -> None:
    """What goes with --prune_mbart and --import_published, which prepare no data, and what does not."""
    given = [name for name, default in vars(parse_arguments([])).items() if getattr(args, name) != default]
    modes = [name for name in WEIGHTS if name in given]
    if not modes:
        if args.to or args.prune_from:
            raise Mistake("--to and --prune_from are of weights", "none are asked for",
                          "leave them out, or give --prune_mbart MBART; --to also goes with --import_published")
        return
    mode = modes[0]
    others = [name for name in given if name not in ("asl_split", "dataset", "data", mode, *WEIGHTS[mode])]
    if others:
        raise Mistake(f"--{others[0]} does nothing with --{mode}", "both are given", "leave one of them out")
    if len(args.asl_split) > 1:
        raise Mistake(f"--{mode} is for one split", f"-as {' '.join(args.asl_split)}", "run it once for each")
    if mode == "prune_mbart" and not args.to:
        raise Mistake("--prune_mbart writes a folder", "--to is missing", "for example --to data/pretrained/mBart_de")


def check_hugging_face(args: argparse.Namespace) -> None:
    """What goes with --hf_dataset. Without SPLIT it is PHOENIX-2014's."""
    others = [name for name, default in vars(parse_arguments([])).items()
              if getattr(args, name) != default and name not in HF_OPTIONS]
    if others:
        raise Mistake(f"--{others[0]} does nothing with --hf_dataset", "both are given", "leave one of them out")
    if not args.hf_dataset:
        raise Mistake("--hf_dataset names no data set", "it is empty", "give a folder, or ACCOUNT/NAME of the hub")
    args.asl_split = args.asl_split or [HF_SPLIT]
    if len(args.asl_split) > 1:
        raise Mistake("--hf_dataset is of one split", f"-as {' '.join(args.asl_split)}", "run it once for each")
    if args.asl_split[0].startswith("demo"):
        raise Mistake("SPLIT is the name of built-in data", args.asl_split[0], "choose another name behind -as")


def dataset_of(split: str, args: argparse.Namespace) -> str:
    """The data set: as -ds says, else what --hf_dataset made, else the one that the split is called after, else
    WLASL."""
    if args.hf_dataset or not (args.dataset or args.annotations) and paths.hugging_face(
            paths.data_root(args.data), split).is_dir():
        return "HUGGING_FACE"
    named = split.upper().replace("-", "_")
    drawn = split.startswith(DRAWN_SENTENCES) and not (args.annotations or args.videos)
    return args.dataset or ("SYNTHETIC" if drawn else named if named in paths.SENTENCE_DATA else "WLASL")


def check_kind(args: argparse.Namespace) -> None:
    """Options of clips that mean nothing for sentences, and the other way round."""
    kinds = {dataset_of(split, args) == "WLASL" for split in args.asl_split}
    if False in kinds and args.store != "video":
        raise Mistake("sentences have no frame store", f"--store {args.store}", "their frames are read where they are")
    if True in kinds and (args.frames or args.no_frames):
        raise Mistake("--frames and --no_frames are of sentences", f"-as {' '.join(args.asl_split)} is of WLASL",
                      "leave them out, or say what it is of: -ds PHOENIX2014")
    if args.no_frames and (args.frames or args.videos):
        raise Mistake("--no_frames looks for no frames", "but --frames or --videos was given", "leave one of them out")


def bar(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    from tqdm import tqdm
    return tqdm(items, total=total, desc=what, unit="clip", disable=None)  # a bar on a terminal only


def draw_demo(root: Path, split: str, args: argparse.Namespace) -> bool:
    """The built-in data, where `split` is its name and nobody put another file there."""
    drawn = re.fullmatch(r"demo(\d*)", split)
    if not drawn or args.annotations:
        return False
    if args.dry_run:
        return True
    from slr.datasets import synthetic
    workers = args.workers if args.workers is None else max(args.workers, 1)
    synthetic.write_wlasl(root, split, signs=int(drawn[1] or 10), seed=args.seed, workers=workers,
                          progress=sys.stderr.isatty())
    return True


def draw_sentences(root: Path, split: str, args: argparse.Namespace) -> Path:
    """The built-in sentences: where they are."""
    from slr.datasets import synthetic_sentences, synthetic_translation
    makers = {name: made for made in (synthetic_sentences, synthetic_translation) for name in made.SIZES}
    if split not in makers:
        raise Mistake("there are no such built-in sentences", split, f"there are {', '.join(makers)}")
    if args.dry_run:
        return root / "SYNTHETIC" / split
    return makers[split].draw(root, split, args.seed, workers=args.workers, progress=sys.stderr.isatty())


def draw_as_it_is(root: Path, split: str, args: argparse.Namespace) -> None:
    """The built-in signs with symbols, and videos with subtitles: their forms are read as they are, there is nothing to
    prepare."""
    from slr.datasets import synthetic_bundestag, synthetic_multihead
    drawn: Any = synthetic_multihead if split.startswith(DRAWN_SIGNS) else synthetic_bundestag
    if split not in drawn.SIZES:
        raise Mistake("there is no such built-in data", split, f"there are {', '.join(drawn.SIZES)}")
    for name, default in vars(parse_arguments([])).items():
        useful = ("asl_split", "verbose", "workers", "dry_run", "data", "seed")
        if name not in useful and getattr(args, name) != default:
            raise Mistake(f"--{name} does nothing here", f"{split} is drawn", "leave it out")
    if not args.dry_run:
        drawn.draw(root, split, args.seed, workers=args.workers, progress=sys.stderr.isatty())
    print(drawn.summary(root, split))


def prepare_split(split: str, root: Path, args: argparse.Namespace) -> None:
    if split.startswith((DRAWN_SIGNS, DRAWN_VIDEOS)) and not args.dataset:
        draw_as_it_is(root, split, args)
        return
    dataset = dataset_of(split, args)
    if dataset == "WLASL":
        prepare_clips(split, root, args)
    else:
        prepare_sentences(split, dataset, root, args)


def prepare_sentences(split: str, dataset: str, root: Path, args: argparse.Namespace) -> None:
    from slr.datasets import sentences_prepare as prepare
    drawn, folder = dataset == "SYNTHETIC", paths.sentences(root, split)
    if dataset == "HUGGING_FACE":
        place = convert_hugging_face(root, split, args)
    else:
        place = draw_sentences(root, split, args) if drawn else paths.sentence_data(root, dataset)
    annotations, frames = args.annotations or place, None if args.no_frames else args.videos or place
    for path in filter(None, (annotations, frames)):
        if not path.exists():
            raise Mistake(f"no data for {split}", f"{paths.shown(path)} is missing",
                          "put it there, or name its places: --annotations FOLDER --videos FOLDER")
    source = prepare.read_source(annotations)
    if not (args.dry_run or args.replace or drawn or args.hf_dataset):  # of one maker: the labels follow it
        prepare.guard(folder, source, args.limit, bool(frames))
    print(f"{split}: {source.form} in {paths.shown(annotations)}, " +
          (f"frames in {paths.shown(frames)}" if frames else "without frames"))
    prepared = prepare.prepare(split, source, frames, layout=args.frames, workers=args.workers, limit=args.limit,
                               thorough=args.verify, progress=bar, root=root)
    print(prepare.details(prepared.report) if args.verbose else "", end="")
    print(prepare.summary(prepared.report))
    if not any(sentence.set == "train" for sentence in prepared.sentences):
        raise NothingToTrainOn(f"no training sentence of {split} can be used", found_reasons(prepared.report),
                               "mend that (-ve names the sentences); nothing was written")
    if not args.dry_run:
        write_sentences(prepared, folder)


def convert_hugging_face(root: Path, split: str, args: argparse.Namespace) -> Path:
    """Where the sentences of a Hugging Face data set are; with --hf_dataset they are written there first."""
    from slr.datasets import hugging_face
    place = paths.hugging_face(root, split)
    if args.hf_dataset:
        if not args.replace:
            hugging_face.guard(paths.sentences(root, split), split, args.limit)
        try:
            hugging_face.convert(args.hf_dataset, root, split, progress=sys.stderr.isatty(), limit=args.limit,
                                 replace=args.replace)
        except OSError as error:
            raise Mistake(f"{paths.shown(place)} cannot be written", error.strerror or str(error),
                          "make room; the same command goes on") from error
        print(hugging_face.summary(place, args.verbose))
    hugging_face.check_whole(place)
    return place


def write_sentences(prepared: Any, folder: Path) -> None:
    from slr.datasets import sentences_pictures as pictures
    from slr.datasets import sentences_prepare as prepare
    prepare.write_prepared(prepared, folder)
    pictures.contact_sheet(prepared, folder / "contact_sheet.png")
    pictures.statistics_sheet(prepared, folder / "statistics.png")
    print(f"{paths.shown(folder)}: train.jsonl, dev.jsonl, test.jsonl, vocabulary.txt, report.json, contact_sheet.png, "
          "statistics.png")


def prepare_clips(split: str, root: Path, args: argparse.Namespace) -> None:
    from slr.datasets import wlasl
    from slr.datasets import wlasl_prepare as prepare
    drawn = draw_demo(root, split, args)
    labels = paths.labels(root, split)
    annotations = args.annotations or wlasl.find_annotations(root, split)
    videos = args.videos or wlasl.videos_folder(root, split)
    if not videos.is_dir():
        raise Mistake(f"no videos for {split}", f"{paths.shown(videos)} is no folder",
                      "put them there, or name their folder: --videos FOLDER")
    found = wlasl.read_annotations(annotations)
    if not args.dry_run:
        if not args.replace:  # drawn data has one maker: its labels follow it
            prepare.guard(labels, None if drawn else found.file, args.limit)
        if args.annotations:
            found = wlasl.read_annotations(prepare.adopt(annotations, root, split, args.replace))
    print(f"{split}: {paths.shown(found.file)}, videos in {paths.shown(videos)}")
    prepared = prepare.prepare(split, found, videos, args.workers, args.limit, bar, root)
    if args.store != "video" and not args.dry_run:
        prepared = write_store(prepared, root, split, args)
    print(prepare.details(prepared.report) if args.verbose else "", end="")
    print(prepare.summary(prepared.report))
    if not any(clip.set == "train" for clip in prepared.clips):
        raise NothingToTrainOn(f"no training clip of {split} can be used", found_reasons(prepared.report),
                               "mend that (-ve names the clips); no labels were written")
    if not args.dry_run:
        write(prepared, labels)


def found_reasons(report: dict[str, Any]) -> str:
    reasons = [f"{n} {why}" for why, n in report["left_out_by_reason"].items() if n]
    return ", ".join(reasons) or "the annotation has none"


def write_store(prepared: Any, root: Path, split: str, args: argparse.Namespace) -> Any:
    """The frame store; clips that fail here are left out of the labels too."""
    from slr.datasets import wlasl_prepare as prepare
    from slr.video import StoreSettings
    folder = paths.store(root, args.store, split)
    settings = StoreSettings(args.store, args.crop, args.short_side)
    done = prepare.write_store(prepared, folder, settings, args.workers, args.verify, bar)
    print(f"{paths.shown(folder)}: {done['written']} clips written, {done['kept']} were there, "
          f"{len(done['failed'])} failed, {done['bytes'] / 1e6:.1f} MB")
    return prepared.without(done["failed"])


def write(prepared: Any, labels: Path) -> None:
    from slr.datasets import wlasl_pictures as pictures
    from slr.datasets import wlasl_prepare as prepare
    prepare.write_labels(prepared, labels)
    pictures.contact_sheet(prepared, labels / "contact_sheet.png")
    pictures.statistics_sheet(prepared, labels / "statistics.png")
    print(f"{paths.shown(labels)}: labels, class_list.txt, report.json, contact_sheet.png, statistics.png")


def prepare_all(args: argparse.Namespace) -> int:
    """Every split, whatever becomes of the others; the highest of their exit codes."""
    worst = errors.DONE
    for split in args.asl_split:
        try:
            prepare_split(split, paths.data_root(args.data), args)
        except Mistake as error:
            if len(args.asl_split) == 1:
                raise
            print(f"error: {split}: {error}", file=sys.stderr)
            worst = max(worst, error.code)
    return worst


def make_weights(args: argparse.Namespace) -> int:
    """What --prune_mbart or --import_published asks for."""
    (split,), root = args.asl_split, paths.data_root(args.data)
    folders = [str(Path(name).resolve()) if name and Path(name).is_dir() else name  # as a shell means it
               for name in (args.prune_mbart, *(args.import_published or ()))]
    if args.prune_mbart is not None:
        from slr.tasks.pruning import prune_for
        parts = paths.SETS if args.prune_from == "all" else paths.SETS[:1]
        print(prune_for(split, root, folders[0], args.to, parts))
        return errors.DONE
    from slr.tasks.importing import import_published
    target = args.to or root / "pretrained" / split
    failed = import_published(split, root, folders[1:], target, data=args.data, replace=args.replace)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return errors.MISTAKE if failed else errors.DONE


def check_no_tool(args: argparse.Namespace) -> None:
    for tool, options in TOOLS.items():
        for name in options:
            if getattr(args, name) is not None:
                raise Mistake(f"--{name} does nothing without --{tool}", str(getattr(args, name)), "leave it out")


def use_tool(tool: str, args: argparse.Namespace) -> int:
    """What one of TOOLS is asked to do; nothing but its own options goes with it."""
    given = [name for name, default in vars(parse_arguments([])).items() if getattr(args, name) != default]
    others = [name for name in given if name not in (tool, *TOOLS[tool])]
    if others:
        raise Mistake(f"--{others[0]} does nothing with --{tool}", "both are given", "leave one of them out")
    source, output = getattr(args, tool)
    if tool == "stats":
        from slr.datasets.hearai_pictures import draw_statistics
        print(draw_statistics(source, output, args.separator))
        return errors.DONE
    from slr.datasets import hearai_tools, subtitles
    module: Any = subtitles if tool == "subtitles" else hearai_tools
    more = {"model": args.landmark_model} if tool == "landmarks" else {}
    done = getattr(module, tool)(source, output, bar=bar, **more)
    print(done)
    if not done.written and not done.kept:
        raise Mistake("nothing could be made", f"all of {len(done.failed)} were skipped", "the reasons stand above")
    return errors.DONE


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    tool = next((name for name in TOOLS if getattr(args, name)), None)
    if not tool:
        check_no_tool(args)
        check(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if tool:
            return use_tool(tool, args)
        if args.prune_mbart is not None or args.import_published:
            return make_weights(args)
        return prepare_all(args)
    except KeyboardInterrupt:
        raise Interrupted("stopped before the end", "", "the same command goes on where it stopped") from None


if __name__ == "__main__":
    errors.run(lambda: main(sys.argv[1:]))
