"""The residual-shifting schedule: how `x_0` walks to `y_0` in T steps, and back.

    x_0   all-in-focus image            y_0    image to refine (the P-former's output)
    x_t   state after t shifts          eta    shift done by step t, eta[0] = 0
    t     1..T                          kappa  noise strength per unit shift
    alpha_t = eta_t - eta_{t-1}

    q(x_t | x_0, y_0) = N(x_0 + eta_t (y_0 - x_0), kappa² eta_t)
    p(x_{t-1} | x_t)  = N(eta_{t-1}/eta_t x_t + alpha_t/eta_t x_0_pred, kappa² eta_{t-1}/eta_t alpha_t)

sqrt(eta) grows geometrically, bent by `power`. Source: Yue et al. (ResShift), equations 1, 2, 7 and 10; written from
the paper. The posterior variance at t = 1 is zero, so the last step adds no noise.
"""

from __future__ import annotations

import torch
from monai.networks.schedulers import Scheduler
from torch import Tensor


def residual_shifts(steps: int, power: float, min_noise: float, last: float, kappa: float) -> Tensor:
    """eta_1..eta_T, (steps,): sqrt(eta) = .1, .5201, .7614, .99 for the defaults of `ResidualShiftScheduler`."""
    first = min(min_noise / kappa, min_noise)
    if steps == 1:
        return torch.tensor([last**2])
    progress = torch.linspace(0, 1, steps, dtype=torch.float64) ** power
    return ((first * (last / first) ** progress) ** 2).float()


class ResidualShiftScheduler(Scheduler):
    """ResShift's Markov chain with T steps.

    Args:
        num_train_timesteps: T.
        kappa: noise strength.
        power: p, bends the geometric growth; below 1 shifts early.
        min_noise: standard deviation of the noise at t = 1 where kappa >= 1; below, sqrt(eta_1).
        last: sqrt(eta_T), just below 1: x_T is y_0 and noise.
    """

    eta: Tensor  # (T + 1,), eta[0] = 0

    def __init__(self, num_train_timesteps: int = 4, kappa: float = 2.0, power: float = 0.3, min_noise: float = 0.2,
                 last: float = 0.99) -> None:
        if num_train_timesteps < 1 or kappa <= 0 or not 0 < last <= 1:
            raise ValueError("num_train_timesteps and kappa must be positive and last in (0, 1], got "
                             f"{num_train_timesteps}, {kappa} and {last}.")
        super().__init__(num_train_timesteps)
        self.kappa = kappa
        shifts = residual_shifts(num_train_timesteps, power, min_noise, last, kappa)
        # Not in the state dict: it follows from the arguments.
        self.register_buffer("eta", torch.cat([torch.zeros(1), shifts]), persistent=False)
        self.timesteps = torch.arange(num_train_timesteps, 0, -1)

    def shifted(self, x_0: Tensor, y_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0, y_0): images (B, C, H, W), standard normal noise, timestep (B,) in 1..T."""
        eta = self._at(timestep)
        return x_0 + eta * (y_0 - x_0) + self.kappa * eta.sqrt() * noise

    def start(self, y_0: Tensor, noise: Tensor) -> Tensor:
        """x_T where x_0 is unknown: y_0 + kappa sqrt(eta_T) noise."""
        return y_0 + self.kappa * self.eta[-1].sqrt() * noise

    def step(self, x_0_pred: Tensor, timestep: Tensor, x_t: Tensor, noise: Tensor,
             y_0: Tensor | None = None) -> Tensor:
        """x_{t-1} ~ p(x_{t-1} | x_t) for timestep (B,); `noise` is ignored at t = 1, `y_0` (in x_t already) always."""
        now, before = self._at(timestep), self._at(timestep - 1)
        mean = before / now * x_t + (now - before) / now * x_0_pred
        return mean + self.kappa * (before / now * (now - before)).sqrt() * noise

    def scaled(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """x_t at about unit variance, as the network sees it: x_t / sqrt(kappa² eta_t + 1)."""
        return x_t / (self.kappa**2 * self._at(timestep) + 1).sqrt()

    def _at(self, timestep: Tensor) -> Tensor:
        return self.eta[timestep].view(-1, 1, 1, 1)
