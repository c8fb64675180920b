"""Weights that others published, under our names: what SLRT's program wrote of S3D, of its heads and translators.

    pieces = find("pretrained_models")                          # [Piece("s2g", …/best.ckpt), Piece("id map", …), ...]
    state, report = convert(read(pieces[0].path), model.state_dict(), glosses=numbers, classes=classes)
    model.load_state_dict(state, strict=False)
    print(report)

SLRT is the program of Chen et al. (2022), https://arxiv.org/abs/2203.04287 and https://arxiv.org/abs/2211.01367
(FangyunWei/SLRT, TwoStreamNetwork). Names are translated by their parts and every shape is checked; what has a row a
gloss or a row a token goes by the gloss and the token, not by its number. Files are read as data, never run.

Its S3D sees pictures as BGR from -1 to 1. Ours are RGB with the model's own mean and deviation: the stem takes that
up, which is exact but for the three pixels around the picture, where ours sees the mean colour instead of grey. Its
head has no ReLU behind the second convolution, which ours has, and an eps of 1e-6 in its layer-norms, ours of 1e-5.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slr import paths
from slr.catalogue import KINETICS
from slr.errors import Mistake
from slr.models.mbart import ID_MAP
from slr.paths import shown

State = Mapping[str, Tensor]
Numbers = Mapping[str, int]  # of glosses, or of special tokens
STATES = ("model_state", "state_dict", "model_state_dict")  # where SLRT, its WLASL-trained S3D and ours keep weights
NUMBERS = ("f8", "f4", "i8")  # numpy's that checkpoints hold beside tensors: the best score
DEPTH = 8  # of folders that `find` looks through

# The parts of a name there -> here. S3D's layers have the numbers that torchvision's have; a convolution with its
# batch-norm is a pair (0, 1), a separable one two such pairs, space first; a branch of one such pair is that pair.
_S3D = {"conv": "0", "bn": "1", "conv_s": "0.0", "bn_s": "0.1", "conv_t": "1.0", "bn_t": "1.1"}
_HEAD = {"fc1": "project", "bn1.norm": "norm", "feedforward.layer_norm": "block.norm",
         "feedforward.pwff_layer.0": "block.widen", "feedforward.pwff_layer.3": "block.narrow",
         "layer_norm": "last_norm", "gloss_output_layer": "gloss"}
_MAPPER = {"mapping.0": "first", "mapping.2": "second", "mapping": "embedding"}
_STEM = re.compile(r"backbone\.features\.0\.0\.(?:0\.weight|1\.running_mean)")
_CLASSES = re.compile(r"classifier\.gloss\.(?:weight|bias)")
_TOKENS = re.compile(r"translator\.model\.(?:final_logits_bias|lm_head\.weight|model\.shared\.weight"
                     r"|model\.(?:en|de)coder\.embed_tokens\.weight)")
LAST_RELU = "their head has no ReLU behind its second convolution: build ours with last_relu = False"
PARTS = ("backbone", "classifier", "mapper", "translator", "gloss_embedding")


# --- which files there are ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Piece:
    """kind: s3d actions, s3d glosses, s2g, g2t, s2t, gloss embeddings, gloss numbers, id map."""

    kind: str
    path: Path


KINDS: dict[str, Callable[[Path], bool]] = {
    "s3d actions": lambda path: path.suffix == ".pt" and "actioncls" in str(path.parent),
    "s3d glosses": lambda path: path.name.endswith(".pth.tar") and "glosscls" in str(path.parent),
    **{stage: lambda path, stage=stage: path.name == "best.ckpt" and f"_{stage}" in str(path.parent)  # type: ignore
       for stage in ("s2g", "g2t", "s2t")},
    "gloss embeddings": lambda path: path.name == "gloss_embeddings.bin",
    "gloss numbers": lambda path: path.name.startswith("gloss2ids") and path.suffix == ".pkl",
    "id map": lambda path: path.name in ("map_ids.pkl", "old2new_vocab.pkl"),
}


def find(folder: Path | str = "pretrained_models") -> list[Piece]:
    """What SLRT published in a folder (relative: to the project) and below, as its program names files and folders.

    Empty where there is none. A pickle is not opened: datasets.unpickle reads those.
    """
    root = paths.HOME / Path(folder).expanduser()
    below = (path for path in sorted(root.rglob("*")) if len(path.relative_to(root).parts) <= DEPTH and path.is_file())
    return [Piece(kind, path) for path in below for kind, is_it in KINDS.items() if is_it(path.relative_to(root))]


def read(path: Path | str) -> dict[str, Any]:
    """The dict in a file that torch.save wrote; tensors on the CPU, and plain types only, numpy's numbers among them.

    Raises Mistake for a file that is not there, damaged, or names anything else.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # how numpy's numbers are pickled; numpy 1 called it by the other name
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *map(type, map(np.dtype, NUMBERS))]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Mistake("the published file is missing", shown(path)) from None
    except Exception as error:  # a damaged pickle makes the unpickler raise almost any kind
        raise Mistake(f"{shown(path)} is not read", next(iter(str(error).splitlines()), type(error).__name__)[:200],
                      "it is damaged, or holds pickled code, which is never run: get it from its source") from None
    if not isinstance(content, dict):
        raise Mistake(f"{shown(path)} holds no weights", f"a {type(content).__name__}", "give another file")
    return content


def read_gloss_embeddings(path: Path | str) -> dict[str, Tensor]:
    """{gloss: (C,)} of a gloss_embeddings.bin; gloss_table.py's functions take it. Raises Mistake for another file."""
    content = read(path)
    rows = {str(name): row.detach().float().clone() for name, row in content.items() if isinstance(row, Tensor)}
    shapes = {tuple(row.shape) for row in rows.values()}
    if len(rows) != len(content) or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise Mistake(f"{shown(path)} is no table of gloss embeddings", f"shapes {sorted(shapes)[:4]}",
                      "give SLRT's gloss_embeddings.bin")
    return rows


def id_map(found: Any, source: Path | str = ID_MAP) -> dict[int, int]:
    """{old id: new id} of an unpickled map_ids.pkl, checked. MBartText.load takes it as `kept`."""
    if not isinstance(found, dict) or not all(type(number) is int for pair in found.items() for number in pair):
        raise Mistake(f"{shown(source)} is no id map", f"it holds {type(found).__name__}, no numbers by number",
                      "give the map_ids.pkl beside the pruned mBART")
    return dict(found)


# --- names --------------------------------------------------------------------------------------------------

def weights_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whichever way it keeps them. Raises Mistake where it has none."""
    inner = next((content[key] for key in STATES if isinstance(content.get(key), Mapping)), content)
    tensors = {str(key).removeprefix("module."): value for key, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise Mistake("the file holds no weights", f"keys {', '.join(map(str, list(content)[:6]))}",
                      f"give a checkpoint with one of {', '.join(STATES)}, or a bare state_dict")
    return tensors


def our_name(name: str) -> str | None:
    """What SLRT's tensor `name` is called here, without Sign2Text's `visual.`; None where we have no such thing."""
    for pattern, rule in _RULES:
        if found := pattern.fullmatch(name):
            return rule(found[1])
    return None


def _s3d_name(rest: str) -> str | None:
    """3.conv_s.weight -> backbone.features.3.0.0.weight; 5.branch0.0.bn.bias -> backbone.features.5.branch0.1.bias."""
    found = re.fullmatch(r"(\d+(?:\.branch\d\.\d)?)\.(conv|bn|conv_s|bn_s|conv_t|bn_t)\.(\w+)", rest)
    if not found:
        return None
    return f"backbone.features.{found[1].replace('branch0.0', 'branch0')}.{_S3D[found[2]]}.{found[3]}"


def _by_table(table: Mapping[str, str], prefix: str) -> Callable[[str], str | None]:
    def rule(rest: str) -> str | None:
        part, _, last = rest.rpartition(".")
        return f"{prefix}.{table[part]}.{last}" if part in table else None

    return rule


_RULES: tuple[tuple[re.Pattern[str], Callable[[str], str | None]], ...] = (
    (re.compile(r"(?:(?:recognition_network\.)?visual_backbone\.)?(?:backbone\.)?base\.(.+)"), _s3d_name),
    (re.compile(r"fc\.0\.(weight|bias)"), lambda rest: f"classifier.1.{rest}"),
    (re.compile(r"recognition_network\.visual_head\.(.+)"), _by_table(_HEAD, "classifier")),
    (re.compile(r"vl_mapper\.(.+)"), _by_table(_MAPPER, "mapper")),
    (re.compile(r"translation_network\.model\.(.+)"), lambda rest: f"translator.model.{rest}"),
    (re.compile(r"translation_network\.(gloss_embedding\.weight)"), lambda rest: rest),
)


# --- the conversion -----------------------------------------------------------------------------------------

@dataclass
class Report:
    """What became of published weights; `str(report)` is one line for the log."""

    taken: list[str] = field(default_factory=list)  # our names
    left: list[str] = field(default_factory=list)  # theirs, which nothing here corresponds to, or was not asked for
    missing: list[str] = field(default_factory=list)  # ours, of the parts that were asked for, which keep their values
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)  # of tensors that go by rows: taken, and all
    notes: list[str] = field(default_factory=list)  # what computes something else here than there

    def __str__(self) -> str:
        said = [f"{len(self.taken)} tensors taken"]
        said += [f"{name}: {count} of {whole} rows" for name, (count, whole) in self.rows.items() if count < whole]
        said += [f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
                 for what, names in (("left", self.left), ("missing, which stay as they were", self.missing)) if names]
        return "; ".join([*said, *self.notes])


def convert(
    content: Mapping[str, Any],
    target: State,
    *,
    parts: Iterable[str] = PARTS,
    glosses: Numbers | None = None,
    classes: Sequence[str] | None = None,
    row_glosses: Numbers | None = None,
    rows: Sequence[str] | None = None,
    ids: Mapping[int, int] | None = None,
    our_ids: Mapping[int, int] | None = None,
    gloss_language: str = "",
    mean: Sequence[float] = KINETICS["mean"],
    std: Sequence[float] = KINETICS["std"],
) -> tuple[dict[str, Tensor], Report]:
    """The published weights in `content` under the names of `target`, the state_dict of one of our models.

    Args:
        parts: which to take: backbone, classifier, mapper, translator, gloss_embedding.
        glosses, classes: SLRT's class numbers {gloss: number} (gloss2ids.pkl), and ours in order, the blank first: for
            the rows of the head and the columns of an `embedding` mapper. Theirs are in lower case.
        row_glosses, rows: the same for the table of gloss embeddings: the gloss2ids.pkl beside its mBART, our rows.
        ids, our_ids: {mBART's id: id} of their vocabulary (map_ids.pkl) and of ours (MBartText.ids). Leave out both
            only where ours is theirs: two that were pruned may have as many tokens and be different ones.
        gloss_language: whose row of their table, de_DGS or zh_CSL, is the end of our translator's suffix.
        mean, std: how our clips are normalised (RGB, of values from 0 to 1).

    Returns:
        What load_state_dict(…, strict=False) takes: whole tensors, of which rows that they lack are target's own.

    Raises:
        Mistake: nothing of it fits, a shape is another, or the numbers are needed and not given, or do not fit.
    """
    theirs = weights_in(content)
    parts = tuple(parts)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise Mistake("there is no such part to take", unknown[0], f"there are {', '.join(PARTS)}")
    report = Report()
    names = _pairs(theirs, target, parts, report)
    tables = _Tables(glosses, classes, row_glosses, rows, ids, our_ids)
    state = {}
    for ours, name in names.items():
        state[ours] = _fitted(theirs[name], target[ours], ours, name, tables, report)
    _fold_stem(state, target, mean, std)
    _take_suffix(state, theirs, target, row_glosses, gloss_language, report)
    report.taken = list(state)
    report.notes = [LAST_RELU] if any(name.endswith("classifier.block.narrow.weight") for name in state) else []
    report.missing = [name for name in target if name not in state and _part(name) in parts and _wanted(name)]
    if not state:
        raise Mistake("nothing of the published weights fits this model",
                      f"{len(theirs)} tensors such as {next(iter(theirs))}", "give the file of another stage")
    return state, report


@dataclass(frozen=True)
class _Tables:
    glosses: Numbers | None
    classes: Sequence[str] | None
    row_glosses: Numbers | None
    rows: Sequence[str] | None
    ids: Mapping[int, int] | None
    our_ids: Mapping[int, int] | None


def _part(name: str) -> str:
    return name.removeprefix("visual.").partition(".")[0]


def _wanted(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _pairs(theirs: State, target: State, parts: Sequence[str], report: Report) -> dict[str, str]:
    """{our name in target: their name}."""
    found = {}
    for name in theirs:
        ours = our_name(name)
        places = [] if ours is None else [place for place in (ours, f"visual.{ours}") if place in target]
        if places and _part(places[0]) in parts:
            found[places[0]] = name
        else:
            report.left.append(name)
    return found


def _fitted(value: Tensor, mine: Tensor, ours: str, name: str, tables: _Tables, report: Report) -> Tensor:
    """Their tensor in the shape of ours, by rows where its rows have names. Raises Mistake where it cannot be."""
    bare = ours.removeprefix("visual.")
    if _CLASSES.fullmatch(bare) or bare == "mapper.embedding.weight":
        return _by_gloss(value, mine, ours, tables.glosses, tables.classes, int("mapper" in bare), report)
    if bare == "gloss_embedding.weight":
        return _by_gloss(value, mine, ours, tables.row_glosses, tables.rows, 0, report)
    if _TOKENS.fullmatch(bare):
        return _by_token(value, mine, ours, tables, report)
    if value.shape != mine.shape:
        raise Mistake("the published weights are of another model",
                      f"{name} is {tuple(value.shape)}, {ours} is {tuple(mine.shape)}",
                      "build the model with their sizes, or leave that part out")
    return value.to(mine.dtype)


def _by_gloss(value: Tensor, mine: Tensor, ours: str, numbers: Numbers | None, names: Sequence[str] | None, dim: int,
              report: Report) -> Tensor:
    if numbers is None or names is None:
        raise Mistake("the published weights have a row a gloss", f"{ours} is asked for, without the glosses' numbers",
                      "give the gloss2ids.pkl that came with them, and your classes")
    if len(names) != mine.shape[dim] or max(numbers.values(), default=-1) >= value.shape[dim]:
        raise Mistake("the glosses' numbers do not fit the published weights",
                      f"{ours}: {value.shape[dim]} rows there, numbers up to {max(numbers.values(), default=-1)}; "
                      f"{mine.shape[dim]} here, {len(names)} glosses", "give the gloss2ids.pkl that came with them")
    known = {**{gloss.lower(): number for gloss, number in numbers.items()}, **numbers}
    there = [known.get(gloss, known.get(gloss.lower(), -1)) for gloss in names]
    if dim == 1 or _CLASSES.fullmatch(ours.removeprefix("visual.")):
        there[0] = 0  # the blank, whatever it is called
    return _rows(value, mine, list(enumerate(there)), dim, ours, report)


def _by_token(value: Tensor, mine: Tensor, ours: str, tables: _Tables, report: Report) -> Tensor:
    """Rows of an embedding (V, C), columns of a bias (1, V)."""
    dim = int(ours.endswith("final_logits_bias"))
    old, new = tables.ids, tables.our_ids
    if old is None and new is None and value.shape == mine.shape:
        old = new = {number: number for number in range(mine.shape[dim])}
    if old is None or new is None:
        raise Mistake("the published weights have a row a token", f"{ours} is asked for, without both id maps",
                      "give the map_ids.pkl that came with the published mBART")
    if sorted(old.values()) != list(range(value.shape[dim])) or sorted(new.values()) != list(range(mine.shape[dim])):
        raise Mistake("the id maps do not fit the vocabularies",
                      f"{value.shape[dim]} tokens there, map of {len(old)}; {mine.shape[dim]} here, map of {len(new)}",
                      "give the map_ids.pkl that came with the published mBART")
    return _rows(value, mine, [(number, old.get(whole, -1)) for whole, number in new.items()], dim, ours, report)


def _rows(value: Tensor, mine: Tensor, pairs: Sequence[tuple[int, int]], dim: int, ours: str,
          report: Report) -> Tensor:
    """`mine` with the rows (here, there) out of `value`; there -1: none."""
    rest = [size for at, size in enumerate(value.shape) if at != dim]
    if value.dim() != mine.dim() or rest != [size for at, size in enumerate(mine.shape) if at != dim]:
        raise Mistake("the published weights are of another model",
                      f"{ours}: {tuple(value.shape)} there, {tuple(mine.shape)} here",
                      "build the model with their sizes")
    known = [(here, there) for here, there in pairs if there >= 0]
    report.rows[ours] = (len(known), mine.shape[dim])
    here, there = (torch.tensor([pair[at] for pair in known], dtype=torch.long) for at in (0, 1))
    return mine.detach().cpu().clone().index_copy_(dim, here, value.index_select(dim, there).to(mine.dtype))


def _fold_stem(state: dict[str, Tensor], target: State, mean: Sequence[float], std: Sequence[float]) -> None:
    """The stem for our pictures: theirs are 2 x - 1 in BGR, ours (x - mean) / std in RGB, x from 0 to 1.

    2 x - 1 = 2 std y + (2 mean - 1) of our y: the factor goes into the first convolution, which has no bias, and the
    constant, summed over its cells, is subtracted from the running mean behind it.
    """
    stem = [name for name in state if _STEM.fullmatch(name.removeprefix("visual."))]
    names = {name.rpartition("features.0.0.")[2]: name for name in stem}
    if "0.weight" not in names:
        return
    weight = state[names["0.weight"]].flip(1).double()
    shift, scale = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    constant = (weight.sum((2, 3, 4)) * (2 * shift - 1)).sum(1)
    folded = weight * (2 * scale)[:, None, None, None]
    state[names["0.weight"]] = folded.to(target[names["0.weight"]].dtype)
    if "1.running_mean" in names:
        before = state[names["1.running_mean"]]
        state[names["1.running_mean"]] = (before.double() - constant).to(before.dtype)


def _take_suffix(state: dict[str, Tensor], theirs: State, target: State, numbers: Numbers | None, language: str,
                 report: Report) -> None:
    """What they append to a source are two rows of their table of glosses: </s> and the gloss language."""
    table, mine = theirs.get("translation_network.gloss_embedding.weight"), target.get("translator.suffix")
    taken = any(name.startswith("translator.") for name in state)
    if not taken or table is None or mine is None or numbers is None:
        return
    if language not in numbers or "</s>" not in numbers:
        raise Mistake("the published table of glosses has no such language", f"{language!r}",
                      "gloss_language is de_DGS for PHOENIX, zh_CSL for CSL-Daily")
    suffix = table[torch.tensor([numbers["</s>"], numbers[language]])]
    if suffix.shape != mine.shape:
        raise Mistake("the published weights are of another model",
                      f"translator.suffix: {tuple(suffix.shape)} there, {tuple(mine.shape)} here")
    state["translator.suffix"] = suffix.to(mine.dtype)
    if "gloss_embedding.weight" not in state:
        report.left = [name for name in report.left if not name.startswith("translation_network.gloss_embedding")]
