"""Edge prompt and the mixture as a whole."""

from __future__ import annotations

import pytest
import torch

from bundle.prompts.canny import canny
from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimator
from bundle.prompts.edge import EdgePrompt
from bundle.prompts.pathology import PromptRestorer
from bundle.prompts.prompter import Prompter


def test_edges_count_where_the_defocus_prompt_trusts_them() -> None:
    """Edges of blurred regions are unreliable; unweighted they would be drawn into the tissue."""
    torch.manual_seed(0)
    prompt = EdgePrompt(4, 6, fold=2)
    torch.nn.init.zeros_(prompt.reliability.bias)
    edges = (torch.rand(1, 1, 16, 24) > 0.7).float()
    assert torch.equal(prompt(edges, torch.zeros(1, 6, 1, 2)), torch.zeros(1, 4, 8, 12))
    defocus = torch.randn(1, 6, 1, 2)
    assert torch.allclose(prompt(edges, 3 * defocus), 3 * prompt(edges, defocus), atol=1e-5)


def test_the_mixture_holds_what_each_of_its_makers_says() -> None:
    """A prompt handed to the wrong consumer would still have a valid shape."""
    torch.manual_seed(0)
    estimator, encoder = DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 8)), CompactEncoder(16, 1, 4)
    prompter = Prompter(estimator, encoder, PromptRestorer(16, 8, 1, 4)).eval()
    torch.nn.init.normal_(prompter.restorer.correction.weight)
    image = torch.rand(2, 3, 64, 96)
    mixture, estimate = prompter(image), estimator(image)
    assert torch.equal(mixture.defocus, estimate.prompt) and torch.equal(mixture.defocus_um, estimate.defocus_um)
    assert torch.equal(mixture.edges, canny(image, 1.0, 0.05, 0.10))
    assert torch.equal(mixture.pathology, prompter.restorer(encoder(image), estimate.prompt))
    assert torch.equal(mixture.pathology, prompter.pathology(image))
    assert torch.equal(Prompter(estimator, encoder, None)(image).pathology, encoder(image))


def test_the_gates_are_told_the_prompts_that_a_row_of_table_4_names() -> None:
    """Two rows with the same gates would say that a prompt does not matter."""
    torch.manual_seed(0)
    estimator, encoder = DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 8)), CompactEncoder(16, 1, 4)
    prompter = Prompter(estimator, encoder, PromptRestorer(16, 8, 1, 4)).eval()
    torch.nn.init.normal_(prompter.restorer.correction.weight)
    image = torch.rand(2, 3, 64, 96)
    pooled = {"defocus": estimator(image).prompt.mean((2, 3)), "blurred": encoder(image).mean(1),
              "pathology": prompter.pathology(image).mean(1)}
    assert not torch.allclose(pooled["blurred"], pooled["pathology"], atol=1e-3)
    for names in (["defocus"], ["blurred"], ["pathology"], ["defocus", "blurred"], ["defocus", "pathology"]):
        told = prompter.gate_prompt(image, names)
        assert torch.equal(told[:, 0], torch.cat([pooled[name] for name in names], 1))
    with pytest.raises(ValueError, match="gate prompts must be some of"):
        prompter.gate_prompt(image, ["edges"])
