"""The same function over many arguments, in worker processes that end with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_processes(
    act: Callable[[Argument], Result], arguments: Sequence[Argument], workers: int
) -> Iterator[tuple[Argument, Result | Exception]]:
    """(argument, result) as they come; an error of one argument is its result: the others' work is not lost.

    Args:
        act: importable by name, as its arguments and results must be picklable.
        arguments: one call each.
        workers: processes, each with one thread; 1 works in this process.

    Raises:
        ValueError: a process was killed, as the system does when memory runs out.
    """
    if workers == 1 or len(arguments) < 2:
        for argument in arguments:
            yield argument, _attempt(act, argument)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of the threads of torch
    listener, alive = context.Pipe(duplex=False)  # its far end closes with this process, however it ends
    with _one_thread_each():
        pool = ProcessPoolExecutor(min(workers, len(arguments)), context, _begin, (listener,))
        try:
            futures = {pool.submit(_attempt, act, argument): argument for argument in arguments}
            for future in as_completed(futures):
                yield futures[future], future.result()
            pool.shutdown()
        except BrokenProcessPool as error:
            raise ValueError("a worker process was killed, most likely for want of memory: finished fields are kept, "
                             "go on with fewer --workers.") from error
        finally:
            alive.close()  # after an error or Ctrl-C nobody waits for what is under way
            pool.shutdown(wait=True, cancel_futures=True)
            listener.close()


def _attempt(act: Callable[[Argument], Result], argument: Argument) -> Result | Exception:
    try:
        return act(argument)
    except Exception as error:  # noqa: BLE001  # see told_error
        return told_error(error)


def told_error(error: Exception) -> Exception:
    """The error that tells what failed in a field: readers of damaged files raise whatever they like."""
    if isinstance(error, MemoryError):
        return MemoryError("memory is not enough for this field.")
    if isinstance(error, ValueError | OSError):
        return error
    return ValueError(f"it cannot be read or prepared, {type(error).__name__}: {error}")


def _begin(listener: Connection) -> None:
    """In a worker: one thread for arithmetic, Ctrl-C left to the parent, an end when the parent ends."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(listener,), daemon=True).start()


def _end_with_parent(listener: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        listener.recv()
    os._exit(1)  # what it wrote so far has a temporary name and is swept by the parent or by the next call


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Numerical libraries read their number of threads from the environment that a process starts with."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
