"""Settings of the process that the command line makes."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
sys.argv = ["mop", "--version"]
from bundle.cli import main
main()
assert "torch" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(("given", "spins"), [
    ({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
])
def test_waiting_is_settled_before_torch_is_there(given: dict[str, str], spins: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """OpenMP reads its environment once: set later, two commands on the same cores take 20 times as long again."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == spins


def test_a_library_does_not_change_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that calls `main` with arguments of its own keeps its environment."""
    from bundle.cli import main

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    main(["--version"])
    assert "GOMP_SPINCOUNT" not in os.environ
