"""Fixtures that more than one room's tests share."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    """What a real browser shows of an address, (height, width, 3) uint8; skips where no Chromium is installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")

    def photograph(address: str, size: tuple[int, int]) -> np.ndarray:
        picture = tmp_path / "screenshot.png"
        # The time is the page's own, and a frame waits for all of its parts: a machine that is busy otherwise took the
        # picture before the images were there.
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--incognito",
                   "--disable-background-networking", "--run-all-compositor-stages-before-draw",
                   f"--user-data-dir={tmp_path / 'profile'}",
                   f"--window-size={size[1]},{size[0]}", "--virtual-time-budget=20000", f"--screenshot={picture}",
                   address]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(picture) as image:
            return np.asarray(image.convert("RGB"))

    return photograph
