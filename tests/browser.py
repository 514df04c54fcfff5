"""What a real browser shows of a page: Chromium, driven through two pipes by its DevTools protocol.

A picture taken after some time shows what a busy machine had drawn by then. Here the page is asked whether it is ready.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

PATIENCE_S = 120.0  # real time, for everything that a page does
# Every viewer holds all its images at the zoom that it shows, and two frames were drawn since.
CURTAINS_DRAWN = """(async () => {
  const viewers = [...document.querySelectorAll(".openseadragon-container")].map(
    (element) => OpenSeadragon.getViewer(element.parentElement));
  const ready = viewers.length > 0 && viewers.every((viewer) => viewer && viewer.world.getItemCount() === 2
    && [0, 1].every((k) => viewer.world.getItemAt(k).getFullyLoaded()));
  for (let frame = 0; ready && frame < 2; frame++) await new Promise(requestAnimationFrame);
  return ready;
})()"""


class Browser:
    """One page of a headless Chromium of its own.

    Args:
        program: Chromium.
        profile: folder of its own, written into.
        size: (height, width) of the window, px.
    """

    def __init__(self, program: str, profile: Path, size: tuple[int, int]) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        arguments = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--incognito",
                     "--disable-background-networking", f"--user-data-dir={profile}",
                     f"--window-size={size[1]},{size[0]}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        # Chromium reads commands from descriptor 3 and answers on 4.
        self._process = subprocess.Popen(["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *arguments],
                                         pass_fds=(commands, answers), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._heard, self._count, self._deadline = b"", 0, time.monotonic() + PATIENCE_S
        self._session: str | None = None

    def __enter__(self) -> Self:
        page = next(target for target in self._call("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def photograph(self, address: str, ready: str) -> np.ndarray:
        """What the window shows, (height, width, 3) uint8, once the JavaScript expression `ready` is true."""
        self._call("Page.navigate", url=address)
        while self._call("Runtime.evaluate", expression=ready, awaitPromise=True,
                             returnByValue=True)["result"].get("value") is not True:  # fmt: skip
            time.sleep(0.1)
        picture = base64.b64decode(self._call("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(picture)) as image:
            return np.asarray(image.convert("RGB"))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next_message())
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _next_message(self) -> bytes:
        while b"\0" not in self._heard:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError(f"the page was not ready after {PATIENCE_S:.0f} s.")
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended.")
            self._heard += part
        message, _, self._heard = self._heard.partition(b"\0")
        return message
