"""Aligning toy studies: repeatable, resumable, honest, stored whole."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from histoscribe.annotate.word_model import WordModel
from histoscribe.data.grid import sample_regions
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.splits import Split
from histoscribe.data.texts import Texts
from histoscribe.data.toy import RATES
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.predict import predict_regions
from histoscribe.readers.marker_lists import MarkerSet
from histoscribe.train import align_loop
from histoscribe.train.align import TextSource, fit_align
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import MadeGenes, StackedGenes, fit_gene_map
from histoscribe.train.align_genes import Words, unify_texts
from histoscribe.train.align_loop import rate_of
from histoscribe.train.align_text import find_text_tower
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import fit
from histoscribe.train.net_task import FitLog
from histoscribe.train.transfer import Start, TransferConfig

QUICK = AlignConfig(
    n_nets=1,
    n_steps=8,
    validate_every=4,
    image_gene_rows=23,
    gene_text_rows=11,
    embedding_width=10,
    gene_width=8,
    gene_heads=2,
    marker_copies=3,
    n_reference=40,
    seed=3,
)
LEARNED = replace(QUICK, loss="softmax", gene_space="learned")


@pytest.fixture(scope="module")
def text(tiny_bert):
    return TextSource(find_text_tower(str(tiny_bert)), str(tiny_bert))


@pytest.fixture(scope="module")
def words(slides):
    """Cells of two kinds, of four donors; and a marker list of one of them."""
    rng, n = np.random.default_rng(2), 28
    kind = np.arange(n) % 2
    names = tuple(("alpha cell", "beta cell")[k] for k in kind)
    profiles = Profiles(
        profile_id=tuple(f"p{row}" for row in range(n)),
        expression=csr_array(rng.poisson(3 * RATES[kind]).astype(np.float32)),
        expression_unit="counts",
        genes=slides[0].regions.genes,
        gene_observed=np.ones(13, dtype=bool),
        provenance=Provenance("test"),
        text=names,
        text_key=names,
        platform=("cells",) * n,
        donor_id=tuple(f"d{row % 8 // 2}" for row in range(n)),
    )
    markers = (MarkerSet("beta cell", ("BETA1", "BETA2", "GONE9"), (1.0, 1.0, 1.0)),)
    return Words((profiles,), markers, (Texts(("Beta cell",), ("the sample of beta cells",)),))


@pytest.fixture(scope="module")
def aligned(slides, split, panel, words, text, quick, small):
    """What most tests ask: a space of two genes beyond the panel, with expression."""
    return fit_align(
        slides, split, panel, words, text, config=QUICK, fit=quick, model_settings=small
    )


def bytes_of(checkpoint, folder):
    checkpoint.save(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_it_is_what_annotate_asks_for(aligned, slides, words):
    assert isinstance(aligned, WordModel)
    some = slides[2:]
    for level, n in (
        ("region", sum(len(s.regions) for s in some)),
        ("cell", sum(len(s.cells) for s in some)),
    ):
        own = aligned.embed_regions(some) if level == "region" else aligned.embed_cells(some)
        by_genes = aligned.embed_by_expression(some, level)
        for rows in (own, by_genes, aligned.reference(level, "image")):
            said = np.isfinite(rows).all(axis=1)
            assert said.mean() > 0.8
            assert np.allclose(np.linalg.norm(rows[said], axis=1), 1, atol=1e-5)
        assert own.shape == by_genes.shape == (n, 10)
        assert 1 < len(aligned.reference(level, "expression")) <= 40
    assert aligned.embed_profiles(words.profiles[0]).shape == (28, 10)
    assert aligned.embed_texts(["alpha", "beta", "alpha"]).shape == (3, 10)
    assert len(aligned.phenotypes_of(some)) == sum(len(s.cells) for s in some)
    assert aligned.table.ids[:7] == aligned.panel.ids
    assert len(aligned.table) == 13


def test_a_region_does_not_hang_on_the_others(aligned, slides):
    alone = aligned.embed_regions(slides[3:])
    both = aligned.embed_regions([slides[3], slides[2]])
    assert np.allclose(alone, both[: len(alone)], atol=1e-5)


def test_stored_whole_and_the_same_after(aligned, slides, text, tmp_path):
    aligned.save(tmp_path / "a")
    loaded = AlignCheckpoint.load(tmp_path / "a")
    assert loaded.model_id == aligned.model_id
    assert bytes_of(loaded, tmp_path / "b") == bytes_of(aligned, tmp_path / "a")
    assert np.array_equal(loaded.embed_regions(slides[3:]), aligned.embed_regions(slides[3:]))
    assert np.array_equal(loaded.embed_texts(["beta cell"]), aligned.embed_texts(["beta cell"]))
    assert loaded.scale == aligned.scale
    path = tmp_path / "b" / "scaling.safetensors"
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    with pytest.raises(DataError, match="corrupted"):
        AlignCheckpoint.load(tmp_path / "b")
    with pytest.raises(DataError, match="no checkpoint"):
        AlignCheckpoint.load(tmp_path / "c")


def test_its_regression_is_a_predictor(aligned, slides):
    said = predict_regions(aligned.to_predictor(), slides[3:])
    assert np.allclose(said.mean, aligned.predict_expression(slides[3:]), atol=1e-4, equal_nan=True)


def test_same_seed_same_bytes_also_after_a_kill(
    slides, split, panel, words, text, quick, small, tmp_path, monkeypatch
):
    settings = {"config": LEARNED, "fit": quick, "model_settings": small}
    whole = fit_align(slides, split, panel, words, text, **settings)
    log = FitLog(tmp_path / "log", every_s=0.0)
    step, n_steps = align_loop.learn_step, 0

    def killed(*given):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 7:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(align_loop, "learn_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_align(slides, split, panel, words, text, **settings, log=log)
    again = fit_align(slides, split, panel, words, text, **settings, log=log)
    assert n_steps == 7 + 2
    assert bytes_of(again, tmp_path / "a") == bytes_of(whole, tmp_path / "b")


def test_a_test_slide_is_not_looked_at(
    aligned, slides, split, panel, words, text, quick, small, tmp_path
):
    counts = csr_array(slides[3].regions.expression.toarray()[::-1].copy())
    poisoned = replace(slides[3], regions=replace(slides[3].regions, expression=counts))
    settings = {"config": QUICK, "fit": quick, "model_settings": small}
    again = fit_align([*slides[:3], poisoned], split, panel, words, text, **settings)
    assert bytes_of(again, tmp_path / "a") == bytes_of(aligned, tmp_path / "b")


def test_towards_anchors_all_is_learned_from_and_else_something_is_left_aside(
    aligned, slides, split, panel, words, text, quick, small
):
    (net,) = aligned.report
    assert (net["held_out"], net["best_score"], net["best_step"]) == ([], None, 8)
    assert "score" not in net["history"][0]
    settings = {"fit": quick, "model_settings": small}
    for config in (LEARNED, replace(QUICK, stops_early=True)):
        made = fit_align(slides, split, panel, words, text, config=config, **settings)
        (net,) = made.report
        assert len(net["held_out"]) == 1
        assert set(net["held_out"]) < set(split.train)
        assert net["best_score"] == max(look["score"] for look in net["history"])
        assert {"image-gene", "gene-text"} < set(net["history"][0])
    assert replace(LEARNED, stops_early=False).has_held_out is False


def test_profiles_of_tested_patients_are_not_looked_at(
    slides, split, panel, words, text, quick, small, tmp_path
):
    (given,) = words.profiles
    tested = {one.patient_id for one in slides if one.slide_id in split.test}
    donors = tuple(next(iter(tested)) if d == "d0" else d for d in given.donor_id)
    settings = {"config": QUICK, "fit": quick, "model_settings": small}
    counts = given.expression.toarray()
    poisoned = counts.copy()
    poisoned[[d in tested for d in donors]] = 7
    made = [
        fit_align(
            slides,
            split,
            panel,
            replace(words, profiles=(replace(given, donor_id=donors, expression=csr_array(some)),)),
            text,
            **settings,
        )
        for some in (counts, poisoned)
    ]
    a, b = (np.concatenate([t.ravel() for t in one.nets[0].values()]) for one in made)
    assert np.array_equal(a, b)
    assert np.array_equal(made[0].standardiser.mean, made[1].standardiser.mean)


def test_a_fold_too_small_to_stop_by_is_named(slides, split, panel, words, text, quick, small):
    few = [replace(s, regions=s.regions.take(np.arange(1))) for s in slides]
    alone = replace(words, profiles=(replace(words.profiles[0], donor_id=("d",) * 28),))
    settings = {"config": LEARNED, "fit": quick, "model_settings": small}
    with pytest.raises(DataError, match="stops_early"):
        fit_align(few, split, panel, alone, text, **settings)


@pytest.mark.parametrize("state", ["unlocked", "lora"])
def test_a_text_tower_that_learns_is_kept(
    state, slides, split, panel, words, text, quick, small, tmp_path
):
    config = replace(LEARNED, text_state=state, objective="align", text_learning_rate=1e-2)
    config = replace(config, lora_learning_rate=1e-2, n_steps=4)
    settings = {"config": config, "fit": quick, "model_settings": small}
    before = text.tower.encode(["beta cell"])
    made = fit_align(slides, split, panel, words, text, **settings)
    made.save(tmp_path / "a")
    loaded = AlignCheckpoint.load(tmp_path / "a")
    assert np.array_equal(loaded.embed_texts(["beta cell"]), made.embed_texts(["beta cell"]))
    assert torch.equal(before, text.tower.encode(["beta cell"]))
    learned = made.text.learned(text.tower, 0).encode(["beta cell"])
    assert float((learned - before).abs().max()) > 1e-4
    assert made.embed_by_expression(slides[3:], "region") is None
    with pytest.raises(ConfigError, match="joint"):
        made.to_predictor()


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_a_start_is_carried_over(mode, slides, split, panel, words, text, quick, small, tmp_path):
    old = fit(slides, split, panel, config=replace(quick, max_epochs=1), model_settings=small)
    start = Start(old, TransferConfig(mode))
    made = fit_align(
        slides, split, panel, words, text, config=replace(QUICK, n_steps=4), fit=quick, start=start
    )
    name = "cells.enter.weight"
    assert torch.equal(made.nets[0][f"bitro.{name}"], old.nets[0][name])
    assert (made.adapters is not None) == (mode == "lora")
    made.save(tmp_path / "a")
    again = AlignCheckpoint.load(tmp_path / "a")
    assert np.array_equal(again.embed_regions(slides[3:]), made.embed_regions(slides[3:]))
    assert again.provenance.inputs["from"] == old.model_id


def test_regions_with_texts_are_pairs_too(slides, split, panel, words, text, quick, small):
    said = [
        replace(one, regions=replace(one.regions, text_key=("beta cell",) * len(one.regions)))
        for one in slides
    ]
    made = fit_align(
        said, split, panel, words, text, config=LEARNED, fit=quick, model_settings=small
    )
    assert "loss/image-text" in made.report[0]["history"][0]


def test_nothing_said_and_another_tower_are_refused(
    aligned, slides, split, panel, text, quick, small, tmp_path, tiny_bert
):
    with pytest.raises(DataError, match="has a text"):
        fit_align(
            slides, split, panel, Words(), text, config=QUICK, fit=quick, model_settings=small
        )
    other = replace(aligned, text=replace(aligned.text, identity="x@000000000000"), _built={})
    with pytest.raises(MismatchError, match="text_tower"):
        other.embed_texts(["beta"])


def test_rates_rise_wait_and_fall():
    config = replace(QUICK, n_steps=100, warm_up=0.1)
    heads = [rate_of(step, config, waits=False) for step in range(100)]
    text = [rate_of(step, config, waits=True) for step in range(100)]
    assert heads[0] == pytest.approx(0.1, abs=1e-3)
    assert np.argmax(heads) == 9
    assert text[:9] == [0.0] * 9
    assert text[19] == heads[19]
    assert heads[-1] == pytest.approx(0.05, abs=1e-3)


def test_stacked_rows_come_in_the_order_asked():
    seen = np.ones(3, dtype=bool)
    a = MadeGenes(np.arange(12, dtype=np.float32).reshape(4, 3), seen)
    b = MadeGenes(100 + np.arange(6, dtype=np.float16).reshape(2, 3), seen)
    z, _ = StackedGenes((a, b)).read(np.array([5, 0, 4, 3, 0]))
    assert z[:, 0].tolist() == [103, 0, 100, 9, 0]


def test_a_fixed_space_is_the_principal_components():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 7)).astype(np.float32) * np.array([3, 2, 1, 1, 0.5, 1, 1], np.float32)
    seen = np.ones(z.shape, dtype=bool)
    seen[:, 6] = False
    z[:, 6] = 0
    of_gene = fit_gene_map(z, seen, 4)
    _, _, v = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    assert np.allclose(np.abs(of_gene.T @ v[:4].T), np.eye(4), atol=1e-4)
    assert not of_gene[6].any()


def test_texts_of_one_meaning_get_one_key():
    a = Texts(("CL:0000236", "CL:0000236"), ("B cell", "B cell from lung"))
    b = Texts(("b cell", "t cell"), ("b cell", "T cell"))
    c = Texts(("T cell",), ("T lymphocyte",))
    texts, alias = unify_texts([a, b, c])
    key = dict(zip(texts.text, texts.text_key, strict=True))
    assert key["b cell"] == key["B cell from lung"] == "CL:0000236"
    assert key["T lymphocyte"] == key["T cell"] == "t cell"
    assert alias["b cell"] == "CL:0000236"


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"gene_space": "learned"}, "fixed"),
        ({"objective": "align", "cycle_weight": 0.5}, "cycle_weight"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_wrong_settings_are_named(wrong, match):
    with pytest.raises(ConfigError, match=match):
        AlignConfig(**{"loss": "anchor", "gene_space": "fixed", **wrong})


def test_the_history_is_plain_json(aligned):
    assert json.loads(json.dumps(aligned.report))[0]["history"][-1]["step"] == 8


def test_whole_samples_are_aligned_and_streamed(slides, panel, words, text, quick, small):
    """A bulk sample of many blocks goes the same way; each of its slides is told alike."""
    counts = np.random.default_rng(0).poisson(40, (4, 13)).astype(np.float32)
    bulk = []
    for number, one in enumerate(slides):
        whole = sample_regions(one.cells, one.patient_id)
        regions = replace(
            whole,
            genes=one.regions.genes,
            gene_observed=one.regions.gene_observed,
            expression=csr_array(counts[number : number + 1]),
            platform="bulk",
        )
        bulk.append(SlideData(one.cells, one.tiles, regions))
    split = Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")
    fitting = replace(quick, blocks_in_training=4)
    made = fit_align(
        bulk, split, panel, words, text, config=LEARNED, fit=fitting, model_settings=small
    )
    rows = made.embed_regions(bulk)
    assert rows.shape == (4, 10)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(made.embed_regions(bulk[3:]), rows[3:], atol=1e-5)
    assert made.region_size.kind == "bulk"
