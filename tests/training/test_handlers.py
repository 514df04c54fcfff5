"""What keeps a training alive without a person: clipped gradients, half the memory, unchanged losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from torch.optim import SGD

from bundle.prompts.defocus import DefocusEstimate, DefocusEstimator
from bundle.training.handlers import ClipGradients
from bundle.training.precision import MixedPrecision


@pytest.mark.parametrize(("max_norm", "moved"), [(0.5, 0.5), (100.0, 8.0)])
def test_one_wild_batch_moves_the_weights_by_no_more_than_it_may(max_norm: float, moved: float) -> None:
    """A patch of ink gives a gradient a hundred times the usual: unclipped it undoes an hour of training."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = SGD(network.parameters(), lr=1.0)
    batch = [{"image": torch.full((4, 1), 2.0), "label": torch.full((4, 1), 2.0)}]  # gradient of the loss: -2 · 2 · 2
    SupervisedTrainer(torch.device("cpu"), 1, batch, network, optimizer, nn.MSELoss(),
                      train_handlers=[ClipGradients(network, max_norm)]).run()
    assert float(network.weight) == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_forward_pass_is_bfloat16_and_what_leaves_it_float32(enabled: bool) -> None:
    """A loss in bfloat16 has three digits; a forward pass in float32 takes twice the memory of a GPU."""
    seen: list[torch.dtype] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, image: Tensor) -> Tensor:
            answer: Any = self.layer(image)
            seen.append(answer.dtype)
            return answer

    network, image = Network(), torch.rand(2, 8)
    answer = MixedPrecision(SimpleInferer(), enabled)(image, network)
    assert answer.dtype == torch.float32 and network.layer.weight.dtype == torch.float32
    assert seen == [torch.bfloat16 if enabled else torch.float32]
    answer.sum().backward()
    assert network.layer.weight.grad.dtype == torch.float32


def test_an_estimate_of_several_tensors_leaves_in_float32_too() -> None:
    """A distance in bfloat16 is told in steps of 0.03 µm, and the loss of stage 1 would be made of them."""
    estimator = DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 16), frequencies=8).eval()
    image = torch.rand(2, 3, 64, 64)
    estimate = MixedPrecision(SimpleInferer())(image, estimator)
    assert isinstance(estimate, DefocusEstimate) and {part.dtype for part in estimate} == {torch.float32}
    exact = estimator(image)
    assert not torch.equal(estimate.defocus_um, exact.defocus_um)
    assert torch.allclose(estimate.defocus_um, exact.defocus_um, atol=0.05)
