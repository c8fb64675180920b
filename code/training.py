"""Train the experiment that an .ini file describes.

    python training.py S3D asl100 4                 configfiles/asl100/S3D_004.ini -> runs/asl100/S3D_004/
    python training.py S3D asl100 4 -r              go on from its last checkpoint
    python training.py S3D demo 1 --dry_run         one batch of everything: memory, FLOPs, expected time
    python training.py S3D asl100 4 --set training.batch_size=4 --set data.workers=8
    torchrun --nproc_per_node 4 training.py S3D asl100 4 -na
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slr import config as configuration
from slr import errors, logbook
from slr.catalogue import MODELS, canonical
from slr.config import Config
from slr.errors import Mistake
from slr.paths import Experiment, shown


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"one of {', '.join(MODELS)} (R2Plus1D_18 needs no quotes)")
    add("split", metavar="SPLIT", help="asl100, asl300, asl1000, asl2000, demo, or any prepared split")
    add("exp_no", metavar="EXP_NO", help="the experiment's number, such as 4 (or 4.1)")
    add("-ds", "--dataset", help="only checked: it follows from SPLIT")
    add("-r", "--recover", action="store_true", help="go on from the last checkpoint")
    add("-ri", "--run_id", help="wandb run id (with -r: the one of the checkpoint)")
    add("-p", "--project", help="wandb project (default: WLASL-<classes>, else the split's name)")
    add("-et", "--entity", help="wandb entity (default: the login's own)")
    add("-ee", "--enum_exp", action="store_true", help="write to a new run folder MODEL_NNN.1, .2, …")
    add("-ec", "--enum_chck", action="store_true", help="write to a new checkpoint folder checkpoints.1, .2, …")
    add("-t", "--tags", nargs="+", default=[], help="more wandb tags")
    add("-c", "--config_path", type=Path, help="another .ini file")
    add("-na", "--no_ask", action="store_true", help="ask nothing; never overwrites")
    add("--seed", type=int, help="of everything that is random (default: the .ini's, else 42)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes", help="change a setting")
    add("--print_config", action="store_true", help="print the merged settings and stop")
    add("--no_wandb", action="store_true", help="no wandb (it is off without a login too)")
    add("--test_best", action="store_true", help="run testing.py full afterwards")
    add("--dry_run", action="store_true", help="one batch of everything; writes nothing")
    add("--overfit", type=int, metavar="N", help="train and validate on the first N clips: a check of the set-up")
    return parser.parse_args(words)


def merged_config(args: argparse.Namespace, experiment: Experiment, file: Path | None) -> Config:
    changes = configuration.read_changes(args.changes)
    if args.seed is not None:
        changes["experiment.seed"] = str(args.seed)
    config = configuration.read_config(experiment, changes, file)
    if args.dataset and args.dataset.lower() not in (_dataset(config), "wlasl"):
        raise Mistake("-ds does not fit SPLIT", f"{args.dataset}, {config.split} is {_dataset(config)}",
                      "leave -ds out")
    return config


def _dataset(config: Config) -> str:
    return "synthetic" if config.split.startswith("demo") else "wlasl"


def choose_folder(args: argparse.Namespace, experiment: Experiment) -> Experiment:
    """Where this run writes: asks before an existing run is touched, and never overwrites unasked."""
    if args.enum_exp:
        return experiment.enumerated() if experiment.run.exists() else experiment
    if args.enum_chck:
        return experiment.enumerated_checkpoints() if experiment.checkpoints.exists() else experiment
    if args.recover or not _written(experiment):
        return experiment.newest_checkpoints() if args.recover else experiment
    if args.no_ask or not sys.stdin.isatty():
        raise Mistake("this experiment has run before", shown(experiment.run),
                      "-r goes on with it, -ee and -ec write to a new folder")
    answer = input(f"{shown(experiment.run)} exists. [r]esume, [e]numerate, [o]verwrite, [c]ancel? ").strip().lower()
    if answer in ("r", "resume"):
        args.recover = True
        return experiment.newest_checkpoints()
    if answer in ("e", "enumerate"):
        return experiment.enumerated()
    if answer in ("o", "overwrite") and input("All its checkpoints and results go. Type yes: ").strip() == "yes":
        shutil.rmtree(experiment.run)
        return experiment
    raise Mistake("cancelled", "nothing was changed")


def _written(experiment: Experiment) -> bool:
    """Whether a run left anything worth keeping there."""
    return any(experiment.run.glob("checkpoints*/*.pth")) or (experiment.run / "log.jsonl").exists()


def confirm(args: argparse.Namespace, config: Config, experiment: Experiment) -> None:
    print(config.as_ini())
    print(f"run folder: {shown(experiment.run)}")
    if args.no_ask or args.dry_run or not sys.stdin.isatty():
        return
    if input("Confirm: y/n: ").strip().lower() not in ("y", "yes"):
        raise Mistake("cancelled", "nothing was changed")


def saved_config(args: argparse.Namespace, experiment: Experiment, file: Path | None) -> Config:
    """With -r the config is the run's own; only --set changes it, and what changed is said."""
    own = experiment.run / "config.ini"
    if not args.recover or not own.is_file():
        return merged_config(args, experiment, file)
    before = configuration.read_config(experiment, file=own)
    config = merged_config(args, experiment, own)
    for name, section in config.sections().items():
        for key, value in dataclasses.asdict(section).items():
            old = dataclasses.asdict(before.sections()[name]).get(key) if name in before.sections() else None
            if old != value:
                config = dataclasses.replace(config, notices=(*config.notices, f"{name}.{key}: {old!r} -> {value!r}"))
    return config


def plan_of(config: Config, runtime: Any) -> Any:
    """The engine's part of the config."""
    from slr.engine import FitPlan
    from slr.schedules import Plateau

    keys, schedule = config.training, {}
    if config.scheduler:
        schedule = {k: v for k, v in dataclasses.asdict(config.scheduler).items() if v is not None}
        plateau = {f.name: schedule.pop(f.name) for f in dataclasses.fields(Plateau) if f.name in schedule}
        if config.scheduler.type == "ReduceLROnPlateau":
            schedule["plateau"] = Plateau(**plateau)
    return FitPlan(
        epochs=keys.max_epoch, update_per_step=keys.update_per_step, eps=config.optimizer.eps,
        betas=config.optimizer.betas, dtype=runtime.precision(keys.precision), clip_norm=keys.clip_norm, ema=keys.ema,
        compile=keys.compile, save_every=keys.save_every,
        best=(keys.best_metric, "min" if keys.best_metric == "loss" else "max"), schedule=schedule,
        stopping=dataclasses.asdict(config.early_stopping) if config.early_stopping else None,
        bar=sys.stderr.isatty())


def listen(args: argparse.Namespace, config: Config, experiment: Experiment, book: logbook.Logbook, classes: int,
           wandb_id: str | None) -> None:
    """wandb and TensorBoard hear of the run where they are wanted."""
    if not book.writes:
        return
    if not args.no_wandb:
        project = args.project or (f"WLASL-{classes}" if _dataset(config) == "wlasl" and config.split.startswith("asl")
                                   else config.split)
        run_id = args.run_id or wandb_id
        book.listen(logbook.start_wandb(
            experiment.run, project=project, entity=args.entity, id=run_id, resume="allow" if run_id else None,
            name=f"{config.model}_{config.split}_exp{experiment.number}", config=config.as_dict(),
            tags=[config.split, config.model, f"exp-{experiment.number}", *args.tags]))
    if config.training.tensorboard:
        book.listen(logbook.TensorBoard(experiment.run / "tensorboard"))


def write_facts(config: Config, experiment: Experiment) -> None:
    """config.ini and data_info.json of the run folder."""
    logbook.write_text(experiment.run / "config.ini", config.as_ini())
    logbook.write_json(experiment.run / "data_info.json",
                       {"num_frames": config.data.num_frames, "frame_size": config.data.frame_size})


def put_by(experiment: Experiment) -> None:
    """The records that -ec would write over are copied beside the checkpoints that they are about."""
    older = dataclasses.replace(experiment, checkpoint_set=experiment.checkpoint_set - 1).checkpoints
    for name in ("config.ini", "log.jsonl", "status.json"):
        if older.is_dir() and (experiment.run / name).exists() and not (older / name).exists():
            shutil.copy2(experiment.run / name, older / name)


@contextlib.contextmanager
def recorded(book: logbook.Logbook) -> Iterator[None]:
    """However the run ends, status.json tells it."""
    code = errors.BUG
    try:
        yield
        code = errors.DONE
        book.tell(state="done", exit_code=code, reason="trained to the end", eta_s=0)
    except Mistake as error:
        code = error.code
        book.tell(state="interrupted" if code == errors.INTERRUPTED else "failed", exit_code=code,
                  reason=str(error).replace("\n  ", "; "))
        raise
    except BaseException as error:
        book.tell(state="failed", exit_code=code, reason=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        book.close(code)


def train(args: argparse.Namespace, config: Config, experiment: Experiment) -> None:
    """Build everything, go on where -r says so, and fit; or with --dry_run only rehearse."""
    from slr import checkpoint, rehearsal
    from slr.runtime import Runtime
    from slr.task import build_task

    book = logbook.Logbook(experiment.run, config.training.max_epoch, writes=_first() and not args.dry_run)
    with recorded(book):
        runtime = Runtime.start(args.device, config.experiment.seed, config.training.deterministic)
        try:
            if experiment.checkpoint_set and args.enum_chck and book.writes:
                put_by(experiment)
            if args.recover:
                book.take_up()
            book.tell(state="starting")
            last = checkpoint.newest(experiment.checkpoints) if args.recover else None
            content = checkpoint.load(last) if last else {}
            task = build_task(config, runtime, content.get("meta"))
            if args.overfit:
                task.keep(args.overfit)
            if args.dry_run:
                print(rehearsal.rehearse(task, plan_of(config, runtime), runtime))
            else:
                _fit(args, config, experiment, task, book, content, last)
        finally:
            runtime.close()


def _check_data(content: dict[str, Any], meta: dict[str, Any], last: Path) -> None:
    if content.get("data_hash") and content["data_hash"] != meta["data_hash"]:
        raise Mistake("the data changed since this run began", f"{shown(last)} was trained on other labels",
                      "prepare the old data again, or start a new run with -ee")


def _fit(args: argparse.Namespace, config: Config, experiment: Experiment, task: Any, book: logbook.Logbook,
         content: dict[str, Any], last: Path | None) -> None:
    from slr import checkpoint, engine, plots

    runtime, meta = task.runtime, task.meta()
    training = engine.start(task, plan_of(config, runtime), runtime)
    if last:
        training.load(content, shown(last))
        _check_data(content, meta, last)
    if book.writes:
        write_facts(config, experiment)
        _say_without_validation(task, config)
    listen(args, config, experiment, book, len(meta.get("classes", ())), content.get("resume", {}).get("wandb_id"))
    facts = {"model": config.model, "split": config.split, "task": config.experiment.task, "meta": meta,
             "config": config.as_dict(), "data_hash": meta["data_hash"], "versions": checkpoint.versions()}
    book.keep_until(training.epoch)
    engine.fit(training, book, engine.Keeper(experiment.checkpoints, facts, writes=book.writes))
    if book.writes:
        picture = plots.curves(logbook.read_log(book.log_file), experiment.results / "curves.png",
                               f"{config.model} on {config.split}, experiment {experiment.number}")
        print(f"checkpoints: {shown(experiment.checkpoints)}\ncurves: {shown(picture)}")


def _say_without_validation(task: Any, config: Config) -> None:
    if not task.size("val"):
        watched = config.early_stopping and config.early_stopping.metric[0] == "val"
        print("note: there is no validation set: the last epoch will be the best"
              + ("; early stopping watches the training set" if watched else ""), file=sys.stderr)


def _first() -> bool:
    """Whether this is the process that writes and speaks (torchrun numbers them)."""
    return os.environ.get("RANK", "0") == "0"


def _alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def main() -> int:
    args = parse_arguments()
    experiment = Experiment(canonical(args.model), args.split, args.exp_no)
    if args.print_config:
        print(merged_config(args, experiment, args.config_path).as_ini(), end="")
        return 0
    if args.overfit is not None and args.overfit < 1:
        raise Mistake("--overfit takes a number of clips", str(args.overfit), "give 1 or more")
    if not _alone():
        args.no_ask = True  # several processes cannot share one keyboard
    if not args.recover:
        merged_config(args, experiment, args.config_path)  # what is wrong there ends it before a folder is touched
    if not args.dry_run:
        experiment = choose_folder(args, experiment)
    config = saved_config(args, experiment, args.config_path)
    if _first():
        for notice in config.notices:
            print(f"note: {notice}", file=sys.stderr)
        confirm(args, config, experiment)
    train(args, config, experiment)
    if args.test_best and _first() and not args.dry_run:
        import testing

        return testing.main(["full", config.model, config.split, experiment.exp_no, "--device", args.device])
    return 0


if __name__ == "__main__":
    errors.run(main)
