"""What is exported: the chain or its coarse stage as plain graphs of tensors, any batch, any size.

    TileGraph    image                -> restored    pads and crops inside, draws its own noise from the seed
    ChainGraph   image, noise         -> restored    sides are multiples of the stride, at least `smallest_side`
    CoarseGraph  image                -> coarse      likewise; the P-former with the prompts that it needs

    image    (B, 3, H, W), [0, 1]        noise    standard normal, (B, T, 3, H, W), T steps of P-diffusion
"""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.p_former.experts import ExpertFeedForward
from bundle.restoration import TileRestorer

PARTS = ("chain", "p_former")


class TileGraph(nn.Module):
    """`TileRestorer` from pixels to pixels, its options and seed built in."""

    def __init__(self, restorer: TileRestorer) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size -> (B, 3, H, W) in [0, 1]."""
        location = torch.zeros(image.shape[0], 2, dtype=torch.int64, device=image.device)
        return self.restorer.restore_together(image, location).restored


class ChainGraph(nn.Module):
    """The whole chain; its noise is an input."""

    def __init__(self, restorer: TileRestorer) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] and (B, T, 3, H, W) -> (B, 3, H, W) in [0, 1]."""
        return self.restorer.restore_given(image, noise.unbind(1))


class CoarseGraph(nn.Module):
    """The coarse stage: prompts and P-former."""

    def __init__(self, restorer: TileRestorer) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1]."""
        return self.restorer.restore_given(image, ())


class Example(NamedTuple):
    """Inputs of a graph, in the order of its arguments."""

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]


def exportable(restorer: TileRestorer, part: str) -> TileRestorer:
    """A copy whose every operation can be exported with any batch; it computes the same.

    Args:
        restorer: the chain, in evaluation mode.
        part: "chain" or "p_former".

    Raises:
        ValueError: no such part, or the chain is told to skip what is in focus.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, got {part!r}.")
    if restorer.skip_in_focus:
        raise ValueError("an exported graph restores every pixel: skip_in_focus must be false, the config says true.")
    restorer = copy.deepcopy(restorer).eval().requires_grad_(False)
    restorer.stop_after = "p_diffusion" if part == "chain" else "p_former"
    if part == "p_former":
        del restorer.denoiser  # the file would carry it unused
    for block in restorer.modules():
        if isinstance(block, ExpertFeedForward):
            # Merged kernels need as many groups as the batch has images, and a file's groups are a constant.
            block.mixed_experts = partial(_separate_experts, block)  # type: ignore[method-assign]
    return restorer


def smallest_side(restorer: TileRestorer) -> int:
    """The shortest side of a graph's image, px: the colours' Gaussian mirrors 3 sigma of it at each border."""
    reach = round(3 * restorer.colour_sigma_px)
    return (reach // restorer.stride + 1) * restorer.stride


def example(restorer: TileRestorer, batch: int, height: int, width: int, noise: bool, seed: int = 0) -> Example:
    """Smooth random images, and noise where the graph takes it, on the restorer's device."""
    device = next(restorer.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    image = functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).to(device)
    if not noise:
        return Example(("image",), (image,))
    steps = restorer.scheduler.num_train_timesteps
    drawn = torch.randn(batch, steps, 3, height, width, generator=generator).to(device)
    return Example(("image", "noise"), (image, drawn))


def _separate_experts(block: ExpertFeedForward, x: Tensor, gates: Tensor) -> Tensor:
    """`mixed_experts` as it is written: x (B, 2 hidden, H, W), gates (B, n) -> (B, 2 hidden, H, W)."""
    gated, main = x.chunk(2, 1)
    batch, hidden, height, width = gated.shape
    experts = block.sub_experts.shape[0]
    kernels = block.sub_experts.transpose(0, 1).reshape(hidden * experts, 1, 3, 3)
    every = functional.conv2d(gated, kernels, padding=1, groups=hidden).reshape(batch, hidden, experts, height, width)
    return torch.cat([(every * gates.reshape(batch, 1, experts, 1, 1)).sum(2), block.main_expert(main)], 1)
