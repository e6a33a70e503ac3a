"""Eight fake CPU devices for every test, and caches that the tests share with each other but with nobody else.

Workers of pytest-xdist inherit the environment that the first process sets here. So they share its caches: a program
that one of them has compiled is read by the others.

Programs are compiled without optimisation: the tests are many small programs that run once. XLA's older way of making
loops of fused operations, which its fusion emitters replace, compiles them in half of the time. A program is compiled
in one piece, because cutting it in 32 pieces for 32 threads takes more work. Operations are traced without the lines of
code that they come from, and Python looks for cycles seldom: both take a tenth of the time of tracing.

XLA runs the independent collectives of a program at once, each waiting on a thread of its own. Its pool has a thread a
device or core, which eight devices on two cores exhaust now and then, and then wait for each other for ever: NPROC, the
cores that XLA believes in, makes the pool larger.

Files run in the order of collection, but those of LONG come first. Else one worker would wait at the end for a long
file of the other.

What a file has compiled goes with it: each program takes some memory maps, of which Linux gives a process 65,530, and
XLA crashes where it gets no more.
"""

import gc
import os
import sys
import tempfile

import pytest

QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

if "PYTEST_XDIST_WORKER" not in os.environ:
    _scratch = tempfile.TemporaryDirectory(prefix="t5lite-tests-")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = "32"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES} {QUICK_TO_COMPILE}".strip()
    os.environ["T5LITE_CACHE"] = _scratch.name
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_scratch.name, "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

gc.set_threshold(100_000, 20, 100)

LONG = ("test_hosts.py", "test_notebooks.py", "test_generate.py", "test_every_objective.py", "test_early_stopping.py",
        "test_kept.py", "test_released.py", "test_foundations.py", "test_fuzz.py", "test_elastic.py")  # fmt: skip

KEPT = {
    "t5lite.training.trainer": ("_compile_programs", "compile_eval_step"),
    "t5lite.run.experiment": ("_make_functions",),
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    yield
    for module, functions in KEPT.items():
        for function in functions if module in sys.modules else ():
            getattr(sys.modules[module], function).cache_clear()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
