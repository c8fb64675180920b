"""The command line of the que, and its shell: the same verbs in both.

    python -m que create S3D asl100 4        queue an experiment; training.py's own options may follow
    python -m que daemon start               run what waits, on every free GPU, one after the other
    python -m que list                       who runs, who waits and why, who is done
    python -m que web                        the same as a page in the browser

LOC is to_run (new), cur_run (cur), old_runs (old), fail_runs (fail), held or trash; IDX counts from 0, a range is 0-3,
and `all` is all. An id, such as j12, stands for both. Every verb explains itself with -h and answers with --json.
"""

import argparse
import gc
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from que.errors import DONE, MISTAKE, Mistake

DESCRIPTION, _, EPILOG = (__doc__ or "").partition("\n\n")


class Parser(argparse.ArgumentParser):
    """Options are not abbreviated: `create` hands unknown ones on to training.py."""

    def __init__(self, **keys: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **keys})


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="que", description=DESCRIPTION, epilog=EPILOG)
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str, *positional: str, **keys: Any) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", **keys)
        made.add_argument("--json", action="store_true", help="answer as JSON")
        for word in positional:
            made.add_argument(word, metavar=word.upper())
        if "where" in keys.get("usage", "where") and name in WHERE:
            made.add_argument("where", nargs="*" if name in ("logs", "attach", "wandb", "recover") else "+",
                              metavar="LOC IDX", help="such as `new 0`, `old 2-5`, or an id")
        return made

    _jobs(verb)
    _looks(verb)
    _changes(verb)
    _whole(verb)
    return top


WHERE = ("remove", "display", "edit", "hold", "release", "resume", "cancel", "pause", "priority", "logs", "attach",
         "wandb", "recover")
Verb = Callable[..., argparse.ArgumentParser]


def _jobs(verb: Verb) -> None:
    for name, text in (("create", "queue a run: MODEL SPLIT EXP_NO and training.py's own options"),
                       ("add", "file a run that was trained by hand in old_runs")):
        made = verb(name, text, "model", "split", "exp_no")
        made.add_argument("--note", help="a word of yours, shown in the lists")
    made = verb("remove", "take jobs out of a list, into the trash")
    made = verb("clear", "take all jobs out of a list, into the trash; `clear trash` removes them for good", "location")
    made.add_argument("-y", "--yes", action="store_true", help="ask nothing")
    made = verb("move", "move jobs from a list to another, order kept", "source", "to", "index")
    made.add_argument("-of", "--of_index", type=int, help="to this place (`0 -of 3` is `0-3`)")
    made = verb("shuffle", "put the job at place OLD of a list to place NEW", "location")
    made.add_argument("old", type=int, metavar="OLD")
    made.add_argument("new", type=int, metavar="NEW")
    made = verb("recover", "run failed jobs again, from their last checkpoint")
    made.add_argument("-ol", "--o_location", default="fail_runs", help="where it lies (fail_runs)")
    made.add_argument("-nl", "--n_location", default="to_run", help="where it goes (to_run)")
    made.add_argument("-i", "--index", type=int, default=0, help="its place there (0)")
    made.add_argument("-cs", "--clean_slate", action="store_true", help="from the start, not from the checkpoint")
    made.add_argument("--live", action="store_true", help="with the code as it is now")


def add_create_options(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("--after", metavar="ID", help="wait until this job is done (ids with commas; `last`: the newest)")
    add("--init_from", choices=["parent", "parents"], help="start from the best checkpoint of the job in --after (the "
        "last of them), or from those of all of them")
    add("--seeds", metavar="1-5", help="a job for every seed")
    add("--sweep", action="append", default=[], metavar="SECTION.KEY=A,B", help="a job for every value")
    add("--gpus", type=_count, metavar="N", help="so many GPUs, by torchrun; 0: the CPU (one, where there is one)")
    add("--memory", metavar="8G", help="share a GPU: so much of its memory is kept for the job")
    add("--share", action="store_true", help="the same with what such a run was measured to need")
    add("--time", metavar="12h", help="stop and resume later when one go takes longer")
    add("--priority", type=int, default=0, metavar="N", help="higher ones start first (0)")
    add("--hold", action="store_true", help="file it in held: `release` lets it start")
    add("--live", action="store_true", help="run the code as it then is, not as it is now")
    add("--no_test", action="store_true", help="train only")
    add("--extract", action="store_true", help="at last run extract_features.py: who comes --after finds the features")
    add("--to", choices=["slurm"], help="hand it to Slurm")
    add("--slurm_option", action="append", default=[], metavar="=--partition=gpu", help="an option of sbatch")
    add("--dry_run", action="store_true", help="only say what would be queued")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _looks(verb: Verb) -> None:
    made = verb("list", "the jobs of a list, or of all: place, id, why it waits, progress, time left, last error")
    made.add_argument("location", nargs="?", metavar="LOC")
    made.add_argument("-n", "--limit", type=_count, help="so many of each list (50 on a terminal)")
    made.add_argument("-ks", "--key_set", nargs="+", dest="sort", metavar="KEY", help="sort by it: `best value`")
    made.add_argument("-r", "--reverse", action="store_true", help="the other way round")
    made = verb("display", "all that is known of one job")
    made.add_argument("-ks", "--key_set", nargs="+", metavar="KEY", help="only this, such as `status best`")
    made = verb("logs", "the log of a job; without LOC IDX of the one that runs, or ran last")
    which = made.add_mutually_exclusive_group()
    which.add_argument("-w", "--worker", action="store_true", help="of the job (as without it)")
    which.add_argument("-s", "--server", action="store_true", help="of the daemon")
    made.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    made.add_argument("-n", "--lines", type=_count, default=40, help="so many lines from its end (40)")
    verb("attach", "follow the running job's log until it ends")
    verb("wandb", "open the wandb page of a run")


def _changes(verb: Verb) -> None:
    made = verb("edit", "change a field of a job, or section.key of its .ini")
    made.add_argument("key", metavar="KEY")
    made.add_argument("value", metavar="VALUE")
    made = verb("priority", "higher ones start first")
    made.add_argument("priority", type=int, metavar="N")
    verb("hold", "keep jobs from starting")
    verb("release", "let held jobs start")
    verb("resume", "let paused jobs go on from their checkpoint")
    for name, text in (("pause", "let running jobs save and leave, into held"),
                       ("cancel", "stop jobs, saved, into fail_runs")):
        verb(name, text).add_argument("--wait", action="store_true", help="until they have left")


def _whole(verb: Verb) -> None:
    made = verb("daemon", "run what waits: start and stop in the background, or without a word here")
    made.add_argument("action", nargs="?", choices=["start", "stop", "status"])
    made.add_argument("--stop_on_fail", action="store_true", help="start, or here: end when a job has failed")
    made.add_argument("--hard", action="store_true", help="stop: put back what runs, saved")
    made.add_argument("--timeout", type=float, help="stop --hard: seconds before what has not left is killed")
    made = verb("save", "write all jobs and settings to a file")
    made.add_argument("file", nargs="?", metavar="FILE")
    made.add_argument("-y", "--yes", action="store_true", help="write over it")
    verb("load", "add the jobs of a saved file that are not here", "file")
    made = verb("settings", "how the que behaves: show, or set one")
    made.add_argument("key", nargs="?", metavar="KEY")
    made.add_argument("value", nargs="?", metavar="VALUE")
    made = verb("web", "serve the status page on 127.0.0.1")
    made.add_argument("-p", "--port", type=int, default=8317, help="8317; 0: any that is free")
    verb("doctor", "check lock, folders, disk, GPUs and versions")
    verb("install", "print a systemd user unit for the daemon")
    verb("shell", "the same verbs at a prompt, with tab completion")
    verb("quit", "leave the shell")
    for name in ("server", "worker"):
        verb(name, "of the old que: says where to look now").add_argument("rest", nargs=argparse.REMAINDER)


def main(words: list[str] | None = None) -> int:
    """Run one verb; without one, on a terminal, the shell. The exit code: 0, or 2 for a mistake."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["_work"]:  # the daemon's own: a worker
        return _work(words[1:])
    if not words and sys.stdin.isatty():
        words = ["shell"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    if words[:1] in ([], ["list"]):
        gc.disable()  # a sixth of the time of a list of 10,000
    try:
        return run(words or ["list"])
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except (KeyboardInterrupt, EOFError):  # at a question: Ctrl-C, Ctrl-D
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `que list | head`: the reader has seen enough
        sys.stderr.close()
        return DONE
    finally:
        gc.enable()


def run(words: list[str]) -> int:
    """One verb, its answer on stdout and warnings on stderr."""
    top = parser()
    if words[0] == "create":
        add_create_options(next(_subparsers(top))["create"])
        args, options = top.parse_known_args(words)
    else:
        args, options = top.parse_args(words), []
    if args.verb is None:
        top.print_help()
        return DONE
    from que.store import Store, state_folder

    store = Store(state_folder())
    answer = _call(store, args, options)
    if answer is not None and (args.json or answer.text):
        print(json.dumps(answer.plain(), ensure_ascii=False, indent=1) if args.json else answer.text)
    if args.verb != "list":  # which shows them itself
        for text in store.warnings:
            print(f"warning: {text}", file=sys.stderr)
    return DONE


def _call(store: Any, args: argparse.Namespace, options: list[str]) -> Any:
    from que import verbs

    if args.verb == "create":
        return verbs.do_create(store, args, options)
    if args.verb == "daemon" and args.action is None:
        from que import daemon

        daemon.Daemon(store, args.stop_on_fail).run()
        return None
    special = SPECIAL.get(args.verb)
    return special(store, args) if special else getattr(verbs, f"do_{ALIAS.get(args.verb, args.verb)}")(store, args)


ALIAS = {"resume": "release"}


def _web(store: Any, args: argparse.Namespace) -> None:
    from que import view, web

    def look() -> dict[str, Any]:
        store.warnings.clear()  # those of the last look; what lies in quarantine is named anyway
        return view.state_of(store)

    web.serve(store, args.port, look)


def _doctor(store: Any, args: argparse.Namespace) -> Any:
    from que import doctor

    return doctor.examine(store)


def _install(store: Any, args: argparse.Namespace) -> Any:
    from que import daemon
    from que.verbs import Answer

    return Answer(daemon.unit(store), data={"unit": daemon.unit(store)})


def _shell(store: Any, args: argparse.Namespace) -> None:
    from que import shell

    shell.Shell(store).cmdloop()


def _quit(store: Any, args: argparse.Namespace) -> Any:
    raise Mistake("there is no shell to leave", "quit", "it is a word of `que shell`")


def _gone(store: Any, args: argparse.Namespace) -> Any:
    raise Mistake(f"there is no {args.verb} any more", "jobs are files, and nothing has to run for them",
                  {"server": "`que daemon status` says what runs, `que save` writes everything to a file",
                   "worker": "`que list cur` says what runs, `que daemon stop --hard` puts it back, saved"}[args.verb])


SPECIAL: dict[str, Callable[[Any, argparse.Namespace], Any]] = {
    "web": _web, "doctor": _doctor, "install": _install, "shell": _shell, "quit": _quit, "server": _gone,
    "worker": _gone}


def _subparsers(top: argparse.ArgumentParser) -> Iterator[dict[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield action.choices


def _work(words: list[str]) -> int:
    from que import worker
    from que.store import Store, state_folder

    return worker.work(Store(state_folder()), words[0], clear="--clear" in words)
