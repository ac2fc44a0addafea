from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from histoscribe.data.bags import BagBatch
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError, DataError
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.nn.gene_query import cell_expression
from histoscribe.train.losses import cluster_loss, expression_loss, objective
from histoscribe.train.scaling import TargetScaling

N_GENES = 11
SCALING = TargetScaling(
    "log1p_counts",
    np.linspace(0.5, 3, N_GENES).astype(np.float32),
    np.linspace(0.2, 1, N_GENES).astype(np.float32),
)


def bags() -> BagBatch:
    return toy_bag_batch(torch.Generator().manual_seed(1), n_bags=13)


def model() -> Bitro:
    torch.manual_seed(0)
    config = BitroConfig(7, 6, 4, N_GENES, width=16, gat_width=12, context_width=10)
    return Bitro(config).eval()


def test_expression_loss_is_the_mean_over_what_was_measured():
    generator = torch.Generator().manual_seed(2)
    y, t = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    seen = torch.rand(5, 3, generator=generator) < 0.6
    wanted = float(((y - t) ** 2)[seen].mean())
    spoiled = torch.where(seen, t, torch.nan)
    assert float(expression_loss(y, spoiled, seen)) == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(
        expression_loss(y, t, None), expression_loss(y, t, torch.ones(5, 3, dtype=torch.bool))
    )
    assert float(expression_loss(y, t, torch.zeros(5, 3, dtype=torch.bool))) == 0.0


def test_what_was_not_measured_gives_no_gradient():
    y = torch.zeros(2, 2, requires_grad=True)
    seen = torch.tensor([[True, False], [True, True]])
    target = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    expression_loss(y, target, seen).backward()
    assert y.grad is not None
    assert bool(y.grad.isfinite().all())
    assert float(y.grad[0, 1]) == 0


def test_cluster_loss_equals_loops():
    batch = bags()
    y = torch.rand(batch.n_cells, 5, generator=torch.Generator().manual_seed(3))
    inside = batch.is_inside.nonzero()[:, 0].tolist()
    n_inside = [
        sum(1 for i in inside if int(batch.bag_of_cell[i]) == b) for b in range(batch.n_bags)
    ]
    v = {
        i: np.log1p(n_inside[int(batch.bag_of_cell[i])] * y[i].numpy().astype(float))
        for i in inside
    }
    by_phenotype = []
    for k in range(8):
        own = [i for i in inside if int(batch.phenotype[i]) == k]
        if len(own) >= 2:
            mean = np.mean([v[i] for i in own], axis=0)
            by_phenotype.append(np.mean([((v[i] - mean) ** 2).mean() for i in own]))
    assert len(by_phenotype) > 1
    assert float(cluster_loss(y, batch.is_inside.float(), batch)) == pytest.approx(
        np.mean(by_phenotype), rel=1e-5
    )


def test_a_phenotype_of_one_cell_does_not_count():
    batch = bags()
    y = torch.rand(batch.n_cells, 5, generator=torch.Generator().manual_seed(3))
    lonely = replace(batch, phenotype=torch.arange(batch.n_cells))
    assert float(cluster_loss(y, lonely.is_inside.float(), lonely)) == 0.0
    assert float(cluster_loss(y, batch.is_inside.float(), batch)) > 0.0


def test_the_number_of_cells_of_a_spot_is_not_punished():
    """As printed, eq. 12 is above 0 for cells that are all alike in spots of different size."""
    batch = bags()
    share = batch.is_inside.float()
    n_inside = torch.zeros(batch.n_bags).index_add(0, batch.bag_of_cell, share)
    counts = torch.full((batch.n_bags, 3), 40.0)
    even = (share / n_inside[batch.bag_of_cell])[:, None].expand(-1, 3)
    assert float(n_inside.std()) > 0
    assert (
        float(
            cluster_loss(
                cell_expression(even, counts, batch.bag_of_cell), batch.is_inside.float(), batch
            )
        )
        < 1e-9
    )


def test_objective_adds_its_parts():
    batch, net = bags(), model()
    plain = objective(net, batch)
    assert set(plain) == {"loss", "expression"}
    assert torch.equal(plain["loss"], plain["expression"])
    both = objective(net, batch, 0.3, SCALING)
    assert set(both) == {"loss", "expression", "cluster"}
    torch.testing.assert_close(both["loss"], both["expression"] + 0.3 * both["cluster"])
    both["cluster"].backward()
    assert net.queries.grad is not None
    assert float(net.queries.grad.abs().max()) > 0


def test_cells_that_were_not_drawn_are_no_part_of_the_cluster_loss():
    batch = bags()
    net = Bitro(replace(model().config, cells_in_training=2)).train()
    answer = net.answer(batch)
    drawn = answer.stands_for > 0
    assert int(drawn.sum()) < int(batch.is_inside.sum())
    for block in range(batch.n_blocks):
        own = batch.block_of_cell == block
        assert float(answer.stands_for[own].sum()) == pytest.approx(int(batch.is_inside[own].sum()))
    assert bool((answer.attention[~drawn] == 0).all())
    sums = torch.zeros(batch.n_bags, N_GENES).index_add(0, batch.bag_of_cell, answer.attention)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    y = answer.attention.detach()
    spoiled = torch.where(drawn[:, None], y, 1e6)
    of_drawn, of_all = (cluster_loss(c, answer.stands_for, batch) for c in (y, spoiled))
    torch.testing.assert_close(of_drawn, of_all)


def test_each_branch_is_trained_by_itself():
    batch, net = bags(), model()
    assert batch.target is not None
    wanted = [expression_loss(y, batch.target, None) for y in net.answer(batch).branches]
    torch.testing.assert_close(objective(net, batch)["loss"], sum(wanted) / 2)


def test_a_model_without_branches_is_trained_on_its_answer():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(N_GENES))

        def forward(self, batch: BagBatch) -> torch.Tensor:
            return self.level.expand(batch.n_bags, -1)

    batch = bags()
    assert batch.target is not None
    torch.testing.assert_close(objective(Mean(), batch)["loss"], batch.target.square().mean())
    with pytest.raises(ConfigError, match="no attention"):
        objective(Mean(), batch, 0.1, SCALING)


def test_what_is_missing_is_said():
    with pytest.raises(DataError, match="no target"):
        objective(model(), replace(bags(), target=None))
    with pytest.raises(ConfigError, match="scaling"):
        objective(model(), bags(), 0.1)
