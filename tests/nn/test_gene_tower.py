from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from histoscribe.errors import DataError
from histoscribe.nn import gene_tower
from histoscribe.nn.gene_tower import (
    GeneTower,
    attend_to_genes,
    attend_to_genes_plain,
    hide_some,
)

N_PROFILES, N_GENES, TABLE, WIDTH = 5, 13, 3, 8


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(seed: int = 2) -> Tensor:
    seen = torch.rand(N_PROFILES, N_GENES, generator=torch.Generator().manual_seed(seed)) < 0.6
    seen[:, 4] = True
    return seen


def tower(seed: int = 0, **settings: object) -> GeneTower:
    torch.manual_seed(seed)
    net = GeneTower(TABLE, WIDTH, n_heads=2, **settings).eval()
    torch.nn.init.normal_(net.which, std=0.3)  # zero at first; here it must count
    return net


def profiles() -> tuple[Tensor, Tensor, Tensor]:
    return draw(N_PROFILES, N_GENES, seed=1), observed(), draw(N_GENES, TABLE, seed=3)


def test_equals_its_equation_in_loops():
    net, (v, seen, q) = tower().double(), profiles()
    v, q = v.double(), q.double()
    q_of = torch.nn.functional.layer_norm(q, (TABLE,))
    for p in range(N_PROFILES):
        out = []
        genes = [g for g in range(N_GENES) if bool(seen[p, g])]
        for k in range(2):
            w, u = net.by_gene.weight[k], net.by_value.weight[k]
            weight = torch.stack([(w @ q_of[g] + v[p, g] * (u @ q_of[g])).exp() for g in genes])
            weight = weight / weight.sum()
            far = sum(a * v[p, g] * q_of[g] for a, g in zip(weight, genes, strict=True))
            which = sum(a * q_of[g] for a, g in zip(weight, genes, strict=True))
            out.append(net.how_far[k] @ far + net.which[k] @ which)
        wanted = torch.nn.functional.layer_norm(torch.cat(out), (WIDTH,), eps=1e-8)
        torch.testing.assert_close(net(v, seen, q)[p], wanted)


def test_fast_and_plain_forms_agree_with_their_gradients():
    results = []
    for form in (attend_to_genes, attend_to_genes_plain):
        net, (v, seen, q) = tower(), profiles()
        v.requires_grad_()
        q.requires_grad_()
        with patch.object(gene_tower, "attend_to_genes", form):
            y = net(v, seen, q)
        (y * draw(N_PROFILES, WIDTH, seed=5)).sum().backward()
        results.append((y.detach(), v.grad, q.grad, *(p.grad for p in net.parameters())))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_numbers():
    net, (v, seen, q) = tower().double(), profiles()
    names = [name for name, _ in net.named_parameters()]

    def run(v: Tensor, q: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(net, state, (v, seen, q))

    inputs = v.double().requires_grad_(), q.double().requires_grad_()
    assert gradcheck(run, (*inputs, *net.parameters()))


def test_genes_that_were_not_measured_change_nothing():
    net, (v, seen, q) = tower(), profiles()
    y = net(v, seen, q)
    spoiled = torch.where(seen, v, torch.nan)
    assert torch.equal(net(spoiled, seen, q), y)
    more = torch.cat([v, draw(N_PROFILES, 6, seed=6)], 1)
    not_seen = torch.cat([seen, torch.zeros(N_PROFILES, 6, dtype=torch.bool)], 1)
    wide = net(more, not_seen, torch.cat([q, draw(6, TABLE, seed=7)]))
    torch.testing.assert_close(wide, y, atol=1e-5, rtol=1e-5)
    for p in range(N_PROFILES):
        own = seen[p]
        alone = net(v[p, own][None], torch.ones(1, int(own.sum()), dtype=torch.bool), q[own])
        torch.testing.assert_close(alone[0], y[p], atol=1e-5, rtol=1e-5)


def test_what_was_not_measured_gets_no_gradient():
    net, (v, seen, q) = tower(), profiles()
    v = torch.where(seen, v, torch.nan).requires_grad_()
    q.requires_grad_()
    lone = torch.zeros_like(seen)
    lone[:, 4] = lone[:, 9] = True
    (net(v, seen & lone, q) * draw(N_PROFILES, WIDTH, seed=5)).sum().backward()
    assert bool((v.grad[~(seen & lone)] == 0).all())
    assert bool((q.grad[[0, 1, 2, 3, 5]] == 0).all())
    assert float(q.grad[[4, 9]].abs().min(1).values.max()) > 0


def test_order_of_genes_and_of_profiles_does_not_matter():
    net, (v, seen, q) = tower(), profiles()
    y = net(v, seen, q)
    order = torch.randperm(N_GENES, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(net(v[:, order], seen[:, order], q[order]), y, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(net(v[rows], seen[rows], q), y[rows], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weights_at_once", [1, 2 * N_GENES, 5 * N_GENES])
def test_chunks_change_neither_answer_nor_gradient(weights_at_once):
    results = []
    for at_once in (1 << 24, weights_at_once):
        net, (v, seen, q) = tower(weights_at_once=at_once), profiles()
        q.requires_grad_()
        y = net(v, seen, q)
        (y * draw(N_PROFILES, WIDTH, seed=5)).sum().backward()
        results.append((y.detach(), q.grad, *(p.grad for p in net.parameters())))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient_from_the_start():
    torch.manual_seed(0)
    net, (v, seen, q) = GeneTower(TABLE, WIDTH, n_heads=2, gene_dropout=0.3), profiles()
    q.requires_grad_()
    (net(v, seen, q) * draw(N_PROFILES, WIDTH, seed=5)).sum().backward()
    for name, parameter in (*net.named_parameters(), ("table", q)):
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_thousands_of_genes_tell_profiles_apart_at_the_start():
    """The sums are small there; their norm must not take them for nothing."""
    torch.manual_seed(0)
    net, n_genes = GeneTower(TABLE, WIDTH, n_heads=2), 20_011
    v, q = draw(3, n_genes, seed=1), 0.01 * draw(n_genes, TABLE, seed=2)
    y = net(v, torch.ones(3, n_genes, dtype=torch.bool), q)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(3), atol=0.02, rtol=0)


def test_hidden_genes():
    seen = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    seen[7] = False
    seen[7, 3] = True
    torch.manual_seed(2)
    kept = hide_some(seen, 0.4)
    assert bool((kept <= seen).all())
    assert bool(kept.any(1).all())
    assert float(kept.sum() / seen.sum()) == pytest.approx(0.6, abs=0.05)
    net, parts = tower(gene_dropout=0.5), profiles()
    assert torch.equal(net(*parts), net(*parts))
    assert not torch.equal(net.train()(*parts), net(*parts))


def test_a_profile_without_a_measured_gene_is_refused():
    net, (v, seen, q) = tower(), profiles()
    seen[3] = False
    with pytest.raises(DataError, match="profile 3 has no gene"):
        net(v, seen, q)
