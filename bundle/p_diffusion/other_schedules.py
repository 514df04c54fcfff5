"""Schedules of other diffusion methods, for the paper's comparison: they run in the same denoiser and inferer.

    x_t = a_t x_0 + b_t y_0 + s_t ε        a_0 = 1, b_0 = 0, s_0 = 0
    x_t = r_t x_{t-1} + (what x_0 and y_0 fix) + noise of variance v_t,     s_t² = r_t² s_{t-1}² + v_t

    p(x_{t-1} | x_t) = N(m_{t-1} + r_t s_{t-1}²/s_t² (x_t - m_t), s_{t-1}² v_t / s_t²),   m_t = a_t x_0_pred + b_t y_0

ResShift is the case a = 1 - eta, b = eta, s² = kappa² eta, r = 1. Written from the papers, not from their code. The
network predicts x_0 in all of them, where Resfusion and IR-SDE predict noise: one loss, one sampling of the posterior.
"""

from __future__ import annotations

import math

import torch
from monai.networks.schedulers import Scheduler
from torch import Tensor


class GaussianChain(Scheduler):
    """A chain from x_0 to y_0 that is given by its coefficients; the same methods as `ResidualShiftScheduler`.

    Args:
        a, b, s: (T + 1,), of x_0, y_0 and the noise; index 0 is the clean image.
        r: (T,), what a step keeps of the state before it.
    """

    a: Tensor
    b: Tensor
    s: Tensor
    r: Tensor

    def __init__(self, a: Tensor, b: Tensor, s: Tensor, r: Tensor) -> None:
        super().__init__(len(r))
        self.timesteps = torch.arange(len(r), 0, -1)
        kept = {"a": a, "b": b, "s": s, "r": torch.cat([torch.ones(1), r])}
        for name, values in kept.items():  # not in the state dict: they follow from the arguments
            self.register_buffer(name, values.float(), persistent=False)

    def shifted(self, x_0: Tensor, y_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t: images (B, C, H, W), standard normal noise, timestep (B,) in 1..T."""
        return self._mean(x_0, y_0, timestep) + _at(self.s, timestep) * noise

    def start(self, y_0: Tensor, noise: Tensor) -> Tensor:
        """x_T where x_0 is unknown: y_0 stands for it, with the little weight that it has by then."""
        return (self.a[-1] + self.b[-1]) * y_0 + self.s[-1] * noise

    def step(self, x_0_pred: Tensor, timestep: Tensor, x_t: Tensor, noise: Tensor, y_0: Tensor) -> Tensor:
        """x_{t-1} for timestep (B,); `noise` is ignored at t = 1."""
        now, before, kept = _at(self.s, timestep), _at(self.s, timestep - 1), _at(self.r, timestep)
        mean = self._mean(x_0_pred, y_0, timestep - 1)
        mean = mean + kept * before**2 / now**2 * (x_t - self._mean(x_0_pred, y_0, timestep))
        variance = before**2 * (now**2 - kept**2 * before**2).clamp(min=0) / now**2
        return mean + variance.sqrt() * noise

    def scaled(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """x_t at about unit variance, as the network sees it."""
        return x_t / (_at(self.s, timestep) ** 2 + 1).sqrt()

    def _mean(self, x_0: Tensor, y_0: Tensor, timestep: Tensor) -> Tensor:
        return _at(self.a, timestep) * x_0 + _at(self.b, timestep) * y_0


class ResfusionScheduler(GaussianChain):
    """Resfusion (Shi et al. 2023): DDPM around the residual R = y_0 - x_0, begun where x_0 has no weight left.

        x_t = sqrt(ᾱ_t) x_0 + (1 - sqrt(ᾱ_t)) R + sqrt(1 - ᾱ_t) ε        start: sqrt(ᾱ_T) = 1/2

    The variance-preserving schedule with linear beta (0.1 to 20), cut off at that point and divided into T steps.

    Args:
        num_train_timesteps: T; the paper samples in 5.
        first, last: beta at the ends of the whole schedule.
    """

    def __init__(self, num_train_timesteps: int = 5, first: float = 0.1, last: float = 20.0) -> None:
        if num_train_timesteps < 1 or not 0 < first < last:
            raise ValueError("num_train_timesteps must be positive and 0 < first < last, got "
                             f"{num_train_timesteps}, {first} and {last}.")
        # -log ᾱ(u) = first u + (last - first) u² / 2, and is log 4 where sqrt(ᾱ) = 1/2
        slope = last - first
        end = (math.sqrt(first**2 + 2 * slope * math.log(4)) - first) / slope
        u = torch.linspace(0, end, num_train_timesteps + 1, dtype=torch.float64)
        root = torch.exp(-(first * u + slope * u**2 / 2) / 2)  # sqrt(ᾱ_t)
        super().__init__(2 * root - 1, 1 - root, (1 - root**2).sqrt(), root[1:] / root[:-1])


class IrSdeScheduler(GaussianChain):
    """IR-SDE (Luo et al. 2023): an image that decays towards the degraded one, in noise that settles at λ.

        x_t = y_0 + (x_0 - y_0) exp(-θ̄_t) + λ sqrt(1 - exp(-2 θ̄_t)) ε        exp(-θ̄_T) = `rest`

    θ grows as sin² (the paper's cosine schedule).

    Args:
        num_train_timesteps: T; 100 in the paper.
        noise: λ on [0, 1]; 10/255 in the paper.
        rest: weight of x_0 that is left at T.
    """

    def __init__(self, num_train_timesteps: int = 100, noise: float = 10 / 255, rest: float = 0.005) -> None:
        if num_train_timesteps < 1 or noise <= 0 or not 0 < rest < 1:
            raise ValueError("num_train_timesteps and noise must be positive and rest in (0, 1), got "
                             f"{num_train_timesteps}, {noise} and {rest}.")
        progress = (torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps + 0.008) / 1.008
        speed = torch.sin(progress * math.pi / 2) ** 2
        decay = torch.cat([torch.zeros(1, dtype=torch.float64), speed.cumsum(0) / speed.sum() * -math.log(rest)])
        left = torch.exp(-decay)
        # Images lie in [-1, 1] here, twice as wide as in the paper.
        super().__init__(left, 1 - left, 2 * noise * (1 - left**2).sqrt(), left[1:] / left[:-1])


def _at(values: Tensor, timestep: Tensor) -> Tensor:
    return values[timestep].view(-1, 1, 1, 1)
