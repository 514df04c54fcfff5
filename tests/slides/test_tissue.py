"""Tissue: what is stained is found wherever it lies, and glass is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.slides.grid import Box
from bundle.slides.reader import open_image
from bundle.slides.tissue import TissueMask, find_tissue, saturation_of

GLASS, EOSIN, PALE = (243, 242, 244), (214, 120, 170), (232, 208, 222)


def slide(path: Path, parts: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> Path:
    """Noisy glass of 600 x 900 px with coloured rectangles (row, col, height, width)."""
    pixels = np.full((600, 900, 3), GLASS, float)
    for (row, col, height, width), colour in parts.items():
        pixels[row : row + height, col : col + width] = colour
    pixels += np.random.default_rng(5).normal(0, 3, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def mask_of(path: Path, **options: int) -> TissueMask:
    with open_image(path) as reader:
        return find_tissue(reader, **options)


def test_stained_parts_are_tissue_and_glass_is_not(tmp_path: Path) -> None:
    """Tissue that is missed stays blurred, glass that is taken costs hours."""
    box, pale = (100, 200, 300, 400), (50, 660, 200, 200)
    mask = mask_of(slide(tmp_path / "a.png", {box: EOSIN, pale: PALE}), picture_px=450)
    assert mask.downsample == 2 and mask.mask.shape == (300, 450)
    truth = np.zeros((300, 450), bool)
    truth[50:200, 100:300] = truth[25:125, 330:430] = True
    assert (mask.mask != truth).mean() < 0.01
    assert mask.share == pytest.approx(truth.mean(), abs=0.01)
    assert mask.touches(Box(390, 590, 64, 64)) and not mask.touches(Box(420, 640, 64, 64))


def test_tissue_from_border_to_border_is_all_tissue(tmp_path: Path) -> None:
    """Otsu alone would cut through the tissue and call half of it glass."""
    assert mask_of(slide(tmp_path / "a.png", {(0, 0, 600, 500): EOSIN, (0, 500, 600, 400): (200, 60, 140)})).share == 1


def test_bare_glass_has_no_tissue(tmp_path: Path) -> None:
    """Otsu alone would call half of the noise tissue."""
    assert mask_of(slide(tmp_path / "a.png", {})).share == 0


def test_specks_of_dust_are_no_tissue(tmp_path: Path) -> None:
    """Each speck would cost tiles of the whole chain."""
    specks = {(row, col, 2, 2): EOSIN for row in range(20, 600, 90) for col in range(20, 900, 110)}
    assert mask_of(slide(tmp_path / "a.png", specks)).share == 0


def test_saturation_of_known_colours() -> None:
    """The anchor: (max - min) / max, and none for black, whose colour is chance."""
    picture = np.array([[[200, 100, 150], [100, 100, 100], [20, 0, 0]]], np.uint8)
    np.testing.assert_allclose(saturation_of(picture), [[0.5, 0, 0]])
