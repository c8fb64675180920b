"""Write down what a model sees in sentences of signing: its backbone's features over time, a file a sentence.

    python extract_features.py S3D_CTC phoenix2014t 1                                 of every sentence of every set
    python extract_features.py S3D_CTC phoenix2014t 1 --sets val test --name head_rgb_input gloss_feature
    python extract_features.py --checkpoint best.pth --out ~/features --format npz
    python extract_features.py S3D_CTC phoenix2014t 1 --list                          what has been extracted
    python extract_features.py S3D_CTC phoenix2014t 1 --check                         is every file there and whole?

The folder is named by a hash of the weights and of all settings that change the result. Whatever stops it, the same
command goes on; finished, it does nothing.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from slr import errors, paths
from slr.catalogue import MODELS
from slr.config import Config, read_changes
from slr.datasets.features import BACKBONE, FORMATS, GLOSS, LOGITS, NAMES, Shelf, read_index
from slr.datasets.sentences import load_sentences
from slr.errors import Interrupted, Mistake
from slr.paths import SETS, shown
from slr.trained import Trained, find_trained, rebuild

VERSION = 1  # of how features are made: another one has other hashes
ADVICE = "give a smaller --batch_size, or --device cpu"
TASK = "continuous"
EVERY = 30.0  # seconds between two versions of <set>.json
ROUNDING = "an item's features do not depend on its batch, but for float rounding (some 1e-6 of their size; TF32 1e-3)"
# Settings that evaluation never looks at; whatever else is set makes other features.
IDLE = {"data": ("root", "store", "crop", "min_scale", "max_aspect", "hflip", "jitter", "jitter_p", "jitter_frames",
                 "jitter_length", "short_first", "rand_augment", "rand_augment_n", "rand_augment_p", "erase_p",
                 "keypoints",  # these by their content
                 "workers", "prefetch", "pin_memory"),
        "model_params": ("drop_p", "drop_path", "pretrained", "weights", "init_from", "bn_momentum", "frozen_blocks"),
        "mamba": ("recompute",)}
ALWAYS = ("frame_stride", "eval_resize", "subtract_clip_mean")  # said even where they have their defaults


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] MODEL SPLIT EXP_NO\n       %(prog)s [options] --checkpoint FILE")
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help=f"one of {', '.join(n for n in MODELS if MODELS[n].task == TASK)}")
    add("split", metavar="SPLIT", nargs="?")
    add("exp_no", metavar="EXP_NO", nargs="?")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), help="whose sentences (default: of all)")
    add("--name", nargs="+", choices=NAMES, default=[BACKBONE], dest="names", help="what a file holds: the backbone's "
        "features (head_rgb_input, the default), the head's (gloss_feature), logits")
    add("--checkpoint", type=Path, metavar="FILE", help="this file instead of the run's best.pth")
    add("--out", type=Path, metavar="DIR", help="where the folders go (default: features/ of the run)")
    add("--format", choices=FORMATS, default=FORMATS[0])
    add("--batch_size", type=int, metavar="N", help="changes the speed, never the result")
    add("--device", default="auto", help="cpu, cuda or cuda:N")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes", help="change a setting")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--list", action="store_true", help="say what has been extracted, and stop")
    modes.add_argument("--check", action="store_true", help="look for missing and damaged files, write nothing")
    return parser.parse_args(words)


# --- what the hash is of ------------------------------------------------------------------------------------

def settings_of(config: Config) -> dict[str, Any]:
    """Every setting that can change what evaluation sees, unless it has its default: a key that a later version adds
    does not make old features another's."""
    found = {}
    for section, idle in IDLE.items():
        keys = getattr(config, section)
        for field in dataclasses.fields(keys) if keys else ():
            value = getattr(keys, field.name)
            if field.name in ALWAYS or (field.name not in idle and value != field.default):
                found[f"{section}.{field.name}"] = value
    return found


def keypoints_hash(config: Config) -> str | None:
    """SHA-256 of the file of points, where the model looks at them."""
    if not config.data.keypoints:
        return None
    path = paths.data_root(config.data.root) / Path(config.data.keypoints).expanduser()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Mistake(f"cannot read {shown(path)}", error.strerror or str(error), "see data.keypoints") from error


def precision_of(config: Config) -> str:
    """float32 unless the number format is set: features have to be the same on every device."""
    return "fp32" if config.training.precision == "auto" else config.training.precision


def facts_of(trained: Trained, names: Sequence[str], form: str) -> dict[str, Any]:
    """What stands at the top of <set>.json: the hash, what it is of, and where the weights lay."""
    config, content = trained.config, trained.content
    entry = MODELS[config.model]
    from slr.checkpoint import weights_hash

    of = {"version": VERSION, "weights": weights_hash(content["model_state_dict"]), "model": config.model,
          "split": config.split, "names": list(names), "format": form, "precision": precision_of(config),
          "mean": entry.mean, "std": entry.std, "settings": settings_of(config), "keypoints": keypoints_hash(config)}
    facts = {"hash": hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16], "of": of,
             "names": of["names"], "format": form, "checkpoint": shown(trained.file.resolve()),
             "epoch": content.get("epoch"), "rounding": ROUNDING}
    return facts | ({"classes": content["meta"]["classes"]} if LOGITS in names else {})


def find_subject(args: argparse.Namespace) -> Trained:
    """The checkpoint that the words name; Mistake unless it is of a model of sentences."""
    changes = read_changes(args.changes)
    if args.batch_size is not None:
        changes["training.batch_size"] = str(args.batch_size)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise Mistake("features are extracted by one process", "torchrun started several",
                      "give each GPU a set: --sets train --device cuda:0, …")
    trained = find_trained(args.model, args.split, args.exp_no, args.checkpoint, changes)
    if MODELS[trained.config.model].task != TASK:
        raise Mistake("only models of sentences have features over time", trained.config.model,
                      f"these do: {', '.join(name for name in MODELS if MODELS[name].task == TASK)}")
    return trained


# --- extraction ---------------------------------------------------------------------------------------------

class Tolerant:
    """A data set that gives (id, reason) for a sentence whose frames cannot be read."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Mistake as error:
            return self.dataset.sentences[key.item].id, f"{error.wrong}: {error.found}"


def gathered(items: list[Any]) -> dict[str, Any]:
    """A batch of those that were read, if any, and `unread`: the others."""
    from slr.datasets.sentence_clips import packed

    read = [item for item in items if not isinstance(item, tuple)]
    return {**(packed(read) if read else {"ids": []}), "unread": [item for item in items if isinstance(item, tuple)]}


def outputs(task: Any, runtime: Any, batch: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The arrays of every item of a batch: {name: (T', C) float32}."""
    import torch

    model = task.model
    batch = task.prepare(batch, train=False)
    with torch.no_grad(), runtime.autocast(runtime.precision(precision_of(task.config))):
        features, steps = model.features(batch["inputs"], batch["lengths"])
        found = {BACKBONE: features}
        if hasattr(model.classifier, "gloss_features"):
            found[GLOSS] = model.classifier.gloss_features(features, steps)
            found[LOGITS] = model.classifier(features, steps)
        else:
            found[LOGITS] = model.classifier(features)
    lengths = steps.tolist()
    plain = {name: found[name].float().cpu() for name in names}
    return [{name: array[i, :length].contiguous().numpy() for name, array in plain.items()}
            for i, length in enumerate(lengths)]


def batches(task: Any, pending: Sequence[Any]) -> Any:
    """A loader over sentences, those of about one length together."""
    from slr.loading import EpochBatches, build_loader, worker_count

    dataset, config, device = task.dataset(pending, train=False), task.config, task.runtime.device.type
    order = EpochBatches(len(dataset), config.training.batch_size, shuffle=False, seed=0, lengths=dataset.lengths)
    return build_loader(Tolerant(dataset), order, workers=worker_count(config.data.workers, device),  # type: ignore[arg-type]
                        prefetch=config.data.prefetch, pin_memory=config.data.pin_memory and device == "cuda",
                        collate_fn=gathered)


def extracted(task: Any, runtime: Any, pending: Sequence[Any],
              names: Sequence[str]) -> Iterator[list[tuple[Any, dict[str, Any] | str, int]]]:
    """A batch at a time: (sentence, its arrays or why there are none, how many frames were looked at)."""
    import numpy as np

    from slr.engine import memory_explained

    known, loader = {sentence.id: sentence for sentence in pending}, batches(task, pending)
    try:
        for batch in loader:
            done: list[tuple[Any, dict[str, Any] | str, int]] = [(known[i], why, 0) for i, why in batch["unread"]]
            if batch["ids"]:
                with memory_explained(ADVICE):
                    found = outputs(task, runtime, batch, names)
                for i, arrays, indices in zip(batch["ids"], found, batch["indices"], strict=True):
                    finite = all(np.isfinite(array).all() for array in arrays.values())
                    done.append((known[i], arrays if finite else "its features are not finite", len(indices)))
            yield done
    finally:
        loader.close()


def fill(shelf: Any, whole: Sequence[Any], pending: Sequence[Any], task: Any, runtime: Any, bar: Any,
         stop: Any) -> None:
    """Extract the `pending` ones of a set; <set>.json is written now and then, and at the end, whatever ends it."""
    saved = time.monotonic()
    try:
        shelf.save(whole)
        for done in extracted(task, runtime, pending, shelf.facts["names"]):
            for sentence, arrays, frames in done:
                if isinstance(arrays, str):
                    shelf.leave_out(sentence.id, arrays)
                else:
                    shelf.add(sentence, arrays, frames)
            bar.update(len(done))
            if stop.name:
                raise Interrupted(f"interrupted by {stop.name}", "what is extracted is kept",
                                  "the same command goes on")
            if time.monotonic() - saved > EVERY:
                shelf.save(whole)
                saved = time.monotonic()
    finally:
        shelf.save(whole)


def open_task(trained: Trained, args: argparse.Namespace) -> tuple[Any, Any]:
    """(The task, the runtime); Mistake where the model has not all that is asked for."""
    from slr.engine import memory_explained

    with memory_explained(ADVICE):
        task, runtime = rebuild(trained, args.device, trained.config.experiment.seed)
    task.model.eval()
    if GLOSS in args.names and not hasattr(task.model.classifier, "gloss_features"):
        raise Mistake(f"{trained.config.model} has no {GLOSS}", "its head is a single layer",
                      "leave that name out")
    return task, runtime


def extract(args: argparse.Namespace, trained: Trained, shelves: list[Any], work: dict[str, list[Any]]) -> int:
    """All that is not there yet; what cannot be read is named when the rest is done."""
    from tqdm import tqdm

    from slr.engine import StopFlag

    started = time.monotonic()
    with ExitStack() as held:
        for shelf in shelves:
            held.enter_context(shelf.held())
        pending = {s.part: [sentence for sentence in work[s.part] if not s.has(sentence)] for s in shelves}
        total = sum(map(len, pending.values()))
        if total:
            stop = held.enter_context(StopFlag())
            task, runtime = open_task(trained, args)
            bar = held.enter_context(tqdm(total=total, unit="sentence", leave=False, disable=not sys.stderr.isatty()))
        for shelf in shelves:
            if total and pending[shelf.part]:
                bar.set_description(shelf.part)
                fill(shelf, work[shelf.part], pending[shelf.part], task, runtime, bar, stop)
            else:
                shelf.save(work[shelf.part])
    return tell(shelves, work, pending, time.monotonic() - started)


def tell(shelves: Sequence[Any], work: dict[str, list[Any]], pending: dict[str, list[Any]], seconds: float) -> int:
    """Counts of every set and of all; Mistake where sentences had to be left out."""
    folder, rows = shown(shelves[0].folder), []
    for shelf in shelves:
        left = sum(sentence.id in shelf.left_out for sentence in work[shelf.part])
        rows.append((len(work[shelf.part]), len(pending[shelf.part]) - left,
                     len(work[shelf.part]) - len(pending[shelf.part]), left))
        print("{}: {} sentences: {} extracted, {} were there, {} left out".format(shelf.part, *rows[-1]))
    count, new, old, left = map(sum, zip(*rows, strict=True))
    if old == count:
        print(f"nothing to do: all {count} sentences are in {folder}")
        return errors.DONE
    print(f"{count} sentences in {seconds:.1f} s: {new} extracted, {old} were there, {left} left out; {folder}")
    if left:
        reasons = [f"{name} ({why})" for shelf in shelves for name, why in shelf.left_out.items()]
        raise Mistake(f"{left} of {count} sentences are left out", "; ".join(reasons[:5]),
                      f"all of them stand in {', '.join(f'{shelf.part}.json' for shelf in shelves)}; put their frames "
                      "right, and the same command adds them")
    return errors.DONE


# --- what is there ------------------------------------------------------------------------------------------

def show(root: Path, current: str) -> int:
    """A line for every folder of features of a run, with a star where this command would write."""
    folders = sorted({path.parent for part in SETS for path in root.glob(f"*/{part}.json")})
    for folder in folders:
        found = {part: read_index(folder / f"{part}.json") for part in SETS if (folder / f"{part}.json").is_file()}
        any_set = next(iter(found.values()))
        sets = [f"{part} {len(index['items'])}{'' if index['complete'] else ' (not complete)'}"
                for part, index in found.items()]
        print(f"{'*' if folder.name == current else ' '} {folder.name}  {' '.join(any_set['names'])} "
              f"({any_set['format']})  {', '.join(sets)}  of {any_set.get('checkpoint')}, epoch {any_set.get('epoch')}")
    if not folders:
        print(f"nothing has been extracted to {shown(root)}")
    elif current not in [folder.name for folder in folders]:
        print(f"  {current} is what this command would write")
    return errors.DONE


def check(shelves: Sequence[Any], work: dict[str, list[Any]]) -> int:
    """Every file against its SHA-256. Raises Mistake where some are missing or damaged."""
    bad: list[str] = []
    for shelf in shelves:
        wrong = [s.id for s in work[shelf.part] if s.id not in shelf.left_out and not shelf.has(s)]
        bad += [f"{name} ({'damaged or of other frames' if shelf.file(name).is_file() else 'missing'})"
                for name in wrong]
        left = sum(s.id in shelf.left_out for s in work[shelf.part])
        print(f"{shelf.part}: {len(work[shelf.part]) - len(wrong) - left} of {len(work[shelf.part])} sentences are "
              f"there and whole, {left} were left out")
    if bad:
        raise Mistake(f"the features of {len(bad)} sentences are not right", ", ".join(bad[:5]),
                      "the same command without --check extracts them")
    return errors.DONE


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    args.names = [name for name in NAMES if name in args.names]
    trained = find_subject(args)

    facts, root = facts_of(trained, args.names, args.format), args.out or trained.results.parent / "features"
    if args.list:
        return show(root, facts["hash"])
    data = paths.data_root(trained.config.data.root)
    work = {part: load_sentences(data, trained.config.split, part) for part in SETS if part in args.sets}
    if not any(work.values()):
        raise Mistake("there are no sentences", f"{', '.join(work)} of {trained.config.split}",
                      "see report.json of preprocess.py")
    shelves = [Shelf.open(root / facts["hash"], part, facts, data) for part in work]
    return check(shelves, work) if args.check else extract(args, trained, shelves, work)


if __name__ == "__main__":
    errors.run(main)
