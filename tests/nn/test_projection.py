import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from histoscribe.nn.projection import Projection, unit


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(seed: int = 0, **settings: object) -> Projection:
    torch.manual_seed(seed)
    return Projection(7, 11, **settings)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_equals_its_equation(norm):
    net, x = head(norm=norm).double().eval(), draw(5, 7, seed=1).double()
    hidden = x @ net.widen.weight.T
    if norm == "layer":
        centred = hidden - hidden.mean(1, keepdim=True)
        hidden = centred / (hidden.var(1, correction=0, keepdim=True) + net.norm.eps).sqrt()
    else:  # as it starts: mean 0, variance 1
        hidden = hidden / (1 + net.norm.eps) ** 0.5
    y = hidden.clamp(min=0) @ net.mix.weight.T + net.mix.bias + x @ net.skip.weight.T
    y = y - y.mean(1, keepdim=True)
    y = y / (y.square().mean(1, keepdim=True) + net.last_norm.eps).sqrt()
    torch.testing.assert_close(net(x), y)


def test_rows_do_not_know_of_each_other():
    net, x = head(), draw(5, 7, seed=1)
    together = net(x)
    alone = torch.cat([net(row[None]) for row in x])
    torch.testing.assert_close(alone, together)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net(x[order]), together[order])
    # The reference's norm is what makes them know of each other.
    of_batch = head(norm="batch").train()
    assert not torch.allclose(of_batch(x)[:2], of_batch(x[:2]), atol=1e-3)


@pytest.mark.parametrize(("n_in", "width"), [(7, 11), (11, 7)])
def test_the_skip_starts_near_the_identity(n_in, width):
    torch.manual_seed(0)
    skip = Projection(n_in, width).skip.weight.detach()
    assert bool((skip.diagonal() == 1).all())
    rest = skip.masked_fill(torch.eye(width, n_in, dtype=torch.bool), 0.0)
    assert 0 < float(rest.abs().max()) <= 0.01


def test_gradients_are_those_of_the_numbers():
    net, x = head().double(), draw(3, 7, seed=2).double().requires_grad_()
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return unit(torch.func.functional_call(net, state, (x,)))

    assert gradcheck(run, (x, *net.parameters()))


def test_every_parameter_gets_a_gradient():
    net = head(dropout=0.2).train()
    (unit(net(draw(9, 7, seed=3))) * draw(9, 11, seed=4)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_dropout_is_for_training_only():
    net, x = head(dropout=0.5), draw(4, 7, seed=5)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_unit_rows_have_length_one_and_zeros_stay():
    x = draw(4, 5, seed=6)
    x[2] = 0
    length = unit(x).norm(dim=1)
    torch.testing.assert_close(length, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(unit(3 * x), unit(x))
