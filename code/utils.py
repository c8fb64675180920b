"""Clean up the runs: keep the best and the last checkpoint of each checkpoint folder, remove the others.

    python utils.py                     lists what would go, then asks
    python utils.py --dry_run           lists only
    python utils.py -da                 asks nothing
    python utils.py -re                 and removes run folders that hold no checkpoint at all
    python utils.py -rf .csv heatmap.png     and removes files of the runs that end so

One more command makes an .ini of a train_config.yml of HearAI's (without --to it is printed):

    python utils.py convert train_config.yml --to configfiles/pjm_hamnosys/SignTransformer_001.ini

best*.pth, top_*.pth, resume.pth and the last numbered checkpoint always stay, and so does every file of a run whose
status.json says that it is running. The old program's run folders (MODEL_expNNN) are cleaned as well.
"""

import argparse
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from slr import errors, paths
from slr.errors import Mistake
from slr.paths import shown


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What to clean up, or, where the first word is `convert`, what to convert (`yaml`, `to`)."""
    raw = argparse.RawDescriptionHelpFormatter
    words = sys.argv[1:] if words is None else words
    converter = argparse.ArgumentParser(prog="utils.py convert", description="Make an .ini of a train_config.yml.")
    converter.add_argument("yaml", type=Path, metavar="train_config.yml")
    converter.add_argument("--to", type=Path, metavar="FILE", help="configfiles/SPLIT/SignTransformer_NNN.ini")
    if words[:1] == ["convert"]:
        return converter.parse_args(words[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("-da", "--dont_ask", action="store_true", help="remove without asking")
    add("-re", "--remove_empty", action="store_true", help="also run folders without any checkpoint")
    add("-rf", "--remove_files", nargs="+", default=[], metavar="SUFFIX", help="also files that end so")
    add("--dry_run", action="store_true", help="list what would go; remove nothing")
    args = parser.parse_args(words)
    for suffix in args.remove_files:
        if suffix.endswith(".pth") or ".pth".endswith(suffix):
            raise Mistake("-rf removes no checkpoints", repr(suffix), "they are found without it")
    return args


@dataclass
class Sweep:
    """What goes: files with their sizes, and whole folders; `running` runs are left alone."""

    files: dict[Path, int] = field(default_factory=dict)
    folders: dict[Path, int] = field(default_factory=dict)
    running: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.files.values()) + sum(self.folders.values())


def is_running(run: Path) -> bool:
    """What status.json says; one that cannot be read may belong to a run that is."""
    try:
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(status, dict) or status.get("state") in ("starting", "running")


def find_runs(root: Path) -> list[Path]:
    """The run folders `root/SPLIT/RUN`, by name; links are not followed."""
    return sorted(run for split in root.glob("*") if split.is_dir() and not split.is_symlink()
                  for run in split.iterdir() if run.is_dir() and not run.is_symlink())


def checkpoint_folders(run: Path) -> list[Path]:
    """`checkpoints` and the enumerated `checkpoints.1`, … of a run."""
    return sorted(p for p in run.glob("checkpoints*") if p.is_dir() and not p.is_symlink())


def superfluous(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder but the last, by number, and what a kill left half written."""
    from slr.checkpoint import numbered

    return [*list(numbered(folder).values())[:-1], *sorted(folder.glob(".*.pth.*.part"))]


def files_of(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in sorted(names)]


def size_of(path: Path) -> int:
    return path.lstat().st_size


def look(root: Path, remove_empty: bool = False, suffixes: tuple[str, ...] = ()) -> Sweep:
    """Everything under `root` that the options let go."""
    sweep = Sweep()
    for run in find_runs(root):
        if is_running(run):
            sweep.running.append(run)
            continue
        files = files_of(run)
        if remove_empty and not any(path.suffix == ".pth" for path in files):
            sweep.folders[run] = sum(map(size_of, files))
            continue
        going = [path for folder in checkpoint_folders(run) for path in superfluous(folder)]
        going += [path for path in files if suffixes and path.name.endswith(suffixes)]
        sweep.files.update((path, size_of(path)) for path in going)
    return sweep


def show(sweep: Sweep) -> None:
    for run in sweep.running:
        print(f"left alone: {shown(run)} is running, or its status.json says so")
    for path, size in {**sweep.files, **sweep.folders}.items():
        print(f"{size:>15,}  {shown(path)}{'/' * (path in sweep.folders)}")


def sweep_up(sweep: Sweep, root: Path) -> int:
    """Remove what is listed, but nothing of a run that was started meanwhile; the bytes freed."""
    freed = 0
    for path, size in {**sweep.files, **sweep.folders}.items():
        if is_running(root.joinpath(*path.relative_to(root).parts[:2])):
            print(f"left alone: {shown(path)}: its run was started meanwhile")
            continue
        try:
            shutil.rmtree(path) if path in sweep.folders else path.unlink(missing_ok=True)
        except OSError as error:
            raise Mistake(f"{shown(path)} cannot be removed", error.strerror or str(error),
                          f"{freed:,} bytes were freed before it; mend that and start again") from None
        freed += size
    return freed


def main(words: list[str] | None = None) -> int:
    args, root = parse_arguments(words), paths.runs_root()
    if "yaml" in args:
        return convert(args)
    if not root.is_dir():
        raise Mistake("there are no runs", f"{shown(root)} is no folder", "$SLR_RUNS names another place")
    sweep = look(root, args.remove_empty, tuple(args.remove_files))
    show(sweep)
    if not sweep.files and not sweep.folders:
        print("nothing to remove: 0 bytes freed")
        return 0
    what = f"{len(sweep.files)} files and {len(sweep.folders)} folders, {sweep.bytes:,} bytes"
    if args.dry_run:
        print(f"dry run: {what} would go; 0 bytes freed")
        return 0
    if not args.dont_ask:
        confirm(what)
    print(f"freed {sweep_up(sweep, root):,} bytes")
    return 0


def convert(args: argparse.Namespace) -> int:
    """The .ini of a train_config.yml, printed or written; it is read once as training.py would read it."""
    from slr.config import parse_config
    from slr.datasets.files import put
    from slr.yaml_config import convert as convert_yaml

    try:
        text = args.yaml.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Mistake(f"{shown(args.yaml)} cannot be read", error.strerror or str(error), "name a file that is there") \
            from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{shown(args.yaml)} is no UTF-8 text", str(error), "save it as UTF-8") from None
    experiment, target = paths.Experiment("SignTransformer", "pjm", "1"), args.to
    if target:
        experiment, target = named_by(target)
    ini, notices = convert_yaml(text, shown(args.yaml))
    notices += parse_config(ini, experiment, source=f"what {shown(args.yaml)} becomes").notices
    print("".join(f"notice: {notice}\n" for notice in notices), end="", file=sys.stderr)
    if not target:
        print(ini, end="")
        return 0
    put(target, ini)
    print(f"{shown(target)}: python training.py {experiment.model} {experiment.split} {int(experiment.exp_no)}")
    return 0


def named_by(file: Path) -> tuple[paths.Experiment, Path]:
    """The experiment that configfiles/SPLIT/SignTransformer_NNN.ini is of, and that file's place: configfiles is the
    project's, wherever the command is given."""
    place = paths.ROOT / file if file.parts[:1] == (paths.CONFIGS.name,) else file.resolve()
    model, _, number = place.stem.rpartition("_")
    if model != "SignTransformer" or not re.fullmatch(r"[0-9]{3,}", number) or place.suffix != ".ini":
        raise Mistake("--to is no name of a SignTransformer's .ini", shown(file),
                      "for example configfiles/pjm_hamnosys/SignTransformer_001.ini")
    if place.exists():
        raise Mistake(f"{shown(place)} is there already", "nothing is written over",
                      "take another number, or remove it")
    return paths.Experiment(model, place.parent.name, number), place


def confirm(what: str) -> None:
    if not sys.stdin.isatty():
        raise Mistake("nobody is there to ask", "the input is no terminal", "-da removes without asking")
    try:
        answer = input(f"Remove {what}: y/n: ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Mistake("cancelled", "nothing was removed")


if __name__ == "__main__":
    errors.run(main)
