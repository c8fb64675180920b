"""Which DINOv2 looks at the frames: a folder's or the hub's, or an untrained one of the sizes in the config.

It never trains, so a checkpoint holds no weights of it, but knows where they came from, and what their hash is.
"""

from typing import Any

from slr.checkpoint import weights_hash
from slr.config import Config
from slr.errors import Mistake
from slr.models.spatio_temporal import SpatialNet, spatial_net, spatial_net_from

STANDARD = ("mean", "deviation")  # of each number, where the features are standardised
SIZES = ("width", "layers", "heads", "patch", "image", "seed")


def opened(config: Config) -> tuple[SpatialNet, dict[str, Any]]:
    """(The net, {dinov2 or the sizes, weights: its hash}) as the config says; STANDARD may join them.

    Raises Mistake where the weights cannot be had, or where another width was asked for.
    """
    keys = config.spatial
    assert keys
    plain = {"dinov2": keys.dinov2} if config.model_params.pretrained else {name: getattr(keys, name) for name in SIZES}
    net = _built(plain, keys.chunk)
    if net.width != keys.width:
        raise Mistake("this DINOv2 has another width", f"{net.width}, spatial.width = {keys.width}",
                      f"set spatial.width = {net.width}")
    return net, {**plain, "weights": weights_hash(net.state_dict())}


def again(plain: dict[str, Any], config: Config) -> tuple[SpatialNet, dict[str, Any]]:
    """The net that a checkpoint was trained with. `spatial.dinov2` may say where it is now.

    Raises Mistake where its weights are others.
    """
    keys = config.spatial
    assert keys
    given = {"dinov2": keys.dinov2} if "dinov2" in plain else {name: plain[name] for name in SIZES}
    net = _built(given, keys.chunk)
    found = weights_hash(net.state_dict())
    if found != plain["weights"]:
        raise Mistake("the weights of DINOv2 are others than in training", f"hash {found[:12]}, it was "
                      f"{plain['weights'][:12]}", "set spatial.dinov2 to the folder of those that it was trained with"
                      if "dinov2" in plain else "use the versions of torch and transformers that the checkpoint names")
    return net, {**plain, **given}


def _built(plain: dict[str, Any], chunk: int) -> SpatialNet:
    return spatial_net_from(plain["dinov2"], chunk=chunk) if "dinov2" in plain else spatial_net(**plain, chunk=chunk)
