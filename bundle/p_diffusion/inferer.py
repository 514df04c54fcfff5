"""P-diffusion as a MONAI inferer: the training call and the T-step sampling.

Both take the coarse image in [0, 1], as every network here does; [-1, 1] begins and ends in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from bundle.conventions import to_signed, to_unit
from bundle.p_diffusion.noise import noise_at
from bundle.p_diffusion.other_schedules import GaussianChain
from bundle.p_diffusion.schedule import ResidualShiftScheduler
from bundle.prompts.mixture import PromptMixture


class ResidualShiftInferer(Inferer):
    """Residual shifting between the coarse and the all-in-focus image, or another method's chain in its place."""

    def __init__(self, scheduler: ResidualShiftScheduler | GaussianChain) -> None:
        super().__init__()
        self.scheduler = scheduler

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, own: Tensor | None = None,
                 later_noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """One training call: x_0_pred as an image around [0, 1].

        Args:
            inputs: coarse images, (B, 3, H, W), [0, 1].
            network: the denoiser.
            args: label (B, 3, H, W) in [0, 1], noise (B, 3, H, W), timestep (B,) in 1..T, prompts (PromptMixture).
            own: (B,) bool: patches whose x_t is reached by the network's own steps from the coarse image, as in
                sampling, instead of drawn around the label; costs up to T - 1 passes without gradients. Default: none.
            later_noise: (B, T - 1, 3, H, W), of those steps.
            kwargs: ignored.
        """
        label, noise, timestep, prompts = args
        y_0 = to_signed(inputs)
        x_t = self.scheduler.shifted(to_signed(label), y_0, noise, timestep)
        if own is not None and later_noise is not None:
            chosen = own.nonzero()[:, 0]
            if len(chosen):
                theirs = PromptMixture(*(part[chosen] for part in prompts))
                walked = self._walked(network, y_0[chosen], noise[chosen], later_noise[chosen], timestep[chosen],
                                      theirs)
                x_t = x_t.index_copy(0, chosen, walked.to(x_t.dtype))
        return to_unit(self._predicted(network, x_t, y_0, timestep, prompts))

    def sample(self, coarse: Tensor, network: nn.Module, prompts: PromptMixture, location: Tensor, seed: int) -> Tensor:
        """Restored images: T steps from the coarse ones.

        Args:
            coarse: (B, 3, H, W), [0, 1].
            network: the denoiser.
            prompts: of the defocused tiles.
            location: (B, 2) int64, where the tiles lie; fixes their noise.
            seed: of the noise.

        Returns:
            (B, 3, H, W), around [0, 1], not clipped.
        """
        steps, (height, width) = self.scheduler.num_train_timesteps, coarse.shape[-2:]
        noise = [noise_at(location, height, width, seed, draw) for draw in range(steps, 0, -1)]
        return self.sample_with(coarse, network, prompts, noise)

    def sample_with(self, coarse: Tensor, network: nn.Module, prompts: PromptMixture,
                    noise: Sequence[Tensor]) -> Tensor:
        """`sample` with the noise given: T draws (B, 3, H, W), of the start and of every step but the last."""
        y_0 = to_signed(coarse)
        steps = self.scheduler.num_train_timesteps
        x_t = self.scheduler.start(y_0, noise[0])
        for t in range(steps, 0, -1):
            timestep = torch.full((coarse.shape[0],), t, dtype=torch.int64, device=coarse.device)
            x_0_pred = self._predicted(network, x_t, y_0, timestep, prompts)
            drawn = noise[steps + 1 - t] if t > 1 else torch.zeros_like(x_t)
            x_t = self.scheduler.step(x_0_pred, timestep, x_t, drawn, y_0)
        return to_unit(x_t)

    @torch.no_grad()
    def _walked(self, network: nn.Module, y_0: Tensor, noise: Tensor, later_noise: Tensor, timestep: Tensor,
                prompts: PromptMixture) -> Tensor:
        """x_t of every patch at its own timestep, reached by sampling from x_T."""
        steps = self.scheduler.num_train_timesteps
        walked = x_t = self.scheduler.start(y_0, noise)
        for t in range(steps, int(timestep.min()), -1):
            now = torch.full_like(timestep, t)
            x_0_pred = self._predicted(network, x_t, y_0, now, prompts)
            x_t = self.scheduler.step(x_0_pred, now, x_t, later_noise[:, steps - t], y_0)
            walked = torch.where((timestep < t).view(-1, 1, 1, 1), x_t, walked)
        return walked

    def _predicted(self, network: nn.Module, x_t: Tensor, y_0: Tensor, timestep: Tensor,
                   prompts: PromptMixture) -> Tensor:
        x_t = self.scheduler.scaled(x_t, timestep)
        return network(x_t, y_0, timestep, prompts.pathology, prompts.edges, prompts.defocus)


class RestoringInferer(Inferer):
    """Answers the training call with a restoration, for validation: T steps from the coarse image, the label unseen."""

    def __init__(self, inferer: ResidualShiftInferer, seed: int = 0) -> None:
        super().__init__()
        self.inferer, self.seed = inferer, seed

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Restored images (B, 3, H, W) from coarse ones; of `args` only the last, the prompts, is read."""
        location = torch.zeros(len(inputs), 2, dtype=torch.int64, device=inputs.device)
        return self.inferer.sample(inputs, network, args[-1], location, self.seed)
