"""References between runs of a study: "@name" in a config means the run in the folder `name` beside the workdir."""

from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import lookup_field, set_field

REFERRING = ("init_from", "tokenizer.path")


def with_siblings(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return a copy of `config`. Every "@name" is replaced by the folder `name` beside `workdir`."""
    config = config.copy_and_resolve_references()
    for field in REFERRING:
        value = lookup_field(config, field)
        if value and value.startswith("@"):
            set_field(config, field, str(workdir.parent / value[1:]))
    return config
