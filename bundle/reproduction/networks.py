"""Restoration networks of the library spandrel (MIT) in the place of the P-former, in the same trainer.

spandrel needs a torchvision that fits the installed torch, which is why it is no requirement: `pip install spandrel`.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn


class LibraryNetwork(nn.Module):
    """A network that is shown the image alone, behind the P-former's interface.

    Args:
        name: of the architecture in spandrel, such as "SwinIR" or "Uformer".
        stride: height and width must be multiples of it.
        arguments: of the architecture.

    Raises:
        ValueError: spandrel is not installed or cannot be imported, or has no such architecture.
    """

    def __init__(self, name: str, stride: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        try:
            module = importlib.import_module(f"spandrel.architectures.{name}")
        except (ImportError, RuntimeError) as error:  # torchvision of another build raises RuntimeError
            raise ValueError(f"{name} needs the package spandrel and a torchvision that fits torch: "
                             f"{str(error).splitlines()[0]}.") from error
        self.stride = stride
        self.network: nn.Module = getattr(module, name)(**arguments)

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W), around [0, 1]; the prompt is not looked at."""
        restored: Tensor = self.network(image)
        return restored
