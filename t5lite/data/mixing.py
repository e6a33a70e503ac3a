"""The shares of the members of a training mixture.

By weights, a member's share of the rows is its weight divided by the sum of all weights. With

    config.data.train.mixing = "proportional"

a member's share of the examples is in proportion to min(n, cap) ** (1 / temperature), where n is the number of the
member's examples (Raffel et al. 2020, section 3.5.2). An example is a pair or, for windows of text, a window. A row can
hold several pairs. So a member whose rows hold more pairs gets fewer rows for the same share of the examples.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from t5lite.data.labelled import PackedTexts
from t5lite.data.rows import PackedPairs, RowSource

PACKED = (PackedPairs, PackedTexts)  # rows that hold several examples


class Share(NamedTuple):
    """The share of a member in the mixture.

    weight: how often the member's rows are drawn, relative to rows of other members. examples: the number of the
    member's examples.
    """

    weight: float
    examples: int
    of_examples: float
    of_rows: float


class Drawn(NamedTuple):
    """The numbers of rows and of examples that a member brings to a stretch of the training."""

    rows: int
    examples: int


def count_examples(source: RowSource, rows: Sequence[int]) -> int:
    """Return the number of examples in some rows of a source."""
    return sum(len(source.plan.pairs(row)) for row in rows) if isinstance(source, PACKED) else len(rows)


def compute_shares(
    sources: Mapping[str, RowSource], weights: Mapping[str, float], fields: ConfigDict
) -> dict[str, Share]:
    """Return {member: share}.

    Args:
        sources: {member: its rows}.
        weights: {member: weight}; used if `fields.mixing` is unset.
        fields: `config.data.train`.
    """
    examples = {
        name: len(source.plan.order) if isinstance(source, PACKED) else len(source) for name, source in sources.items()
    }
    # At least 1: `TrainRows` refuses sources without rows.
    number = np.maximum(list(examples.values()), 1.0)
    rows = np.maximum(list(map(len, sources.values())), 1.0)
    if fields.mixing is None:
        row_weights = np.array([weights[name] for name in sources])
    else:
        rates = np.minimum(number, fields.mixing_cap or np.inf) / number.max()
        row_weights = rates ** (1 / fields.mixing_temperature) * rows / number
    of_rows, of_examples = (each / each.sum() for each in (row_weights, row_weights * number / rows))
    values = zip(row_weights, examples.values(), of_examples, of_rows, strict=True)
    return {name: Share(float(w), n, float(e), float(r)) for name, (w, n, e, r) in zip(sources, values, strict=True)}
