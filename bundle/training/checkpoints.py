"""Checkpoints that a killed run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bundle.weights import read_state, refuse_misfit, save_whole

CHECKPOINT = "checkpoint.pt"  # all that a run needs to go on
WEIGHTS = "network.pt"  # the state dict that the next stage and the release use


class StageCheckpoint:
    """Saves a run after every `interval` epochs and goes on from there when the same command starts again.

    Patches are functions of (seed, epoch, index), so an epoch that was cut off is drawn again as it was. Attach it
    after the handler that steps the schedule: both act when an epoch ends, and what is saved must have stepped.

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
        saved = read_state(path)
        if set(saved) != {*self.parts, "epoch", "iteration"}:
            raise ValueError(f"checkpoint {path} is of another stage: it holds {sorted(saved)}.")
        refuse_misfit(self.network, saved["network"], path)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]

    def save(self, engine: Engine) -> None:
        """Write `network.pt`, then `checkpoint.pt`."""
        save_whole((self.network if self.ema is None else self.ema.ema_model).state_dict(), self.folder / WEIGHTS)
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        saved |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        save_whole(saved, self.folder / CHECKPOINT)
