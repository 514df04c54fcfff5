"""The same field as other tissue would show it: what a measurement shows beside the field's own colours.

Every one maps a sharp image (3, H, W), [0, 1], and a number, which seeds what is drawn, to the same.
Source: docs/decisions/0014-unseen-tissue.md.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bundle.conventions import LABEL, from_uint8, to_uint8
from bundle.data.unseen_tissue import RandDetailContrastd, RandStainMixd


def _drawn(transform: type[RandStainMixd] | type[RandDetailContrastd]) -> Callable[[Tensor, int], Tensor]:
    def change(sharp: Tensor, number: int) -> Tensor:
        return from_uint8(transform(prob=1.0).set_random_state(number)({LABEL: to_uint8(sharp)})[LABEL])
    return change


TISSUES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "own": lambda sharp, number: sharp,
    "grey": lambda sharp, number: sharp.mean(0, keepdim=True).expand(3, -1, -1).contiguous(),
    "swapped": lambda sharp, number: sharp.flip(0),
    "mixed": _drawn(RandStainMixd),
    "contrast": _drawn(RandDetailContrastd),
}
TISSUES_HELP = ("what the fields show: their own colours (default), grey, red and blue swapped, mixed as training draws"
                " them; other contrast")  # fmt: skip
