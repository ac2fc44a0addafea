import torch

from histoscribe.nn.position import BinnedPosition, FourierPosition


def test_bins_are_of_equal_physical_size_and_clamped():
    code = BinnedPosition(6, side_um=128.0, n_bins=128)
    x = torch.tensor([-1000.0, -64.0, -63.01, -62.99, 0.0, 63.99, 64.0, 1000.0])
    wanted = torch.tensor([0, 0, 0, 1, 64, 127, 127, 127])
    got = code(torch.stack([x, torch.zeros_like(x)], dim=1))
    assert torch.equal(got[:, :3], code.x_table[wanted])
    assert bool((got[:, 3:] == code.y_table[64]).all())


def test_axes_are_not_swapped():
    code = BinnedPosition(6, side_um=150.0)
    one, other = code(torch.tensor([[10.0, -20.0], [10.0, 40.0]]))
    assert torch.equal(one[:3], other[:3])
    assert not torch.equal(one[3:], other[3:])


def test_waves_repeat_after_their_wavelength_only():
    code = FourierPosition(5, n_frequencies=1, shortest_um=40.0, longest_um=40.0)
    at, after, between = code(torch.tensor([[3.0, 7.0], [43.0, 7.0], [23.0, 7.0]]))
    torch.testing.assert_close(at, after, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(at, between)


def test_every_parameter_gets_a_gradient():
    offset_um = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 60 - 30
    for code in (BinnedPosition(4, side_um=60.0, n_bins=5), FourierPosition(3)):
        code(offset_um).square().sum().backward()
        for name, parameter in code.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad.abs().sum(-1) > 0).all()), name
