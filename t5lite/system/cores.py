"""The cores of a run that shares the machine with others.

A library counts the cores that it may use once, when it makes its threads. So a run of a study begins with its share
of them, by which NumPy and JAX make theirs. All else, such as reading text, may then use what the others leave idle.
"""

import os

ALL_CORES = "T5LITE_CORES"  # the environment variable that names them, as 0,1,2; unset: the process has them all


def use_all_cores() -> None:
    """Let this thread, and the threads and processes that it starts from now on, use the cores of all runs."""
    if cores := os.environ.get(ALL_CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))
