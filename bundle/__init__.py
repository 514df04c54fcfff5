"""MoP: out-of-focus pathology images brought into focus by a mixture of prompts.

    from bundle import load_restorer
    restored = load_restorer()(image)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundle.image_restorer import load_restorer

__version__ = "0.1.0"
__all__ = ["__version__", "load_restorer"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import bundle` alone must not wait for torch.
    if name == "load_restorer":
        from bundle.image_restorer import load_restorer

        return load_restorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
