"""A model's heads by the names of their tasks' parameters."""

from t5lite.objectives.objective import Heads
from t5lite.tasks.table import TASKS


def heads(vocabulary=True, classifier=0, tagger=0, next_sentence=False):
    """The vocabulary, and heads with so many outputs."""
    sizes = {"classifier": classifier, "tagger": tagger, "next_sentence": 2 * next_sentence}
    return Heads(vocabulary, tuple(TASKS[name].make_head(size) for name, size in sizes.items() if size))
