"""How work that takes long reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, in all
Follow = Callable[[str], Progress]  # what is under way -> its progress


def unfollowed(phase: str) -> Progress:
    """Nobody looks."""
    return lambda done, total: None
