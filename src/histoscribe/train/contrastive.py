"""Losses that pull pairs together and push the others apart, over rows that have both sides."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Bool, Float, Int
from torch import Tensor

from histoscribe.errors import ConfigError, DataError
from histoscribe.nn.temperature import bounded_scale


def pair_loss(
    a: Float[Tensor, "n_a width"],
    b: Float[Tensor, "n_b width"],
    key_a: Int[Tensor, " n_a"],
    key_b: Int[Tensor, " n_b"],
    log_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Symmetric cross-entropy between two kinds of things that are paired by a key.

    With Z = s A B' and s = exp(min(tau, ln 100)):

        T_ij = 1[key_i = key_j] / sum_j 1[key_i = key_j]
        L = -1/2 [ mean_i sum_j T_ij log softmax_j(Z)_ij + mean_j sum_i T'_ji log softmax_i(Z)_ij ]

    where T' is normalised over the rows of A instead. With keys that are all different this is
    the loss of CLIP (Radford et al. 2021). Several positives: Khosla et al. 2020, eq. 2 (L_out).

    The sides may be of unequal length: a text that many profiles share is given once. A row
    without a partner pushes the others away, but has no term of its own.

    `pair_loss_plain` is the reference.

    Args:
        a: Rows of length 1.
        b: Rows of length 1.
        key_a: What each row of `a` is paired by.
        key_b: The same of `b`.
        log_scale: tau.

    Raises:
        DataError: If no row has a partner (on the CPU; elsewhere the loss is 0).
    """
    is_pair = key_a[:, None] == key_b
    if is_pair.device.type == "cpu" and not bool(is_pair.any()):
        raise DataError("no row of this pair has a partner; leave the pair out of this step")
    z = bounded_scale(log_scale) * similarities(a, b)
    return (_half(z, is_pair) + _half(z.T, is_pair.T)) / 2


def pair_loss_plain(
    a: Float[Tensor, "n_a width"],
    b: Float[Tensor, "n_b width"],
    key_a: Int[Tensor, " n_a"],
    key_b: Int[Tensor, " n_b"],
    log_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The same as the equation is written, row by row."""
    s = bounded_scale(log_scale)
    halves = []
    for own, other, key, other_key in ((a, b, key_a, key_b), (b, a, key_b, key_a)):
        terms = []
        for x, k in zip(own, key.tolist(), strict=True):
            z = s * (other @ x)
            log_p = z - z.exp().sum().log()
            positives = [log_p[j] for j, of_j in enumerate(other_key.tolist()) if of_j == k]
            if positives:
                terms.append(-torch.stack(positives).mean())
        halves.append(torch.stack(terms).mean())
    return torch.stack(halves).mean()


def siglip_loss(
    a: Float[Tensor, "n_a width"],
    b: Float[Tensor, "n_b width"],
    key_a: Int[Tensor, " n_a"],
    key_b: Int[Tensor, " n_b"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Every pair of rows judged by itself: is it one or not?

        L = -1/n_a sum_i sum_j log sigmoid(y_ij (s a_i . b_j + b0))         y_ij = 1 or -1 by key

    Source: Zhai et al. 2023, algorithm 1, whose start is tau = ln 10 and b0 = -10. Departs from
    it: all rows of one key are positives of each other.

    Args:
        a: Rows of length 1.
        b: Rows of length 1.
        key_a: What each row of `a` is paired by.
        key_b: The same of `b`.
        log_scale: tau, bounded as in `pair_loss`.
        bias: b0.
    """
    z = bounded_scale(log_scale) * similarities(a, b) + bias
    is_pair = key_a[:, None] == key_b
    return -F.logsigmoid(torch.where(is_pair, z, -z)).sum() / len(a)


def anchor_loss(
    moving: Float[Tensor, "n_a width"],
    anchor: Float[Tensor, "n_b width"],
    key: Int[Tensor, " n_a"],
    anchor_key: Int[Tensor, " n_b"],
) -> Float[Tensor, ""]:
    r"""Turn rows towards their partners, which stay where they are; nothing is pushed apart.

        L = mean_i ( 1 - mean_{j: key_j = key_i} cos(a_i, stopgrad b_j) )

    over the rows i that have a partner; 0 if none has. To tell rows apart that differ by noise
    alone, as neighbouring spots do, a contrastive loss spreads that noise over the sphere; this
    one has no such pull, and needs an anchor that is spread already.

    Args:
        moving: Rows of length 1.
        anchor: Rows of length 1.
        key: What each row of `moving` is paired by.
        anchor_key: The same of `anchor`.
    """
    is_pair = key[:, None] == anchor_key
    n_partners = is_pair.sum(1)
    cosine = torch.where(is_pair, similarities(moving, anchor.detach()), 0.0).sum(1)
    away = torch.where(n_partners > 0, 1 - cosine / n_partners.clamp(min=1), 0.0)
    return away.sum() / (n_partners > 0).sum().clamp(min=1)


def cycle_loss(
    of_image: Float[Tensor, "row width"], of_predicted: Float[Tensor, "row width"]
) -> Float[Tensor, ""]:
    r"""An image should lie where the expression that is predicted from it lies.

        L = mean_i ( 1 - cos(e_I(i), stopgrad e_G(y_i)) )

    The expression's side gives no gradient, so that neither prediction nor gene tower can give
    way to please the image.

    Args:
        of_image: e_I.
        of_predicted: e_G of the predicted expression.
    """
    return (1 - F.cosine_similarity(of_image, of_predicted.detach(), dim=1)).mean()


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    r"""Mean of the losses of the pairs that this step has: L = sum_p w_p L_p / sum_p w_p.

    Args:
        losses: By name of the pair; a pair without rows is left out.
        weights: Of every pair that may occur, 0 or more.

    Raises:
        ConfigError: If a pair has no weight, or no pair weighs anything.
    """
    missing = [name for name in losses if name not in weights]
    if missing:
        raise ConfigError(f"no weight is set for {', '.join(missing)}; there are {list(weights)}")
    total = sum(weights[name] for name in losses)
    if not total > 0:
        raise ConfigError(f"pairs {list(losses)} weigh {total} together; give one a weight above 0")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum() / total


def similarities(
    a: Float[Tensor, "n_a width"], b: Float[Tensor, "n_b width"]
) -> Float[Tensor, "n_a n_b"]:
    """Cosines of rows of length 1, in float32 at least.

    Half precision tells cosines apart to 1/256, which times a scale of 100 is not enough.
    """
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        return a.to(wide) @ b.to(wide).T


def _half(z: Float[Tensor, "row other"], is_pair: Bool[Tensor, "row other"]) -> Float[Tensor, ""]:
    """Mean over the rows that have a partner of the cross-entropy against all their partners."""
    n_partners = is_pair.sum(1)
    of_partners = torch.where(is_pair, z, 0.0).sum(1) / n_partners.clamp(min=1)
    terms = torch.where(n_partners > 0, z.logsumexp(1) - of_partners, 0.0)
    return terms.sum() / (n_partners > 0).sum().clamp(min=1)
