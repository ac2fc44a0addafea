import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from histoscribe.nn.attention_pool import AttentionPool, RunningPool, attention_pool_plain

LENGTHS = torch.tensor([4, 1, 11, 6])
BAG = torch.repeat_interleave(torch.arange(4), LENGTHS)
N_CELLS, WIDTH = len(BAG), 5


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> Tensor:
    """How many each cell stands for: 0 to 3, the first of a bag never 0."""
    n = torch.randint(0, 4, (N_CELLS,), generator=torch.Generator().manual_seed(8)).float()
    n[LENGTHS.cumsum(0) - LENGTHS] = 2.0
    return n


def pool(seed: int = 0) -> AttentionPool:
    torch.manual_seed(seed)
    net = AttentionPool(WIDTH, hidden=3)
    torch.nn.init.normal_(net.weigh.weight, std=2.0)
    return net


def test_fast_and_plain_forms_agree_with_their_gradients():
    results = []
    for is_fast in (True, False):
        net, h = pool(), draw(N_CELLS, WIDTH, seed=1).requires_grad_()
        parts = (h, weights(), BAG, 4)
        z, a = net(*parts) if is_fast else attention_pool_plain(net, *parts)
        (z * draw(4, WIDTH, seed=2)).sum().backward(retain_graph=True)
        (a * draw(N_CELLS, seed=3)).sum().backward()
        results.append((z.detach(), a.detach(), h.grad, *(p.grad for p in net.parameters())))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_numbers():
    net, h = pool().double(), draw(N_CELLS, WIDTH, seed=1).double().requires_grad_()
    names = [name for name, _ in net.named_parameters()]

    def run(h: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(net, state, (h, weights().double(), BAG, 4))[0]

    assert gradcheck(run, (h, *net.parameters()))


def test_a_bag_of_one_cell_is_that_cell():
    h = draw(6, WIDTH, seed=4)
    one_each, a = pool()(h, torch.full((6,), 3.0), torch.arange(6), 6)
    assert torch.equal(one_each, h)
    assert torch.equal(a, torch.ones(6))
    # With context cells beside it, too.
    context, _ = pool()(h, torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.zeros(6, dtype=torch.int64), 1)
    assert torch.equal(context[0], h[2])


def test_a_cell_that_stands_for_three_weighs_what_three_like_it_would():
    net, h = pool(), draw(N_CELLS, WIDTH, seed=5)
    again = torch.repeat_interleave(torch.arange(N_CELLS), weights().long())
    z, _ = net(h, weights(), BAG, 4)
    of_all, _ = net(h[again], torch.ones(len(again)), BAG[again], 4)
    torch.testing.assert_close(z, of_all, atol=1e-5, rtol=1e-5)


def test_context_cells_and_order_and_other_bags_do_not_matter():
    net, h = pool(), draw(N_CELLS, WIDTH, seed=6)
    z, a = net(h, weights(), BAG, 4)
    assert bool((a[weights() == 0] == 0).all())
    torch.testing.assert_close(torch.zeros(4).index_add(0, BAG, a), torch.ones(4))
    moved = h + 9 * (weights() == 0)[:, None]
    assert torch.equal(net(moved, weights(), BAG, 4)[0], z)
    order = torch.randperm(N_CELLS, generator=torch.Generator().manual_seed(7))
    shuffled, _ = net(h[order], weights()[order], BAG[order], 4)
    torch.testing.assert_close(shuffled, z, atol=1e-5, rtol=1e-5)
    for bag in range(4):
        own = bag == BAG
        alone, _ = net(h[own], weights()[own], torch.zeros(int(own.sum()), dtype=torch.int64), 1)
        torch.testing.assert_close(alone[0], z[bag], atol=1e-6, rtol=1e-5)


def test_it_starts_as_the_mean():
    torch.manual_seed(0)
    h, ones = draw(N_CELLS, WIDTH, seed=9), torch.ones(N_CELLS)
    z, _ = AttentionPool(WIDTH)(h, ones, BAG, 4)
    torch.testing.assert_close(z[3], h[BAG == 3].mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_in_portions_it_is_the_same(n_parts):
    net, h = pool(), draw(N_CELLS, WIDTH, seed=10)
    whole, _ = net(h, weights(), BAG, 4)
    running = RunningPool(net, 4)
    for rows in torch.arange(N_CELLS).chunk(n_parts):
        running.add(h[rows], weights()[rows], BAG[rows])
    torch.testing.assert_close(running.pooled(), whole, atol=1e-6, rtol=1e-5)
