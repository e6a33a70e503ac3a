"""Runs of one study: "@name" in a config means the run in the folder `name`, beside the run's own workdir."""

from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import lookup_field, set_field

REFERRING = ("init_from", "tokenizer.path")


def with_siblings(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return `config` with every "@name" replaced by the folder of that name beside `workdir`."""
    config = config.copy_and_resolve_references()
    for field in REFERRING:
        value = lookup_field(config, field)
        if value and value.startswith("@"):
            set_field(config, field, str(workdir.parent / value[1:]))
    return config
