"""Which targets of training generation cannot say, by the rules that a run has which starts from a strange release."""

import numpy as np

from t5lite.decoding.conventions import Conventions, make_conventions
from t5lite.objectives.objective import Objective
from t5lite.system.vocabulary import Rules, Vocabulary

# What a release may say, and what a run that starts from it must not keep: its text could not be said then.
STRANGE = Rules(stops=(40, 900), first=41, last=901, never=(42, 43), never_first=(44,))


def trained(objective: Objective, vocab: Vocabulary, rules: Rules = STRANGE) -> Conventions:
    """The conventions of a run with `objective` that starts from weights with `rules`."""
    return make_conventions(
        objective, vocab, True, rules.adapt_to_training(objective.allowed_ids(vocab), objective.bos)
    )


def unsayable(
    objective: Objective, vocab: Vocabulary, targets: np.ndarray, segments: np.ndarray | None, weights: np.ndarray
) -> list[tuple[int, int]]:
    """(position in its segment, id) of each target that counts and cannot be generated, or would end the answer."""
    known, found = trained(objective, vocab), []
    segments = np.ones(len(targets), int) if segments is None else segments
    starts = np.flatnonzero(np.diff(segments, prepend=0) != 0)
    for place in np.flatnonzero(weights > 0):
        position = int(place - starts[starts <= place].max())
        forced = position == 0 and targets[place] == known.rules.first
        ends = targets[place] in known.rules.stops and targets[place] != vocab.eos
        if ends or not (known.allowed[targets[place]] or forced):
            found.append((position, int(targets[place])))
    return found
