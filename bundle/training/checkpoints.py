"""Checkpoints that a killed run goes on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bundle.weights import read_state, refuse_misfit, save_whole

CHECKPOINT = "checkpoint.pt"  # all that a run needs to go on
WEIGHTS = "network.pt"  # the state dict that the next stage and the release use
BEST = "best.pt"  # the same, of the epoch that validated best


def random_state() -> list[Tensor]:
    """torch's global generators, the CPU's first: patches need none of them, dropout does."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(states: list[Tensor]) -> None:
    """Go on from `random_state()`, on as many devices as are there now."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


class BestWeights:
    """Writes `best.pt` whenever the validator's key metric is better than ever before, also before a restart.

    Args:
        folder: of the stage.
        network: that the validator runs.
        lower_is_better: True for errors.
    """

    def __init__(self, folder: str | Path, network: nn.Module, lower_is_better: bool = False) -> None:
        self.folder, self.network, self.sign = Path(folder), network, -1 if lower_is_better else 1
        self.best = -math.inf  # the metric, with its sign turned where lower is better

    def attach(self, engine: Engine) -> None:
        """After every validation; in the first of several processes alone."""
        engine.add_event_handler(Events.COMPLETED, self.compare)

    def compare(self, engine: Engine) -> None:
        """Keep the weights, if they are the best."""
        value = self.sign * float(engine.state.metrics[engine.state.key_metric_name])
        if value > self.best:
            self.best = value
            if idist.get_rank() == 0:
                save_whole(self.network.state_dict(), self.folder / BEST)


class StageCheckpoint:
    """Saves a run after every `interval` epochs and goes on from there when the same command starts again.

    Patches are functions of (seed, epoch, index), so an epoch that was cut off is drawn again as it was. What other
    handlers do at the end of an epoch is done when it is saved. Of several processes the first writes, all read.

    Args:
        folder: of the stage; holds `checkpoint.pt` and `network.pt`.
        network: in training.
        optimizer: of the network.
        lr_scheduler: of the optimizer.
        ema: averaged weights; if given, `network.pt` holds these.
        best: whose record goes on, too.
        interval: epochs.
    """

    def __init__(self, folder: str | Path, network: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler,
                 ema: EMAHandler | None = None, best: BestWeights | None = None, interval: int = 1) -> None:
        self.folder, self.interval, self.ema, self.network = Path(folder), interval, ema, network
        self.best = best
        self.parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        if ema is not None:
            self.parts["ema"] = ema.ema_model
        self.saved_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Load at the start, save after epochs."""
        engine.add_event_handler(Events.STARTED, self.load)
        # Attached at the start, not now: the last to act when an epoch ends.
        engine.add_event_handler(Events.STARTED, lambda: engine.add_event_handler(
            Events.EPOCH_COMPLETED(every=self.interval), self.save))
        engine.add_event_handler(Events.COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        saved = read_state(path)
        needed = {*self.parts, "epoch", "iteration"}
        if set(saved) - {"best", "random"} != needed:  # earlier checkpoints kept neither
            raise ValueError(f"checkpoint {path} is of another stage: it holds {sorted(saved)}.")
        refuse_misfit(self.network, saved["network"], path)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        if self.best is not None:
            self.best.best = saved.get("best", -math.inf)
        if "random" in saved:
            set_random_state(saved["random"])
        self.saved_epoch = saved["epoch"]
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]

    def save(self, engine: Engine) -> None:
        """Write `network.pt`, then `checkpoint.pt`."""
        if idist.get_rank() > 0 or engine.state.epoch == self.saved_epoch:
            return
        save_whole((self.network if self.ema is None else self.ema.ema_model).state_dict(), self.folder / WEIGHTS)
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        saved |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration, "random": random_state()}
        if self.best is not None:
            saved["best"] = self.best.best
        save_whole(saved, self.folder / CHECKPOINT)
        self.saved_epoch = engine.state.epoch
