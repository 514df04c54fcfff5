"""The files of this room that a browser reads."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def asset(name: str) -> str:
    """The text of one of them, such as `curtain.js`."""
    return (FOLDER / name).read_text(encoding="utf-8")


def inline_scripts() -> str:
    """OpenSeadragon and the curtain as one script for a page that must do without a server.

    Raises:
        ValueError: a script would end its own element.
    """
    text = asset("openseadragon.min.js") + "\n" + asset("curtain.js")
    if "</script" in text.lower():
        raise ValueError("a script inside a page must not hold </script, one of this room's does.")
    return text
