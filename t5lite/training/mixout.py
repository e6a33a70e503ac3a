"""Mixout: at each training step, a random part of the weights has its pre-trained values (Lee et al. 2020, ICLR).

    w   the weights from an input neuron to all outputs of a kernel, u   their values in `init_from`, p   config.mixout
    keep   1 with probability 1 - p, else 0; one number for each input neuron of each kernel

    mixed = (keep · w + (1 - keep) · u - p · u) / (1 - p)       section 3 of the paper; its mean over `keep` is w
          = u + keep · (w - u) / (1 - p)                        dropout of the distance from u

All weights from a neuron are kept or replaced together, as dropout drops a neuron. With a number for each weight, the
method would be the paper's mixconnect.

Two things differ from the authors' code on purpose. The gradient is the derivative of this equation: that for the mixed
weights times keep / (1 - p). Their code leaves out the division. Their code also puts mixout in the place of dropout,
in the layers after a dropout. Here `model.dropout` stays as it is set.

Mixed are the kernels of the layers that are trained. Norms, biases, embeddings and heads are not mixed. The pre-trained
values are a part of the TrainState and of each checkpoint, so a resumed run does not read `init_from` again. The kept
weights follow from seed and step. All microbatches of a step, and both passes of R-Drop, have the same mixed weights.
Evaluation uses the plain parameters.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from t5lite.config import require

Array = jax.Array
MIXED = re.compile(r"(encoder|decoder)/layers/.*/kernel")


def select_mixed(params: Any, trainable: Any) -> dict[str, Any]:
    """Return the tree of the parameters that are mixed. Other leaves are not in the tree.

    trainable: a tree of bools like `params`. Raises UserError if no parameter is mixed.
    """
    is_trained = flatten_dict(trainable, sep="/")
    leaves = flatten_dict(params, sep="/").items()
    mixed = {path: leaf for path, leaf in leaves if MIXED.fullmatch(path) and is_trained[path]}
    require(bool(mixed), "mixout", "no kernel of a layer is trained; set it to 0, or train layers")
    return unflatten_dict(mixed, sep="/")


def mix(params: Any, pretrained: Any, rate: float, key: Array) -> tuple[Any, Callable[[Any], Any]]:
    """Return (the mixed parameters, a function from gradients for them to gradients for `params`).

    Args:
        params: a tree of parameters. Some leaves may be None. Kernels that are mixed are [layers, inputs, outputs].
        pretrained: see `select_mixed`.
        rate: the probability of pre-trained values.
    """
    pretrained = flatten_dict(pretrained, sep="/")
    keys = dict(zip(sorted(pretrained), jax.random.split(key, len(pretrained)), strict=True))

    def mix_all(params: Any) -> Any:
        mixed = flatten_dict(params, sep="/")
        for path, value in pretrained.items():
            is_kept = jax.random.bernoulli(keys[path], 1 - rate, (*value.shape[:-1], 1))  # [layers, inputs, 1]
            mixed[path] = value + jnp.where(is_kept, (mixed[path] - value) / (1 - rate), 0)
        return unflatten_dict(mixed, sep="/")

    mixed, pull_back = jax.vjp(mix_all, params)
    return mixed, lambda gradient: pull_back(gradient)[0]
