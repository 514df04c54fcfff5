"""Figures 5 and 6 for prompts whose distances are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from bundle.p_former.network import PFormer
from bundle.prompts.prompter import Prompter
from bundle.reproduction.prompt_space import prompt_space, write_space
from bundle.training.batches import RecordedDefocus


class Means(nn.Module):
    """Four tokens, the mean colours of an image's quarters."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, image.shape[-1] // 2).flatten(2).transpose(1, 2)


class Halfway(nn.Module):
    """In the place of the prompter: its restorer goes half of the way to black."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Means()

    def restorer(self, tokens: Tensor, defocus: Tensor) -> Tensor:
        return tokens / 2

    def estimator(self, image: Tensor) -> Any:
        return type("Estimate", (), {"prompt": image})


class Darker(nn.Module):
    """In the place of Restormer."""

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        return image - 0.2


def test_distances_are_to_the_sharp_prompt_and_the_picture_shows_all(tmp_path: Path) -> None:
    """A distance to the wrong prompt would praise a restorer that does nothing."""
    batches = [{"image": torch.full((2, 3, 8, 8), 204, dtype=torch.uint8), "defocus_um": torch.zeros(2),
                "label": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "contrast": torch.ones(2)} for _ in range(4)]
    space = prompt_space(batches, RecordedDefocus(), cast(Prompter, Halfway()), cast(PFormer, Darker()),
                         torch.device("cpu"))
    torch.testing.assert_close(torch.tensor(list(space.mse.values())), torch.tensor([0.64, 0.36, 0.16]))
    assert list(space.mse) == ["P_LP", "P_Res", "P_P"]
    assert all(values.shape == (8, 3) for values in space.pooled.values())
    space = space._replace(pooled={name: values + 0.01 * torch.randn(8, 3) for name, values in space.pooled.items()})
    write_space(space, tmp_path, "means")
    assert (tmp_path / "mse.csv").read_text().splitlines() == ["prompt,mse_to_P_HP", "P_LP,0.64", "P_Res,0.36",
                                                               "P_P,0.16"]
    assert Image.open(tmp_path / "t_sne.png").width == 600
