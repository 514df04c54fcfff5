"""MONAI Deploy's application, run as a program; skipped where `make deploy` has not run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image

from bundle import load_restorer
from bundle.cli import main

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-deploy: make deploy")]

TISSUE: NDArray[np.uint8] = skimage.data.immunohistochemistry()
# Not square, not grey, no two edges alike: a transposed, mirrored or recoloured answer shows.
FIELD = np.ascontiguousarray(TISSUE[100:170, 40:136])


def deploy(image: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The application, from a folder that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output.mkdir()
    command = [str(PYTHON), str(ROOT / "integrations" / "deploy" / "app.py"), "-i", str(image), "-o", str(output)]
    return subprocess.run([*command, *arguments], cwd=output.parent, env=environment, capture_output=True, text=True,
                          timeout=900, check=False)


def written(output: Path, stem: str) -> NDArray[np.uint8]:
    """What was written, after seeing that both files hold the same."""
    assert sorted(path.name for path in output.iterdir()) == [f"{stem}_restored.png", f"{stem}_restored.tif"]
    pixels = np.asarray(Image.open(output / f"{stem}_restored.png"))
    assert np.array_equal(pixels, tifffile.imread(output / f"{stem}_restored.tif"))
    return pixels


@pytest.fixture
def field(tmp_path: Path) -> Path:
    Image.fromarray(FIELD).save(tmp_path / "field.png")
    return tmp_path / "field.png"


def test_the_bundle_s_folder_restores_a_picture(field: Path, tmp_path: Path) -> None:
    """The stock operator fails on three channels; a hospital's pipeline must get the pixels of mop restore."""
    ended = deploy(field, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    restored = written(tmp_path / "out", "field")
    assert np.abs(restored.astype(int) - load_restorer()(FIELD)).max() <= 1
    assert np.abs(restored.astype(int) - FIELD).mean() > 0.2


def test_a_region_of_a_slide_in_a_folder_is_restored(tmp_path: Path) -> None:
    """A pipeline hands over folders, and of a slide only the part that somebody marked."""
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "slide.tif", TISSUE, tile=(128, 128), photometric="rgb")
    (folder / "region.json").write_text(json.dumps({"location": [40, 100], "size": [96, 70]}))
    ended = deploy(folder, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert np.abs(written(tmp_path / "out", "slide").astype(int) - load_restorer()(FIELD)).max() <= 1


def test_a_torchscript_file_restores_a_picture(field: Path, tmp_path: Path) -> None:
    """A site that takes models only as one file gets the same chain."""
    model = tmp_path / "model.ts"
    assert main(["export", "--output", str(model)]) == 0
    ended = deploy(field, tmp_path / "out", "-m", str(model))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert np.abs(written(tmp_path / "out", "field").astype(int) - load_restorer()(FIELD)).max() <= 1


def test_what_is_no_image_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    """Pages of a scheduler's messages hide from an operator that he sent the wrong file."""
    (tmp_path / "note.png").write_bytes(b"not an image")
    ended = deploy(tmp_path / "note.png", tmp_path / "out")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("mop: note.png cannot be decoded as PNG or JPEG")
    assert not list((tmp_path / "out").iterdir())
