"""Muon for the kernels that mix channels, Adam for everything else, as one optimizer.

`torch.optim.Muon` orthogonalises the update of a matrix and takes matrices only. A convolution's kernel (out, in, h, w)
is the matrix (out, in h w); depth-wise kernels, norms and biases have no such matrix and get Adam. Learning rates are
those of Adam (`match_rms_adamw`). torch rounds to bfloat16 to orthogonalise, for which many CPUs have no units: that
took as long as all the rest of a training step of the compact P-former. Here it is done in the kernels' own precision.
Source: Jordan 2024 (Muon); Liu et al. 2025 (Muon is scalable for LLM training), for the scale of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def mixes_channels(weight: Tensor) -> bool:
    """Whether a parameter is the kernel of a 2-D convolution over more than one channel."""
    return weight.ndim == 4 and weight.shape[1] > 1


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(R, C) with singular values near 1, by Newton-Schulz steps x <- a x + (b x xᵀ + c (x xᵀ)²) x: (R, C)."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with rates as Adam's and no weight decay, in the precision of its matrices."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov
                update = orthogonalized(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])


class MuonWithAdam(Optimizer):
    """`Muon` and `torch.optim.Adam` behind one step.

    Args:
        params: parameters or groups, as every torch optimizer takes them.
        lr: of groups that name none.
        momentum: of Muon.

    Raises:
        ValueError: there are no parameters, or a rate is negative.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr})
        self.matrices: list[tuple[nn.Parameter, nn.Parameter]] = []  # (kernel, the same memory as a matrix)
        muon_groups, adam_groups = [], []
        for group in self.param_groups:
            kernels = [weight for weight in group["params"] if mixes_channels(weight)]
            pairs = [(kernel, nn.Parameter(kernel.detach().flatten(1))) for kernel in kernels]
            self.matrices += pairs
            taken = {id(kernel) for kernel in kernels}
            muon_groups.append({"params": [matrix for _, matrix in pairs], "lr": group["lr"]})
            adam_groups.append({"params": [w for w in group["params"] if id(w) not in taken], "lr": group["lr"]})
        self.muon = Muon(muon_groups, lr, momentum)
        self.adam = torch.optim.Adam(adam_groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both at the rates that `param_groups` now hold."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, muon, adam in zip(self.param_groups, self.muon.param_groups, self.adam.param_groups, strict=True):
            muon["lr"] = adam["lr"] = group["lr"]
        for kernel, matrix in self.matrices:  # again, because loading or moving a network may have replaced its memory
            matrix.data = kernel.data.flatten(1)
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self.muon.step()
        self.adam.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The rates, and what both optimizers remember."""
        return {**super().state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            ValueError: it is another optimizer's.
        """
        missing = {"muon", "adam"} - set(state_dict)
        if missing:
            raise ValueError(f"optimizer state must hold muon and adam, it lacks {sorted(missing)}.")
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self.muon.load_state_dict(state_dict["muon"])
        self.adam.load_state_dict(state_dict["adam"])
