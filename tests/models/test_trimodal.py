from dataclasses import replace
from unittest.mock import patch

import jaxtyping
import pytest
import torch
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.data.collate import collate
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig, reference_settings
from histoscribe.nn import gat, gene_tower, transformer
from histoscribe.nn.attention_pool import AttentionPool, attention_pool_plain
from histoscribe.nn.gat import sum_neighbours_plain
from histoscribe.nn.gene_tower import attend_to_genes_plain
from histoscribe.nn.projection import unit
from histoscribe.nn.transformer import attend_within_bags_plain
from histoscribe.train.contrastive import cycle_loss, pair_loss, siglip_loss
from histoscribe.train.losses import expression_loss

N_GENES, N_MORE, N_TEXT, WIDTH = 11, 6, 9, 10
SIZES = {"n_features": 7, "n_descriptors": 6, "n_rings": 4, "n_genes": N_GENES}
SMALL = {
    "width": 24, "gat_width": 20, "gat_heads": 4, "transformer_heads": 3, "context_width": 13
}  # fmt: skip
OURS = {"embedding_width": WIDTH, "gene_width": 8, "gene_heads": 2, "pool_width": 5}

VARIANTS = {
    "default": ({}, {}),
    "cells only": ({"has_context": False}, {}),
    "context only": ({"has_cells": False}, {}),
    "mean pooling": ({"pooling": "mean"}, {"cell_share": 0.3}),
    "no more genes": ({}, {"n_more_genes": 0}),
    "profile features": ({}, {"n_profile_features": 5, "n_more_genes": 0}),
    "siglip": ({}, {"loss": "siglip"}),
    "lone cells": ({}, {"has_lone_cells": True}),
    "cells drawn": ({"cells_in_training": 2}, {"gene_dropout": 0.2, "head_dropout": 0.1}),
}


def model(seed: int = 0, bitro: dict | None = None, **settings: object) -> Trimodal:
    torch.manual_seed(seed)
    inner = BitroConfig(**SIZES, **{**SMALL, **(bitro or {})})
    net = Trimodal(TrimodalConfig(inner, N_TEXT, **{"n_more_genes": N_MORE, **OURS, **settings}))
    if inner.has_cells:  # it starts as the mean; here attention must count
        torch.nn.init.normal_(net.pool.weigh.weight)
    return net


def bags(seed: int = 1, n_bags: int = 17, most_blocks: int = 3) -> BagBatch:
    generator = torch.Generator().manual_seed(seed)
    return toy_bag_batch(generator, n_bags=n_bags, most_blocks=most_blocks)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def profiles(n: int = 5, n_genes: int = N_GENES + N_MORE) -> tuple[Tensor, Tensor]:
    seen = torch.rand(n, n_genes, generator=torch.Generator().manual_seed(4)) < 0.7
    seen[:, 2] = True
    return draw(n, n_genes, seed=3), seen


def embed_genes(net: Trimodal, n: int) -> Tensor:
    if net.config.has_gene_tower:
        return net.embed_profiles(*profiles(n, net.config.n_table_genes))
    return net.embed_profile_features(draw(n, net.config.n_profile_features, seed=5))


@pytest.fixture(params=VARIANTS, ids=str)
def net(request) -> Trimodal:
    bitro, settings = VARIANTS[request.param]
    return model(bitro=bitro, **settings).eval()


def test_everything_has_length_one_in_one_space(net):
    batch = bags()
    rows = [net.embed_regions(batch), embed_genes(net, 4), net.embed_texts(draw(3, N_TEXT, seed=6))]
    if net.config.bitro.has_cells:
        rows.append(net.embed_cells(batch))
    assert [len(x) for x in rows][:3] == [17, 4, 3]
    for x in rows:
        assert x.shape[1] == WIDTH
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))


def test_a_region_does_not_know_of_its_batch(net):
    batch = bags()
    together = net.embed_regions(batch)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(
        net.embed_regions(batch.take(order)), together[order], atol=1e-5, rtol=1e-5
    )
    for b in (0, 8, 16):
        alone = net.embed_regions(batch.take(torch.tensor([b])))
        torch.testing.assert_close(alone[0], together[b], atol=1e-5, rtol=1e-5)
    other = bags(seed=2)
    mixed = net.embed_regions(collate([other, batch]))[other.n_bags :]
    torch.testing.assert_close(mixed, together, atol=1e-5, rtol=1e-5)


def test_order_of_cells_does_not_matter(net):
    batch = bags()
    noise = torch.rand(batch.n_cells, generator=torch.Generator().manual_seed(5))
    order = (batch.block_of_cell + noise).argsort()
    new_row = order.argsort()
    neighbours = batch.neighbours[order]
    other = replace(
        batch,
        **{
            name: getattr(batch, name)[order]
            for name in ("features", "offset_um", "is_inside", "phenotype")
        },
        neighbours=torch.where(neighbours < 0, neighbours, new_row[neighbours.clamp(min=0)]),
    )
    torch.testing.assert_close(
        net.embed_regions(other), net.embed_regions(batch), atol=1e-5, rtol=1e-5
    )
    if net.config.bitro.has_cells:
        torch.testing.assert_close(
            net.embed_cells(other), net.embed_cells(batch)[order], atol=1e-5, rtol=1e-5
        )


def test_a_region_is_the_mix_of_its_branches():
    net, batch = model(cell_share=0.3).eval(), bags()
    seen = net.see(batch)
    around, cells = seen.branches
    mixed = 0.7 * around + 0.3 * cells
    torch.testing.assert_close(seen.embedding, mixed / mixed.norm(dim=1, keepdim=True))
    assert seen.answer is None


def test_expression_is_bitros_own(net):
    batch = bags()
    alone = Bitro(net.config.bitro).eval()
    alone.load_state_dict(net.bitro.state_dict())
    seen = net.see(batch, has_answer=True)
    assert seen.answer is not None
    assert torch.equal(seen.answer.expression, alone(batch))
    assert torch.equal(net.answer(batch).expression, alone(batch))
    assert torch.equal(seen.embedding, net.embed_regions(batch))


def total_loss(net: Trimodal, batch: BagBatch) -> Tensor:
    """Every term of the joint objective at once."""
    seen, n = net.see(batch, has_answer=True), batch.n_bags
    genes, texts = embed_genes(net, n), net.embed_texts(draw(7, N_TEXT, seed=8))
    key, text_key = torch.arange(n), torch.arange(7)
    assert seen.answer is not None
    assert batch.target is not None

    def loss(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
        if net.bias is None:
            return pair_loss(a, b, of_a, of_b, net.log_scale)
        return siglip_loss(a, b, of_a, of_b, net.log_scale, net.bias)

    parts = [loss(branch, genes, key, key) for branch in seen.branches]
    parts.append(loss(genes, texts, key % 7, text_key))
    parts.append(loss(seen.embedding, texts, key % 7, text_key))
    parts += [expression_loss(y, batch.target, None) for y in seen.answer.branches]
    if net.config.has_gene_tower:
        parts.append(
            cycle_loss(seen.embedding, net.embed_expression(seen.answer.expression.detach()))
        )
    return torch.stack(parts).sum()


def test_every_parameter_gets_a_gradient(net):
    total_loss(net.train(), bags(n_bags=150)).backward()
    still = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert all(name.endswith(".key.bias") for name in still)
    for name, parameter in net.named_parameters():
        if name not in still:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().max()) > 0, name


def test_with_plain_forms_region_by_region_it_is_the_same():
    net, batch = model().eval(), bags()
    key = torch.arange(17)

    def loss(embedding: Tensor) -> Tensor:
        return pair_loss(embedding, embed_genes(net, 17), key, key, net.log_scale)

    fast = loss(net.embed_regions(batch))
    fast.backward()
    learning = {name: p for name, p in net.named_parameters() if p.grad is not None}
    gradients = {name: p.grad.clone() for name, p in learning.items()}
    net.zero_grad()
    with (
        patch.object(gat, "sum_neighbours", sum_neighbours_plain),
        patch.object(transformer, "attend_within_bags", attend_within_bags_plain),
        patch.object(gene_tower, "attend_to_genes", attend_to_genes_plain),
        patch.object(AttentionPool, "forward", attention_pool_plain),
    ):
        rows = [net.embed_regions(batch.take(torch.tensor([b]))) for b in range(17)]
        plain = loss(torch.cat(rows))
    plain.backward()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(learning[name].grad, gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("at_once", [1, 2, 99])
def test_streamed_it_is_the_same(net, at_once):
    batch = bags(most_blocks=5)
    with torch.no_grad():
        whole = net.embed_regions(batch)
    for bag in (0, 3, 16):
        first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
        stream = net.stream(1)
        for rows in torch.arange(first, first + n).flip(0).split(at_once):
            stream.add(batch.take_blocks(rows, torch.zeros_like(rows), 1))
        torch.testing.assert_close(stream.embeddings()[0], whole[bag], atol=1e-5, rtol=1e-5)


def test_an_empty_stream_and_one_in_training_are_refused():
    with pytest.raises(DataError, match="nothing was seen"):
        model().eval().stream(2).embeddings()
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        model().train().stream(2)


def test_profiles_may_have_any_genes_in_any_order():
    net = model().eval()
    v, seen = profiles()
    y = net.embed_profiles(v, seen)
    order = torch.randperm(N_GENES + N_MORE, generator=torch.Generator().manual_seed(9))
    shuffled = net.embed_profiles(v[:, order], seen[:, order], order)
    torch.testing.assert_close(shuffled, y, atol=1e-5, rtol=1e-5)
    few = torch.tensor([13, 2, 5])
    hidden = seen & torch.isin(torch.arange(N_GENES + N_MORE), few)
    torch.testing.assert_close(
        net.embed_profiles(v[:, few], seen[:, few], few),
        net.embed_profiles(v, hidden),
        atol=1e-5,
        rtol=1e-5,
    )


def test_predicted_and_measured_expression_are_read_alike():
    net = model().eval()
    y = draw(4, N_GENES, seed=10)
    everything = torch.cat([y, draw(4, N_MORE, seed=11)], 1)
    seen = torch.cat([torch.ones(4, N_GENES), torch.zeros(4, N_MORE)], 1).bool()
    torch.testing.assert_close(
        net.embed_expression(y), net.embed_profiles(everything, seen), atol=1e-5, rtol=1e-5
    )


def test_queries_and_table_are_one():
    net = model()
    assert net.table().shape == (N_GENES + N_MORE, 24)
    v, seen = profiles()
    (net.embed_profiles(v, seen) * draw(5, WIDTH, seed=12)).sum().backward()
    assert net.bitro.queries.grad is not None
    assert float(net.bitro.queries.grad.abs().max()) > 0
    with torch.no_grad():
        before = net.embed_profiles(v, seen)
        net.bitro.queries[2] *= -1
        assert not torch.allclose(net.embed_profiles(v, seen), before)


@pytest.mark.parametrize("name", ["default", "siglip"])
def test_learns_to_find_the_profile_of_a_region(name):
    """Regions and profiles that share a planted state; the rest of both is noise."""
    bitro, settings = VARIANTS[name]
    net = model(bitro={**bitro, "dropout": 0.0, "context_dropout": 0.0}, **settings).train()
    batch = bags(n_bags=60, most_blocks=1)
    state = torch.arange(60) % 4
    shift = 2 * draw(4, 7, seed=13)[state]
    batch = replace(batch, features=batch.features + shift[batch.bag_of_cell])
    v = draw(60, N_GENES + N_MORE, seed=14) + 2 * draw(4, N_GENES + N_MORE, seed=15)[state]
    seen = torch.ones_like(v, dtype=torch.bool)
    train, test = torch.arange(40), torch.arange(40, 60)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        branches = net.see(batch.take(train)).branches
        genes = net.embed_profiles(v[train], seen[train])
        keys = state[train]
        parts = [
            pair_loss(x, genes, keys, keys, net.log_scale)
            if net.bias is None
            else siglip_loss(x, genes, keys, keys, net.log_scale, net.bias)
            for x in branches
        ]
        torch.stack(parts).mean().backward()
        optimiser.step()
    with torch.no_grad():
        net.eval()
        cells = net.see(batch.take(test)).branches[-1]
        nearest = (cells @ net.embed_profiles(v[test], seen[test]).T).argmax(1)
    right = float((state[test][nearest] == state[test]).float().mean())
    assert right >= 0.7, right  # by chance 0.25


def test_the_scale_starts_where_the_loss_wants_it_and_is_bounded():
    assert float(model().scale().detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    net = model(loss="siglip")
    assert float(net.scale().detach()) == pytest.approx(10, rel=1e-5)
    assert net.bias is not None
    assert float(net.bias.detach()) == -10
    with torch.no_grad():
        net.log_scale.fill_(9)
    assert float(net.scale().detach()) == pytest.approx(100, rel=1e-5)


def test_a_checkpoint_of_bitro_is_where_it_can_start():
    torch.manual_seed(3)
    old = Bitro(BitroConfig(**SIZES, **SMALL))
    net = model()
    net.bitro.load_state_dict(old.state_dict())
    assert torch.equal(net.table()[:N_GENES], old.queries)
    names = dict(net.named_parameters())
    own = [name for name in Trimodal.GENE_TENSORS if name in names]
    assert all(names[name].shape[0] == N_GENES for name in own)
    assert len(own) == 5
    for prefix in Trimodal.ADAPTED:
        assert any(name.startswith(prefix) for name in names)


def test_reference_heads():
    net = model(**{**OURS, **reference_settings()})
    assert net.embed_texts(draw(3, N_TEXT, seed=1)).shape == (3, 2048)
    assert isinstance(net.text_head.norm, torch.nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"embedding_width": 0}, "embedding_width"),
        ({"gene_width": 9}, "divisible"),
        ({"cell_share": 1.0}, "cell_share"),
        ({"head_norm": "group"}, "head_norm"),
        ({"loss": "triplet"}, "loss"),
        ({"gene_dropout": 1.0}, "gene_dropout"),
        ({"n_more_genes": -1}, "n_more_genes"),
    ],
)
def test_wrong_settings_are_refused(settings, word, monkeypatch):
    # The types refuse some of these as well, where they are checked; users run without.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=word):
        TrimodalConfig(BitroConfig(**SIZES, **SMALL), N_TEXT, **{**OURS, **settings})


def test_what_does_not_fit_is_refused():
    net = model().eval()
    with pytest.raises(MismatchError, match="takes 9"):
        net.embed_texts(draw(3, 8, seed=1))
    with pytest.raises(MismatchError, match="the table has 17 genes"):
        net.embed_profiles(*profiles(n_genes=5))
    with pytest.raises(MismatchError, match="expression itself"):
        net.embed_profile_features(draw(3, 8, seed=1))
    elsewhere = model(n_profile_features=5, n_more_genes=0)
    with pytest.raises(ConfigError, match="no gene tower"):
        elsewhere.embed_profiles(*profiles())
    with pytest.raises(MismatchError, match="takes 5"):
        elsewhere.embed_profile_features(draw(3, 8, seed=1))
    with pytest.raises(ConfigError, match="has_cells"):
        model(bitro={"has_cells": False}).eval().embed_cells(bags())
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        model(bitro={"cells_in_training": 1}).train().embed_cells(bags())


def test_a_fixed_gene_space_is_a_linear_map_that_nothing_learns():
    bitro = BitroConfig(4, 3, 2, 5, width=6, transformer_heads=2, gat_width=8)
    net = Trimodal(
        TrimodalConfig(bitro, n_text=3, n_more_genes=2, embedding_width=4, gene_space="fixed")
    )
    assert net.gene_map is not None
    assert net.gene_map.shape == (7, 4)
    assert not any(name.startswith(("gene_", "more_genes")) for name, _ in net.named_parameters())
    assert "gene_map" in net.state_dict()
    net.gene_map.normal_()
    values, seen = torch.randn(6, 7), torch.rand(6, 7) < 0.7
    seen[:, 0] = True
    wanted = unit(torch.where(seen, values, 0.0) @ net.gene_map)
    torch.testing.assert_close(net.embed_profiles(values, seen), wanted)
    z = torch.randn(3, 5)
    torch.testing.assert_close(net.embed_expression(z), unit(z @ net.gene_map[:5]))
    with pytest.raises(ConfigError, match="fixed"):
        TrimodalConfig(bitro, n_text=3, n_profile_features=9, gene_space="fixed")
