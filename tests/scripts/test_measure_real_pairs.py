"""The measure of real pairs: a truth that lies beside its image, places that were sharp, folders that are none."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.data import immunohistochemistry

SECTION = immunohistochemistry()[64:320, 64:320].astype(np.float32) / 255
LEFT = np.arange(256)[None, :, None] < 128
MOVE = (1.8, -2.3)  # px between the planes


def _blurred(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return ndimage.gaussian_filter(image, (3, 3, 0))


@pytest.fixture(scope="module")
def planes() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A tilted field at two depths: the left half is out of focus in the first, the right half in the second.

    The second lies elsewhere; the pattern of the sensor is the same in both, and strong.
    """
    pattern = np.random.default_rng(0).normal(0, 0.03, SECTION.shape).astype(np.float32)
    near = np.where(LEFT, _blurred(SECTION), SECTION)
    far = ndimage.shift(np.where(LEFT, SECTION, _blurred(SECTION)), (-MOVE[0], -MOVE[1], 0), mode="nearest")
    return (near + pattern).clip(0, 1), (far + pattern).clip(0, 1)


def _write(folder: Path, **images: NDArray[np.float32]) -> Path:
    for side, image in images.items():
        (folder / side).mkdir(parents=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / side / "0001.png")
    return folder


def test_the_truth_is_laid_on_its_image(script: ModuleType, planes: tuple[NDArray[np.float32], ...]) -> None:
    """By half a pixel, though half of each plane is blurred and the sensor's pattern did not move."""
    near, far = planes
    assert script.move_between(far, near) == pytest.approx(MOVE, abs=0.5)
    assert script.move_between(near, far) == pytest.approx((-MOVE[0], -MOVE[1]), abs=0.5)
    assert script.move_between(np.roll(near, 60, 1), near) == (0.0, 0.0)  # nobody believes that


def test_a_restoration_gains_where_it_is_right_and_only_there(script: ModuleType,
                                                              planes: tuple[NDArray[np.float32], ...]) -> None:
    """The sharp section itself is the best restoration; the plane as it came gains nothing and keeps all."""
    near, far = planes
    as_it_came = script.measure_field(near, far, near)
    assert as_it_came.recorded == as_it_came.restored and as_it_came.kept == pytest.approx((1, 1))
    assert as_it_came.moved_px == pytest.approx(np.hypot(*MOVE), abs=0.5)
    best, unmoved = (script.measure_field(near, far, SECTION, as_recorded) for as_recorded in (False, True))
    assert best.restored.psnr > best.recorded.psnr + 1 and best.restored.gradients > best.recorded.gradients + 0.1
    assert unmoved.moved_px == 0 and unmoved.restored.psnr < best.restored.psnr - 1
    softer = script.measure_field(near, far, _blurred(near))
    assert softer.kept[0] < 0.5 and softer.restored.ssim < best.restored.ssim
    nowhere = script.measure_field(near, near, near)
    assert (nowhere.recorded, nowhere.restored, nowhere.kept) == (None, None, None)


def test_it_is_measured_from_the_command_to_the_table(script: ModuleType, planes: tuple[NDArray[np.float32], ...],
                                                      tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Near first, as its name sorts last; hidden files count for nothing."""
    near, far = planes
    pairs = _write(tmp_path / "pairs", near=near, far=far)
    (pairs / "near" / ".DS_Store").touch()
    restored = _write(tmp_path / "restored", near=SECTION, far=far)
    assert script.main([str(pairs), str(restored)]) == 0
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["", "near", "far"] and rows[2][1:] == ["1", "1"]
    assert float(rows[6][1].split()[0]) > 1 and rows[6][2] == "+0.000 dB, +0.0000, +0.0000"
    assert rows[7][2] == "1.00, 1.000"


def test_bad_folders_are_one_sentence(script: ModuleType, planes: tuple[NDArray[np.float32], ...], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what is missing."""
    near, far = planes
    pairs = _write(tmp_path / "pairs", near=near, far=far)

    def said(*folders: Path) -> str:
        assert script.main([str(folder) for folder in folders]) == 1
        told = capsys.readouterr()
        assert not told.out and "\n" not in told.err.strip()
        return told.err

    assert "the pairs must be a folder, not found: " in said(tmp_path / "none", pairs)
    assert "must hold two folders of images of the same names, one a depth; found: none" in said(pairs / "near", pairs)
    assert "0001.png" in said(pairs, tmp_path / "none")
    assert "must have one size, got 256 x 256, 256 x 256, 128 x 256" in said(
        pairs, _write(tmp_path / "cut", near=near[:128], far=far))  # fmt: skip
    (pairs / "far" / "0001.png").rename(pairs / "far" / "0002.png")
    (pairs / "far" / "0003.png").write_bytes(b"no image")
    assert "found: near (1 files), far (2 files)" in said(pairs, pairs)
