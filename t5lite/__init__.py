"""t5lite: the whole life of a language model in readable JAX."""

import sys

from t5lite.system.memory import keep_freed_memory
from t5lite.system.signals import end_on_signals

# Here, because it must come before the first import of NumPy and JAX.
keep_freed_memory()
if sys.argv[:1] == ["-m"]:  # python -m t5lite.VERB, which imports for seconds before its main begins
    end_on_signals()
