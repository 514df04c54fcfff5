"""`mop view`: this machine's own browser sees the curtain, nobody else sees anything."""

import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.cli import main
from bundle.viewing.pair import open_pair
from bundle.viewing.server import PairServer

BEFORE, AFTER = (200, 40, 60), (30, 90, 210)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PairServer]:
    """Two fields of 600 x 400 px of one colour each; the name of one of them is markup."""
    before, after = tmp_path / "a<b>.png", tmp_path / "after.png"
    for path, colour in ((before, BEFORE), (after, AFTER)):
        Image.fromarray(np.full((400, 600, 3), colour, np.uint8)).save(path)
    with open_pair(after, before) as pair, PairServer(pair) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(server: PairServer, path: str, host: str = "") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    return response.status, response.read()


def test_a_browser_shows_before_on_the_left_and_after_on_the_right(
    server: PairServer, photograph: Callable[[str, tuple[int, int]], np.ndarray]
) -> None:
    """The page may be valid and its script wrong: only a browser knows."""
    seen = photograph(server.address, (500, 800)).astype(int)
    for col, colour in ((250, BEFORE), (550, AFTER)):
        assert np.abs(seen[230, col] - colour).max() < 8, (col, seen[230, col])


def test_only_this_machine_is_served(server: PairServer) -> None:
    """A slide is a patient's: neither another machine nor a stranger's page may read it."""
    assert server.server_address[0] == "127.0.0.1"
    assert answer(server, "/")[0] == 200
    assert answer(server, "/tiles/before/10/0_0.jpg", host=f"localhost:{server.server_port}")[0] == 200
    for path in ("/", "/tiles/before/10/0_0.jpg"):
        assert answer(server, path, host=f"rebound.example:{server.server_port}")[0] == 403


@pytest.mark.parametrize("path", ["/../pair.py", "/server.py", "/tiles/before/10/9_9.jpg", "/tiles/x/10/0_0.jpg",
                                  "/tiles/before/10/0_0.png"])  # fmt: skip
def test_nothing_but_the_page_and_its_tiles_is_served(server: PairServer, path: str) -> None:
    """A server that hands out files by their path hands out all of them."""
    assert answer(server, path)[0] == 404


def test_names_of_files_are_text_and_no_markup(server: PairServer) -> None:
    """The name of a file decides nothing in the page."""
    page = answer(server, "/")[1].decode()
    assert "a&lt;b&gt;.png" in page and "<b>" not in page


def test_mistakes_end_in_one_sentence(tmp_path: Path, server: PairServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port and a lost source are what happens every day."""
    image = tmp_path / "after.png"
    assert main(["view", str(image), "--source", str(image), "--port", str(server.server_port)]) == 1
    assert main(["view", str(image)]) == 1
    assert main(["view"]) == 2 and main(["view", str(image), "--source", str(image), "--port", "70000"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 4 and all(line.startswith("mop: ") and line.endswith(".") for line in told)
    assert "--port" in told[0] and "give --source" in told[1] and "65535" in told[3]
