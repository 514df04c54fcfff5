"""The measure of weaves."""

from types import ModuleType

import pytest
import torch


def mean_power(script: ModuleType, weave: torch.Tensor) -> torch.Tensor:
    """Of 12 pictures of noise of 2 grey levels, each with `weave`, (256, 256)."""
    pictures = [2 * torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(number)).expand(3, -1, -1) + weave
                for number in range(12)]
    return torch.stack([script.power(picture) for picture in pictures]).mean(0)


def test_a_slanted_wave_is_found_in_noise(script: ModuleType) -> None:
    """With its size, period and direction."""
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    weave = script.weave_of(mean_power(script, torch.sin(2 * torch.pi * (0.17 * rows - 0.17 * columns))))
    assert weave.deviation == pytest.approx(0.5**0.5, rel=0.1)  # of a sine of 1 grey level
    assert weave.period_px == pytest.approx(1 / 0.24, rel=0.03) and weave.direction_deg == pytest.approx(135, abs=3)


def test_noise_and_tissue_like_spectra_hold_no_weave(script: ModuleType) -> None:
    """Alike in every direction, they leave nothing over."""
    spectrum = mean_power(script, torch.zeros(256, 256))
    assert script.weave_of(spectrum).deviation < 0.02
    rows, columns = torch.meshgrid(*[torch.fft.fftfreq(256)] * 2, indexing="ij")
    assert script.weave_of(spectrum / (0.01 + rows.square() + columns.square())).deviation < 0.05
    assert script.weave_of(spectrum).whole == pytest.approx(2 * (torch.pi * (0.45**2 - 0.12**2)) ** 0.5, rel=0.05)


def test_a_folder_that_is_not_there_is_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_weave.py: the fields must be a folder, not found: nowhere.\n"
