"""The chain as an MLflow model: `mlflow models serve` answers a picture with the restored picture.

    in     column image (binary): a PNG, JPEG or TIFF, 8-bit RGB      params  seed, stop_after, skip_in_focus
    out    column restored (binary): PNG of the same size             column mean_defocus_um (double): mean |defocus|

In JSON both binary columns are base64. The folder holds package, config and weights, and no pickle: MLflow runs
`mlflow_entry.py` to build the model.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bundle.image_restorer import ImageRestorer
from bundle.loading import CONFIG, load_tile_restorer
from bundle.messages import sentence
from bundle.restoration import STAGES
from bundle.slides.reader import ImageError, open_image
from bundle.slides.whole_files import folder_when_done

if TYPE_CHECKING:
    import pandas as pd

ENTRY = Path(__file__).with_name("mlflow_entry.py")
PACKAGE = Path(__file__).resolve().parent.parent
# First bytes of a file -> the suffix that the readers go by.
SUFFIX_OF = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif",
             b"MM\0+": ".tif"}


class RestorationService:
    """What MLflow calls: pictures of a table through the chain, one after the other.

    Args:
        config: configs/inference.json.
        weights: its weights.
        overlay: a second config that overrides the first; None for none.
        device: "cpu" or "cuda".
    """

    def __init__(self, config: Path, weights: Path, overlay: Path | None, device: str) -> None:
        self._restorer = ImageRestorer(load_tile_restorer(config, weights, device, overlay))
        self._alone = threading.Lock()  # the network's options belong to one request at a time

    def predict(self, table: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
        """Restore every row.

        Args:
            table: column image, the bytes of a file each.
            options: seed, stop_after, skip_in_focus.

        Returns:
            Columns restored (bytes of a PNG) and mean_defocus_um.

        Raises:
            ValueError: an option is out of range, or a row is no picture that can be restored.
        """
        import pandas as pd

        if options["stop_after"] not in STAGES or options["seed"] < 0:
            raise ValueError(f"stop_after must be one of {STAGES} and seed at least 0, "
                             f"got {options['stop_after']!r} and {options['seed']}.")
        network, rows = self._restorer.network, []
        with self._alone:
            for name, value in options.items():
                setattr(network, name, value)
            for content in table["image"]:
                result = self._restorer.restore(decode(content))
                defocus = float(np.abs(np.asarray(result.focus_map_um)).mean())
                rows.append((encode(result.restored), defocus))
        return pd.DataFrame(rows, columns=["restored", "mean_defocus_um"])


def decode(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A file's bytes -> (H, W, 3) uint8, by the readers and the rules of `mop restore`.

    Raises:
        ValueError: not a PNG, JPEG or TIFF that can be restored.
    """
    suffix = next((suffix for start, suffix in SUFFIX_OF.items() if content.startswith(start)), None)
    if suffix is None:
        raise ImageError(f"an image must be a PNG, JPEG or TIFF, got {len(content)} bytes of something else.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"image{suffix}"
        file.write_bytes(content)
        with open_image(file) as reader:
            return reader.read(0, 0, *reader.shape)


def encode(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def load_service(artifacts: dict[str, str], device: str) -> RestorationService:
    """The service of a model's files, under the names that `model_parts` gives them."""
    overlay = Path(artifacts["overlay"]) if "overlay" in artifacts else None
    return RestorationService(Path(artifacts["config"]), Path(artifacts["weights"]), overlay, device)


def model_parts(config: Path, weights: Path, overlay: Path | None = None, device: str = "cpu", seed: int = 0,
                stop_after: str = "p_diffusion") -> dict[str, Any]:
    """What both `mlflow.pyfunc.save_model` and `mlflow.pyfunc.log_model` want to know.

    Args:
        config, weights, overlay: as of `RestorationService`; copied into the model.
        device: "cpu" or "cuda"; who loads the model may choose another by `model_config`.
        seed, stop_after: what a request gets that does not say.

    Returns:
        Keyword arguments.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    metadata = json.loads((CONFIG.parent / "metadata.json").read_text(encoding="utf-8"))
    pins = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"],
            "numpy": metadata["numpy_version"], **metadata["required_packages_version"],
            "mlflow": importlib.metadata.version("mlflow"), "pandas": importlib.metadata.version("pandas")}
    artifacts = {"config": config, "weights": weights, **({"overlay": overlay} if overlay else {})}
    signature = ModelSignature(
        Schema([ColSpec("binary", "image")]),
        Schema([ColSpec("binary", "restored"), ColSpec("double", "mean_defocus_um")]),
        ParamSchema([ParamSpec("seed", "long", seed), ParamSpec("stop_after", "string", stop_after),
                     ParamSpec("skip_in_focus", "boolean", False)]))
    return {"python_model": str(ENTRY), "code_paths": [str(PACKAGE)], "signature": signature,
            "artifacts": {name: str(path) for name, path in artifacts.items()}, "model_config": {"device": device},
            "pip_requirements": [f"{name}=={version}" for name, version in pins.items()],
            "metadata": {"name": metadata["name"], "version": metadata["version"],
                         "intended_use": metadata["intended_use"]}}


def save_model(path: Path, parts: dict[str, Any], overwrite: bool = False) -> float:
    """Write the model's folder; it gets its name only when it is whole.

    Args:
        path: the folder.
        parts: from `model_parts`.
        overwrite: replace an earlier model of that name.

    Returns:
        Its size, MB.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, or it is no such model.
        ValueError: the weights do not fit the config, or the device is not there.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else MLflow reports its use to its makers
    import mlflow.pyfunc

    with folder_when_done(path, "MLmodel", overwrite) as folder, _quiet():
        # A model that cannot be built is told before it is written.
        load_service(parts["artifacts"], parts["model_config"]["device"])
        mlflow.pyfunc.save_model(folder, **parts)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return size / 1e6


def refusal(error: Exception) -> Exception:
    """A mistake of the one who asks, as MLflow's server wants it: status 400 and our one sentence."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    refused: Exception = MlflowException(sentence(error), error_code=BAD_REQUEST)
    return refused


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence of MLflow: its advice on type hints is for other kinds of models."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
