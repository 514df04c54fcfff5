"""Learning rates over a run: the paper's steps, or warm-up and cosine."""

from __future__ import annotations

from typing import Any

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

SCHEDULES = ("step", "warmup_cosine")


class RunCosine(WarmupCosineSchedule):
    """MONAI's warm-up and cosine over the run that the config asks for, also where a checkpoint was of a shorter one.

    Its state would bring the length of the run that wrote it, and beyond that length the cosine rises again.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the step of `state_dict`, with this run's length and warm-up."""
        super().load_state_dict({**state_dict, "t_total": self.t_total, "warmup_steps": self.warmup_steps})


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
        return RunCosine(optimizer, warmup_steps, epochs * epoch_length)
    raise ValueError(f"schedule must be one of {SCHEDULES}, got {name!r}.")
