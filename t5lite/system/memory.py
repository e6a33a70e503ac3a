"""Keep memory that XLA's CPU client frees, instead of giving it back to the kernel.

XLA takes a step's temporaries from malloc anew at every step. glibc gives memory of that size back to the kernel at
once. So each step touches fresh pages, which the kernel zeroes one fault at a time: 190,000 faults and 18 % of the time
of a step of configs/tiny.py on two cores.
"""

import ctypes
import importlib.util
import os
from importlib.metadata import entry_points

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # from malloc.h


def computes_on_cpu() -> bool:
    """Return whether JAX will compute on the CPU, as far as can be told before it starts.

    JAX_PLATFORMS decides. If it is not set: no package for another platform is installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, in one heap. Do nothing with another C library or an accelerator.

    A thread that has its own heap keeps it. So this must come before NumPy and JAX start their threads.
    """
    if not computes_on_cpu():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)
