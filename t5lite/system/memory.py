"""Keep memory that XLA's CPU client frees, instead of giving it back to the kernel.

At every step XLA allocates temporary arrays with malloc, and frees them. glibc gives such large blocks back to the
kernel at once. So each step uses new pages, and the kernel fills each page with zeros at a page fault. On two cores a
step of configs/tiny.py had 190,000 faults, which took 18 % of its time.
"""

import ctypes
import importlib.util
import os
from importlib.metadata import entry_points

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # from malloc.h


def computes_on_cpu() -> bool:
    """Return whether JAX will probably compute on the CPU. JAX need not be started.

    JAX_PLATFORMS decides. If it is not set, the answer is yes if no package for another platform is installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, in one heap. Do nothing with another C library or an accelerator.

    Call this before NumPy and JAX start their threads: a thread that already has its own heap keeps that heap.
    """
    if not computes_on_cpu():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)
