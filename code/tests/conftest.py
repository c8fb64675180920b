"""What several test files stand on."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from little_videos import write_video

from slr import paths
from slr.datasets.wlasl import read_annotations
from slr.datasets.wlasl_prepare import prepare, write_labels

# Time says nothing on a machine that does other things too; in CI the examples are the same every time.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow],
                          derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")

SETS = {"train": 9, "val": 7, "test": 4}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: beside the project, or where $SLR_SHARED says."""
    folder = Path(os.environ.get("SLR_SHARED") or paths.ROOT.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not there: {folder}")
    return folder


def write_split(root: Path, name: str, sets: dict[str, int], classes: int = 3) -> None:
    """A prepared WLASL-form split of little videos of 20 to 29 frames of 64 x 48 pixels."""
    entries: list[dict] = [{"gloss": f"sign {label}", "instances": []} for label in range(classes)]
    for part, count in sets.items():
        for i in range(count):
            stem = f"{name}_{part}_{i}"
            write_video(root / "WLASL" / "WLASL2000" / f"{stem}.mp4", 20 + (3 * i + len(part)) % 10)
            entries[i % classes]["instances"].append({"video_id": stem, "split": part, "signer_id": i})
    file = root / "WLASL" / "splits" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries))
    write_labels(prepare(name, read_annotations(file), root / "WLASL" / "WLASL2000", workers=0),
                 paths.labels(root, name))


@pytest.fixture(scope="session")
def little_data(tmp_path_factory) -> Path:
    """A data root with the prepared splits `little` (9, 7 and 4 clips, 3 classes) and `noval` (6, 0 and 2)."""
    root = tmp_path_factory.mktemp("data")
    write_split(root, "little", SETS)
    write_split(root, "noval", {"train": 6, "test": 2})
    return root


@pytest.fixture
def little(little_data, tmp_path, monkeypatch) -> Path:
    """`little_data` as $SLR_DATA, and a folder whose `runs` is $SLR_RUNS."""
    monkeypatch.setenv("SLR_DATA", str(little_data))
    monkeypatch.setenv("SLR_RUNS", str(tmp_path / "runs"))
    return tmp_path
