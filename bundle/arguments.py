"""The command line's text: every value by its own parser, every mistake found before a command starts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any


class UsageError(ValueError):
    """The command line itself is wrong: exit code 2."""


def refuse_unknown(options: dict[str, str]) -> None:
    """Refuse options that a command does not have.

    Raises:
        UsageError: names the first of them.
    """
    if options:
        raise UsageError(f"options must be those of --help, got --{next(iter(options)).replace('_', '-')}.")


def _whole(option: str, low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}", text) or int(text) < low:
            raise UsageError(f"{option} must be a whole number from {low} on, got {text}.")
        return int(text)

    return parse


def _number(option: str, positive: bool = True) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", text) or (positive and float(text) == 0):
            raise UsageError(f"{option} must be a {'positive ' if positive else ''}number such as 0.25, got {text}.")
        return float(text)

    return parse


def _choice(option: str, *allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise UsageError(f"{option} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {text}.")
        return text

    return parse


def _switch(text: str) -> bool:
    return text == "True"


# Fire would read 1_2 as 12 and 0,25 as a tuple: every value is parsed here instead.
PARSERS: dict[str, Callable[[str], Any]] = {
    "seed": _whole("--seed", 0),
    "tile_px": _whole("--tile-px", 32),
    "batch": _whole("--batch", 1),
    "planes": _whole("--planes", 1),
    "workers": _whole("--workers", 1),
    "port": _whole("--port", 1),
    "mpp": _number("--mpp"),
    "spacing_um": _number("--spacing-um"),
    "depth_um": _number("--depth-um", positive=False),
    "plane": _whole("--plane", 0),
    "quality": _whole("--quality", 1),
    "probes": _whole("--probes", 1),
    "mode": _choice("--mode", "full", "coarse", "adaptive"),
    "engine": _choice("--engine", "local", "ray"),
    "compression": _choice("--compression", "lzw", "jpeg"),
    "subsampling": _choice("--subsampling", "420", "422"),
    "samples": _whole("--samples", 1),
    "binning": lambda text: int(_choice("--binning", "1", "2")(text)),
    "revert_untrusted": _choice("--revert-untrusted", "coarse", "input"),
    "report": _switch,
    "no_report": _switch,
    "trust": _switch,
    "dry_run": _switch,
    "skip_in_focus": _switch,
    "overwrite": _switch,
    "associated": _switch,
    "skip_existing": _switch,
    "strict": _switch,
}


def as_fire_reads(argv: list[str], commands: dict[str, Callable[..., None]]) -> list[str]:
    """`argv` in the form that fire reads without guessing: every option as --name=value, switches as --name=True.

    Raises:
        UsageError: unknown command or option, or an option without its value.
    """
    if argv[0] not in commands:
        raise UsageError(f"the command must be one of {', '.join(commands)}, got {argv[0]}.")
    known = inspect.signature(commands[argv[0]]).parameters
    arguments, rest = argv[:1], argv[1:]
    while rest:
        text = rest.pop(0)
        if not text.startswith("-"):
            arguments.append(text)
            continue
        option, given, value = text.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in known or name in ("images", "sources", "unknown"):
            raise UsageError(f"{argv[0]} has no option {option}: see mop {argv[0]} --help.")
        if PARSERS.get(name) is _switch:
            if given:
                raise UsageError(f"{option} takes no value, got {value}.")
            value = "True"
        elif not given:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{option} needs a value, none was given.")
            value = rest.pop(0)
        if not value:
            raise UsageError(f"{option} needs a value, got an empty one.")
        arguments.append(f"--{name}={value}")
    return arguments
