"""Settings of the process that only the command line makes: a library must not change its host."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_SPINS = 2_000  # of OpenMP's waiting loop
_MMAP_THRESHOLD_BYTES = 2**30
_TRIM_THRESHOLD_BYTES = 2**32 - 2**20  # mallopt takes it as a C int; glibc reads its bits as an unsigned size


def keep_large_allocations() -> bool:
    """Let malloc keep large blocks for the next layer instead of giving each back to the kernel.

    By default glibc maps every activation above 32 MiB anew, and each page of it faults on first use: 1x1
    convolutions over a 256 x 256 tile took 4 times as long.

    Returns:
        Whether both settings took effect; False, and nothing changed, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wide = library.mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(_TRIM_THRESHOLD_BYTES))
    mapped = library.mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(_MMAP_THRESHOLD_BYTES))
    return bool(wide and mapped)


def wait_briefly() -> None:
    """Let threads that wait for the next layer sleep soon: to be called before torch is imported.

    GNU's OpenMP turns some milliseconds in a loop at the end of every layer. Beside another program on the same cores
    each thread then burns the time that the thread it waits for needs: two `mop restore` at once on 2 cores took more
    than 150 s for an image that takes one of them 2 s, with this setting 7 s; alone it costs 5 % (512 px field).
    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def usable_processes(bytes_each: int) -> int:
    """Worker processes that this machine holds at once: one per core, as far as its memory reaches; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, int(0.8 * memory) // bytes_each))
