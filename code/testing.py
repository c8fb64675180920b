"""Test a trained experiment, or score what any system has written.

    python testing.py full S3D asl100 4                    test, validation, shuffled frames, every graph
    python testing.py partial S3D asl100 4 test -cm        one set, one graph
    python testing.py partial S3D asl100 4 val -sf -se     shuffled frames, saved
    python testing.py full --checkpoint best.pth --set_dir data/WLASL/preprocessed/labels/asl100
    python testing.py compare S3D/asl100/4 MViTv2_S/asl100/0       which is better, and how surely
    python testing.py board --csv board.csv
    python testing.py full Sign2Text phoenix2014t 1 --ensemble Sign2Text/phoenix2014t/2    what both find likeliest
    python testing.py full SpatioTemporal phoenix2014 2    glosses that a language decoder says
    python testing.py score REF.stm HYP.ctm                word error rate of glosses, counted in six ways
    python testing.py score --text REF.txt HYP.txt         BLEU, chrF and ROUGE-L of translations, a sentence a line
"""

import argparse
import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from slr import errors, paths
from slr.catalogue import MODELS, canonical
from slr.config import Config, read_changes
from slr.errors import Mistake
from slr.logbook import write_json
from slr.metrics.cleanup import CLEANUPS
from slr.paths import Experiment, shown
from slr.trained import Trained, find_trained, rebuild

ADVICE = "give a smaller --batch_size, or fewer or smaller frames with -nf and -fs"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE")
    full = modes.add_parser("full", help="test set, validation set and the control, all graphs, saved")
    partial = modes.add_parser("partial", help="one set, with the graphs that are asked for")
    for sub in (full, partial):
        _add_common(sub)
    partial.add_argument("set", metavar="SET", nargs="?", choices=paths.SETS, help="test, val or train")
    partial.add_argument("-sf", "--shuffle_frames", action="store_true", help="one permutation for all clips")
    partial.add_argument("-bf", "--black_frames", action="store_true", help="sentences: all frames black, a control")
    partial.add_argument("-cn", "--checkpoint_name", default="best.pth", help="if not best.pth")
    partial.add_argument("-bg", "--bar_graph", action="store_true", help="precision, recall and F1 of each class")
    partial.add_argument("-cm", "--confusion_matrix", action="store_true")
    partial.add_argument("-hm", "--heatmap", action="store_true")
    partial.add_argument("-al", "--alignment", action="store_true",
                         help="of a few sentences: glosses over frames; of VideoMAEPretrain: hidden tubes")
    partial.add_argument("-dy", "--display", action="store_true", help="show the graphs (without a display: save them)")
    compare = modes.add_parser("compare", help="the paired test of two runs on the same clips or sentences")
    compare.add_argument("runs", nargs=2, metavar="RUN",
                         help="MODEL/SPLIT/EXP_NO, a run folder, or its predictions (.csv, .jsonl)")
    compare.add_argument("--json", action="store_true")
    board = modes.add_parser("board", help="the results of all runs, best first")
    board.add_argument("split", nargs="?", metavar="SPLIT")
    board.add_argument("--csv", type=Path, metavar="FILE")
    score = modes.add_parser("score", help="any system's sentences: word error rate of glosses, BLEU of translations")
    score.add_argument("ref", type=Path, metavar="REF", help="references: an .stm, or sclite's trn; a text with --text")
    score.add_argument("hyp", type=Path, metavar="HYP", help="hypotheses: a .ctm, or sclite's trn; a text with --text")
    score.add_argument("--cleanup", choices=CLEANUPS, help="whose rules clean the glosses (default: phoenix2014)")
    score.add_argument("--text", action="store_true",
                       help="translations, UTF-8, a sentence a line: BLEU-1 to BLEU-4, chrF, ROUGE-L")
    score.add_argument("--level", choices=("word", "char"),
                       help="with --text: what a token is (default: word); char for Chinese")
    score.add_argument("--json", action="store_true")
    return parser.parse_args(words)


def _add_common(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("model", metavar="MODEL", nargs="?", help=f"one of {', '.join(MODELS)}; not needed with --checkpoint")
    add("split", metavar="SPLIT", nargs="?")
    add("exp_no", metavar="EXP_NO", nargs="?")
    add("-nf", "--num_frames", type=int, help="instead of the number that the run was trained with")
    add("-fs", "--frame_size", type=int, help="instead of the size that the run was trained with")
    add("-se", "--save", action="store_true", help="save the results (full always does)")
    add("--checkpoint", type=Path, metavar="FILE", help="test this file; it carries its own settings")
    add("--ensemble", nargs="+", default=[], metavar="MODEL/SPLIT/EXP_NO", help="translation: the mean of this run's "
        "and these runs' probabilities")
    add("--set_dir", type=Path, metavar="DIR", help="prepared labels to test on, instead of the run's own")
    add("--out", type=Path, metavar="DIR", help="where results go (default: results/ of the run)")
    add("--batch_size", type=int, help="changes the speed, never the result")
    add("--seed", type=int, default=42, help="of the shuffled frames' permutation")
    add("--device", default="auto", help="cpu, cuda or cuda:N")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes", help="change a setting")


def find_subject(args: argparse.Namespace) -> Trained:
    """The checkpoint that the words name, with the settings it carries (an old one's come from its .ini)."""
    changes = read_changes(args.changes)
    for key, value in (("data.num_frames", args.num_frames), ("data.frame_size", args.frame_size),
                       ("training.batch_size", args.batch_size)):
        if value is not None:
            changes[key] = str(value)
    subject = find_trained(args.model, args.split, args.exp_no, args.checkpoint, changes,
                           name=getattr(args, "checkpoint_name", "best.pth"), results=args.out)
    if subject.config.experiment.task == "translation" and (args.num_frames or args.frame_size):
        raise Mistake("-nf and -fs do nothing to translations", subject.config.model,
                      "leave them out: what a clip is comes with the model that sees it")
    if subject.config.model == "LanguageDecoder" and (args.num_frames or args.frame_size):
        raise Mistake("-nf and -fs do nothing to a language model", subject.config.model, "leave them out")
    return subject


def label_of(args: argparse.Namespace, subject: Trained) -> str:
    """What the result files' names start with: best, or best_nf16 where an option made it another test.

    So the run's own results, which `compare` and `board` read, are never replaced by others. With --out the place
    is of the user's choosing, and the name stays.
    """
    if args.out:
        return subject.name
    made = [f"{name}{value}" for name, value in (("nf", args.num_frames), ("fs", args.frame_size)) if value is not None]
    made += [args.set_dir.resolve().name] if args.set_dir else []
    made += [f"with-{run.replace('/', '-')}" for run in args.ensemble]
    return "_".join([subject.name, *made, *(re.sub(r"[^\w.+-]+", "-", change) for change in args.changes)])


def open_subject(args: argparse.Namespace) -> tuple[Trained, Any, Any]:
    """(The checkpoint, the task rebuilt from it, the runtime)."""
    from slr.engine import memory_explained

    subject = find_subject(args)
    with memory_explained(ADVICE):
        task, runtime = rebuild(subject, args.device, args.seed, args.set_dir)
        if args.ensemble:
            _join(task, args)
    return subject, task, runtime


def _join(task: Any, args: argparse.Namespace) -> None:
    """The other models of the ensemble, each rebuilt from its best.pth."""
    if not hasattr(task, "join"):
        raise Mistake("only translations have ensembles", task.config.model, "leave --ensemble out")
    others = []
    for run in args.ensemble:
        parts = run.split("/")
        if len(parts) != 3:
            raise Mistake("--ensemble takes MODEL/SPLIT/EXP_NO", repr(run), "give the words of a run of the same MODEL")
        other = find_trained(parts[0], parts[1], parts[2], None)
        if other.config.model != task.config.model:
            raise Mistake("an ensemble is of one MODEL", f"{task.config.model} and {other.config.model}",
                          "give runs of the same MODEL")
        others.append(rebuild(other, args.device, args.seed, args.set_dir)[0])
    task.join(others)


def settle_search(task: Any, runtime: Any, config: Config) -> list[dict[str, Any]]:
    """Search from now on as is best on the validation set; what was tried, each with its figure. None: no choice."""
    tried: list[dict[str, Any]] = []
    figure = task.headline[0]
    for options in task.sweep() if task.size("val") else ():
        task.use_search(**options)
        _, records = run_set(task, runtime, config, "val")
        tried.append({**options, figure: task.score(records)[figure]})
        print("on the validation set: " + ", ".join(f"{name} {value:g}" for name, value in tried[-1].items()))
    if tried:
        best = max(tried, key=lambda row: row[figure])
        task.use_search(**{name: value for name, value in best.items() if name != figure})
    return tried


def run_set(task: Any, runtime: Any, config: Config, part: str,
            **options: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(The means of the losses, the records) of one set."""
    from slr import engine

    task.vary(**options)
    loader = task.loader(part, train=False)
    try:
        with engine.memory_explained(ADVICE):
            return engine.evaluate(task, loader, runtime, dtype=runtime.precision(config.training.precision),
                                   bar=sys.stderr.isatty(), decode=True)
    finally:
        loader.close()


def full(args: argparse.Namespace) -> int:
    """Every pass of the task, the report of the test set, and CompRes in best_val_loss.json."""
    subject, task, runtime = open_subject(args)
    label = label_of(args, subject)
    trained = subject.content.get("metrics", {}).get("val") or {}
    figure, percent = task.headline
    result: dict[str, Any] = {
        "check_name": "best_val" if subject.name == "best" else subject.name,
        f"best_val_{figure}": percent * trained[figure] if figure in trained else None,
        "best_val_loss": trained.get("loss")}
    if tried := settle_search(task, runtime, subject.config):
        result["searches"] = tried
    made: list[Path] = []
    for name, (part, options) in task.passes.items():
        if not task.size(part):
            _no_set(part)
            result[name] = None
            continue
        means, records = run_set(task, runtime, subject.config, part, **options,
                                 **({"seed": args.seed} if options else {}))
        result[name] = task.score(records)
        print(f"\n{name}: {task.summary(records)}")
        if name == part:
            graphs = {} if part == "test" else {"graphs": ()}
            made += task.report(records, subject.results, f"{label}_{part}", **graphs)
        if name == "val":
            _compare_with_training(task, task.validation(means, records), trained if not args.ensemble else {})
    file = subject.results / (f"{label}_val_loss.json" if subject.name == "best" else f"{label}.json")
    write_json(file, result)
    print(json.dumps(result, indent=1))
    print("\n".join(f"written: {shown(path)}" for path in [file, *made]))
    return 0


def _no_set(part: str) -> None:
    if part != "val":
        raise Mistake(f"the {part} set is empty", "0 clips", "see report.json of preprocess.py")
    print("note: there is no validation set: best is the last epoch, CompRes.val is null", file=sys.stderr)


def _compare_with_training(task: Any, found: dict[str, float], trained: dict[str, float]) -> None:
    """Training and testing must agree on the validation set: the reason why a CompRes holds it twice."""
    if not trained or task.config.training.limit_val_batches:  # then training has seen a part of it
        return
    (name, percent), (loss, before) = task.headline, (found["loss"], trained["loss"])
    figures = [percent * figures[name] for figures in (trained, found)]
    if abs(figures[1] - figures[0]) > 0.5 or abs(loss - before) > 0.01 * max(1.0, before):
        unit = "" if name == "loss" else " %"
        print(f"warning: training reported {figures[0]:.2f}{unit} and loss {before:.4f} on the validation set, testing "
              f"finds {figures[1]:.2f}{unit} and {loss:.4f}: the data, the settings or the precision differ",
              file=sys.stderr)


def partial(args: argparse.Namespace) -> int:
    """One set, as it is or varied."""
    if args.checkpoint and not args.set:  # `partial --checkpoint FILE test`: the only word is the set
        args.set, args.model = args.model, None
    if args.set not in paths.SETS:
        raise Mistake("which set?", repr(args.set), "give test, val or train")
    subject, task, runtime = open_subject(args)
    _check_graphs(_graphs(args), task)
    if not task.size(args.set):
        raise Mistake(f"the {args.set} set is empty", "0 clips", "see report.json of preprocess.py")
    _, records = run_set(task, runtime, subject.config, args.set, shuffle=args.shuffle_frames,
                         black=args.black_frames, seed=args.seed)
    print(f"{args.set}: {task.summary(records)}\n{json.dumps(task.score(records), indent=1)}")
    made = _save_part(args, subject, task, records)
    if args.display:
        from slr import plots

        plots.show([path for path in made if path.suffix == ".png"])
    print("\n".join(f"written: {shown(path)}" for path in made))
    return 0


def _graphs(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name, wanted in (("bargraph", args.bar_graph), ("confmat", args.confusion_matrix),
                                           ("heatmap", args.heatmap), ("alignment", args.alignment)) if wanted)


def _check_graphs(graphs: tuple[str, ...], task: Any) -> None:
    """Before a long evaluation, not after it."""
    unknown = [graph for graph in graphs if graph not in task.graphs]
    if unknown:
        raise Mistake(f"this task has no such graph: its name is {task.config.experiment.task}", ", ".join(unknown),
                      f"there are {', '.join(task.graphs) or 'none'}")


def _save_part(args: argparse.Namespace, subject: Trained, task: Any, records: list[dict[str, Any]]) -> list[Path]:
    """With -se the figures and tables of a set; the graphs that are asked for."""
    label = label_of(args, subject)
    ending = "_shuffled" if args.shuffle_frames else "_black" if args.black_frames else ""
    graphs = _graphs(args)
    made = []
    if args.save:
        made.append(subject.results / f"{label}_{args.set}-{task.table}{ending}.json")
        write_json(made[0], task.score(records))
    if args.save or graphs:
        made += task.report(records, subject.results, f"{label}_{args.set}{ending}", graphs=graphs, tables=args.save)
    return made


def compare(args: argparse.Namespace) -> int:
    """The paired test of two runs: of signs in top-1 accuracy, of symbols in exact matches and macro-F1, of sentences
    in word errors, of texts in BLEU-4."""
    files = [_predictions(run) for run in args.runs]
    kinds = [_kind(file) for file in files]
    if kinds[0] != kinds[1]:
        raise Mistake(f"{kinds[0]} and {kinds[1]} are not compared", " and ".join(map(shown, files)),
                      "give two runs of a kind")
    {"signs": _compare_signs, "symbols": _compare_symbols, "sentences": _compare_sentences,
     "texts": _compare_texts}[kinds[0]](args, files)
    return 0


def _kind(file: Path) -> str:
    """What predictions are of: signs, their symbols, sentences of glosses, or texts."""
    from slr.tasks.multihead_report import holds_heads

    if file.suffix != ".jsonl":
        return "symbols" if holds_heads(file) else "signs"
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "texts" if '"translation":' in next(lines, "") else "sentences"


def _compare_texts(args: argparse.Namespace, files: list[Path]) -> None:
    """Approximate randomisation and the bootstrap of the difference in BLEU-4."""
    from slr.metrics import text
    from slr.tasks.translation_report import read_level, read_predictions

    a, b = map(read_predictions, files)
    level, other = map(read_level, files)
    if level != other:
        raise Mistake("these scores are not of the same tokens", f"{level} and {other}", "test both runs the same way")
    found = text.compare(a, b, level)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    low, high = found["interval"]
    print(f"{args.runs[0]}: {found['bleu4_a']:.2f}   {args.runs[1]}: {found['bleu4_b']:.2f}   (BLEU-4 by {level}, "
          f"{found['sentences']} sentences)\ndifference {found['difference']:+.2f} [{low:+.2f}, {high:+.2f}], "
          f"p = {found['p_value']:.3g} (approximate randomisation)\nthe same text in {found['same']} sentences")


def _compare_signs(args: argparse.Namespace, files: list[Path]) -> None:
    """The exact McNemar test and the bootstrap of the difference in top-1 accuracy."""
    from slr.metrics import topk
    from slr.tasks.isolated_report import read_predictions

    a, b = map(read_predictions, files)
    found = topk.compare([r < 1 for r in a["ranks"]], [r < 1 for r in b["ranks"]], a["ids"], b["ids"])
    if args.json:
        print(json.dumps(found, indent=1))
        return
    low, high = found["interval"]
    print(f"{args.runs[0]}: {100 * found['acc_a']:.1f} %   {args.runs[1]}: {100 * found['acc_b']:.1f} %   "
          f"({found['clips']} clips)\ndifference {100 * found['difference']:+.1f} points "
          f"[{100 * low:+.1f}, {100 * high:+.1f}], p = {found['p_value']:.3g} (exact McNemar)\n"
          f"both right {found['both']}, only the first {found['only_a']}, only the second {found['only_b']}, "
          f"neither {found['neither']}")


def _compare_symbols(args: argparse.Namespace, files: list[Path]) -> None:
    """The exact McNemar test of the exact matches, and the bootstrap of the difference in mean macro-F1."""
    from slr.metrics import heads
    from slr.tasks.multihead_report import read_predictions

    found = heads.compare(read_predictions(files[0]), read_predictions(files[1]))
    if args.json:
        print(json.dumps(found, indent=1))
        return
    (low, high), exact = found["interval"], found["exact_match"]
    print(f"{args.runs[0]}: {100 * found['macro_f1_a']:.1f} %   {args.runs[1]}: {100 * found['macro_f1_b']:.1f} %   "
          f"(mean macro-F1 of {len(found['heads'])} heads, {found['clips']} clips)\n"
          f"difference {100 * found['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]\n"
          f"right in all heads: {100 * exact['acc_a']:.1f} % and {100 * exact['acc_b']:.1f} %, "
          f"p = {exact['p_value']:.3g} (exact McNemar)")


def _compare_sentences(args: argparse.Namespace, files: list[Path]) -> None:
    """The sign-flip test and the bootstrap of the difference in WER."""
    from slr.metrics import paired
    from slr.tasks.continuous_report import read_predictions

    (a, how_a), (b, how_b) = map(read_predictions, files)
    if not how_a or not how_b:
        print("note: whether both were counted alike is not known without their details.json", file=sys.stderr)
    elif how_a != how_b:
        raise Mistake("these rates were not counted alike", f"{how_a} and {how_b}", "test both runs the same way")
    found = paired.compare(a, b)
    if args.json:
        print(json.dumps({**found, "signature": how_a or how_b}, indent=1))
        return
    low, high = found["interval"]
    print(f"{args.runs[0]}: {found['wer_a']:.2f} %   {args.runs[1]}: {found['wer_b']:.2f} %   "
          f"(WER, {found['sentences']} sentences, {found['ref_words']} glosses)\n"
          f"difference {found['difference']:+.2f} points [{low:+.2f}, {high:+.2f}], p = {found['p_value']:.3g} "
          f"(exact sign flips)\nfewer errors: the first in {found['fewer_a']} sentences, the second in "
          f"{found['fewer_b']}, as many in {found['equal']}")


def _predictions(run: str) -> Path:
    """The test predictions of a run, however it is named."""
    parts = run.split("/")
    path = Path(run)
    if len(parts) == 3 and not path.exists():
        path = Experiment(canonical(parts[0]), parts[1], parts[2]).newest_checkpoints().results
    names = [f"best_test-predictions{suffix}" for suffix in (".csv", ".jsonl")]
    for candidate in (path, *(place / name for place in (path, path / "results") for name in names)):
        if candidate.is_file():
            return candidate
    results = [file for place in (path, path / "results") if (file := place / "best_val_loss.json").is_file()]
    if results and '"objective"' in results[0].read_text(encoding="utf-8", errors="replace"):
        raise Mistake("runs of pre-training are not compared", shown(path), "compare runs that start from them")
    raise Mistake("this run has no predictions", shown(path), "run testing.py full for it first")


def board(args: argparse.Namespace) -> int:
    """All runs that testing.py full has been through, best first within a split: of signs by top-1, then of sentences
    by WER, of texts by BLEU-4, and of symbols by macro-F1."""
    found = map(_board_row, sorted(paths.runs_root().glob(f"{args.split or '*'}/*/results*/best_val_loss.json")))
    rows = [row for row in found if row]
    if not rows:
        raise Mistake(f"there are no results{f' on {args.split}' if args.split else ''}", shown(paths.runs_root()),
                      "run testing.py full MODEL SPLIT EXP_NO first")
    rows.sort(key=lambda row: (_board_kind(row), row["split"], _standing(row)))
    if args.csv:
        _write_csv(rows, args.csv)
    for kind in range(4):
        _print_table([row for row in rows if _board_kind(row) == kind])
    return 0


def _board_kind(row: dict[str, Any]) -> int:
    """0 of signs, 1 of sentences, 2 of texts, 3 of symbols."""
    return next((kind for kind, key in enumerate(("top1", "wer", "bleu4", "macro_f1")) if key in row), 0)


def _standing(row: dict[str, Any]) -> float:
    """The lower, the better."""
    return float(row["wer"] if "wer" in row else -next(row[key] for key in ("bleu4", "macro_f1", "top1") if key in row))


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    widths = {key: max(len(key), *(len(_cell(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(_cell(row[key]).ljust(width) for key, width in widths.items()))


def _board_row(file: Path) -> dict[str, Any] | None:
    """One run's figures in per cent; None, and a line that says so, where the file does not hold them."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if "objective" in result["test"]:  # pre-training has no figure to rank by
            return None
        name = {"split": file.parents[2].name, "run": file.parents[1].name}
        if "wer" in result["test"]:
            counts = result["test"]["modes"][result["test"]["mode"]]
            return {**name, "wer": round(counts["wer"], 2), "mode": result["test"]["mode"],
                    **{key: counts[key] for key in ("sub", "del", "ins", "ref_words")},
                    "val_wer": result["best_val_wer"],
                    "black_wer": round(result["test_black"]["wer"], 2) if "test_black" in result else None}
        if "bleu4" in result["test"]:
            test = result["test"]
            return {**name, **{key: round(test[key], 2) for key in ("bleu4", "bleu1", "chrf", "rouge_l")},
                    "val_bleu4": result["best_val_bleu4"], "shuffled_bleu4": round(result["test_shuffled"]["bleu4"], 2),
                    "gloss_wer": round(test["glosses"]["wer"], 2) if "glosses" in test else None}
        if "mean_macro_f1" in result["test"]:
            test = result["test"]
            found = {"macro_f1": test["mean_macro_f1"], "frequent_f1": test["mean_macro_f1_frequent"],
                     "accuracy": test["mean_accuracy"], "exact": test["exact_match"],
                     "lookup_top1": test["lookup"]["log_p"]["top1"] if test["lookup"] else None}
            return {**name, **{key: None if value is None else round(100 * value, 2) for key, value in found.items()},
                    "val_f1": result["best_val_f1"]}
        instance, average = (result["test"][k] for k in ("top_k_per_instance_acc", "top_k_average_per_class_acc"))
        return {**name, **{f"top{k}": round(100 * instance[f"top{k}"], 2) for k in (1, 5, 10)},
                "top1_per_class": round(100 * average["top1"], 2), "val_acc": result["best_val_acc"],
                "shuffled_top1": round(100 * result["test_shuff"]["top_k_per_instance_acc"]["top1"], 2)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"note: {shown(file)} is left out, it is no result of testing.py full: {type(error).__name__}: {error}",
              file=sys.stderr)
        return None


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    import csv

    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise Mistake(f"{shown(path)} cannot be written", str(error.strerror), "give --csv another file") from None


def score(args: argparse.Namespace) -> int:
    """The scores of any system's files: of glosses (slr/metrics/wer.py) or of translations (slr/metrics/text.py)."""
    if args.text and args.cleanup:
        raise Mistake("--cleanup has no meaning with --text", args.cleanup, "leave it out: texts are scored as is")
    if args.level and not args.text:
        raise Mistake("--level has a meaning only with --text", args.level, "give --text, or leave it out")
    return _score_text(args, args.level or "word") if args.text else _score_glosses(args, args.cleanup or "phoenix2014")


def _score_text(args: argparse.Namespace, level: str) -> int:
    """BLEU-1 to BLEU-4 with the interval of the last, chrF and ROUGE-L."""
    from slr.metrics import text

    refs, hyps = text.read_pair(args.ref, args.hyp)
    _note_empty([line.strip() for line in refs], [line.strip() for line in hyps])
    found = text.scores(refs, hyps, level, f"{args.ref.name}+{args.hyp.name}")
    low, high = text.interval(refs, hyps, level)
    if args.json:
        print(json.dumps({**found, "bleu4_interval": [low, high], "draws": text.DRAWS, "seed": text.SEED}, indent=1))
        return 0
    print(f"{'metric':<10}{'score':>7}")
    for name, key in (*((f"BLEU-{n}", f"bleu{n}") for n in range(1, 5)), ("chrF", "chrf"), ("ROUGE-L", "rouge_l")):
        print(f"{name:<10}{found[key]:>7.2f}"  # type: ignore[literal-required]
              f"{f'  [{low:.2f}, {high:.2f}]' if key == 'bleu4' else ''}")
    print("\n".join(found["signatures"].values()))
    return 0


def _note_empty(refs: Collection[Any], hyps: Collection[Any]) -> None:
    for name, side in (("reference", refs), ("hypothesis", hyps)):
        if empty := sum(not words for words in side):
            print(f"note: {empty} of {len(side)} sentences have an empty {name}", file=sys.stderr)


def _score_glosses(args: argparse.Namespace, cleanup: str) -> int:
    """The word error rate in every mode."""
    from slr.metrics import transcripts, wer

    refs, hyps, mark_empty = transcripts.read_pair(args.ref, args.hyp)
    _note_empty(refs.values(), hyps.values())
    found = wer.score(refs, hyps, cleanup, f"{args.ref.name}+{args.hyp.name}", mark_empty)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    best = wer.headline(cleanup)
    low, high = wer.interval(wer.alignments(refs, hyps, best, cleanup, mark_empty).values())
    columns = ("sub", "del", "ins", "err", "ref_words")
    print(f"{'mode':<10}{''.join(name.rjust(10) for name in columns)}{'wer %':>9}")
    for mode, row in found.items():
        print(f"{mode:<10}{''.join(f'{row[name]:>10}' for name in columns)}{row['wer']:>9.2f}"  # type: ignore[literal-required]
              f"{f'  [{low:.2f}, {high:.2f}]' if mode == best else ''}")
    print("\n".join(row["signature"] for row in found.values()))
    return 0


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    modes = {"full": full, "partial": partial, "compare": compare, "board": board, "score": score}
    return modes[args.mode](args)


if __name__ == "__main__":
    errors.run(main)
