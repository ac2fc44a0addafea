"""Losses, as functions of a model and a batch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, DataError
from histoscribe.models.predictor import Answer, Branched, Predictor
from histoscribe.nn.gene_query import cell_expression, share_evenly
from histoscribe.nn.ragged import segment_mean, segment_sum
from histoscribe.train.scaling import TargetScaling


def objective(
    model: nn.Module,
    batch: BagBatch,
    cluster_weight: float = 0.0,
    scaling: TargetScaling | None = None,
) -> dict[str, Tensor]:
    r"""What `fit` brings down: L = L_gene + lambda L_cluster (eq. 13).

    Where a model answers in branches, L_gene is the mean over its branches of their mean squared
    errors, so that each learns to answer by itself. Departs from the paper, which has one answer:
    what is predicted, the mix of the branches, is not itself in L_gene. L_cluster works on the
    mix.

    Args:
        model: A `Predictor`.
        batch: With a target.
        cluster_weight: lambda; 0 leaves the cluster loss out. The paper's ablation has it hurt
            for spots, and takes 0.1 to 0.5 for bulk.
        scaling: How targets were z-scored; the cluster loss works on counts and needs it.

    Returns:
        "loss" and its parts, "expression" and, where it is wanted, "cluster".

    Raises:
        DataError: If the batch has no target.
        ConfigError: If the cluster loss is wanted without the scaling.
    """
    if batch.target is None:
        raise DataError("the batch has no target; assemble the bags with has_target=True")
    answer = _answer(model, batch, needs_attention=cluster_weight > 0)
    parts = [expression_loss(y, batch.target, batch.is_observed) for y in answer.branches]
    expression = torch.stack(parts).mean()
    if cluster_weight == 0:
        return {"loss": expression, "expression": expression}
    if scaling is None:
        raise ConfigError("the cluster loss works on counts; give the scaling of the targets")
    mu, sigma = (
        torch.from_numpy(x.copy()).to(answer.expression) for x in (scaling.mu, scaling.sigma)
    )
    counts = torch.expm1(answer.expression * sigma + mu).clamp(min=0)
    cells = cell_expression(answer.attention, counts, batch.bag_of_cell)
    cluster = cluster_loss(cells, answer.stands_for, batch)
    return {
        "loss": expression + cluster_weight * cluster,
        "expression": expression,
        "cluster": cluster,
    }


def expression_loss(
    answer: Float[Tensor, "bag gene"],
    target: Float[Tensor, "bag gene"],
    is_observed: Bool[Tensor, "bag gene"] | None,
) -> Float[Tensor, ""]:
    """Mean squared error over the pairs of bag and gene that were measured (eq. 11).

    Departs from the paper, which sums over genes: the value does not depend on the panel's size.
    0 if nothing was measured.
    """
    if is_observed is None:
        return (answer - target).square().mean()
    error = torch.where(is_observed, answer - target, 0.0)
    return error.square().sum() / is_observed.sum().clamp(min=1)


def cluster_loss(
    cells: Float[Tensor, "cell gene"], stands_for: Float[Tensor, " cell"], batch: BagBatch
) -> Float[Tensor, ""]:
    r"""Cells of one phenotype should express alike (eq. 12).

        v_i = log(1 + N_b y_i / n_i)     L = 1/K sum_k 1/n_k sum_{i in k} mean_g (v_ig - vbar_kg)^2

    over the K phenotypes with at least two pooled cells in the batch, n_k of them each; n_i is
    how many cells i stands for, N_b their sum over its bag, vbar_k the mean over the phenotype.

    Departs from the paper: y_i falls as 1/N_b, since the cells of a bag share its counts, so that
    eq. 12 as printed would penalise the size of spots; N_b takes that out. Phenotypes are compared
    over the batch, not bag by bag.

    Args:
        cells: Expression of each cell in counts (eq. 10).
        stands_for: How many cells each stands for of those that share the counts of its bag; 0 for
            one that was not pooled.
        batch: Where the cells lie and their phenotypes.

    Returns:
        The loss; 0 if no phenotype has two cells.
    """
    pooled = stands_for.nonzero()[:, 0]
    phenotype = batch.phenotype[pooled]
    even = share_evenly(stands_for, batch.bag_of_cell, batch.n_bags)[pooled]
    v = torch.log1p(cells[pooled] / even[:, None])
    n_phenotypes = int(phenotype.max()) + 1
    mean = segment_mean(v, phenotype, n_phenotypes)
    spread = (v - mean[phenotype]).square().mean(1, keepdim=True)
    return _mean_over_phenotypes(spread, phenotype, n_phenotypes)


def _mean_over_phenotypes(
    spread: Float[Tensor, "cell 1"], phenotype: Int[Tensor, " cell"], n_phenotypes: int
) -> Float[Tensor, ""]:
    n_cells = torch.bincount(phenotype, minlength=n_phenotypes)
    counts = n_cells >= 2
    by_phenotype = segment_sum(spread, phenotype, n_phenotypes)[:, 0] / n_cells.clamp(min=1)
    return torch.where(counts, by_phenotype, 0.0).sum() / counts.sum().clamp(min=1)


def _answer(model: nn.Module, batch: BagBatch, *, needs_attention: bool) -> Answer:
    if isinstance(model, Branched):
        return model.answer(batch)
    expression, inside = model(batch), batch.is_inside.float()
    if not needs_attention:
        none = expression.new_zeros(batch.n_cells, 1)
        return Answer(expression, (expression,), none, inside)
    if not isinstance(model, Predictor):
        raise ConfigError(f"{type(model).__name__} has no attention; set cluster_weight to 0")
    return Answer(expression, (expression,), model.attention(batch), inside)
