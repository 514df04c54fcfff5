"""MONAI Deploy's application of MoP: a picture or a slide's region in, restored PNG and TIFF out.

    python integrations/deploy/app.py -i field.png -o restored                     the bundle of this checkout
    python integrations/deploy/app.py -i field.png -o restored -m bundle_folder    an unpacked bundle
    python integrations/deploy/app.py -i field.png -o restored -m model.ts         what `mop export` wrote

Reads   the file -i, or the only image of the folder -i: PNG, JPEG, TIFF, slide, DICOM slide (all files of one series
        are one image), 8-bit RGB. A region.json beside the image of a folder names a part:
        {"location": [x, y], "size": [width, height], "level": 0}, as in bundle/slides/region.py
Writes  NAME_restored.png and NAME_restored.tif into the folder -o; of a DICOM slide also NAME_restored.dcm, a Secondary
        Capture image in the patient's study

With the bundle the pixels are those of `mop restore` of the same region. model.ts goes by MONAI's sliding window:
every window draws the same noise, which is only fit for pictures of a few windows.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, IOType, init_app_context
from monai.deploy.operators import IOMapping

# The package lies in the bundle's folder: beside the app in a checkout, under the model's path in a MAP.
CHECKOUT = Path(__file__).resolve().parents[2]


def bundle_folder(context: AppContext) -> Path | None:
    """The bundle's folder that -m (in a MAP: HOLOSCAN_MODEL_PATH) names or holds; None where it holds none.

    Without either it is this checkout.
    """
    path = Path(context.model_path)
    for folder in (path, *(sorted(path.iterdir()) if path.is_dir() else ())):
        if (folder / "configs" / "inference.json").is_file():
            return folder
    return CHECKOUT if "model" not in context.args and (CHECKOUT / "configs").is_dir() else None


def weights_of(context: AppContext, bundle: Path | None) -> Path:
    """The file that restores: of TorchScript what -m names, or in a MAP the first of the folder that it names."""
    if bundle is not None:
        return bundle / "models" / "model.pt"
    path = Path(context.model_path)
    return path if path.is_file() else next(iter(sorted(path.rglob("*.ts"))), path)


def image_of(path: Path) -> tuple[Path, dict[str, object]]:
    """The image of -i, and what region.json beside it says.

    Raises:
        ValueError: not exactly one image, or region.json is no JSON object.
    """
    if path.is_file():
        return path, {}
    from bundle.slides.reader import IMAGE_SUFFIXES

    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if all(file.suffix.lower() == ".dcm" for file in images):
        from bundle.slides.dicom_reader import one_per_series

        images = one_per_series(images)
    if len(images) != 1:
        raise ValueError(f"the input folder must hold one image, {path} holds {len(images)}.")
    named = path / "region.json"
    wishes = json.loads(named.read_text(encoding="utf-8")) if named.is_file() else {}
    if not isinstance(wishes, dict):
        raise ValueError(f"region.json must hold an object, got {type(wishes).__name__}.")
    return images[0], wishes


class MopApp(Application):
    """read -> restore -> write.

    Args:
        context: paths and models, from the command line or a MAP's environment.
        bundle: its folder; None for a TorchScript model.
        image: the file.
        pixels: of the region to restore, (H, W, 3) uint8.
        source: the DICOM slide that they are of, a `mop_dicom.Source`; None for other images.
    """

    name = "mop_pathology_restoration"
    description = "Brings out-of-focus pathology images into focus"

    def __init__(self, context: AppContext, bundle: Path | None, image: Path, pixels: object,
                 source: object) -> None:
        self._context, self._bundle, self._image, self._pixels, self._source = context, bundle, image, pixels, source
        super().__init__([sys.executable, __file__])

    def compose(self) -> None:
        """Three operators in a row."""
        from mop_operators import ReadOperator, RestoreOperator, WriteOperator

        if self._bundle is not None:
            self._context.models = None  # the SDK takes a folder for a model of unknown kind
        read = ReadOperator(self, CountCondition(self, 1), pixels=self._pixels, name="read")
        restore = RestoreOperator(
            self, app_context=self._context, bundle_path=self._bundle, name="restore",
            input_mapping=[IOMapping("image", object, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", object, IOType.IN_MEMORY)])
        write = WriteOperator(self, folder=Path(self._context.output_path), stem=self._image.stem, source=self._source,
                              weights=weights_of(self._context, self._bundle), name="write")
        self.add_flow(read, restore, {("image", "image")})
        self.add_flow(restore, write, {("pred", "image")})


def main() -> int:
    """Run once; the exit status."""
    context = init_app_context(sys.argv)
    bundle = bundle_folder(context)
    sys.path.insert(0, str(bundle or CHECKOUT))
    from mop_dicom import source_of

    from bundle.messages import complain, sentence
    from bundle.slides.reader import open_image
    from bundle.slides.region import read_region, region_of

    try:
        # Read before the graph starts: an exception inside of it is told by pages of the scheduler's messages.
        image, wishes = image_of(Path(context.input_path))
        with open_image(image) as reader:
            region = region_of(wishes)
            pixels = read_region(reader, region)
            source = source_of(reader, region, pixels.shape)
    except (ValueError, OSError) as error:
        complain(sentence(error))
        return 1
    MopApp(context, bundle, image, pixels, source).run()
    logging.info("Restored %s into %s", image, context.output_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
