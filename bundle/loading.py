"""Build the network that configs/inference.json declares and fill it with weights; every mismatch is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bundle.messages import unwrapped
from bundle.weights import load_weights, read_state

if TYPE_CHECKING:
    from bundle.restoration import TileRestorer
    from bundle.slide_plan import SlidePlanner

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries configs and weights inside the package (setup.py); a checkout and an unpacked bundle beside it.
BUNDLE_ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIG = BUNDLE_ROOT / "configs" / "inference.json"
WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"
LONGEST = 400  # characters of another library's message


def load_tile_restorer(config: Path = CONFIG, weights: Path = WEIGHTS, device: str = "cpu",
                       overlay: Path | None = None) -> TileRestorer:
    """The network `network_def` of a config with the weights of a file, on a device, in evaluation mode.

    Weights are read with `weights_only` and loaded strictly. A config may run code: use those you trust.

    Args:
        config: JSON of a MONAI bundle.
        weights: state dict written by `torch.save`.
        device: "cpu" or "cuda".
        overlay: a second config that overrides the first, such as configs/paper.json.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: the device is not there, the config cannot be read or the weights do not fit.
    """
    check_device(device)
    for path, what in ((config, "config"), (weights, "weights")):
        if not path.is_file():
            raise FileNotFoundError(f"the {what} file must exist, {path} does not.")
    read_state(weights)  # a file that is none is told before the network is built
    network = load_weights(build_network(config, device, overlay), weights)
    restorer: TileRestorer = network.to(device).eval()  # type: ignore[assignment]  # the config's class
    return restorer


def check_device(device: str) -> None:
    """Refuse a device that this machine or this torch lacks.

    Raises:
        ValueError: not cpu or cuda, or no CUDA here.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a CUDA build of torch and a GPU, this machine has none: use cpu.")


def build_network(config: Path, device: str, overlay: Path | None = None) -> nn.Module:
    """The config's `network_def`, with the weights it is born with; `overlay` overrides the config.

    Raises:
        ValueError: no JSON, no `network_def`, or it cannot be built.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        parser.read_config([str(config), *([str(overlay)] if overlay else [])])
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"a config must be JSON, {config.name} is not: {_line(error)}.") from error
    if not isinstance(parser.get(), dict) or "network_def" not in parser.get():
        raise ValueError(f"a config must declare network_def, {config.name} does not.")
    if "device" in parser.get():
        parser["device"] = f"$torch.device('{device}')"
    if "bundle_root" in parser.get():
        parser["bundle_root"] = str(BUNDLE_ROOT)
    try:
        network = parser.get_parsed_content("network_def")
    except (RuntimeError, ValueError, TypeError, LookupError, ImportError, AttributeError) as error:
        raise ValueError(f"network_def of {config.name} cannot be built: {_line(error)}.") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"network_def of {config.name} must be a torch module, got {type(network).__name__}.")
    return network


def load_slide_planner(config: Path = CONFIG) -> SlidePlanner:
    """The `slide_planner` of a config, or the default one where it declares none.

    Raises:
        ValueError: it cannot be built.
    """
    from monai.bundle import ConfigParser

    from bundle.slide_plan import SlidePlanner

    parser = ConfigParser()
    parser.read_config(str(config))
    if "slide_planner" not in parser.get():
        return SlidePlanner()
    try:
        planner: SlidePlanner = parser.get_parsed_content("slide_planner")
    except (RuntimeError, ValueError, TypeError, LookupError, ImportError, AttributeError) as error:
        raise ValueError(f"slide_planner of {config.name} cannot be built: {_line(error)}.") from error
    return planner


def _line(error: BaseException) -> str:
    """What a part of a config said, on one line; of a long one the beginning and the end, where the reason is."""
    error = unwrapped(error)
    line = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
