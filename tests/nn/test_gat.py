import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from histoscribe.nn.gat import GraphAttention, sum_neighbours, sum_neighbours_plain

N_CELLS, N_IN, N_OUT, N_HEADS = 23, 7, 15, 3


def graph(generator: torch.Generator, k: int = 4) -> Tensor:
    others = torch.randint(0, N_CELLS, (N_CELLS, k), generator=generator)
    others[torch.rand(others.shape, generator=generator) < 0.3] = -1
    others[5] = -1  # a cell that is alone
    return torch.cat([torch.arange(N_CELLS)[:, None], others], dim=1)


def layer(seed: int = 0, dropout: float = 0.0) -> GraphAttention:
    torch.manual_seed(seed)
    return GraphAttention(N_IN, N_OUT, N_HEADS, dropout)


def test_fast_and_plain_sums_agree_with_their_gradients():
    generator = torch.Generator().manual_seed(1)
    neighbours = graph(generator)
    u = torch.randn(N_CELLS, N_HEADS, 5, generator=generator)
    alpha = torch.rand(N_CELLS, 5, N_HEADS, generator=generator)
    alpha = alpha.masked_fill(neighbours[..., None] < 0, 0.0)
    upstream = torch.randn(N_CELLS, N_HEADS, 5, generator=generator)
    results = []
    for form in (sum_neighbours, sum_neighbours_plain):
        leaves = u.clone().requires_grad_(), alpha.clone().requires_grad_()
        out = form(*leaves, neighbours)
        out.backward(upstream)
        is_edge = (neighbours >= 0)[..., None]
        results.append((out.detach(), leaves[0].grad, leaves[1].grad * is_edge))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_a_layer_equals_the_equation_written_out_cell_by_cell():
    generator = torch.Generator().manual_seed(2)
    neighbours, net = graph(generator), layer()
    h = torch.randn(N_CELLS, N_IN, generator=generator)
    wanted = []
    for i in range(N_CELLS):
        own = [int(j) for j in neighbours[i] if j >= 0]
        heads = []
        for t in range(N_HEADS):
            u = (h @ net.project.weight.T)[:, 5 * t : 5 * t + 5]
            e = torch.stack(
                [
                    F.leaky_relu(net.from_source[t] @ u[j] + net.from_target[t] @ u[i], 0.2)
                    for j in own
                ]
            )
            heads.append(e.softmax(0) @ u[own])
        wanted.append(F.relu(net.norm(net.join_heads(torch.cat(heads)))))
    torch.testing.assert_close(net(h, neighbours), torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_weights_sum_to_one_and_missing_neighbours_get_none():
    generator = torch.Generator().manual_seed(3)
    neighbours, net = graph(generator), layer()
    u = 50 * torch.randn(N_CELLS, N_HEADS, 5, generator=generator)
    alpha = net.attend(u, neighbours)
    torch.testing.assert_close(alpha.sum(1), torch.ones(N_CELLS, N_HEADS))
    assert bool((alpha[neighbours < 0] == 0).all())
    assert bool((alpha[5, 0] == 1).all())


def test_what_is_not_a_neighbour_does_not_count():
    generator = torch.Generator().manual_seed(4)
    neighbours, net = graph(generator), layer()
    h = torch.randn(N_CELLS, N_IN, generator=generator)
    before = net(h, neighbours)
    h2 = h.clone()
    h2[0] += 3.0  # row 0 is what missing neighbours point to inside the fast form
    after = net(h2, neighbours)
    untouched = ~(neighbours == 0).any(1)
    assert bool(untouched.any())
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[~untouched], after[~untouched])


def test_dropout_is_off_in_eval_and_on_in_training():
    generator = torch.Generator().manual_seed(5)
    neighbours, net = graph(generator), layer(dropout=0.4)
    h = torch.randn(N_CELLS, N_IN, generator=generator)
    net.eval()
    assert torch.equal(net(h, neighbours), net(h, neighbours))
    net.train()
    assert not torch.equal(net(h, neighbours), net(h, neighbours))


def test_equals_pyg():
    torch_geometric = pytest.importorskip("torch_geometric", reason="torch_geometric is missing")
    generator = torch.Generator().manual_seed(6)
    net = layer()
    others = torch.stack(
        [torch.randperm(N_CELLS - 1, generator=generator)[:4] for _ in range(N_CELLS)]
    )
    others = others + (others >= torch.arange(N_CELLS)[:, None]).long()
    neighbours = torch.cat([torch.arange(N_CELLS)[:, None], others], dim=1)
    theirs = torch_geometric.nn.GATConv(N_IN, N_OUT // N_HEADS, N_HEADS, bias=False)
    with torch.no_grad():
        theirs.lin.weight.copy_(net.project.weight)
        theirs.att_src.copy_(net.from_source[None])
        theirs.att_dst.copy_(net.from_target[None])
    h = torch.randn(N_CELLS, N_IN, generator=generator)
    target = torch.arange(N_CELLS).repeat_interleave(4)
    o = theirs(h, torch.stack([others.flatten(), target]))
    wanted = F.relu(net.norm(net.join_heads(o)))
    torch.testing.assert_close(net(h, neighbours), wanted, atol=1e-5, rtol=1e-5)
