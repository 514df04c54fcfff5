"""The measure of too little detail, and of too much."""

from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """White noise: the same power in every octave, (3, 256, 256)."""
    return 0.5 + 0.1 * torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))


def test_half_of_the_detail_ought_to_be_doubled(script: ModuleType, truth: torch.Tensor) -> None:
    """Whatever the colours' means are."""
    wanted, given = script.products((truth - truth.mean()) / 2, truth)
    assert wanted / given == pytest.approx(torch.full((4,), 2.0), abs=1e-4)


def test_noise_ought_to_be_taken_back(script: ModuleType, truth: torch.Tensor) -> None:
    """As strong as the truth, it leaves half."""
    noise = 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    wanted, given = script.products(truth + noise, truth)
    assert wanted / given == pytest.approx(torch.full((4,), 0.5), abs=0.1)


def test_an_octave_is_told_from_the_next(script: ModuleType, truth: torch.Tensor) -> None:
    """A wave of 12 px belongs to 8 to 16 px."""
    wave = torch.sin(2 * torch.pi * torch.arange(256.0) / 12).expand(3, 256, 256)
    (_, given) = script.products(wave, truth)
    assert given[1] > 100 * given[[0, 2, 3]].max()


def test_bad_arguments_are_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_detail.py: the fields must be a folder, not found: nowhere.\n"
    assert script.main(["nowhere", "--every", "0"]) == 1
    assert capsys.readouterr().err == "measure_detail.py: --every must be 1 or more, got 0.\n"
