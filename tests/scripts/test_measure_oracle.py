"""The linear filter that has seen the truth."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from skimage.data import immunohistochemistry

from bundle.conventions import to_uint8
from bundle.loading import WEIGHTS
from bundle.optics.camera import smoothed
from bundle.training.metrics import psnr


@pytest.fixture(scope="module")
def section() -> torch.Tensor:
    """scikit-image's colon section, (3, 512, 512) [0, 1]."""
    return torch.from_numpy(immunohistochemistry().copy()).permute(2, 0, 1).float() / 255


def test_it_undoes_a_blur_and_a_mixture_of_colours(script: ModuleType, section: torch.Tensor) -> None:
    """Without noise a linear change alike in all directions has a linear inverse."""
    sharp = section[:, :256, :256]
    mixture = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    blurred = torch.einsum("ij,jhw->ihw", mixture, smoothed(sharp, 0.8))
    middle = (None, slice(None), slice(64, 192), slice(64, 192))
    before = float(psnr(blurred[middle], sharp[middle]))
    assert float(psnr(script.filtered(blurred, sharp)[middle], sharp[middle])) > before + 12


def test_noise_is_not_undone(script: ModuleType, section: torch.Tensor) -> None:
    """The filter knows the truth's spectrum, not the truth."""
    sharp = section[:, :256, :256]
    noisy = (sharp + 0.1 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    gain = float(psnr(script.filtered(noisy, sharp)[None], sharp[None]) - psnr(noisy[None], sharp[None]))
    assert 1 < gain < 12


def test_the_p_former_stands_beside_it_field_by_field(script: ModuleType, tmp_path: Path, section: torch.Tensor,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """Of a mean alone nobody sees the one field that the network does not know."""
    fields = {"brown": section[:, :128, :128], "flat": section[:, :128, :128] * 0.02 + 0.9}
    for name, sharp in fields.items():
        Image.fromarray(to_uint8(sharp).permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    assert script.main([str(tmp_path), "--weights", str(WEIGHTS), "--tissue", "swapped"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4:2]] == ["filter", "P-former"]
    rows = {cells[1]: [float(cell) for cell in cells[2:5]]
            for cells in ([cell.strip() for cell in line.split("|")] for line in lines[-2:])}  # fmt: skip
    assert set(rows) == {"brown.png", "flat.png"}
    for known, found, difference in rows.values():
        assert difference == pytest.approx(found - known, abs=0.011)
    both = [float(line.split("12 planes")[1].split()[0]) for line in lines[:4:2]]
    assert both == pytest.approx([sum(column) / 2 for column in list(zip(*rows.values(), strict=True))[:2]], abs=0.011)


def test_fields_that_are_not_there_are_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_oracle.py: the fields must be a folder, not found: nowhere.\n"
