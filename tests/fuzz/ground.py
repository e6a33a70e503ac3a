"""What cases start from, made once: texts, a config, a tokenizer, a complete run, a cache."""

import functools
import json
import os
import pickle
from pathlib import Path

from t5lite import prepare, train
from tests.fuzz.outcome import Outcome, run
from tests.interop.places import PLACES, make_place
from tests.small import Spy, write_texts

CONFIG = """
from t5lite.config import parse_arg
from tests.small import small_config

def get_config(arg=None):
    arg = parse_arg(arg, objective="span_corruption", architecture="encoder_decoder")
    config = small_config({source!r}, arg.objective, arg.architecture)
    config.eval.rows, config.budget.steps, config.model.d_model = 4, 1, 16
    config.batch_size, config.tokenizer.path = 2, {tokenizer!r}
    config.tokenizer.specials = ("[MASK]", "[CLS]", "[SEP]")  # one tokenizer for all objectives
    return config
"""


class Ground:
    """A folder with all of it; `T5LITE_CACHE` points into it from then on."""

    def __init__(self, folder: Path):
        self.folder = folder
        os.environ["T5LITE_CACHE"] = str(folder / "cache")
        self.source = write_texts(folder / "texts")
        self.trace = folder / "executed"
        self.config = folder / "config.py"
        self._write_config(None)
        said = json.loads(_must(prepare, "--config", self.config, "--json"))
        self.tokenizer = next((folder / "cache" / "tokenizers").iterdir())
        assert said["tokenizer"]["size"]
        self._write_config(str(self.tokenizer))
        self.programs = [f'__import__("pathlib").Path({str(self.trace)!r}).touch()',
                         f"!!python/object/apply:pathlib.Path.touch [{self.trace}]"]  # fmt: skip
        self.pickled = pickle.dumps(Spy(self.trace))

    def _write_config(self, tokenizer: str | None) -> None:
        self.config.write_text(CONFIG.format(source=self.source, tokenizer=tokenizer))

    @functools.cached_property
    def complete_run(self) -> Path:
        """The workdir of a language model that was trained for a step."""
        workdir = self.folder / "complete"
        _must(train, "--config", f"{self.config}:objective=causal_lm,architecture=decoder", "--workdir", workdir)
        return workdir

    @functools.cached_property
    def released(self) -> Path:
        """A folder of folders of released weights."""
        for name in PLACES:
            make_place(self.folder / "released" / name, name)
        return self.folder / "released"

    @functools.cached_property
    def prepared(self) -> str:
        """What `prepare --json` says of the config."""
        return _must(prepare, "--config", self.config, "--json")


def _must(verb, *argv: object) -> str:
    outcome: Outcome = run(verb.main, argv)
    assert outcome.kind == "succeeded", outcome.said
    return outcome.said
