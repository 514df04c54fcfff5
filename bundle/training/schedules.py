"""Learning rates over a run: the paper's steps, or warm-up and cosine."""

from __future__ import annotations

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

SCHEDULES = ("step", "warmup_cosine")


def learning_rate_schedule(optimizer: Optimizer, name: str, epochs: int, epoch_length: int, step_epochs: int = 1,
                           gamma: float = 0.98, warmup_steps: int = 0) -> LRScheduler:
    """Schedule that is stepped after every optimizer step.

    Args:
        optimizer: whose rates are set.
        name: "step" multiplies the rate by `gamma` every `step_epochs` epochs; "warmup_cosine" rises over
            `warmup_steps` and falls along half a cosine to 0 at the end of the run.
        epochs, epoch_length: the run.
        step_epochs, gamma: of "step".
        warmup_steps: of "warmup_cosine".

    Raises:
        ValueError: the name is unknown.
    """
    if name == "step":
        return StepLR(optimizer, step_epochs * epoch_length, gamma)
    if name == "warmup_cosine":
        return WarmupCosineSchedule(optimizer, warmup_steps, epochs * epoch_length)
    raise ValueError(f"schedule must be one of {SCHEDULES}, got {name!r}.")
