"""The MLflow model answers with the pixels of the chain, in a process and over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from bundle import load_restorer
from bundle.cli import main

# Not square, not grey, no two edges alike: a transposed or mirrored answer shows.
FIELD: NDArray[np.uint8] = np.ascontiguousarray(skimage.data.immunohistochemistry()[100:148, 40:112])


def encoded(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def decoded(content: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    assert main(["export", "--format", "mlflow", "--seed", "5", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded(model: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(model))


def test_a_table_of_pictures_comes_back_restored(loaded: Any) -> None:
    """A service that restores otherwise than `mop restore` makes two truths of one slide."""
    table = pd.DataFrame({"image": [encoded(FIELD), encoded(FIELD[:40, ::-1], "TIFF")]})
    answer = loaded.predict(table)
    assert list(answer.columns) == ["restored", "mean_defocus_um"]
    restorer = load_restorer(seed=5)
    for row, pixels in enumerate((FIELD, np.ascontiguousarray(FIELD[:40, ::-1]))):
        expected = restorer.restore(pixels)
        assert np.array_equal(decoded(answer["restored"][row]), expected.restored)
        assert answer["mean_defocus_um"][row] == pytest.approx(np.abs(np.asarray(expected.focus_map_um)).mean())
    assert not np.array_equal(decoded(answer["restored"][0]), FIELD)


def test_parameters_hold_for_their_own_request(loaded: Any) -> None:
    """An option of one caller that stays for the next changes his pixels behind his back."""
    table = pd.DataFrame({"image": [encoded(FIELD)]})
    before = loaded.predict(table)["restored"][0]
    coarse = loaded.predict(table, params={"stop_after": "p_former"})["restored"][0]
    assert np.array_equal(decoded(coarse), load_restorer(stop_after="p_former")(FIELD))
    other = loaded.predict(table, params={"seed": 6})["restored"][0]
    assert np.array_equal(decoded(other), load_restorer(seed=6)(FIELD))
    assert loaded.predict(table)["restored"][0] == before != other


@pytest.mark.parametrize(("content", "params", "sentence"), [
    (b"not an image", {}, "an image must be a PNG, JPEG or TIFF, got 12 bytes of something else."),
    (encoded(FIELD)[:500], {}, "image.png cannot be decoded as PNG or JPEG"),
    (encoded(FIELD[..., 0]), {}, "has mode L"),
    (encoded(FIELD[:20]), {}, "at least 32 x 32 px"),
    (encoded(FIELD), {"stop_after": "never"}, "stop_after must be one of"),
    (encoded(FIELD), {"seed": -1}, "seed at least 0"),
])
def test_what_cannot_be_restored_is_the_caller_s_mistake(loaded: Any, content: bytes, params: dict[str, Any],
                                                         sentence: str) -> None:
    """A traceback with status 500 reads as a broken service, and the caller sends the same file again."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=sentence) as caught:
        loaded.predict(pd.DataFrame({"image": [content]}), params=params)
    assert caught.value.get_http_status_code() == 400


def test_the_folder_needs_nothing_of_this_checkout(model: Path) -> None:
    """A registered model is loaded years later, elsewhere: package, config, weights and pins must be inside."""
    held = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert {"artifacts/inference.json", "artifacts/model.pt", "code/bundle/restoration.py", "mlflow_entry.py"} <= held
    assert not [name for name in held if name.endswith((".pkl", ".pyc"))]
    pins = (model / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in pin for pin in pins)
    assert {"torch", "monai", "numpy", "mlflow"} <= {pin.split("==")[0] for pin in pins}


def test_an_earlier_model_is_replaced_only_when_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that a registry points at must not vanish unasked, nor a folder that is none at all."""
    before = (model / "MLmodel").read_bytes()
    command = ["export", "--format", "mlflow", "--output"]
    assert main([*command, str(model)]) == 1
    assert "exists: --overwrite replaces it" in capsys.readouterr().err
    assert main([*command, str(model.parent), "--overwrite"]) == 1
    assert "has no MLmodel" in capsys.readouterr().err
    assert (model / "MLmodel").read_bytes() == before


def test_weights_that_do_not_fit_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that fails on its first request was written for nothing."""
    (tmp_path / "none.pt").write_bytes(b"none")
    weights = ["--weights", str(tmp_path / "none.pt")]
    assert main(["export", "--format", "mlflow", "--output", str(tmp_path / "model"), *weights]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["none.pt"]


@pytest.fixture
def address(model: Path, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port of this machine, from a folder that knows nothing of the checkout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local", "-h",
         "127.0.0.1", "-p", str(port)], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 400  # s; a busy machine imports torch slowly
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server must start."
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.slow
def test_the_server_answers_a_picture(address: str) -> None:
    """What the page promises: base64 in, base64 out, and a mistake of the caller's is a 400 with our sentence."""
    def ask(content: bytes) -> Any:
        body = json.dumps({"dataframe_records": [{"image": base64.b64encode(content).decode()}],
                           "params": {"seed": 2}})
        request = urllib.request.Request(address, body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["predictions"][0]

    answer = ask(encoded(FIELD))
    assert np.array_equal(decoded(base64.b64decode(answer["restored"])), load_restorer(seed=2)(FIELD))
    assert 0 <= answer["mean_defocus_um"] < 10
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(b"not an image")
    assert caught.value.code == 400
    assert "an image must be a PNG, JPEG or TIFF" in caught.value.read().decode()
