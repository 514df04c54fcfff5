"""Ignite handlers of the trainers, and what their metrics look at."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.engines import IterationEvents
from monai.handlers import from_engine
from torch import Tensor, nn

from bundle.data.patches import SeededPatches


class DrawEpoch:
    """Tells the dataset which epoch it draws."""

    def __init__(self, dataset: SeededPatches) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Before every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.dataset.set_epoch(e.state.epoch))


class StopOnNaN:
    """Ends training with a sentence that names the batch, before a loss that is no number reaches the weights.

    All processes of a training stop together and say the same.
    """

    def attach(self, engine: Engine) -> None:
        """After every loss."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Raises ArithmeticError where the loss of any process is not finite."""
        loss = engine.state.output["loss"].detach()
        finite = torch.isfinite(loss).all()
        if idist.all_reduce(float(finite), "MIN"):
            return
        batch, seeds = engine.state.batch, engine.state.batch["seed"].tolist()
        names = batch.get("file", ["patch"] * len(seeds))
        patches = ", ".join(f"{name} (seed {seed})" for name, seed in zip(names, seeds, strict=True))
        told = "" if finite else f"{float(loss)} on {patches}"
        if idist.get_world_size() > 1:
            told = ", ".join(part for part in idist.all_gather(told) if part)
        raise ArithmeticError(f"the loss must be a finite number, in epoch {engine.state.epoch}, iteration "
                              f"{engine.state.iteration} it became {told}; training stops.")


class MeanLoss:
    """The mean of an epoch's losses, over all processes, as the metric `mean_loss` of the trainer."""

    def attach(self, engine: Engine) -> None:
        """After every iteration and epoch."""
        Average(output_transform=from_engine(["loss"], first=True)).attach(engine, "mean_loss")


class ClipGradients:
    """Scales gradients of `network` down to a norm of at most `max_norm`."""

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Between backward and the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda e: nn.utils.clip_grad_norm_(
            self.network.parameters(), self.max_norm))


def distance_pairs(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Predicted and true distances (B, 1), µm, of a validation step of the defocus estimator."""
    return output["pred"].defocus_um[:, None], output["label"][:, :1]


def image_pairs(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Prediction, clipped to [0, 1], and label, (B, 3, H, W)."""
    return output["pred"].clamp(0, 1), output["label"]


def pairs(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Prediction and label as they are."""
    return output["pred"], output["label"]
