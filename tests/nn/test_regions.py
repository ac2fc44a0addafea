import torch

from histoscribe.nn.regions import RegionContext


def test_every_ring_counts_and_regions_do_not_mix():
    torch.manual_seed(0)
    net = RegionContext(4 * 5, 9, n_layers=2, input_dropout=0.3, dropout=0.3).eval()
    field = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1))
    before = net(field)
    for ring in range(4):
        changed = field.clone()
        changed[2, ring] += 1.0
        after = net(changed)
        assert not torch.allclose(after[2], before[2])
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(after[others], before[others])
