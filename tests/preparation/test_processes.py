"""Worker processes: results as they come, errors told, no waiting for the dead."""

import math
import os

import pytest

from bundle.preparation.processes import in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_every_argument_gets_its_result_or_its_error(workers: int) -> None:
    """A field whose error gets lost is missing from the dataset without a word."""
    results = dict(in_processes(math.sqrt, [4.0, -1.0, 9.0], workers))
    assert results.pop(4.0) == 2 and results.pop(9.0) == 3
    assert isinstance(results[-1.0], ValueError)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unforeseen_error_of_one_field_does_not_end_the_others(workers: int) -> None:
    """Readers of damaged files raise whatever they like; a night's work on the other fields must not end with it."""
    results = dict(in_processes(int.to_bytes, [1, 10**9], workers))
    assert results[1] == b"\x01"
    failed = results[10**9]
    assert isinstance(failed, ValueError) and "it cannot be read or prepared, OverflowError: " in str(failed)


def test_a_killed_worker_ends_the_run_with_a_sentence() -> None:
    """The system kills a process that takes too much memory: waiting for it would last for ever."""
    with pytest.raises(ValueError, match="a worker process was killed, most likely for want of memory"):
        list(in_processes(os._exit, [3, 4, 5], 2))


def test_the_threads_of_the_caller_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library must not change its host."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert [result for _, result in in_processes(os.getenv, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"], 2)] == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
