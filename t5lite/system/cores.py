"""The cores of a run that shares the machine with others.

A library counts the cores only once, when it makes its threads. So a run of a study begins with its share of the cores,
and NumPy and JAX make as many threads. Other work, such as reading text, may then use cores that other runs leave idle.
"""

import os

ALL_CORES = "T5LITE_CORES"  # the environment variable with the cores of all runs, as 0,1,2; unset: no study runs


def use_all_cores() -> None:
    """Let this thread, and the threads and processes that it starts from now on, use the cores of all runs."""
    if cores := os.environ.get(ALL_CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))
