import torch
from torch import Tensor, nn

from histoscribe.nn.ragged import plan_padding
from histoscribe.nn.transformer import (
    Transformer,
    attend_within_bags,
    attend_within_bags_plain,
)

LENGTHS = torch.tensor([3, 1, 17, 9, 2, 17, 30])
BAG = torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS)
WIDTH = 12


def cells(seed: int) -> Tensor:
    return torch.randn(len(BAG), WIDTH, generator=torch.Generator().manual_seed(seed))


def bag_rows(b: int) -> Tensor:
    return (b == BAG).nonzero()[:, 0]


def net(n_layers: int = 2, dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(WIDTH, n_layers, 3, 2, dropout)


def test_fast_and_plain_attention_agree_with_their_gradients():
    padding = plan_padding(BAG, len(LENGTHS))
    assert 1 < len(padding.buckets) < len(LENGTHS)
    results = []
    for form in (attend_within_bags, attend_within_bags_plain):
        qkv = tuple(cells(seed) for seed in (1, 2, 3))
        for x in qkv:
            x.requires_grad_()
        out = form(qkv, padding, 3)
        out.backward(cells(4))
        results.append((out.detach(), *(x.grad for x in qkv)))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_each_bag_alone_gives_the_same():
    model, x = net(), cells(5)
    together = model(x, plan_padding(BAG, len(LENGTHS)))
    for b in range(len(LENGTHS)):
        own = x[bag_rows(b)]
        alone = model(own, plan_padding(torch.zeros(len(own), dtype=torch.int64), 1))
        torch.testing.assert_close(together[bag_rows(b)], alone, atol=1e-5, rtol=1e-5)


def test_no_grad_in_eval_equals_grad_mode():
    model, x = net(dropout=0.3), cells(6)
    padding = plan_padding(BAG, len(LENGTHS))
    model.eval()
    with torch.no_grad():
        without = model(x, padding)
    torch.testing.assert_close(without, model(x, padding), atol=1e-6, rtol=1e-6)
    model.train()
    assert not torch.allclose(without, model(x, padding))


def test_an_adapter_on_any_linear_is_heard():
    """nn.TransformerEncoderLayer skips them on its fast path."""
    model, x = net(n_layers=1), cells(7)
    padding = plan_padding(BAG, len(LENGTHS))
    model.eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert len(names) == 6
    for name in names:
        linear = model.get_submodule(name)
        with torch.no_grad():
            before = model(x, padding)
            handle = linear.register_forward_hook(
                lambda m, inputs, out: out + 0.5 * out.roll(1, -1)
            )
            after = model(x, padding)
            handle.remove()
        assert not torch.allclose(before, after), name


def test_no_layers_leaves_the_norm():
    model, x = net(n_layers=0), cells(8)
    assert torch.equal(model(x, plan_padding(BAG, len(LENGTHS))), model.norm(x))
