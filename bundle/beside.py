"""Reading and writing beside the network: one thread reads ahead, one writes behind, each in order.

    reading   batch 1   batch 2   batch 3 ...
    network             batch 1   batch 2   batch 3 ...
    writing                                 block 1 ...

At most `AHEAD` batches and one block wait, so memory stays bounded, and a failure is told where its result is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

AHEAD = 2

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Beside:
    """A thread that is waited for when the `with` body ends."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)


class ReadAhead(_Beside, Generic[Key, Value]):
    """Reads what will be asked for before it is asked for.

    Args:
        read: key -> value, in the other thread.
        keys: in the order in which they will be taken.
    """

    def __init__(self, read: Callable[[Key], Value], keys: Iterable[Key]) -> None:
        super().__init__()
        self._read, self._keys = read, iter(keys)
        self._reading: deque[tuple[Key, Future[Value]]] = deque()
        for _ in range(AHEAD):
            self._begin()

    def take(self, key: Key) -> Value:
        """The value of the next key; raises what its reading raised."""
        foreseen, reading = self._reading.popleft()
        if foreseen != key:
            raise RuntimeError(f"{key} was asked for, {foreseen} is next.")
        self._begin()
        return reading.result()

    def _begin(self) -> None:
        for key in self._keys:
            self._reading.append((key, self._thread.submit(self._read, key)))
            return


class WriteBehind(_Beside):
    """Writes one thing while the next is made."""

    def __init__(self) -> None:
        super().__init__()
        self._writing: Future[None] | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Write in the other thread once what it writes now is done; raises what that raised."""
        self.finish()
        self._writing = self._thread.submit(write)

    def finish(self) -> None:
        """Wait until all is written; raises what the writing raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
