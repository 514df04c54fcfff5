"""The best and the worst fields as pictures: what every method made of them, beside the plane and the sharp field.

Fields are ranked by how much the last method gains over its input, PSNR in dB, mean over the planes: a field that is
easy as it is should not pass for a success. The plane shown is the one with the largest (or smallest) gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.evaluation.scores import Stack
from bundle.slides.whole_files import replace_when_done

DETAIL_PX = 192  # side of the lower row, from the middle of the field
OVERVIEW_PX = 480  # the upper row is made smaller to this


class Choice(NamedTuple):
    """A field and a plane to show."""

    title: str  # "best 1"
    name: str  # of the field
    position_um: float
    gain_db: float  # of this plane


def choose(records: Sequence[dict[str, Any]], count: int) -> list[Choice]:
    """`count` best fields and as many worst ones; of a few fields none is both.

    Args:
        records: of finished fields.
        count: of each kind; 0 shows none.
    """
    method = list(records[0]["planes"][0]["methods"])[-1]

    def gains(record: dict[str, Any]) -> list[float]:
        return [plane["methods"][method]["psnr"] - plane["methods"]["input"]["psnr"] for plane in record["planes"]]

    ranked = sorted(records, key=lambda record: -sum(gains(record)))
    best = ranked[:min(count, -(-len(ranked) // 2))]
    worst = ranked[::-1][:min(count, len(ranked) // 2)]
    choices = []
    for kind, chosen, extreme in (("best", best, max), ("worst", worst, min)):
        for place, record in enumerate(chosen, 1):
            gain = extreme(gains(record))
            plane = record["planes"][gains(record).index(gain)]
            choices.append(Choice(f"{kind} {place}", record["name"], plane["defocus_um"], gain))
    return choices


def write_pictures(choices: Sequence[Choice], folder: Path, open_stack: Callable[[str], Stack],
                   results: Callable[[Stack, float], dict[str, Tensor]], titles: dict[str, str]) -> None:
    """`best_1.png`, `worst_1.png` … in `folder`, replacing those of an earlier run.

    Args:
        choices: from `choose`.
        folder: made if needed.
        open_stack: a field by its name.
        results: what every method makes of a plane.
        titles: of methods.
    """
    for old in folder.glob("*_*.png"):
        if old.name.split("_")[0] in ("best", "worst"):
            old.unlink()
    for choice in choices:
        stack = open_stack(choice.name)
        images = results(stack, choice.position_um) | {"sharp": stack.sharp}
        drawn = Figure(figsize=(2.4 * len(images), 5.2), layout="constrained")
        axes = drawn.subplots(2, len(images), squeeze=False)
        for column, (name, image) in enumerate(images.items()):
            pixels = to_uint8(image.clamp(0, 1)).permute(1, 2, 0).cpu().numpy()
            step = max(1, -(-max(pixels.shape[:2]) // OVERVIEW_PX))
            axes[0, column].imshow(pixels[::step, ::step])
            axes[0, column].set_title(titles.get(name, name), fontsize=8)
            axes[1, column].imshow(_middle(pixels), interpolation="nearest")
            for axis in axes[:, column]:
                axis.set_axis_off()
        drawn.suptitle(f"{choice.title}: {choice.name} at {choice.position_um:+.1f} µm, gain {choice.gain_db:+.2f} dB")
        with replace_when_done(folder / f"{choice.title.replace(' ', '_')}.png", overwrite=True) as file:
            drawn.savefig(file, format="png", dpi=110)


def _middle(pixels: np.ndarray) -> np.ndarray:
    row, col = (max(0, (side - DETAIL_PX) // 2) for side in pixels.shape[:2])
    return pixels[row:row + DETAIL_PX, col:col + DETAIL_PX]
