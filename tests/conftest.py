"""Eight fake CPU devices for every test, and caches that the tests share with each other but with nobody else."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

_scratch = tempfile.TemporaryDirectory(prefix="t5lite-tests-")
os.environ["T5LITE_CACHE"] = _scratch.name
