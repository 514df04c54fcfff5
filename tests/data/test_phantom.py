"""Synthetic tissue: repeatable, coloured like H&E, with detail that defocus takes away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data.fields import field_records
from bundle.data.phantom import tissue_phantom, write_phantom_fields
from bundle.optics.focal_stack import GainTable, simulate_plane
from bundle.optics.pupil import Optics

KEYS = {"file", "split", "width", "height", "source", "licence", "stain", "organ", "slide", "mpp",
        "laplacian_variance", "note"}
INDEX = Path("../shared/data/tiles/index.json")


def phantom(seed: int = 0, height: int = 160, width: int = 224) -> torch.Tensor:
    return tissue_phantom(height, width, torch.Generator().manual_seed(seed))


def test_the_same_seed_gives_the_same_tissue() -> None:
    """Tests and the smoke training must see one and the same field on every machine."""
    assert torch.equal(phantom(1), phantom(1))
    assert float((phantom(1) - phantom(2)).abs().mean()) > 0.02


def test_a_field_is_rgb_in_range_and_of_any_size() -> None:
    """A value above 1 would wrap when written as PNG."""
    for height, width in ((160, 224), (33, 7), (1, 1)):
        field = phantom(0, height, width)
        assert field.shape == (3, height, width) and field.dtype == torch.float32
        assert float(field.min()) >= 0 and float(field.max()) <= 1


def test_a_field_holds_glass_eosin_and_nuclei() -> None:
    """Without one of the three the encoders and the stain transform are tested on nothing."""
    red, green, blue = tissue_phantom(512, 512, torch.Generator().manual_seed(1))
    glass = (red > 0.93) & (green > 0.93)
    nuclei = (red < 0.45) & (blue > red)
    eosin = (red > 0.7) & (green < 0.65)
    for share, low, high in ((glass, 0.02, 0.4), (nuclei, 0.04, 0.4), (eosin, 0.3, 0.9)):
        assert low < float(share.float().mean()) < high


def test_detail_reaches_the_finest_frequencies() -> None:
    """Tissue without detail at the Nyquist frequency looks in focus at ±0.4 µm, and learning has nothing to see."""
    grey = phantom(0, 256, 256).mean(0)
    window = torch.hann_window(256)[:, None] * torch.hann_window(256)[None, :]
    power = torch.fft.fft2((grey - grey.mean()) * window).abs().square()
    radius = torch.hypot(torch.fft.fftfreq(256)[:, None], torch.fft.fftfreq(256)[None, :])
    finest = power[(radius > 0.4) & (radius < 0.5)].mean().sqrt()
    middle = power[(radius > 0.05) & (radius < 0.1)].mean().sqrt()
    assert float(finest / middle) > 0.02


def test_little_defocus_is_seen() -> None:
    """The reason for the texture: 0.4 µm must change pixels by more than 8-bit rounding."""
    sharp = phantom(3)
    table = GainTable(Optics(), reach_um=1.0, grid_px=64)
    plane = simulate_plane(sharp, 0.4, torch.zeros(sharp.shape[-2:]), table)
    assert float((plane - sharp).square().mean().sqrt()) > 2 / 255


def test_a_field_is_quick_to_draw() -> None:
    """Ten fields of 512 px must not be felt in a test run; generous here, since machines differ: 0.2 s measured."""
    start = time.process_time()
    phantom(0, 512, 512)
    assert time.process_time() - start < 2


def test_a_written_folder_reads_as_a_folder_of_real_fields(tmp_path: Path) -> None:
    """The smoke training reads this folder with the code that reads real fields."""
    folder = write_phantom_fields(tmp_path / "phantom", train=2, val=1, test=1, size_px=64, seed=5)
    entries = json.loads((Path(folder) / "index.json").read_text())
    assert [entry["split"] for entry in entries] == ["train", "train", "val", "test"]
    assert all(set(entry) == KEYS for entry in entries)
    assert [len(field_records(folder, split)) for split in ("train", "val", "test")] == [2, 1, 1]
    pixels = np.asarray(Image.open(Path(folder) / entries[2]["file"]))
    assert pixels.shape == (entries[2]["height"], entries[2]["width"], 3) and pixels.dtype == np.uint8
    drawn = tissue_phantom(64, 64, torch.Generator().manual_seed(7)).permute(1, 2, 0).numpy()
    assert np.abs(pixels / 255 - drawn).max() < 0.51 / 255


def test_no_slide_is_in_two_splits(tmp_path: Path) -> None:
    """A shared slide would let a model be tested on what it has learnt."""
    folder = write_phantom_fields(tmp_path, size_px=32)
    entries = json.loads((Path(folder) / "index.json").read_text())
    assert len(entries) == 8 == len({entry["slide"] for entry in entries})


@pytest.mark.skipif(not INDEX.exists(), reason="the real fields are not on this machine")
def test_the_index_has_the_keys_of_the_real_one() -> None:
    """A key that only one of the two has breaks a config on the other."""
    assert all(set(entry) == KEYS for entry in json.loads(INDEX.read_text()))


def test_impossible_sizes_and_counts_are_refused(tmp_path: Path) -> None:
    """An empty folder is found out much later, by a trainer without data."""
    with pytest.raises(ValueError, match="height and width must be positive"):
        phantom(0, 0, 5)
    for counts in ((0, 0, 0), (1, -1, 0)):
        with pytest.raises(ValueError, match="not all zero"):
            write_phantom_fields(tmp_path, *counts)
