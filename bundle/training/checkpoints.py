"""Checkpoints that a killed run goes on from, and weights that are either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

CHECKPOINT = "checkpoint.pt"  # all that a run needs to go on
WEIGHTS = "network.pt"  # the state dict that the next stage and the release use


def save_whole(content: Any, path: str | Path) -> None:
    """Write a torch file under a temporary name, flush it to the disk and rename it: never half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_weights(network: nn.Module, path: str | Path, prefix: str = "") -> nn.Module:
    """Load a state dict, or the part of one below `prefix`, into `network` and return it.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file holds no state dict, or one of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist; train the stage before this one first, or name its file.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises a dozen types on a file that is no checkpoint
        raise ValueError(f"weights must be a torch state dict, but {path} cannot be read as one.") from error
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must be a torch state dict, but {path} holds a {type(weights).__name__}.")
    chosen = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    check_fit(network, chosen, path)
    network.load_state_dict(chosen)
    return network


def check_fit(network: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Refuse weights of another network.

    Raises:
        ValueError: names the first parameter that is missing, unknown or of another shape.
    """
    target = network.state_dict()
    for name in [*target, *weights]:
        here = tuple(target[name].shape) if name in target else "absent"
        there = tuple(weights[name].shape) if name in weights and hasattr(weights[name], "shape") else "absent"
        if here != there:
            raise ValueError(f"weights {path} do not fit this network: {name} is {there} in the file and {here} here.")


class StageCheckpoint:
    """Saves a run after every `interval` epochs and goes on from there when the same command starts again.

    Patches are functions of (seed, epoch, index), so an epoch that was cut off is drawn again as it was.

    Args:
        folder: of the stage; holds `checkpoint.pt` and `network.pt`.
        network: in training.
        optimizer: of the network.
        lr_scheduler: of the optimizer.
        ema: averaged weights; if given, `network.pt` holds these.
        interval: epochs.
    """

    def __init__(self, folder: str | Path, network: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler,
                 ema: EMAHandler | None = None, interval: int = 1) -> None:
        self.folder, self.interval, self.ema, self.network = Path(folder), interval, ema, network
        self.parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        if ema is not None:
            self.parts["ema"] = ema.ema_model

    def attach(self, engine: Engine) -> None:
        """Load at the start, save after epochs."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if set(saved) != {*self.parts, "epoch", "iteration"}:
            raise ValueError(f"checkpoint {path} is of another stage: it holds {sorted(saved)}.")
        check_fit(self.network, saved["network"], path)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]

    def save(self, engine: Engine) -> None:
        """Write `network.pt`, then `checkpoint.pt`."""
        save_whole((self.network if self.ema is None else self.ema.ema_model).state_dict(), self.folder / WEIGHTS)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_whole({**state, "epoch": engine.state.epoch, "iteration": engine.state.iteration}, self.folder / CHECKPOINT)
