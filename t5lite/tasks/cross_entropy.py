"""Cross entropy as sums. They can be added over microbatches, hosts and validation batches."""

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array
Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The fields of `config.loss`, and the weights of classes that follow from them. The defaults are plain likelihood.

    class_weights: a weight for each label of the run, in their order; None: all weights are 1. Only the objective of
        heads that choose labels uses them, not their "nll".
    r_drop: the weight of the divergence of two passes; see `table.two_pass_sums`. 0: there is one pass.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    class_weights: tuple[float, ...] | None = None
    r_drop: float = 0.0


def nll_and_log_z(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Return (negative log-likelihood of the targets, log of the softmax's normaliser), in the shape of the targets.

    Args:
        logits: float32 [..., V].
        targets: int32 [...].
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison and a sum, not a gather. So the gradient needs no scatter, and V may be sharded.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return log_z - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1), log_z


def cross_entropy_sums(
    logits: Array, targets: Array, weights: Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Sums:
    """Return {"objective", "nll", "weight"}, float32 scalars: weighted sums over all targets.

    nll: negative log-likelihood.
    objective: the loss to minimise: nll + z_loss · log²Z, where Z is the softmax's normaliser (Chowdhery et al. 2022,
        PaLM, section 5). With label smoothing, the share `label_smoothing` of the target's probability is spread evenly
        over all V classes.
    weight: the sum of the weights.
    """
    nll, log_z = nll_and_log_z(logits, targets)
    objective = nll
    if label_smoothing:
        objective = (1 - label_smoothing) * nll + label_smoothing * (log_z - jnp.mean(logits, axis=-1))
    if z_loss:
        objective = objective + z_loss * jnp.square(log_z)
    return {
        "objective": jnp.sum(objective * weights),
        "nll": jnp.sum(nll * weights),
        "weight": jnp.sum(weights),
    }


def divergence(logits: Array, others: Array) -> Array:
    """Return the symmetric divergence KL(p || q) + KL(q || p) of two distributions, float32 [...].

    Args:
        logits, others: float32 [..., V], the logits of p and of q.
    """
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
