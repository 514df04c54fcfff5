"""MONAI Deploy's operators of MoP: pixels in, the bundle's network, PNG and TIFF out, DICOM of a DICOM slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from monai.data import MetaTensor
from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.operators import MonaiBundleInferenceOperator
from monai.deploy.operators.dicom_utils import save_dcm_file
from monai.inferers import SlidingWindowInferer
from mop_dicom import Source, secondary_capture
from numpy.typing import NDArray
from PIL import Image as Picture

from bundle.conventions import to_uint8
from bundle.restoration import TileRestorer
from bundle.slides.whole_files import replace_when_done


class ReadOperator(Operator):
    """Hands over the pixels that were read: out `image`, (H, W, 3) uint8."""

    def __init__(self, fragment: Fragment, *args: Any, pixels: NDArray[np.uint8], **kwargs: Any) -> None:
        self._pixels = pixels
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """One output."""
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Emit the pixels; as an array, because the SDK turns an Image into a volume."""
        op_output.emit(self._pixels, "image")


class RestoreOperator(MonaiBundleInferenceOperator):
    """The SDK's bundle operator for a network whose output is a picture.

    The stock one sends one channel only, and reads metadata off a tensor that the bundle keeps plain.
    """

    def pre_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The bundle's preprocessing; the tensor gets back the metadata that the SDK asks for."""
        # The SDK leaves out the loading of a file, which would have put the channels first.
        planes = {key: torch.as_tensor(value).permute(2, 0, 1).contiguous() for key, value in data.items()}
        return {key: MetaTensor(value) for key, value in super().pre_process(planes, *args, **kwargs).items()}

    def predict(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(1, 3, H, W) -> (1, 3, H, W), both in [0, 1]: tiles by the bundle's inferer, windows for TorchScript."""
        image = data.as_tensor() if isinstance(data, MetaTensor) else data
        infer = self._inferer
        if not isinstance(self._model_network, TileRestorer):
            tile_px, overlap_px = self.parser["tile_px"], self.parser["overlap_px"]
            window = [min(tile_px, side) for side in image.shape[-2:]]
            infer = SlidingWindowInferer(window, 1, overlap_px / tile_px, mode="gaussian")
        restored: torch.Tensor = infer(image, self._model_network)
        return restored

    def _send_output(self, value: Any, name: str, metadata: dict[str, Any], op_output: Any, context: Any) -> None:
        """(3, H, W) in [0, 1] -> Image of (H, W, 3) uint8."""
        pixels = to_uint8(torch.as_tensor(value)).permute(1, 2, 0).cpu().numpy()
        op_output.emit(Image(np.ascontiguousarray(pixels)), name)


class WriteOperator(Operator):
    """Writes `STEM_restored.png` and `STEM_restored.tif` (LZW), of a DICOM slide `STEM_restored.dcm` too.

    In `image`, an Image of (H, W, 3) uint8.

    Args:
        folder, stem: of the files.
        source: the DICOM slide that the pixels are of, None for other images.
        weights: the file that restores.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, stem: str, source: Source | None, weights: Path,
                 **kwargs: Any) -> None:
        self._folder, self._stem, self._source, self._weights = folder, stem, source, weights
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """One input."""
        spec.input("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the files; each gets its name when it is whole."""
        pixels = op_input.receive("image").asnumpy()
        with replace_when_done(self._folder / f"{self._stem}_restored.png", overwrite=True) as file:
            Picture.fromarray(pixels).save(file, "PNG")
        with replace_when_done(self._folder / f"{self._stem}_restored.tif", overwrite=True) as file:
            tifffile.imwrite(file, pixels, photometric="rgb", compression="lzw")
        if self._source is not None:
            with replace_when_done(self._folder / f"{self._stem}_restored.dcm", overwrite=True) as file:
                save_dcm_file(secondary_capture(pixels, self._source, self._weights), Path(file.name))
