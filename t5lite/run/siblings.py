"""Runs of one study: "@name" in a config means the run in the folder `name`, beside the run's own workdir."""

from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import at, put

REFERRING = ("init_from", "tokenizer.path")


def with_siblings(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return `config` with every "@name" replaced by the folder of that name beside `workdir`."""
    config = config.copy_and_resolve_references()
    for field in REFERRING:
        value = at(config, field)
        if value and value.startswith("@"):
            put(config, field, str(workdir.parent / value[1:]))
    return config
