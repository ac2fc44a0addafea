import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from histoscribe.errors import MismatchError
from histoscribe.nn import streaming
from histoscribe.nn.gene_query import pool_by_gene, pool_by_gene_plain
from histoscribe.nn.streaming import GenePool

N_BAGS, N_GENES, WIDTH = 3, 11, 5
SMALL = 7 * 4  # bytes of a tile: seven weights, so that every tile is cut in both directions


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_bags(n_cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bag of each cell, in no order, and whether it is inside; each bag has one inside."""
    made = torch.Generator().manual_seed(seed)
    bag = torch.randint(N_BAGS, (n_cells,), generator=made)
    inside = torch.rand(n_cells, generator=made) < 0.7
    bag[:N_BAGS], inside[:N_BAGS] = torch.arange(N_BAGS), True
    return bag, inside


def one_shot(h: Tensor, q: Tensor, inside: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
    """`pool_by_gene` wants ascending bags."""
    order = bag.argsort(stable=True)
    z, share = pool_by_gene(h[order], q, inside[order], bag[order], N_BAGS)
    return z, torch.empty_like(share).index_copy(0, order, share)


def pool_plainly(h: Tensor, q: Tensor, inside: Tensor, bag: Tensor) -> Tensor:
    """Cell by cell: the state as its docstring defines it, in float64, and nothing else."""
    z = torch.full((N_BAGS, len(q), h.shape[1]), torch.nan, dtype=torch.float64)
    for b in range(N_BAGS):
        own = h[inside & (bag == b)].double()
        for g in range(len(q) if len(own) else 0):
            logits = [float(c @ q[g].double()) / h.shape[1] ** 0.5 for c in own]
            weight = torch.tensor(logits, dtype=torch.float64).softmax(0)
            z[b, g] = sum(w * c for w, c in zip(weight, own, strict=True))
    return z


def cut(data: st.DataObject, n: int) -> list[slice]:
    at = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))  # twice the same: empty chunk
    return [slice(a, b) for a, b in zip([0, *at], [*at, n], strict=True)]


def merge_in_any_tree(data: st.DataObject, pools: list[GenePool]) -> GenePool:
    while len(pools) > 1:
        a = pools.pop(data.draw(st.integers(0, len(pools) - 1)))
        b = pools.pop(data.draw(st.integers(0, len(pools) - 1)))
        pools.append(a.merge(b))
    return pools[0]


def cells_of(kind: str, n_cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cells and queries whose logits are moderate, equal, or thousands apart.

    The latter are whole numbers of a width that is a power of 4, so that logits are exact in
    float32 and what is compared is the softmax, not how a product was rounded.
    """
    if kind == "equal":
        return torch.full((n_cells, WIDTH), 0.7), draw(N_GENES, WIDTH, seed=seed)
    if kind == "far apart":
        h = (10 * draw(n_cells, 4, seed=seed)).round()
        return h, (100 * draw(N_GENES, 4, seed=seed + 1)).round()
    return draw(n_cells, WIDTH, seed=seed), 3 * draw(N_GENES, WIDTH, seed=seed + 1)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 10_000),
    n_cells=st.integers(N_BAGS, 61),
    kind=st.sampled_from(["moderate", "equal", "far apart"]),
    chunk_bytes=st.sampled_from([1, SMALL, 400, streaming.CHUNK_BYTES]),
)
def test_chunks_in_any_order_and_tree_equal_one_shot(data, seed, n_cells, kind, chunk_bytes):
    h, q = cells_of(kind, n_cells, seed)
    bag, inside = draw_bags(n_cells, seed)
    chunks = data.draw(st.permutations(cut(data, n_cells)))
    start = GenePool.start(N_BAGS, N_GENES, h.shape[1])
    parts = [start.add(h[c], q, inside[c], bag[c], chunk_bytes=chunk_bytes) for c in chunks]
    in_a_row = start
    for c in chunks:
        in_a_row = in_a_row.add(h[c], q, inside[c], bag[c], chunk_bytes=chunk_bytes)
    z, share = one_shot(h, q, inside, bag)
    close = {"atol": 1e-5 * float(h.abs().max()), "rtol": 1e-5}
    for pool in (in_a_row, merge_in_any_tree(data, parts)):
        torch.testing.assert_close(pool.pooled(), z, **close)
        torch.testing.assert_close(
            pool.share(h[inside], q, bag[inside]), share[inside], atol=1e-5, rtol=1e-5
        )


def test_logits_far_apart_are_so():
    h, q = cells_of("far apart", 61, 1)
    logits = h @ q.T / 2
    assert float(logits.amax() - logits.amin()) > 3000
    assert torch.equal(logits.double(), h.double() @ q.double().T / 2)


@pytest.mark.parametrize("chunk_bytes", [1, SMALL, 400, streaming.CHUNK_BYTES])
def test_tiles_equal_the_plain_loop(chunk_bytes):
    h, q = 2 * draw(43, WIDTH, seed=1), 2 * draw(N_GENES, WIDTH, seed=2)
    bag, inside = draw_bags(43, seed=3)
    pool = GenePool.start(N_BAGS, N_GENES, WIDTH)
    pool = pool.add(h, q, inside, bag, chunk_bytes=chunk_bytes)
    plain = pool_plainly(h, q, inside, bag)
    torch.testing.assert_close(pool.pooled().double(), plain, atol=1e-5, rtol=1e-5)


def test_in_float64_it_is_as_exact_as_that():
    h, q = 1000 * draw(37, WIDTH, seed=1).double(), draw(N_GENES, WIDTH, seed=2).double()
    bag, inside = draw_bags(37, seed=3)
    pool = GenePool.start(N_BAGS, N_GENES, WIDTH, dtype=torch.float64)
    pool = pool.add(h, q, inside, bag, chunk_bytes=SMALL)
    torch.testing.assert_close(pool.pooled(), pool_plainly(h, q, inside, bag), atol=0, rtol=1e-9)


def test_half_precision_cells_are_pooled_in_the_type_of_the_pool():
    h, q = draw(37, WIDTH, seed=1).bfloat16(), draw(N_GENES, WIDTH, seed=2)
    bag, inside = draw_bags(37, seed=3)
    start = GenePool.start(N_BAGS, N_GENES, WIDTH)
    assert_same(start.add(h, q, inside, bag), start.add(h.float(), q, inside, bag), rtol=0)


def test_many_tiles_of_many_genes_equal_one_shot():
    """Both cuts happen at the sizes of real use too."""
    n_cells, n_genes = 9001, streaming.MOST_GENES + 37
    assert n_cells > streaming.CHUNK_BYTES / 4 / streaming.MOST_GENES
    h, q = draw(n_cells, 8, seed=1), 4 * draw(n_genes, 8, seed=2)
    inside, bag = torch.ones(n_cells, dtype=torch.bool), torch.zeros(n_cells, dtype=torch.int64)
    pool = GenePool.start(1, n_genes, 8).add(h, q, inside, bag)
    z, share = pool_by_gene(h, q, inside, bag, 1)
    torch.testing.assert_close(pool.pooled(), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pool.share(h, q, bag), share, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("chunk_bytes", "most"), [(1, 1), (SMALL, 7), (400, 100), (4000, 1000)])
def test_a_tile_stays_under_its_bytes(monkeypatch, chunk_bytes, most):
    sizes, pool_tile = [], streaming._pool_tile
    monkeypatch.setattr(
        streaming,
        "_pool_tile",
        lambda q, h: sizes.append(len(q) * len(h)) or pool_tile(q, h),
    )
    bag, inside = draw_bags(97, seed=4)
    h, q = draw(97, WIDTH, seed=5), draw(N_GENES, WIDTH, seed=6)
    GenePool.start(N_BAGS, N_GENES, WIDTH).add(h, q, inside, bag, chunk_bytes=chunk_bytes)
    assert sum(sizes) == int(inside.sum()) * N_GENES
    assert max(sizes) <= most


def pools(kind: str = "moderate") -> list[GenePool]:
    made = []
    for seed, n_cells in ((1, 7), (2, 1), (3, 19)):
        h, q = cells_of(kind, n_cells, seed)
        _, q = cells_of(kind, 1, 100)
        bag = torch.randint(2, (n_cells,), generator=torch.Generator().manual_seed(seed))
        inside = torch.ones(n_cells, dtype=torch.bool)
        made.append(GenePool.start(N_BAGS, N_GENES, h.shape[1]).add(h, q, inside, bag))
    return made


def assert_same(a: GenePool, b: GenePool, rtol: float) -> None:
    assert torch.equal(a.largest, b.largest)
    torch.testing.assert_close(a.total, b.total, atol=0, rtol=rtol)
    torch.testing.assert_close(a.weighted, b.weighted, atol=1e-12, rtol=rtol)


@pytest.mark.parametrize("kind", ["moderate", "equal", "far apart"])
def test_merge_is_commutative_associative_and_has_a_neutral_element(kind):
    a, b, c = pools(kind)
    assert_same(a.merge(b), b.merge(a), rtol=0)
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)), rtol=1e-12)
    empty = GenePool.start(N_BAGS, N_GENES, a.weighted.shape[2])
    assert_same(a.merge(empty), a, rtol=0)
    assert_same(empty.merge(a), a, rtol=0)
    assert_same(empty.merge(empty), empty, rtol=0)


def test_a_bag_without_a_cell_is_nan_and_changes_no_other():
    a, b, _ = pools()
    z = a.merge(b).pooled()
    assert bool(z[2].isnan().all())
    assert bool(z[:2].isfinite().all())
    nothing = GenePool.start(2, 3, 4).pooled()
    assert nothing.shape == (2, 3, 4)
    assert bool(nothing.isnan().all())


def test_cells_that_are_not_inside_count_for_nothing():
    bag, inside = draw_bags(31, seed=1)
    h, q = draw(31, WIDTH, seed=2), draw(N_GENES, WIDTH, seed=3)
    start = GenePool.start(N_BAGS, N_GENES, WIDTH)
    spoiled = h.masked_fill(~inside[:, None], torch.nan)
    assert_same(start.add(spoiled, q, inside, bag), start.add(h, q, inside, bag), rtol=0)
    nobody = torch.zeros(31, dtype=torch.bool)
    assert_same(start.add(h, q, nobody, bag), start, rtol=0)
    assert_same(start.add(h[:0], q, inside[:0], bag[:0]), start, rtol=0)


def test_logits_of_minus_infinity_weigh_nothing():
    q, inside = torch.full((1, 1), 3e38), torch.ones(2, dtype=torch.bool)
    bag = torch.zeros(2, dtype=torch.int64)
    start = GenePool.start(1, 1, 1)
    lost = start.add(torch.tensor([[-3e38], [-2e38]]), q, inside, bag)
    assert bool((lost.largest == -torch.inf).all())
    assert bool((lost.total == 0).all())
    found = lost.add(torch.tensor([[0.25], [-3e38]]), q, inside, bag)
    assert found.pooled().item() == 0.25


def test_a_broken_cell_is_not_hidden():
    bag, inside = draw_bags(13, seed=1)
    h, q = draw(13, WIDTH, seed=2), draw(N_GENES, WIDTH, seed=3)
    h[1] = torch.nan
    z = GenePool.start(N_BAGS, N_GENES, WIDTH).add(h, q, inside, bag).pooled()
    assert bool(z[1].isnan().all())
    assert bool(z[[0, 2]].isfinite().all())


def test_adding_leaves_the_old_state_alone():
    bag, inside = draw_bags(13, seed=1)
    h, q = draw(13, WIDTH, seed=2), draw(N_GENES, WIDTH, seed=3)
    old = GenePool.start(N_BAGS, N_GENES, WIDTH).add(h, q, inside, bag)
    before = [x.clone() for x in (old.largest, old.total, old.weighted)]
    old.add(2 * h, q, inside, bag)
    old.merge(old)
    assert all(
        torch.equal(x, y)
        for x, y in zip(before, (old.largest, old.total, old.weighted), strict=True)
    )


def test_gradients_equal_those_of_one_shot():
    bag, inside = draw_bags(29, seed=7)
    towards = draw(N_BAGS, N_GENES, WIDTH, seed=8)
    of_share = draw(29, N_GENES, seed=9)
    results = []
    for is_streamed in (True, False):
        h, q = draw(29, WIDTH, seed=10).requires_grad_(), draw(N_GENES, WIDTH, seed=11)
        q.requires_grad_()
        if is_streamed:
            pool = GenePool.start(N_BAGS, N_GENES, WIDTH)
            for c in (slice(0, 17), slice(17, 29)):
                pool = pool.add(h[c], q, inside[c], bag[c], chunk_bytes=SMALL)
            z, share = pool.pooled(), pool.share(h[inside], q, bag[inside])
        else:
            order = bag.argsort(stable=True)
            z, share = pool_by_gene_plain(h[order], q, inside[order], bag[order], N_BAGS)
            share = share[order.argsort()][inside]
        (z * towards).sum().backward(retain_graph=True)
        (share * of_share[inside]).sum().backward()
        results.append((h.grad, q.grad))
    for streamed, plain in zip(*results, strict=True):
        torch.testing.assert_close(streamed, plain, atol=1e-5, rtol=1e-5)


def test_thousands_of_tiles_do_not_drift():
    """Sums over tiles in float32 would be off by more than 1e-6 here."""
    n_cells = 5000
    h, q = 1 + 0.1 * draw(n_cells, 1, seed=1), torch.full((1, 1), 0.3)
    inside, bag = torch.ones(n_cells, dtype=torch.bool), torch.zeros(n_cells, dtype=torch.int64)
    pool = GenePool.start(1, 1, 1).add(h, q, inside, bag, chunk_bytes=4)
    exact = ((0.3 * h.double()).softmax(0) * h.double()).sum()
    torch.testing.assert_close(pool.pooled()[0, 0, 0].double(), exact, atol=0, rtol=1e-7)


def test_pools_of_other_sizes_are_refused():
    with pytest.raises(MismatchError, match=r"\(1, 3, 5\) and \(2, 3, 5\)"):
        GenePool.start(1, 3, 5).merge(GenePool.start(2, 3, 5))
