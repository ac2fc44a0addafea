import pytest
import torch

from histoscribe.nn.gene_query import (
    cell_expression,
    pool_by_gene,
    pool_by_gene_plain,
    share_evenly,
)

LENGTHS = torch.tensor([4, 1, 11, 6, 23])
BAG = torch.repeat_interleave(torch.arange(5), LENGTHS)
N_CELLS, N_GENES, WIDTH = len(BAG), 7, 3


def inside() -> torch.Tensor:
    is_inside = torch.rand(N_CELLS, generator=torch.Generator().manual_seed(9)) < 0.6
    is_inside[LENGTHS.cumsum(0) - LENGTHS] = True
    return is_inside


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fast_and_plain_forms_agree_with_their_gradients():
    results = []
    for form in (pool_by_gene, pool_by_gene_plain):
        h, q = (3 * draw(N_CELLS, WIDTH, seed=1)).requires_grad_(), draw(N_GENES, WIDTH, seed=2)
        q.requires_grad_()
        z, a = form(h, q, inside(), BAG, 5)
        (z * draw(5, N_GENES, WIDTH, seed=3)).sum().backward(retain_graph=True)
        (a * draw(N_CELLS, N_GENES, seed=4)).sum().backward()
        results.append((z.detach(), a.detach(), h.grad, q.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", [pool_by_gene, pool_by_gene_plain])
def test_weights_sum_to_one_over_the_cells_inside(form):
    _, a = form(draw(N_CELLS, WIDTH, seed=5), draw(N_GENES, WIDTH, seed=6), inside(), BAG, 5)
    assert bool((a[~inside()] == 0).all())
    assert bool((a[inside()] > 0).all())
    sums = torch.zeros(5, N_GENES).index_add(0, BAG, a)
    torch.testing.assert_close(sums, torch.ones(5, N_GENES))


@pytest.mark.parametrize("form", [pool_by_gene, pool_by_gene_plain])
def test_a_cell_that_stands_for_three_weighs_what_three_like_it_would(form):
    h, q = draw(N_CELLS, WIDTH, seed=15), draw(N_GENES, WIDTH, seed=16)
    n = 1 + torch.arange(N_CELLS) % 3
    z, a = form(h, q, inside(), BAG, 5, n.float())
    again = torch.repeat_interleave(torch.arange(N_CELLS), n)
    z_of_all, a_of_all = form(h[again], q, inside()[again], BAG[again], 5)
    torch.testing.assert_close(z, z_of_all, atol=1e-5, rtol=1e-5)
    summed = torch.zeros(N_CELLS, N_GENES).index_add(0, again, a_of_all)
    torch.testing.assert_close(a, summed, atol=1e-6, rtol=1e-5)


def test_equal_queries_pool_alike_and_a_sharp_query_picks_its_cell():
    h = draw(N_CELLS, WIDTH, seed=7)
    q = draw(N_GENES, WIDTH, seed=8)
    q[3] = q[5]
    z, _ = pool_by_gene(h, q, inside(), BAG, 5)
    assert torch.equal(z[:, 3], z[:, 5])
    sharp, _ = pool_by_gene(h, 1e4 * h[[0]], inside(), BAG, 5)
    rows = (inside() & (BAG == 4)).nonzero()[:, 0]
    nearest = rows[(h[rows] @ h[0]).argmax()]
    torch.testing.assert_close(sharp[4, 0], h[nearest])


def test_even_shares():
    share = share_evenly(inside().float(), BAG, 5)
    assert bool((share[~inside()] == 0).all())
    torch.testing.assert_close(torch.zeros(5).index_add(0, BAG, share), torch.ones(5))


def test_cells_sum_to_their_region():
    _, a = pool_by_gene(
        draw(N_CELLS, WIDTH, seed=1), draw(N_GENES, WIDTH, seed=2), inside(), BAG, 5
    )
    counts = draw(5, N_GENES, seed=3).exp() * 100
    cells = cell_expression(a, counts, BAG)
    sums = torch.zeros(5, N_GENES).index_add(0, BAG, cells)
    torch.testing.assert_close(sums, counts, atol=0, rtol=1e-5)
    assert bool((cells[~inside()] == 0).all())
