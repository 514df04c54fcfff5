"""The pair of images on this machine's own address: nobody else can reach it.

    GET /                              the page
    GET /tiles/WHICH/LEVEL/X_Y.jpg     a tile, rendered from the image when it is asked for
    GET /curtain.js and others         this room's files

Bound to 127.0.0.1. Requests whose Host is another name are refused: a page of a stranger could else reach the images
by a name that it lets point here.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from jinja2 import Environment

from bundle.viewing.assets import TYPES, asset
from bundle.viewing.pair import TILE_PX, SlidePair

LOOPBACK = "127.0.0.1"
_TILE = re.compile(r"/tiles/(before|after)/(\d{1,2})/(\d{1,7})_(\d{1,7})\.jpg")
_FILES = ("openseadragon.min.js", "curtain.js", "view.js", "curtain.css")
_POLICY = "default-src 'none'; img-src 'self' data: blob:; script-src 'self'; style-src 'self' 'unsafe-inline'"


class PairServer(ThreadingHTTPServer):
    """Serves one pair.

    Args:
        pair: the images; whoever opened them closes them.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, pair: SlidePair, port: int = 0) -> None:
        self.pair = pair
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{LOOPBACK}:{self.server_port}/"


def view_page(pair: SlidePair) -> str:
    """The page of a pair; every text is escaped."""
    deep_zoom = {"width": pair.width, "height": pair.height, "tile_px": TILE_PX, "min_level": pair.min_level,
                 "max_level": pair.max_level}  # fmt: skip
    names = {which: reader.path.name for which, reader in pair.readers.items()}
    mpp = f"{pair.mpp:.4g}" if pair.mpp else ""
    template = Environment(autoescape=True).from_string(asset("view.html"))
    return template.render(pair=json.dumps(deep_zoom), width=pair.width, height=pair.height, mpp=mpp, **names)


class _Handler(BaseHTTPRequestHandler):
    server: PairServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this address serves 127.0.0.1 alone")
            return
        tile = _TILE.fullmatch(self.path)
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", view_page(self.server.pair).encode())
        elif self.path.removeprefix("/") in _FILES:
            suffix = self.path[self.path.rindex(".") :]
            self._send(HTTPStatus.OK, TYPES[suffix], asset(self.path.removeprefix("/")).encode())
        elif tile is not None:
            self._send_tile(tile.group(1), *(int(tile.group(k)) for k in (2, 3, 4)))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found")

    def _send_tile(self, which: str, level: int, x: int, y: int) -> None:
        try:
            self._send(HTTPStatus.OK, "image/jpeg", self.server.pair.tile(which, level, x, y))
        except LookupError as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", str(error).encode())
        except (ValueError, OSError) as error:  # damage in the file, at this tile
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", str(error).encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")  # another pair may follow at the same address
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a line for every tile would bury the address."""
