"""Where everything lies. `Experiment` is the only place that knows the name of a file of a run.

Nothing depends on the working directory: paths start at ROOT, and $SLR_DATA and $SLR_RUNS move the two big folders.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from slr.errors import Mistake

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configfiles"
HOME = Path(os.environ.get("SLR_HOME") or ROOT)  # relative paths start here: for a copy of the code, where it came from
SETS = ("train", "val", "test")
SENTENCE_DATA = {"PHOENIX2014": "PHOENIX-2014", "PHOENIX2014T": "PHOENIX-2014-T", "CSL_DAILY": "CSL-Daily"}


def data_root(override: str = "") -> Path:
    """The folder of all data sets: the .ini's `data.root`, else $SLR_DATA, else `data/` (relative: to HOME)."""
    return HOME / Path(override or os.environ.get("SLR_DATA") or "data").expanduser()


def runs_root() -> Path:
    return HOME / Path(os.environ.get("SLR_RUNS") or "runs").expanduser()


def shown(path: Path | str) -> str:
    """`path` as a person at HOME would type it."""
    path = Path(path)
    return str(path.relative_to(HOME)) if path.is_relative_to(HOME) else str(path)


def first_existing(*candidates: Path) -> Path:
    """The first of `candidates` that is there, else the first: the place that an error message names."""
    return next((path for path in candidates if path.exists()), candidates[0])


def split_file(root: Path, split: str) -> Path:
    """The annotation of a WLASL-form split; the seed's own commands unpack to `data/splits`."""
    return first_existing(root / "WLASL" / "splits" / f"{split}.json", root / "splits" / f"{split}.json")


def wlasl_videos(root: Path) -> Path:
    return first_existing(root / "WLASL" / "WLASL2000", root / "WLASL2000")


def labels(root: Path, split: str) -> Path:
    return root / "WLASL" / "preprocessed" / "labels" / split


def store(root: Path, kind: str, split: str) -> Path:
    """The frame store of a split; kind is `jpeg` or `raw`."""
    return root / "WLASL" / "preprocessed" / "store" / split / kind


def sentence_data(root: Path, dataset: str) -> Path:
    """What you get of a data set of sentences: annotations and frames, unpacked in whatever folders."""
    return root / SENTENCE_DATA[dataset]


def hugging_face(root: Path, split: str) -> Path:
    """What preprocess.py --hf_dataset makes of a Hugging Face data set: annotations and frames of sentences."""
    return root / "HUGGING_FACE" / split


def hearai(root: Path) -> Path:
    """Where data paths of signs with symbols (HearAI's form) start."""
    return root / "HEARAI"


def bundestag(root: Path, split: str) -> Path:
    """Long videos with subtitles, in the Bundestag's form; read as it is."""
    return root / "BUNDESTAG" / split


def seen(root: Path, split: str) -> Path:
    """What frozen nets have seen in the frames of a split: it can be made again, and so removed."""
    return root / "SEEN" / split


def sentences(root: Path, split: str) -> Path:
    """What preprocess.py writes of a split of sentences."""
    return root / "SENTENCES" / split


@dataclass(frozen=True)
class Experiment:
    """MODEL SPLIT EXP_NO: one .ini file, one run folder. `exp_no` is `4`, `004` or, enumerated, `4.1`.

    checkpoint_set 0 is `checkpoints/`, n is `checkpoints.n/` (training.py -ec).
    """

    model: str
    split: str
    exp_no: str
    checkpoint_set: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(\.\d+)?", self.exp_no):
            raise Mistake("EXP_NO is no experiment number", repr(self.exp_no), "give a number such as 4, or 4.1")
        if not re.fullmatch(r"\w[\w.+-]*", self.split):
            raise Mistake("SPLIT is no name of a split", repr(self.split), "give a name such as asl100")

    @property
    def number(self) -> str:
        whole, _, part = self.exp_no.partition(".")
        return f"{int(whole):03d}" + (f".{int(part)}" if part else "")

    @property
    def name(self) -> str:
        return f"{self.model}_{self.number}"

    @property
    def config_file(self) -> Path:
        """The .ini: an enumerated 4.1 has its own, or shares that of 4."""
        folder = CONFIGS / self.split
        own = folder / f"{self.name}.ini"
        return own if own.exists() else folder / f"{self.model}_{self.number.partition('.')[0]}.ini"

    @property
    def run(self) -> Path:
        return runs_root() / self.split / self.name

    @property
    def old_run(self) -> Path:
        """Where the old program kept this run; only testing looks there."""
        return runs_root() / self.split / f"{self.model}_exp{self.number}"

    @property
    def checkpoints(self) -> Path:
        return self.run / (f"checkpoints.{self.checkpoint_set}" if self.checkpoint_set else "checkpoints")

    @property
    def results(self) -> Path:
        return self.run / (f"results.{self.checkpoint_set}" if self.checkpoint_set else "results")

    def enumerated(self) -> "Experiment":
        """The next free run folder: 4 -> 4.1 -> 4.2."""
        whole = self.exp_no.partition(".")[0]
        used = {int(p.name.rpartition(".")[2]) for p in self.run.parent.glob(f"{self.model}_{int(whole):03d}.*")
                if p.name.rpartition(".")[2].isdigit()}
        return Experiment(self.model, self.split, f"{whole}.{max(used, default=0) + 1}")

    def enumerated_checkpoints(self) -> "Experiment":
        """The next free checkpoint folder of the same run."""
        used = {int(p.name.rpartition(".")[2]) for p in self.run.glob("checkpoints.*")
                if p.name.rpartition(".")[2].isdigit()}
        return Experiment(self.model, self.split, self.exp_no, max(used, default=0) + 1)

    def newest_checkpoints(self) -> "Experiment":
        """This experiment with the checkpoint folder that was written last (by its number)."""
        used = [int(p.name.rpartition(".")[2]) for p in self.run.glob("checkpoints.*")
                if p.name.rpartition(".")[2].isdigit()]
        return Experiment(self.model, self.split, self.exp_no, max(used, default=0))


def existing_experiments(model: str, split: str) -> str:
    """Which numbers there are for a model on a split, in words for an error message."""
    numbers = sorted(int(m[1]) for p in (CONFIGS / split).glob("*.ini")
                     if (m := re.fullmatch(re.escape(model) + r"_(\d+)", p.stem)))
    if not numbers:
        return "there is none"
    return "there is " + ", ".join(f"{n:03d}" for n in numbers)
