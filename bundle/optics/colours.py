"""Defocus moves light, it does not dye it: the low frequencies of a restored image are those of its input.

    v       value of the file, sRGB                      [0, 1]
    l(v)    light: sRGB's curve, or v^gamma              [0, 1]
    kept    l⁻¹(l(result) + G_σ * (l(image) - l(result)))
"""

from __future__ import annotations

from torch import Tensor

from bundle.optics.camera import smoothed
from bundle.optics.focal_stack import to_linear, to_srgb


def keep_colours(image: Tensor, result: Tensor, sigma_px: float = 16.0, gamma: float | None = None) -> Tensor:
    """`result` with the low frequencies of `image`.

    Args:
        image: (B, 3, H, W), [0, 1].
        result: (B, 3, H, W), values outside [0, 1] are clipped first.
        sigma_px: of the Gaussian beyond which frequencies are low; 0 leaves colours free.
        gamma: light is values to this power; None: sRGB's linear light. Blur leaves the mean of light unchanged, and a
            file from many a microscope's camera holds light itself (1). See decision 9.

    Returns:
        (B, 3, H, W), [0, 1].
    """
    result = result.clamp(0, 1)
    if sigma_px <= 0:
        return result
    if gamma is None:
        light = to_linear(result)
        return to_srgb(light + smoothed(to_linear(image) - light, sigma_px))
    light = result**gamma
    return (light + smoothed(image**gamma - light, sigma_px)).clamp(0, 1) ** (1 / gamma)
