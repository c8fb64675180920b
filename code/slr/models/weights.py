"""Weight files: where the Kinetics-400 ones are, how a file is read, and what its tensors are called here.

Our names are `backbone.<torchvision's name>` and `classifier.1.weight`, `classifier.1.bias`.
"""

import hashlib
import http.client
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from slr.catalogue import MODELS, Entry, canonical
from slr.errors import Mistake

_RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
_SWIN = ("patch_embed", "pos_drop", "features", "norm")
_MVIT = ("conv_proj", "pos_encoding", "blocks", "norm")

# The old program kept torchvision's parts twice, by name and by number: `layer1.…` and `backbone.1.…`.
NUMBERED = {
    "S3D": ("features",),
    "R3D_18": _RESNET,
    "R(2+1)D_18": _RESNET,
    "Swin3D_T": _SWIN,
    "Swin3D_S": _SWIN,
    "Swin3D_B": _SWIN,
    "MViTv2_S": _MVIT,
    "MViTv1_B": _MVIT,
}


def kinetics_file(name: str) -> Path:
    """The file of the model's Kinetics-400 weights in torchvision's cache; fetched where it is not there yet.

    Raises Mistake, with the address and the place, when it cannot be fetched or its hash is wrong.
    """
    entry = MODELS[canonical(name)]
    if entry.weights is None or entry.weights_file is None:
        without = "Set model_params.pretrained = False."
        raise Mistake(f"there are no pretrained weights for {entry.name}", do=without)
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.weights_file
    if not path.exists():
        _fetch(entry, path)
    if not _hash_of(path).startswith(_hash_in(path)):
        raise Mistake(
            f"the pretrained weights of {entry.name} are damaged",
            f"the hash of {path} is not the one in its name",
            f"Delete the file; it is fetched again from {_address(entry)}",
        )
    return path


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file: a bare state_dict, or a checkpoint that keeps one under `model_state_dict`.

    Only tensors and plain types are unpickled (weights_only). Raises Mistake for a file that is not there,
    damaged, or something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Mistake("the weights file is missing", str(path)) from None
    except Exception as error:  # a damaged pickle makes the unpickler raise almost any kind
        raise Mistake("the weights file cannot be read", f"{path}: {_first_line(error)}") from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise Mistake("the file holds no weights", str(path), "Name a state_dict or a checkpoint.")
    return dict(state)


def from_old(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights of the model `name` under our names: from the old program's, from torchvision's, or from ours.

    The old program's files hold every tensor of the backbone twice; one of them stays. Raises Mistake for
    names that the model cannot have.
    """
    name = canonical(name)
    if name == "MViTv1_B" and any(".rel_pos_" in key for key in state):
        raise Mistake(
            "these are not weights of MViTv1_B",
            "they hold tables of relative positions, as MViTv2_S does",
            "For a time the old program built MViTv2_S under the name of MViTv1_B: use them as MViTv2_S.",
        )
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        new = _our_name(key, NUMBERED[name], name)
        if new in ours and not torch.equal(ours[new], value):
            raise Mistake("the weights contradict themselves", f"two different tensors are called {new}")
        ours[new] = value
    return ours


def _our_name(key: str, parts: tuple[str, ...], name: str) -> str:
    first, _, rest = key.partition(".")
    if first in ("fc", "head", "classifier"):
        return f"classifier.1.{rest.rpartition('.')[2]}"
    number, _, tail = rest.partition(".")
    if first != "backbone":
        return f"backbone.{key}"
    if not number.isdigit():
        return key
    if int(number) >= len(parts):
        raise Mistake(f"these are not weights of {name}", f"it has no part that {key} could be")
    return f"backbone.{parts[int(number)]}.{tail}"


def _fetch(entry: Entry, path: Path) -> None:
    """Download aside, check the hash, rename: a broken transfer leaves nothing under the final name."""
    url = _address(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _hash_in(path), progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise Mistake(
            f"the pretrained weights of {entry.name} cannot be fetched",
            _first_line(error),
            f"Fetch {url} elsewhere and put it at {path}, or set model_params.pretrained = False.",
        ) from error


def _address(entry: Entry) -> str:
    from torchvision.models import get_weight

    return get_weight(entry.weights or "").url


def _hash_in(path: Path) -> str:
    """torchvision's files end in the first hexadecimal digits of their SHA-256: `s3d-d76dad2f.pth`."""
    found = re.search(r"-([0-9a-f]{8,})$", path.stem)
    return found[1] if found else ""


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
