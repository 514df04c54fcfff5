"""Mixed precision in the forward pass, on any device."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn


class MixedPrecision(Inferer):
    """Runs another inferer under bfloat16 autocast and gives float32; weights and losses stay float32.

    bfloat16 has float32's range, so gradients need no scaling. MONAI's own `amp` is CUDA only.

    Args:
        inferer: what is run.
        enabled: False runs it as it is.
    """

    def __init__(self, inferer: Inferer, enabled: bool = True) -> None:
        super().__init__()
        self.inferer, self.enabled = inferer, enabled

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the inferer returns, a tensor or a named tuple of them, in float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.enabled):
            return _in_float32(self.inferer(inputs, network, *args, **kwargs))


def _in_float32(output: Any) -> Any:
    """A tensor, or every tensor of a named tuple, in float32."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_in_float32(part) for part in output))
    return output
