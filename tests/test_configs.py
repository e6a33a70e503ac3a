"""The configs that come with t5lite make a model, an objective, an optimizer and a schedule, without their data."""

from pathlib import Path

import pytest

from t5lite.checks import check, check_budget
from t5lite.config import read_config
from t5lite.model.build import make_model
from t5lite.model.presets import SIZES
from t5lite.model.transformer import parameter_shapes
from t5lite.objectives.catalogue import special_tokens
from t5lite.studies.study import read_study
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.table import make_objective
from t5lite.training.optimizer import make_optimizer
from t5lite.training.schedules import make_schedule
from t5lite.training.trainer import batch_shapes

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = {
    "tiny": ("", ":objective=causal_lm", ":architecture=decoder", ":objective=mlm", ":objective=mlm_nsp"),
    "families": tuple(f":preset={family}_{next(iter(sizes))}" for family, sizes in SIZES.items()),
    "glue": ("", ":task=stsb,architecture=encoder", ":task=wic,architecture=decoder"),
    "finetune_tiny": ("", ":architecture=decoder", ":architecture=encoder"),
}
SINGLE = {
    f"{path.stem}{arg}": f"{path}{arg}"
    for path in sorted(CONFIGS.glob("*.py"))
    for arg in ARGUMENTS.get(path.stem, ("",))
}
STUDIES = sorted((CONFIGS / "studies").glob("*.py"))


def put_together(config):
    """Make everything that a config describes, except its data. A mistake in the config raises UserError."""
    check(config)
    check_budget(config)
    if config.model.architecture == "bag_of_words":
        return
    architecture = config.model.architecture
    specials = special_tokens(config.tokenizer, config.objective, architecture)
    vocabulary = Vocabulary.synthetic(config.tokenizer.vocab_size, config.tokenizer.sentinels, specials)
    objective = make_objective(config.objective, architecture, vocabulary, labels=("a", "b"))
    model = make_model(config.model, vocabulary, objective.heads)
    batch_shapes(objective, config.batch_size, vocabulary.table)
    params = parameter_shapes(model.config)
    make_schedule(config.schedule, config.budget.steps)
    make_optimizer({**config.optimizer, "trainable": config.trainable}, params)


@pytest.mark.parametrize("spec", SINGLE.values(), ids=SINGLE.keys())
def test_a_config_can_be_put_together(spec):
    put_together(read_config(spec))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_can_be_put_together(path):
    once = {config.name: config for config in read_study(str(path)).values()}  # repetitions differ only by the seed
    for config in once.values():
        put_together(config)


def test_a_config_that_cannot_is_noticed():
    config = read_config(SINGLE["tiny"])
    config.optimizer.rate_multipliers = (("encodr.*", 0.3), (".*", 1.0))
    with pytest.raises(UserError, match="matches no parameter"):
        put_together(config)
