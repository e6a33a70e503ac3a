"""The cores of a run that shares the machine with other runs.

A run of a study begins with its share of the cores. NumPy and JAX count the cores only once, and make that many
threads. After that, `use_all_cores` allows all cores, so that other work, such as reading text, can use idle cores.
"""

import os

ALL_CORES = "T5LITE_CORES"  # an environment variable: the cores of all runs, as 0,1,2; not set outside a study


def use_all_cores() -> None:
    """Let this thread, and the threads and processes that it starts from now on, use the cores of all runs."""
    if cores := os.environ.get(ALL_CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))
