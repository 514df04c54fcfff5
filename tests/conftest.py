"""Fixtures that more than one room's tests share."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.browser import CURTAINS_DRAWN, Browser

# Operators of torchvision's compiled half that its Python half looks up when it is imported. timm and lpips call none
# of them, so a placeholder signature will do.
WITH_BACKWARD = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
TORCHVISION_OPERATORS = ("nms", "qnms", *WITH_BACKWARD, *(f"_{name}_backward" for name in WITH_BACKWARD))


@pytest.fixture(scope="session")
def torchvision_schemas() -> Iterator[None]:
    """Let a torchvision that was built for another torch be imported, where there is one: timm and lpips need it."""
    library = None
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in TORCHVISION_OPERATORS:
                library.define(f"{name}(Tensor placeholder) -> Tensor")
    yield
    del library


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """What a real browser shows of a page with curtains, (height, width, 3) uint8; skips where no Chromium is."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")

    def photograph(address: str, size: tuple[int, int]) -> np.ndarray:
        with Browser(program, tmp_path / "profile", size) as browser:
            return browser.photograph(address, CURTAINS_DRAWN)

    return photograph
