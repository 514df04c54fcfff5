"""The measure of real pairs: a truth that lies beside its image, places that were sharp, folders that are none."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.data import immunohistochemistry
from skimage.metrics import peak_signal_noise_ratio

Pixels = NDArray[np.float32]

SECTION = immunohistochemistry()[64:320, 64:320].astype(np.float32) / 255
LEFT = np.arange(256)[None, :, None] < 128
MOVE = (1.5, -2.5)  # px between the planes
EVERYWHERE = np.ones(SECTION.shape[:2], bool)


def _blurred(image: Pixels) -> Pixels:
    return ndimage.gaussian_filter(image, (3, 3, 0))


@pytest.fixture(scope="module")
def planes() -> tuple[Pixels, Pixels]:
    """A tilted field at two depths: the left half is out of focus in the first, the right half in the second.

    The second lies elsewhere; the pattern of the sensor is the same in both, and strong.
    """
    pattern = np.random.default_rng(0).normal(0, 0.03, SECTION.shape).astype(np.float32)
    near = np.where(LEFT, _blurred(SECTION), SECTION)
    far = ndimage.shift(np.where(LEFT, SECTION, _blurred(SECTION)), (-MOVE[0], -MOVE[1], 0), mode="nearest")
    return (near + pattern).clip(0, 1), (far + pattern).clip(0, 1)


def _write(folder: Path, **images: Pixels) -> Path:
    for side, image in images.items():
        (folder / side).mkdir(parents=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / side / "0001.png")
    return folder


def test_the_truth_is_laid_on_its_image(script: ModuleType, planes: tuple[Pixels, Pixels]) -> None:
    """Though half of each plane is blurred and the sensor's pattern did not move."""
    near, far = planes
    laid, moved_px = script.laid_on(far, near)
    assert moved_px == pytest.approx(np.hypot(*MOVE), abs=0.25)
    here, beside = (np.square(one - SECTION)[:, 16:112].mean() for one in (laid, far))  # where far is in focus
    assert here < beside / 2
    with pytest.raises(ValueError, match=r"must show one field, their detail agrees by -?0\.0"):
        script.laid_on(near[::-1, ::-1].copy(), near)


def test_figures_are_those_of_the_images_inside_the_mask(script: ModuleType) -> None:
    """Against figures that are known; outside of the mask anything may be."""
    half = EVERYWHERE & LEFT[..., 0]
    darker = np.where(LEFT, SECTION * 0.8 + 0.05, 0.0)
    found = script.figures(darker, SECTION, half)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(SECTION[:, :128], darker[:, :128], data_range=1), 1e-4)
    assert script.correlation(SECTION * 0.5 + 0.2, SECTION, half) == pytest.approx(1)
    assert script.correlation(np.full_like(SECTION, 0.5), SECTION, half) == 0
    assert script.figures(SECTION, SECTION, half)[1:] == pytest.approx((1, 1))
    assert 0 < script.figures(_blurred(SECTION), SECTION, half).ssim < 0.9


def test_only_tissue_where_one_plane_is_clearly_sharper_is_judged(script: ModuleType,
                                                                  planes: tuple[Pixels, Pixels]) -> None:
    """The left half for a truth, the right half for what must stay, no rim, no glass, no handful of pixels."""
    near, far = planes
    blurred, sharp = script.sharper(far, near), script.sharper(near, far)
    for mask, half in ((blurred, LEFT[..., 0]), (sharp, ~LEFT[..., 0])):
        assert mask[half & EVERYWHERE].mean() > 0.5 and mask[~half & EVERYWHERE].mean() < 0.05
        assert not mask[:16].any() and not mask[:, -16:].any()
    assert not script.sharper(near, near).any()
    glass = script.measure_field(near * 0.1 + 0.88, far * 0.1 + 0.88, near * 0.1 + 0.88)
    small = script.measure_field(near[:72, 92:164], far[:72, 92:164], near[:72, 92:164])
    for field in (glass, small, script.measure_field(near, near, near)):
        assert (field.recorded, field.restored, field.kept) == (None, None, None)


def test_a_restoration_gains_where_it_is_right_and_only_there(script: ModuleType,
                                                              planes: tuple[Pixels, Pixels]) -> None:
    """The sharp section itself is the best restoration; the plane as it came gains nothing and keeps all."""
    near, far = planes
    as_it_came = script.measure_field(near, far, near)
    assert as_it_came.recorded == as_it_came.restored and as_it_came.kept == pytest.approx((1, 1))
    assert as_it_came.moved_px == pytest.approx(np.hypot(*MOVE), abs=0.25)
    best, unmoved = (script.measure_field(near, far, np.where(LEFT, SECTION, near), as_recorded)
                     for as_recorded in (False, True))  # fmt: skip
    assert best.restored.psnr > best.recorded.psnr + 1 and best.restored.gradients > best.recorded.gradients + 0.1
    assert best.kept == pytest.approx((1, 1), abs=0.02)
    assert unmoved.moved_px == 0 and unmoved.restored.psnr < best.restored.psnr - 1
    spoilt = script.measure_field(near, far, np.where(LEFT, near, _blurred(near)))
    assert spoilt.kept[0] < 0.5 and spoilt.kept[1] < 0.95
    assert spoilt.restored == pytest.approx(spoilt.recorded, abs=0.05)


def test_it_is_measured_from_the_command_to_the_table(script: ModuleType, planes: tuple[Pixels, Pixels],
                                                      tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Near first, as its name sorts last; hidden files and notes count for nothing."""
    near, far = planes
    pairs = _write(tmp_path / "pairs", near=near, far=far)
    (pairs / ".cache").mkdir()
    (pairs / "near" / ".DS_Store").touch()
    (pairs / "far" / "notes.txt").touch()
    restored = _write(tmp_path / "restored", near=SECTION, far=far)

    def rows(*options: str) -> list[list[str]]:
        assert script.main([str(pairs), str(restored), *options]) == 0
        return [[cell.strip() for cell in row.split("|")[1:4]] for row in capsys.readouterr().out.splitlines()]

    table = rows()
    assert table[0] == ["", "near", "far"] and table[2][1:] == table[7][1:] == ["1", "1"]
    assert [float(cell.split()[0]) for cell in table[3][1:]] == pytest.approx([np.hypot(*MOVE)] * 2, abs=0.25)
    assert float(table[6][1].split()[0]) > 1 and table[6][2] == "+0.000 dB, +0.0000, +0.0000"
    assert table[8][2] == "1.00, 1.000"
    recorded = rows("--as-recorded")
    assert recorded[3][1:] == ["0.0 px", "0.0 px"]
    assert float(recorded[6][1].split()[0]) < float(table[6][1].split()[0])


def test_bad_folders_are_one_sentence(script: ModuleType, planes: tuple[Pixels, Pixels], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what is missing."""
    near, far = planes
    pairs = _write(tmp_path / "pairs", near=near, far=far)

    def said(*folders: Path) -> str:
        assert script.main([str(folder) for folder in folders]) == 1
        told = capsys.readouterr()
        assert not told.out and "\n" not in told.err.strip()
        return told.err

    assert "the pairs must be a folder, got " in said(tmp_path / "none", pairs)
    assert "must hold two folders of images, one a depth; found: none" in said(pairs / "near", pairs)
    assert f"{tmp_path / 'none' / 'near' / '0001.png'} is missing" in said(pairs, tmp_path / "none")
    cut = _write(tmp_path / "cut", near=near[:128], far=far)
    assert "must have one size, got 256 x 256, 256 x 256, 128 x 256" in said(pairs, cut)
    others = _write(tmp_path / "others", near=near, far=near[::-1, ::-1])
    assert "0001.png: the two planes must show one field" in said(others, others)
    same = _write(tmp_path / "same", near=near, far=near)
    assert "has tissue where one plane is clearly sharper than the other" in said(same, same)
    (pairs / "far" / "0001.png").write_bytes(b"no image")
    assert "0001.png" in said(pairs, pairs)
    (pairs / "far" / "0001.png").rename(pairs / "far" / "0002.png")
    assert "must hold images of the same names; only one has 0001.png" in said(pairs, pairs)
    for side in ("near", "far"):
        for file in (pairs / side).iterdir():
            file.rename(file.with_suffix(".txt"))
    assert "images of the same names; none (.png, .jpg, .jpeg, .tif, .tiff) is there" in said(pairs, pairs)
