"""Weights on disk: read safely, checked entry by entry, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def save_whole(content: Any, path: str | Path) -> None:
    """Write a torch file under a temporary name, flush it to the disk and rename it: never half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_weights(network: Network, path: str | Path, prefix: str = "") -> Network:
    """Load a state dict, or the part of one below `prefix`, strictly into `network` and return it.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file holds no state dict, or one of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the weights file must exist, {path} does not; name another or train that stage.")
    state = read_state(path)
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    refuse_misfit(network, chosen, path)
    network.load_state_dict(chosen)
    return network


def start_from(network: Network, weights: str | Path | None, part: str = "") -> Network:
    """`network` with trained weights, or as it was made where `weights` is None.

    Args:
        network: one part of the chain.
        weights: a whole chain (`models/model.pt`) or the part alone (`network.pt` of its stage).
        part: where the network lies in a chain, as "prompter.estimator.".

    Raises:
        FileNotFoundError: `weights` does not exist.
        ValueError: it holds no state dict, or neither a chain with this part nor the part.
    """
    if weights is None:
        return network
    path = Path(weights)
    if path.is_file() and not any(name.startswith(part) for name in read_state(path)):
        part = ""
    return load_weights(network, path, part)


def read_state(weights: Path) -> dict[str, Any]:
    """The state dict of a file, on the CPU.

    Raises:
        ValueError: not a state dict that `torch.load(weights_only=True)` reads.
    """
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    # What torch.load raises for text, pictures, truncated archives and pickles with code in them.
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"weights must be a state dict written by torch.save, {weights.name} is not.") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"weights must be a state dict, {weights.name} holds {type(state).__name__}.")
    return state


def refuse_misfit(network: nn.Module, state: dict[str, Any], weights: Path) -> None:
    """Refuse weights of another network.

    Raises:
        ValueError: says how many entries are missing, unknown or of another size, and names the first.
    """
    wanted = network.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another size": [
            name
            for name in wanted
            if name in state
            and isinstance(wanted[name], torch.Tensor)
            and getattr(state[name], "shape", None) != wanted[name].shape
        ],
    }
    found = [f"{len(names)} {what} (first {names[0]})" for what, names in problems.items() if names]
    if found:
        wanted_by = type(network).__name__
        raise ValueError(f"weights must fit {wanted_by} entry by entry, {weights} has {', '.join(found)}.")
