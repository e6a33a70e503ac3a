"""Packed rows of a run: the lengths of their sides, and the version of the packing."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from t5lite.data.dataset import Dataset
from t5lite.data.packing import PACKING, choose_sides
from t5lite.objectives.objective import Objective


def fit_rows_to_data(config: ConfigDict, dataset: Dataset, objective: Objective) -> tuple[Objective, Dataset]:
    """Return the objective of training, and the dataset, if training packs texts with answers that are texts.

    The objective's lengths become those of the packed rows, which follow from the lengths of all training pairs; see
    `packing.choose_sides`. The version of the packing becomes a part of the data's identity, because other rows are
    other data.
    """
    if not (objective.has_answers and config.objective.pack and dataset.train):
        return objective, dataset
    dataset = dataclasses.replace(dataset, identity={**dataset.identity, "objective.pack": PACKING})
    if objective.rows != "pairs":
        return objective, dataset
    lengths = np.concatenate([span.store.pair_lengths() for span in dataset.train.values()])
    may_grow = objective.architecture == "encoder_decoder" and config.model.max_positions is None
    limits = objective.inputs_length, objective.targets_length
    inputs, targets = choose_sides(lengths + (objective.bos is not None), *limits, may_grow)
    return dataclasses.replace(objective, inputs_length=inputs, targets_length=targets), dataset
