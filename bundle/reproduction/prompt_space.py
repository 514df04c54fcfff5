"""Figures 5 and 6: how near do P_LP, P_Res and P_P come to P_HP, for a frozen encoder?

    P_LP     tokens of the defocused patch        P_Res    tokens of what Restormer made of it
    P_P      P_LP through the prompt restorer     P_HP     tokens of the sharp patch
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from bundle.p_former.network import PFormer
from bundle.prompts.prompter import Prompter
from bundle.slides.whole_files import replace_when_done
from bundle.training.batches import Source, pairs_of

NAMES = ("P_LP", "P_Res", "P_P", "P_HP")
COLOURS = {"P_LP": "tab:green", "P_Res": "tab:red", "P_P": "tab:blue", "P_HP": "tab:orange"}  # as in figure 5


class PromptSpace(NamedTuple):
    """Prompts of the same patches."""

    pooled: dict[str, Tensor]  # of each kind, mean over the tokens, (N, D)
    mse: dict[str, float]  # of each kind but P_HP, to P_HP, over all tokens


@torch.no_grad()
def prompt_space(batches: Iterable[dict[str, Any]], source: Source, prompter: Prompter, restormer: PFormer,
                 device: torch.device) -> PromptSpace:
    """Prompts of all patches of a loader.

    Args:
        batches: of patches, as trainers see them.
        source: defocuses them, or hands on what was recorded.
        prompter: with its restorer.
        restormer: the coarse network; without experts, so that it needs no prompt.
        device: where to run.
    """
    prompter, restormer = prompter.to(device).eval(), restormer.to(device).eval()
    assert prompter.restorer is not None
    pooled: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    errors: dict[str, list[Tensor]] = {name: [] for name in NAMES[:-1]}
    for batch in batches:
        drawn = pairs_of(source, batch, device)
        blurred = prompter.encoder(drawn.image)
        tokens = {"P_LP": blurred, "P_Res": prompter.encoder(restormer(drawn.image, blurred).clamp(0, 1)),
                  "P_P": prompter.restorer(blurred, prompter.estimator(drawn.image).prompt),
                  "P_HP": prompter.encoder(drawn.label)}
        for name in NAMES:
            pooled[name].append(tokens[name].mean(1).cpu())
        for name in errors:
            errors[name].append((tokens[name] - tokens["P_HP"]).square().mean((1, 2)).cpu())
    return PromptSpace({name: torch.cat(parts) for name, parts in pooled.items()},
                       {name: float(torch.cat(parts).mean()) for name, parts in errors.items()})


def write_space(space: PromptSpace, folder: Path, title: str, seed: int = 0) -> None:
    """`mse.csv` and `t_sne.png` in `folder`: all kinds of prompts in one t-SNE."""
    with replace_when_done(folder / "mse.csv", overwrite=True) as file:
        lines = [("prompt", "mse_to_P_HP"), *((name, f"{value:.6g}") for name, value in space.mse.items())]
        file.write("".join(",".join(line) + "\n" for line in lines).encode())
    with replace_when_done(folder / "t_sne.png", overwrite=True) as file:
        _picture(space, title, seed).savefig(file, format="png", dpi=120)


def _picture(space: PromptSpace, title: str, seed: int) -> Figure:
    every = torch.cat([space.pooled[name] for name in NAMES])
    count = len(space.pooled["P_HP"])
    # t-SNE needs fewer neighbours than points.
    places = TSNE(perplexity=min(30.0, (len(every) - 1) / 3), random_state=seed).fit_transform(every.numpy())
    drawn = Figure(figsize=(5, 4.6), layout="constrained")
    axis = drawn.subplots()
    for number, name in enumerate(NAMES):
        part = places[number * count:(number + 1) * count]
        label = name if name == "P_HP" else f"{name}, MSE {space.mse[name]:.3g}"
        axis.scatter(part[:, 0], part[:, 1], s=8, color=COLOURS[name], label=label)
    axis.set(title=title, xticks=[], yticks=[])
    axis.legend(fontsize=8)
    return drawn
