"""`mop view`: parse, call, report; nothing else."""

from __future__ import annotations

from pathlib import Path

from fire.decorators import SetParseFn, SetParseFns

from bundle.arguments import PARSERS, UsageError, refuse_unknown
from bundle.messages import say


@SetParseFns(**PARSERS)
@SetParseFn(str)
def view(*images: str, source: str = "", port: int = 8700, plane: int | None = None, **unknown: str) -> None:
    """Usage: mop view RESTORED [options]

    Shows an image before and after under a movable curtain with deep zoom, for this machine's own browser alone.
    Ctrl-C ends it.

        --source IMAGE    what it was restored from; default: the file that RESTORED names, beside it or here
        --plane N         which focal plane of a z-stack as the source, from 0
        --port N          of the address (default 8700)

    Example:
        mop view restored.ome.tiff --source slide.svs
    """
    refuse_unknown(unknown)
    if len(images) != 1:
        raise UsageError(f"one restored image is shown at a time, got {len(images)}.")
    from bundle.viewing.pair import open_pair
    from bundle.viewing.server import PairServer

    with open_pair(Path(images[0]), Path(source) if source else None, plane) as pair:
        try:
            server = PairServer(pair, port)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ValueError(f"mop view must be able to serve port {port}: {reason}, give another --port.") from error
        except OverflowError as error:
            raise UsageError(f"--port must lie in 1..65535, got {port}.") from error
        with server:
            say(f"{images[0]}: {server.address} (Ctrl-C ends it)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                say("ended.")
