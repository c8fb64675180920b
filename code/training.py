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
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slr import config as configuration
from slr import errors, logbook
from slr.catalogue import MODELS, canonical
from slr.config import Config
from slr.errors import Interrupted, Mistake, ask
from slr.paths import SENTENCE_DATA, Experiment, shown


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(overwrite=False)  # nobody but a person at the prompt sets it
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
    if args.dataset and args.dataset.lower() not in _datasets(config):
        raise Mistake("-ds does not fit SPLIT", f"{args.dataset}, {config.split} is {_datasets(config)[0]}",
                      "leave -ds out")
    return config


def _datasets(config: Config) -> tuple[str, ...]:
    """What -ds may say of SPLIT, the first as it is called."""
    if config.experiment.task == "multihead":
        return ("synthetic" if config.split.startswith("demo") else "hearai", "hearai")
    if config.experiment.task != "isolated":
        named = config.split.upper().replace("-", "_")
        return tuple(name.lower() for name in ([named] if named in SENTENCE_DATA else SENTENCE_DATA))
    return ("synthetic" if config.split.startswith("demo") else "wlasl", "wlasl")


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
    answer = ask(f"{shown(experiment.run)} exists. [r]esume, [e]numerate, [o]verwrite, [c]ancel? ").lower()
    if answer in ("r", "resume"):
        args.recover = True
        return experiment.newest_checkpoints()
    if answer in ("e", "enumerate"):
        return experiment.enumerated()
    if answer in ("o", "overwrite") and ask("All its checkpoints and results go. Type yes: ") == "yes":
        args.overwrite = True  # once the config is confirmed
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
    if ask("Confirm: y/n: ").lower() not in ("y", "yes"):
        raise Mistake("cancelled", "nothing was changed")


def check_words(args: argparse.Namespace) -> None:
    """Options that cannot go together, or say nothing."""
    if args.overfit is not None and args.overfit < 1:
        raise Mistake("--overfit takes a number of clips", str(args.overfit), "give 1 or more")
    if args.recover and (args.enum_exp or args.enum_chck):
        raise Mistake("-r goes on, -ee and -ec begin anew", "both are given",
                      "leave -ee and -ec out; a run that -ee began has an EXP_NO of its own, such as 4.1")


def check_recovery(args: argparse.Namespace, experiment: Experiment) -> None:
    """What was not finite would be so again: without a change such a run does not go on."""
    file = experiment.run / "status.json"
    if not args.recover or args.changes or not file.is_file():
        return
    if json.loads(file.read_text(encoding="utf-8")).get("exit_code") == errors.NON_FINITE:
        raise Mistake("this run ended because a loss was not finite", f"exit code 77 in {shown(file)}",
                      "change something with --set, for example --set training.clip_norm=1")


def saved_config(args: argparse.Namespace, experiment: Experiment, file: Path | None) -> Config:
    """With -r the config is the run's own; only --set and --seed change it, and what changed is said."""
    own = experiment.run / "config.ini"
    if not args.recover or not own.is_file():
        return merged_config(args, experiment, file)
    config = merged_config(args, experiment, own)
    changed = configuration.changes_between(configuration.read_config(experiment, file=own), config)
    notices = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items()]
    if file:
        notices.append(f"-c is not read: -r goes on with {shown(own)}")
    return dataclasses.replace(config, notices=(*config.notices, *notices))


def plan_of(config: Config, runtime: Any) -> Any:
    """The engine's part of the config."""
    from slr.engine import FitPlan
    from slr.schedules import FreezePlan, Plateau

    keys, schedule = config.training, {}
    if config.scheduler:
        schedule = {k: v for k, v in dataclasses.asdict(config.scheduler).items() if v is not None}
        plateau = {f.name: schedule.pop(f.name) for f in dataclasses.fields(Plateau) if f.name in schedule}
        if config.scheduler.type == "ReduceLROnPlateau":
            schedule["plateau"] = Plateau(**plateau)
    frozen = config.freeze_scheduler
    return FitPlan(
        epochs=keys.max_epoch, update_per_step=keys.update_per_step, eps=config.optimizer.eps,
        betas=config.optimizer.betas, dtype=runtime.precision(keys.precision), clip_norm=keys.clip_norm,
        clip_value=keys.clip_value, ema=keys.ema, compile=keys.compile, save_every=keys.save_every,
        validate_every=keys.validate_every, save_minutes=keys.save_minutes, keep_top=keys.keep_top,
        limit_train_batches=keys.limit_train_batches, limit_val_batches=keys.limit_val_batches,
        best=config.best_metric, schedule=schedule,
        stopping=dataclasses.asdict(config.early_stopping) if config.early_stopping else None,
        freezing=FreezePlan(frozen.model_params, frozen.freeze_pattern_repeats, frozen.freeze_mode, frozen.verbose)
        if frozen else None, bar=sys.stderr.isatty())


def attach_loggers(args: argparse.Namespace, config: Config, experiment: Experiment, book: logbook.Logbook,
                   classes: int, wandb_id: str | None) -> None:
    """wandb and TensorBoard hear of the run where they are wanted."""
    if not book.writes:
        return
    if not args.no_wandb:
        project = args.project or (f"WLASL-{classes}" if _datasets(config)[0] == "wlasl"
                                   and config.split.startswith("asl") else config.split)
        run_id = args.run_id or wandb_id
        book.listen(logbook.start_wandb(
            experiment.run, project=project, entity=args.entity, id=run_id, resume="allow" if run_id else None,
            name=f"{config.model}_{config.split}_exp{experiment.number}", config=config.as_dict(),
            tags=[config.split, config.model, f"exp-{experiment.number}", *args.tags]))
    if config.training.tensorboard:
        book.listen(logbook.TensorBoard(experiment.run / "tensorboard"))


def write_facts(config: Config, experiment: Experiment, left_out: dict[str, str]) -> None:
    """config.ini and data_info.json of the run folder; which training items are left out is said, too."""
    logbook.write_text(experiment.run / "config.ini", config.as_ini())
    facts: dict[str, Any] = {"num_frames": config.data.num_frames, "frame_size": config.data.frame_size}
    if left_out:
        facts["left_out"] = left_out
        some = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        _note(f"{len(left_out)} training items are left out, all named in data_info.json: {some}")
    logbook.write_json(experiment.run / "data_info.json", facts)


def archive_records(experiment: Experiment) -> None:
    """The records that -ec would write over are copied beside the checkpoints that they are about."""
    older = dataclasses.replace(experiment, checkpoint_set=experiment.checkpoint_set - 1).checkpoints
    for name in ("config.ini", "log.jsonl", "status.json", "samples.jsonl", "samples.md"):
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
    except BaseException as error:
        code, reason = _cause(error, book)
        book.end(code, reason)
        raise
    finally:
        book.close(code)


def _cause(error: BaseException, book: logbook.Logbook) -> tuple[int, str]:
    """(Exit code, reason) of a failure: another process's where this one only lost it, or was stopped for it."""
    sister = book.sister_end() if book.writes and isinstance(error, (RuntimeError, Interrupted)) else None
    if sister and not (isinstance(error, Interrupted) and sister[0] == errors.INTERRUPTED):
        return sister
    if isinstance(error, Mistake):
        return error.code, str(error).replace("\n  ", "; ")
    return errors.BUG, f"{type(error).__name__}: {error}"[:500]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While there is nothing to save (before the loop and after it) a signal ends the run at once."""
    names: list[str] = []

    def stop(number: int, _: object) -> None:
        names.append(signal.Signals(number).name)
        raise _interrupted(names[0])

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
        if names:  # some library has swallowed it
            raise _interrupted(names[0])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _interrupted(name: str) -> Interrupted:
    return Interrupted(f"interrupted by {name}", "outside the training loop, where nothing is to be saved",
                       "the same command with -r goes on")


def train(args: argparse.Namespace, config: Config, experiment: Experiment) -> None:
    """Build everything, go on where -r says so, and fit; or with --dry_run only rehearse."""
    book = logbook.Logbook(experiment.run, config.training.max_epoch, writes=_first() and not args.dry_run)
    with contextlib.ExitStack() as last, recorded(book), interruptible():
        from slr import engine
        from slr.runtime import Runtime

        with engine.memory_explained(engine.smaller_portions(config.training.update_per_step)):
            runtime = Runtime.start(args.device, config.experiment.seed, config.training.deterministic)
            last.callback(runtime.close)  # after the end is recorded: it takes the connection from the others
            _train(args, config, experiment, book, runtime)


def _train(args: argparse.Namespace, config: Config, experiment: Experiment, book: logbook.Logbook,
           runtime: Any) -> None:
    from slr import checkpoint, rehearsal
    from slr.task import build_task

    if book.writes:
        _open_folder(args, experiment, book)
    book.tell(state="starting")
    runtime.wait()  # from here on the folder is this run's, and what another process tells is about this run
    book.rank = 0 if args.dry_run else runtime.rank
    last = checkpoint.newest(experiment.checkpoints) if args.recover else None
    content = checkpoint.load(last) if last else {}
    task = build_task(config, runtime, content.get("meta"))
    if args.overfit:
        task.keep_first_items(args.overfit)
    if args.dry_run:
        report = rehearsal.rehearse(task, plan_of(config, runtime), runtime)
        if _first():
            print(report)
    else:
        for name, (old, new) in configuration.changes_between(config, task.config).items():
            _note(f"{name}: {old!r} -> {new!r}, as what it starts from has it")
        _fit(args, task.config, experiment, task, book, content, last)


def _open_folder(args: argparse.Namespace, experiment: Experiment, book: logbook.Logbook) -> None:
    """Take the run folder for this process, and see to what lies in it."""
    book.hold()
    if args.overwrite:
        for path in experiment.run.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != book.lock_file:
                path.unlink()
    if experiment.checkpoint_set and args.enum_chck:
        archive_records(experiment)
    if args.recover:
        book.take_up()


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
        for text in training.load(content, shown(last)):
            _note(text)
        _check_data(content, meta, last)
        book.changed = _changed(content, config)
    if book.writes:
        write_facts(config, experiment, task.left_out())
        _say_without_validation(task, config)
    attach_loggers(args, config, experiment, book, len(meta.get("classes", ())),
                   content.get("resume", {}).get("wandb_id"))
    facts = {"model": config.model, "split": config.split, "task": config.experiment.task, "meta": meta,
             "config": config.as_dict(), "data_hash": meta["data_hash"], "versions": checkpoint.versions()}
    book.keep_until(training.epoch, training.step)
    finished = engine.fit(training, book, engine.Keeper(experiment.checkpoints, facts, writes=book.writes))
    if book.writes:
        picture = plots.curves(logbook.read_log(book.log_file), experiment.results / "curves.png",
                               f"{config.model} on {config.split}, experiment {experiment.number}",
                               best=(finished.best or {}).get("epoch"))
        print(f"checkpoints: {shown(experiment.checkpoints)}\ncurves: {shown(picture)}")


def _changed(content: dict[str, Any], config: Config) -> dict[str, list[Any]]:
    """What has been set anew since the last epoch that the log has: {"section.key": [old, new]}."""
    changed = dict(content["resume"].get("changed", {}))
    for name, (old, new) in configuration.changes_between(
            configuration.config_from_dict(content["config"]), config).items():
        changed[name] = [changed[name][0] if name in changed else old, new]
    return changed


def _say_without_validation(task: Any, config: Config) -> None:
    if not task.size("val"):
        watched = config.early_stopping and config.early_stopping.metric[0] == "val"
        _note("there is no validation set: the last epoch will be the best"
              + ("; keep_top has nothing to go by" if config.training.keep_top else "")
              + ("; early stopping watches the training set" if watched else ""))


def _first() -> bool:
    """Whether this is the process that writes and speaks (torchrun numbers them)."""
    return os.environ.get("RANK", "0") == "0"


def _alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _note(text: str) -> None:
    """A remark on stderr, from one of the processes."""
    if _first():
        print(f"note: {text}", file=sys.stderr)


def _leave_group() -> None:
    """From here on this process works alone: torchrun's others have left."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def print_config(config: Config, experiment: Experiment) -> int:
    """An .ini file that says by itself where the run would go: the que reads both."""
    for notice in config.notices:
        _note(notice)
    print(f"; run folder: {experiment.run}\n{config.as_ini()}", end="")
    return errors.DONE


def main() -> int:
    args = parse_arguments()
    check_words(args)
    experiment = Experiment(canonical(args.model), args.split, args.exp_no)
    if args.print_config:
        return print_config(merged_config(args, experiment, args.config_path), experiment)
    if not _alone():
        args.no_ask = True  # several processes cannot share one keyboard
    if not args.recover:
        config = merged_config(args, experiment, args.config_path)  # a mistake there ends it before a folder is touched
        args.dry_run = args.dry_run or config.training.fast_dev_run
    if not args.dry_run:
        experiment = choose_folder(args, experiment)
    check_recovery(args, experiment)
    config = saved_config(args, experiment, args.config_path)
    for notice in config.notices:
        _note(notice)
    if _first():
        confirm(args, config, experiment)
    train(args, config, experiment)
    if args.test_best and _first() and not args.dry_run:
        import testing

        _leave_group()
        return testing.main(["full", config.model, config.split, experiment.exp_no, "--device", args.device])
    return errors.DONE


if __name__ == "__main__":
    errors.run(main)
