"""Going on from a fit: what belongs to a gene goes by its id, adapters begin as the identity."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from histoscribe.data.pseudobulk import sum_regions
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.predict import predict_regions
from histoscribe.train.checkpoint import Checkpoint, build_model
from histoscribe.train.fit import fit
from histoscribe.train.lora import LoraSettings, adapted_layers, insert_adapters, merge, take_out
from histoscribe.train.transfer import (
    Start,
    TransferConfig,
    carry_weights,
    count_parameters,
    freeze_all_but_genes,
    gene_tensors,
)

SOURCE = Split(("toy-0", "toy-1"), ("toy-3",), "patient")
TARGET = Split(("toy-2",), ("toy-3",), "patient")


@pytest.fixture(scope="module")
def source(slides, panel, quick, small):
    return fit(slides, SOURCE, panel, config=quick, model_settings=small)


@pytest.fixture(scope="module")
def target(slides):
    """The third slide as pseudo-bulk, the fourth too."""
    made = []
    for slide in slides[2:]:
        group = np.arange(len(slide.regions)) // 3
        bulk, blocks = sum_regions(slide.regions, group)
        made.append(replace(slide, regions=bulk, blocks=blocks))
    return made


@pytest.fixture(scope="module")
def brief(quick):
    return replace(quick, max_epochs=4, stop_on="loss", cluster_weight=0.0, learning_rate=1e-2)


def go_on(source, target, panel, config, mode):
    start = Start(source, TransferConfig(mode=mode, lora=LoraSettings(rank=2, dropout=0.0)))
    return fit(target, TARGET, panel, config=config, start=start)


@pytest.fixture(scope="module")
def adapted(source, target, panel, brief):
    return go_on(source, target, panel, brief, "lora")


def test_adapters_are_the_identity_when_inserted(source, slides):
    net = source.build()[0]
    plain = predict_regions(source, slides[3:]).mean
    with torch.random.fork_rng():
        torch.manual_seed(1)
        insert_adapters(net, LoraSettings())
    whole, adapters = take_out(net.state_dict())
    assert all(torch.equal(whole[name], tensor) for name, tensor in source.nets[0].items())
    assert len(adapters) == 2 * len(adapted_layers(build_model("bitro", source.model_settings, 0)))
    changed = replace(source, nets=(merge(whole, adapters, LoraSettings()), *source.nets[1:]),
                      _packed={})  # fmt: skip
    assert np.array_equal(predict_regions(changed, slides[3:]).mean, plain)


def test_frozen_weights_are_the_same_bits_after_training(source, adapted, panel):
    genes = set(gene_tensors(source.build()[0]))
    carried = carry_weights(source, panel)
    for number, net in enumerate(adapted.nets):
        old = carried[number % len(carried)]
        for name, tensor in net.items():
            if name not in genes:
                assert torch.equal(tensor, old[name]), name
    assert adapted.adapters is not None
    assert any(bool(t.any()) for net in adapted.adapters.nets for n, t in net.items() if "_B" in n)


def test_the_modes_train_what_they_say(source, target, panel, brief):
    genes = set(gene_tensors(source.build()[0]))
    for mode in ("full", "frozen"):
        made = go_on(source, target, panel, brief, mode)
        assert made.adapters is None
        old = carry_weights(source, panel)
        is_other = {
            name
            for number, net in enumerate(made.nets)
            for name, tensor in net.items()
            if not torch.equal(tensor, old[number % len(old)][name])
        }
        assert is_other & genes
        assert bool(is_other - genes) == (mode == "full")


def test_adapters_apart_merged_and_in_training_mode_say_the_same(adapted, target, brief):
    settings = replace(adapted.adapters.settings)
    still = ("dropout", "gat_dropout", "context_input_dropout", "context_dropout")
    nothing = {**dict.fromkeys(still, 0.0), "cells_in_training": 0}
    apart = build_model("bitro", {**adapted.model_settings, **nothing}, seed=0)
    apart.load_state_dict(dict(adapted.nets[0]))
    insert_adapters(apart, settings)
    inside = {
        name.removeprefix("base_model.model.")
        .replace(".lora_A.", ".lora_A.default.")
        .replace(".lora_B.", ".lora_B.default."): tensor
        for name, tensor in adapted.adapters.nets[0].items()
    }
    missing = apart.load_state_dict(inside, strict=False)
    assert not missing.unexpected_keys
    merged = adapted.build()[0]
    from histoscribe.train.assemble import assemble, cut_bags

    cut = [cut_bags(target[1], adapted.bags)]
    batch = assemble(cut, adapted.scaling, adapted.panel, has_target=False).batch
    with torch.no_grad():
        said = apart.eval()(batch)
        assert torch.allclose(merged(batch), said, atol=1e-6)
    assert torch.allclose(apart.eval()(batch), said, atol=1e-6)
    assert torch.allclose(apart.train()(batch), said, atol=1e-6)


def test_peft_reads_the_adapters_and_merges_them_alike(adapted, tmp_path):
    from peft import PeftModel

    adapted.save(tmp_path / "c")
    folder = tmp_path / "c" / "adapters" / "net0"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 16.0, "LORA")
    net = build_model("bitro", adapted.model_settings, seed=0)
    net.load_state_dict(dict(adapted.nets[0]))
    merged = PeftModel.from_pretrained(net, folder).merge_and_unload()
    wanted = adapted.merged().nets[0]
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def test_a_checkpoint_with_adapters_round_trips(adapted, target, tmp_path):
    adapted.save(tmp_path / "a")
    again = Checkpoint.load(tmp_path / "a")
    again.save(tmp_path / "b")
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == other.read_bytes()
    said = predict_regions(adapted, target).mean
    assert np.array_equal(predict_regions(again, target).mean, said)
    merged = again.merged()
    assert merged.adapters is None
    assert merged.model_id != again.model_id
    assert np.array_equal(predict_regions(merged, target).mean, said)


def test_the_count_of_what_learns(source):
    settings = LoraSettings(rank=3)
    net = build_model("bitro", source.model_settings, seed=0)
    genes = gene_tensors(net)
    layers = dict(net.named_modules())
    wanted = sum(3 * sum(layers[name].weight.shape) for name in adapted_layers(net))
    plain = count_parameters(net, genes)
    assert plain.backbone + plain.genes == sum(p.numel() for p in net.parameters())
    still = sum(p.numel() for p in net.parameters() if not p.requires_grad)  # biases of keys
    assert plain.trained == plain.backbone - still
    freeze_all_but_genes(net)
    assert count_parameters(net, genes).trained == 0
    insert_adapters(net, settings)
    assert count_parameters(net, genes) == replace(plain, adapters=wanted, trained=wanted)


def test_genes_go_by_their_ids(source, slides, target, panel, brief):
    order = panel.rows_of(panel.ids[::-1])
    other = panel.take(order)
    everything = target[0].regions.genes
    strangers = [row for row, gene in enumerate(everything.ids) if gene not in panel.ids][:3]
    wide = everything.take(np.concatenate([everything.rows_of(panel.ids)[::-1], strangers]))
    straight, turned, wider = (carry_weights(source, genes)[0] for genes in (panel, other, wide))
    for name in gene_tensors(source.build()[0]):
        assert torch.equal(turned[name], straight[name].flip(0))
        assert torch.equal(wider[name][: len(panel)], turned[name])
        mean = straight[name].mean(0)
        assert all(torch.allclose(row, mean, atol=1e-6) for row in wider[name][len(panel) :])
    start = Start(source, TransferConfig(mode="frozen"))
    one = replace(brief, max_epochs=1, learning_rate=1e-9)
    said = [
        predict_regions(fit(target, TARGET, genes, config=one, start=start), target[1:]).mean
        for genes in (panel, other, wide)
    ]
    np.testing.assert_allclose(said[1], said[0][:, ::-1], atol=1e-4)
    np.testing.assert_allclose(said[2][:, : len(panel)], said[1], atol=1e-4)


def test_nothing_learned_says_what_the_source_says(source, target, panel, brief):
    still = replace(brief, max_epochs=1, learning_rate=1e-12)
    made = go_on(source, target, panel, still, "full")
    carried = [source.nets[number % len(source.nets)] for number in range(len(made.nets))]
    nets = tuple({name: tensor.clone() for name, tensor in net.items()} for net in carried)
    wanted = predict_regions(replace(source, nets=nets, _packed={}), target[1:]).mean
    np.testing.assert_allclose(predict_regions(made, target[1:]).mean, wanted, atol=1e-5)
    assert np.array_equal(made.scaling.target.mu, source.scaling.target.mu)
    fitted = fit(
        target, TARGET, panel, config=still,
        start=Start(source, TransferConfig(mode="full", carry_scaling=False)),
    )  # fmt: skip
    assert not np.array_equal(fitted.scaling.target.mu, source.scaling.target.mu)


def test_a_start_may_be_the_best_there_is(source, target, panel, brief):
    wild = replace(brief, learning_rate=3.0)
    made = go_on(source, target, panel, wild, "full")
    assert any(net["best_epoch"] == 0 for net in made.report)


def test_what_does_not_fit_together_is_refused(source, slides, target, panel, brief):
    def refused(error, match, slides=target, panel=panel, **changes):
        with pytest.raises(error, match=match):
            fit(slides, TARGET, panel, config=brief, start=Start(source), **changes)

    cells = replace(target[0].cells, encoder_id="uni2-h@91c0")
    tiles = replace(target[0].tiles, encoder_id="uni2-h@91c0")
    strange = [replace(target[0], cells=cells, tiles=tiles)]
    refused(MismatchError, "expects features of", slides=strange)
    refused(ConfigError, "keeps the shape of the net", model_settings={"gat_layers": 2})
    refused(ConfigError, "positions must mean the same", bags=replace(source.bags, neighbours=5))
    other = replace(panel, ids=tuple(f"{gene}X" for gene in panel.ids))
    refused(MismatchError, "none of the 7 genes", panel=other)
    other = replace(
        slides[3],
        regions=replace(
            slides[3].regions, patient_id=slides[0].regions.patient_id[:1] * len(slides[3].regions)
        ),
    )
    with pytest.raises(MismatchError, match="was trained on patient patient-0, who is"):
        fit([target[0], other], TARGET, panel, config=brief, start=Start(source))
    seen = Split(("toy-2",), ("toy-0",), "patient")
    with pytest.raises(MismatchError, match="was trained on tissue of toy-0"):
        fit([target[0], slides[0]], seen, panel, config=brief, start=Start(source))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_settings_of_adapters_are_checked(wrong):
    with pytest.raises(ConfigError, match=r"transfer\.lora"):
        LoraSettings(**wrong)


def test_same_seed_same_bytes(source, target, panel, brief, adapted, tmp_path):
    again = go_on(source, target, panel, brief, "lora")
    assert again.model_id == adapted.model_id
