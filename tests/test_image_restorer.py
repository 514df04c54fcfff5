"""The Python API: what goes in comes out, restored, with the pixels of the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundle import load_restorer
from bundle.cli import main
from bundle.image_restorer import ImageRestorer

ROOT = Path(__file__).resolve().parent.parent


def field(height: int = 70, width: int = 101) -> NDArray[np.uint8]:
    """A smooth colourful field, of a size that no stride divides."""
    coarse = np.random.default_rng(3).integers(40, 216, (6, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def restorer() -> ImageRestorer:
    return load_restorer(stop_after="p_former", tile_px=64)


@pytest.fixture(scope="module")
def restored(restorer: ImageRestorer) -> NDArray[np.uint8]:
    return restorer(field())


def test_importing_the_package_alone_imports_no_torch() -> None:
    """`mop --help` and every tool that asks for the version would wait for seconds."""
    program = "import bundle, sys; print(bundle.__version__, sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[1] == "[]"


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    """Tools probe modules with hasattr, and a lazy import must not answer every question with yes."""
    import bundle

    assert not hasattr(bundle, "load_everything")


def test_one_line_gives_the_pixels_that_the_command_writes(tmp_path: Path) -> None:
    """A figure made in a notebook must show what `mop restore` wrote; several tiles, the whole chain, another seed."""
    image = field(64, 128)
    Image.fromarray(image).save(tmp_path / "field.png")
    assert main(["restore", str(tmp_path / "field.png"), "--output", str(tmp_path / "out"), "--tile-px", "96",
                 "--seed", "5"]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "field.png"))
    assert np.array_equal(load_restorer(seed=5, tile_px=96)(image), written)
    assert np.abs(written.astype(int) - image).max() > 0


@pytest.mark.parametrize("binning", [1, 2])
def test_a_chosen_binning_gives_the_pixels_of_the_command(tmp_path: Path, binning: int) -> None:
    """In memory tiles and noise must lie where the blocks of a file have them, in binned pixels too."""
    image = field(150, 203)
    Image.fromarray(image).save(tmp_path / "field.png")
    assert main(["restore", str(tmp_path / "field.png"), "--output", str(tmp_path / "out"), "--tile-px", "64",
                 "--binning", str(binning)]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "field.png"))
    result = load_restorer(tile_px=64, binning=binning).restore(image)
    assert np.array_equal(result.restored, written) and result.binning == (binning,)


def test_the_shipped_chain_gives_the_same_bits_with_any_batch() -> None:
    """A picture must not depend on how much memory there was for it; before rounding to 8 bits, too."""
    image = (field() / 255).astype(np.float32)
    one, two, five = (load_restorer(tile_px=64, batch=batch)(image) for batch in (1, 2, 5))
    assert np.array_equal(one, two) and np.array_equal(one, five)


def test_an_array_comes_back_in_its_dtype(restorer: ImageRestorer, restored: NDArray[np.uint8]) -> None:
    """A float64 field that comes back as uint8 would be scaled twice."""
    assert restored.dtype == np.uint8 and restored.shape == (70, 101, 3)
    for dtype in (np.float32, np.float64):
        floating = restorer((field() / 255).astype(dtype))
        assert floating.dtype == dtype and floating.shape == (70, 101, 3)
        # In float32, as the pixels were computed: a value half-way between two grey levels rounds otherwise in float64
        assert np.array_equal(np.round(floating.astype(np.float32) * np.float32(255)).astype(np.uint8), restored)


def test_a_pil_image_comes_back_with_its_profile(restorer: ImageRestorer, restored: NDArray[np.uint8]) -> None:
    """Without its colour profile the same pixels are shown in other colours."""
    image = Image.fromarray(field())
    image.info["icc_profile"] = b"profile"
    result = restorer(image)
    assert isinstance(result, Image.Image) and result.info["icc_profile"] == b"profile"
    assert np.array_equal(np.asarray(result), restored)


def test_tensors_come_back_as_tensors_one_or_many(restorer: ImageRestorer, restored: NDArray[np.uint8]) -> None:
    """A batch whose images see each other, or that loses its first axis, breaks every loop around it."""
    one = torch.from_numpy(field().copy()).permute(2, 0, 1)
    expected = torch.from_numpy(restored.copy()).permute(2, 0, 1)
    assert torch.equal(restorer(one), expected)
    many = restorer(torch.stack([one, one.flip(1)]))
    assert many.shape == (2, 3, 70, 101) and torch.equal(many[0], expected) and not torch.equal(many[1], expected)
    half = restorer((one / 255).to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.shape == one.shape


def test_the_details_have_the_pictures_size(restorer: ImageRestorer, restored: NDArray[np.uint8]) -> None:
    """A focus map of another size cannot be laid over the picture."""
    result = restorer.restore(field())
    assert np.array_equal(result.restored, restored) and np.array_equal(result.coarse, restored)
    assert result.focus_map_um.shape == (70, 101) and result.focus_map_um.dtype == np.float32
    batch = restorer.restore(torch.rand(2, 3, 40, 50))
    assert batch.focus_map_um.shape == (2, 1, 40, 50)


def test_what_is_in_focus_can_be_left_untouched(restorer: ImageRestorer) -> None:
    """In-focus tissue is evidence; the option must reach the network."""
    sparing = load_restorer(stop_after="p_former", skip_in_focus=True)
    sparing.network.in_focus_um = 1e6
    assert np.array_equal(sparing(field()), field())
    assert not np.array_equal(restorer(field()), field())


@pytest.mark.parametrize(("image", "kind", "message"), [
    (np.zeros((40, 50), np.uint8), ValueError, r"an array must have shape \(H, W, 3\), got \(40, 50\)"),
    (np.zeros((3, 40, 50), np.uint8), ValueError, r"\(H, W, 3\), got \(3, 40, 50\)"),
    (np.zeros((40, 50, 3), np.uint16), TypeError, "an array must be uint8 or floating, got uint16"),
    (np.full((40, 50, 3), 128.0), ValueError, r"must lie in \[0, 1\], got 128 to 128"),
    (np.full((40, 50, 3), np.nan), ValueError, r"must lie in \[0, 1\], got nan to nan"),
    (np.zeros((31, 50, 3), np.uint8), ValueError, "at least 32 x 32 px, got 31 x 50"),
    (Image.new("RGBA", (50, 40)), ValueError, "mode RGB, got RGBA"),
    (torch.zeros(40, 50, 3), ValueError, r"\(3, H, W\) or \(B, 3, H, W\), got \(40, 50, 3\)"),
    (torch.zeros(0, 3, 40, 50), ValueError, "got \\(0, 3, 40, 50\\)"),
    (torch.zeros(3, 40, 50, dtype=torch.int64), TypeError, "uint8 or floating, got torch.int64"),
    ("field.png", TypeError, "a numpy array, a PIL image or a tensor, got str"),
])
def test_what_is_no_rgb_picture_is_refused_in_one_sentence(restorer: ImageRestorer, image: Any, kind: type[Exception],
                                                           message: str) -> None:
    """A grey, transposed or unscaled picture would be restored into nonsense."""
    with pytest.raises(kind, match=message):
        restorer(image)


@pytest.mark.parametrize(("options", "message"), [
    ({"stop_after": "diffusion"}, "stop_after must be one of"),
    ({"device": "tpu"}, "device must be cpu or cuda, got tpu"),
    ({"batch": 0}, "batch must be positive and tile_px at least 32, got 0 and 256"),
    ({"tile_px": 16}, "got 1 and 16"),
])
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    """A mistyped option that is silently ignored gives the wrong picture."""
    with pytest.raises(ValueError, match=message):
        load_restorer(**options)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    """Nobody should get the shipped weights who asked for his own."""
    with pytest.raises(FileNotFoundError, match=r"mine\.pt does not"):
        load_restorer(weights=tmp_path / "mine.pt")


@pytest.mark.slow
def test_an_installed_package_restores_without_the_checkout(tmp_path: Path) -> None:
    """Who installs the wheel has no configs/ and models/ beside the package."""
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("bundle", "configs", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.ts"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(target)], cwd=source,
                   check=True, capture_output=True)
    program = ("import bundle, numpy; from bundle import load_restorer; "
               "load_restorer(stop_after='p_former')(numpy.zeros((40, 50, 3), numpy.uint8)); print(bundle.__file__)")
    environment = {**os.environ, "PYTHONPATH": str(target)}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
                           text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(target))
