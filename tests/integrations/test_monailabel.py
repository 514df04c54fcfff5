"""MONAI Label's real server, asked over HTTP on this machine; skipped where `make test-integrations` has not run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bundle import load_restorer

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-label" / "bin" / "python"
START_S, ANSWER_S = 600, 300  # a busy machine imports torch slowly

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-label: make test-integrations")]

TISSUE: NDArray[np.uint8] = skimage.data.immunohistochemistry()
# Not square, not grey, no two edges alike: a transposed, mirrored or recoloured answer shows.
FIELD = np.ascontiguousarray(TISSUE[100:164, 40:136])

# QuPath itself is a program with windows. These stand for the classes that the script asks: one slide, in which one
# annotation of 90 x 50 px at (40, 120) is selected.
QUPATH = {
    "javafx/application/Platform": "class Platform { static runLater(Runnable work) { work.run() } }",
    "qupath/lib/common/GeneralTools": """class GeneralTools {
        static toPath(URI uri) { java.nio.file.Paths.get(uri) }
        static stripInvalidFilenameChars(String name) { name.replace(':', '') } }""",
    "qupath/lib/gui/QuPathGUI": """class QuPathGUI {
        static class Viewer { def setImageData(data) { println "opened ${data.server} as ${data.type}" } }
        static all = [new Viewer()]
        static getInstance() { new QuPathGUI() }
        def getViewerManager() { this }
        def getAllViewers() { all }
        def getActiveViewer() { all[0] }
        def addColumn(viewer) { all << new Viewer() } }""",
    "qupath/lib/images/ImageData": """class ImageData {
        def server, type
        ImageData(server, type) { this.server = server; this.type = type } }""",
    "qupath/lib/regions/RegionRequest": """class RegionRequest {
        int x, y, width, height
        static createInstance(String path, double downsample, roi) { new RegionRequest(roi) } }""",
    "qupath/lib/scripting/QP": """class QP {
        static file = new File(System.getProperty("slide"))
        static class Slide {
            def getPath() { "a slide" }
            def isRGB() { true }
            def getURIs() { [file.toURI()] }
            def getMetadata() { [getName: { -> "a:slide" }] as Expando }
            def readRegion(it) { javax.imageio.ImageIO.read(file).getSubimage(it.x, it.y, it.width, it.height) } }
        static getCurrentServer() { new Slide() }
        static roi = [x: 40, y: 120, width: 90, height: 50]
        static getSelectedObject() { [hasROI: { -> true }, getROI: { -> roi }] as Expando }
        static getProject() { null }
        static getCurrentImageData() { [getImageType: { -> "H&E" }] as Expando }
        static buildServer(uri) { uri } }""",
}


class Server(NamedTuple):
    """A running server."""

    url: str
    trained: Path  # where its training writes
    temporary: Path  # where it puts what is sent


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(answer: requests.Response) -> NDArray[np.uint8]:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def ask(server: Server, file: tuple[str, bytes] | None = None, image: str = "", params: str = "{}",
        output: str = "image") -> requests.Response:
    return requests.post(f"{server.url}/infer/mop", params={"output": output, "image": image},
                         data={"params": params}, files={"file": file} if file else None, timeout=ANSWER_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server with a datastore of a picture, its blurred twin and a pyramid."""
    folder = tmp_path_factory.mktemp("label")
    studies = folder / "studies"
    studies.mkdir()
    (studies / "field.png").write_bytes(encoded(FIELD))
    (studies / "docs.png").write_bytes(encoded(FIELD))
    (folder / "docs").mkdir()  # of the folder that the server runs in
    Image.fromarray(FIELD).filter(ImageFilter.GaussianBlur(1.5)).save(studies / "blurred.png")
    with tifffile.TiffWriter(studies / "slide.tif") as writer:
        tiles = {"tile": (128, 128), "photometric": "rgb"}
        writer.write(TISSUE, subifds=1, **tiles)
        writer.write(np.ascontiguousarray(TISSUE[::2, ::2]), subfiletype=1, **tiles)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary")}
    process = subprocess.Popen(
        [str(PYTHON), "-m", "monailabel.main", "start_server", "--app", str(ROOT / "integrations" / "monailabel"),
         "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "trained",
         str(folder / "trained.pt")],
        cwd=folder, env=environment, start_new_session=True, stdout=sys.stderr)
    ready = Server(f"http://127.0.0.1:{port}", folder / "trained.pt", folder / "temporary")
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                assert requests.get(f"{ready.url}/info/", timeout=30).json()["models"]["mop"]
                break
            assert process.poll() is None and time.monotonic() < deadline, "the server must start."
            time.sleep(1)
        yield ready
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_a_picture_comes_back_restored_upright_and_in_its_colours(server: Server) -> None:
    """The stock task answers a label map, transposed: a pathologist would look at another place of the tissue."""
    expected = load_restorer()(FIELD)
    for name in ("field.png", "field.tif"):
        file = io.BytesIO()
        Image.fromarray(FIELD).save(file, "PNG" if name.endswith("png") else "TIFF")
        restored = pixels_of(ask(server, (name, file.getvalue())))
        assert restored.shape == FIELD.shape
        assert np.abs(restored.astype(int) - expected).max() <= 1
    assert np.abs(restored.astype(int) - FIELD).mean() > 0.2


def test_a_region_of_a_slide_is_the_one_that_was_asked_for(server: Server) -> None:
    """QuPath asks for x, y of level 0 and for width, height: any other reading restores another place."""
    region = np.ascontiguousarray(TISSUE[120:180, 40:140])
    answer = ask(server, image="slide", params='{"location": [40, 120], "size": [100, 60], "stop_after": "p_former"}')
    assert np.abs(pixels_of(answer).astype(int) - load_restorer(stop_after="p_former")(region)).max() <= 1
    half = np.ascontiguousarray(TISSUE[::2, ::2][60:100, 20:90])
    answer = ask(server, image="slide", output="all",
                 params='{"location": [40, 120], "size": [70, 40], "level": 1, "stop_after": "p_former"}')
    assert answer.status_code == 200 and b'"mean_defocus_um"' in answer.content
    start = answer.content.index(b"\x89PNG")
    restored = np.asarray(Image.open(io.BytesIO(answer.content[start:])))
    assert np.abs(restored.astype(int) - load_restorer(stop_after="p_former")(half)).max() <= 1


def test_the_script_for_qupath_restores_the_annotation_and_opens_it_beside(server: Server, tmp_path: Path) -> None:
    """A request that the server cannot read, or a result under another region's name, shows only at the microscope."""
    groovy = shutil.which("groovy")
    if not groovy or "Groovy Version" not in subprocess.run([groovy, "--version"], capture_output=True, text=True,
                                                            check=False).stdout:  # fmt: skip
        pytest.skip("needs Groovy, the language of QuPath's scripts, and Java: apt-get install groovy default-jre")
    for name, source in QUPATH.items():
        path = tmp_path / "classes" / f"{name}.groovy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"package {'.'.join(name.split('/')[:-1])}\n{source}\n")
    slide = tmp_path / "slides" / "slide.png"
    slide.parent.mkdir()
    slide.write_bytes(encoded(TISSUE))
    script = (ROOT / "integrations" / "qupath" / "restore_region.groovy").read_text()
    assert "http://127.0.0.1:8000" in script
    (tmp_path / "restore_region.groovy").write_text(script.replace("http://127.0.0.1:8000", server.url))
    command = [groovy, "-cp", str(tmp_path / "classes"), f"-Dslide={slide}", str(tmp_path / "restore_region.groovy")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    result = tmp_path / "slides" / "restored" / "aslide_40_120_90_50_restored.png"
    assert said.stdout.splitlines() == [f"Restored: {result}", f"opened {result.as_uri()} as H&E"], said
    expected = load_restorer()(np.ascontiguousarray(TISSUE[120:170, 40:130]))
    assert np.abs(np.asarray(Image.open(result).convert("RGB")).astype(int) - expected).max() <= 1


def test_what_cannot_be_restored_is_one_sentence(server: Server) -> None:
    """A 500 without a word sends the user to the server's log, which he cannot read."""
    def sentence(status: int, **request: Any) -> str:
        answer = ask(server, **request)
        assert answer.status_code == status, answer.text
        return answer.json()["detail"]

    assert "cannot be decoded as PNG or JPEG" in sentence(400, file=("note.png", b"not an image"))
    assert "an image must be .png" in sentence(400, file=("note.txt", b"not an image"))
    assert "must lie inside" in sentence(400, image="slide", params='{"location": [500, 0], "size": [64, 64]}')
    assert "level must lie in 0..1" in sentence(400, image="slide", params='{"level": 7}')
    assert "stop_after must be one of" in sentence(400, image="field", params='{"stop_after": "soon"}')
    assert "seed must be a whole number" in sentence(400, image="field", params='{"seed": "x"}')
    assert sentence(404, image="nowhere")
    assert "needs the package wsidicom" in sentence(400, file=("slide.dcm", b"not an image"))


def test_an_image_may_be_named_like_a_folder_that_the_server_runs_in(server: Server) -> None:
    """`make label` runs in the checkout, where docs and models lie; docs.png is a study like any other."""
    assert ask(server, image="docs", params='{"stop_after": "p_former"}').status_code == 200


def test_nothing_of_what_was_sent_stays_and_no_other_file_is_read(server: Server, tmp_path: Path) -> None:
    """Pictures of patients would pile up in the server's temporary folder, and a request could name any of its disk."""
    assert ask(server, file=("field.png", encoded(FIELD)), params='{"stop_after": "p_former"}').status_code == 200
    assert ask(server, file=("note.png", b"not an image")).status_code == 400
    assert ask(server, file=("field.png", encoded(FIELD)), params='{"seed": "x"}').status_code == 400
    deadline = time.monotonic() + 30  # s; the server removes the first one after its answer
    while list(server.temporary.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not list(server.temporary.glob("*.png"))
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(encoded(FIELD))
    answer = ask(server, image=str(elsewhere))
    assert answer.status_code == 404 and "elsewhere.png is a path" in answer.json()["detail"]


def test_training_on_a_pair_changes_what_is_answered(server: Server) -> None:
    """The loop of MONAI Label: correct, train, restore better; weights that nobody uses are no training."""
    saved = requests.put(f"{server.url}/datastore/label", params={"image": "blurred", "tag": "final"},
                         files={"label": ("sharp.png", encoded(FIELD))}, timeout=ANSWER_S)
    assert saved.status_code == 200, saved.text
    asked = '{"stop_after": "p_former"}'
    before = pixels_of(ask(server, image="blurred", params=asked))

    def train(**plan: float) -> requests.Response:
        return requests.post(f"{server.url}/train/mop", params={"run_sync": True}, json=plan, timeout=START_S)

    refused = train(patch_px=65)
    assert refused.status_code == 400 and "patch_px must be a multiple of" in refused.json()["detail"]
    refused = train(patch_px="64")  # type: ignore[arg-type]
    assert refused.status_code == 400 and refused.json()["detail"]
    assert not server.trained.exists()
    answer = train(max_epochs=3, crops=4, patch_px=64, batch_size=2, learning_rate=1e-4)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["pairs"], told["steps"]) == (1, 6)
    assert told["l1_after"] < told["l1_before"]
    assert not np.array_equal(pixels_of(ask(server, image="blurred", params=asked)), before)
    digest = hashlib.sha256(server.trained.read_bytes()).hexdigest()
    assert ask(server, image="field", params=asked, output="json").json()["weights_sha256"] == digest
