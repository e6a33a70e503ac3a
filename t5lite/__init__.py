"""t5lite: the whole life of a language model in readable JAX."""

from t5lite.memory import keep_freed_memory

# Here, because it must come before the first import of NumPy and JAX.
keep_freed_memory()
