"""YAML and flags from the dataclasses, and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from histoscribe.app.config import load_config, make_config, values_of
from histoscribe.app.settings import build, defaults_of, merge, to_yaml
from histoscribe.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    depth: int = 3
    way: Literal["near", "far"] = "near"


@dataclass(frozen=True)
class Outer:
    size: int  # told by the data: no setting
    rate: float = 0.5
    radii_um: tuple[float, ...] = (1.0, 2.0)
    name: str | None = None
    inner: Inner = field(default_factory=Inner)


def test_sizes_are_no_settings():
    assert "size" not in defaults_of(Outer)
    with pytest.raises(ConfigError, match="Unknown setting 'size'"):
        merge(Outer, {"size": 3})


def test_values_become_the_dataclass():
    values = merge(Outer, {"rate": 1, "radii_um": [3, 4.5], "inner": {"way": "far"}})
    made = build(Outer, {**values, "size": 7})
    assert made == Outer(7, 1.0, (3.0, 4.5), None, Inner(3, "far"))
    assert isinstance(made.rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rat": 1.0}, ["Unknown setting 'rat'", "'rate'"]),
        ({"inner": {"dept": 1}}, ["inner.dept", "'depth'"]),
        ({"rate": "fast"}, ["rate = 'fast'", "float is wanted", "str came"]),
        ({"rate": True}, ["float is wanted"]),
        ({"inner": {"depth": 2.5}}, ["inner.depth", "int is wanted"]),
        ({"inner": {"depth": True}}, ["int is wanted, bool came"]),
        ({"inner": {"way": "up"}}, ["one of near, far"]),
        ({"inner": 3}, ["group of settings"]),
        ({"radii_um": 3.0}, ["a list is wanted"]),
        ({"name": 4}, ["str is wanted"]),
    ],
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(ConfigError) as caught:
        merge(Outer, values)
    for word in words:
        assert word in str(caught.value)


def test_the_printed_config_reads_back_equal(tmp_path: Path):
    values = values_of(make_config({"fit": {"seed": 5}, "bags": {"rings_um": [100, 300]}}))
    (tmp_path / "all.yaml").write_text(to_yaml(values))
    assert values_of(load_config(tmp_path / "all.yaml")) == values
    assert yaml.safe_load(to_yaml(values)) == values


def test_flags_are_above_set_above_file(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("fit: {seed: 1, max_epochs: 11}\npanel: {n_genes: 50}\n")
    words = ["fit.seed=2", "panel.n_genes=60"]
    config = load_config(tmp_path / "c.yaml", words, {"fit": {"seed": 3}, "panel": {"rule": None}})
    assert (config.fit.seed, config.fit.max_epochs, config.panel.n_genes) == (3, 11, 60)


def test_model_settings_are_those_of_the_model():
    assert make_config({"model": {"readout": "shared"}}).model == {"readout": "shared"}
    with pytest.raises(ConfigError, match=r"model\.readut.*'readout'"):
        make_config({"model": {"readut": "shared"}})
    with pytest.raises(ConfigError, match="n_genes"):
        make_config({"model": {"n_genes": 5}})


@pytest.mark.parametrize("wrong", ["buffer_um=-1000", "buffer_um=.nan", "n_strips=1"])
def test_strips_that_would_mix_training_and_test_are_refused(wrong):
    with pytest.raises(ConfigError, match="buffer of 0 µm or more"):
        load_config(None, [f"split.{wrong}"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("prepare.segmenter=hovernet", ["'hovernet'", "instanseg, threshold, toy"]),
        ("prepare.encoder=uni3", ["'uni3'", "vit"]),
        ("prepare.encoder=uni", ["'uni:FILE'"]),
        ("prepare.encoder='vit:'", ["vit:FOLDER"]),
        ("prepare.view.way=tiles", ["prepare.view.way = 'tiles'", "dense, tile"]),
        ("prepare.view.pooling=max", ["prepare.view.pooling = 'max'", "cls+mean"]),
        ("prepare.view.pooling=cls+mean", ["wants prepare.view.way = 'tile'"]),
        ("prepare.view.mpp=0", ["prepare.view.mpp = 0", "above 0"]),
        ("prepare.view.mpp=.nan", ["prepare.view.mpp = nan"]),
        ("prepare.view.tile_um=-24", ["prepare.view.tile_um = -24"]),
        ("prepare.view.tile_um=.inf", ["prepare.view.tile_um = inf", "finite"]),
        ("prepare.view.input_px=0", ["prepare.view.input_px = 0"]),
        ("prepare.view.field_um=0", ["prepare.view.field_um = 0", "above 0"]),
        ("prepare.view.margin_um=-1", ["prepare.view.margin_um = -1", "0 µm or more"]),
        ("prepare.overlap_px=-16", ["overlap_px -16"]),
        ("prepare.overlap_px=512", ["overlap_px 512", "smaller than the field"]),
        ("prepare.field_px=0", ["field_px 0"]),
        ("prepare.field_px=500", ["multiples of 16"]),
        ("prepare.around_um=.nan", ["prepare.around_um = nan"]),
        ("prepare.tile_side_um=0", ["prepare.tile_side_um = 0"]),
        ("prepare.calibration_pixels=0", ["prepare.calibration_pixels = 0"]),
        ("prepare.seed=-1", ["prepare.seed = -1", "0 or more"]),
        ("bags.ring_um=.inf", ["ring_um = inf"]),
        ("bags.field_side_um=.inf", ["field_side_um = inf"]),
        ("bags.rings_um=[250.0, .inf]", ["rings_um = (250.0, inf)"]),
        ("model.width=63", ["width = 63", "transformer_heads = 4"]),
        ("model.gat_heads=5", ["gat_width = 128", "gat_heads = 5"]),
        ("model.dropout=1.0", ["dropout = 1.0", "below 1"]),
        ("model.dropout=.nan", ["dropout = nan"]),
        ("model.context_width=0", ["context_width = 0"]),
        ("model.window_um=.inf", ["window_um = inf", "finite"]),
        ("model={has_cells: false, has_context: false}", ["nothing is left to answer"]),
        ("fit.learning_rate=.inf", ["fit.learning_rate = inf", "finite"]),
        ("fit.learning_rate=.nan", ["fit.learning_rate = nan"]),
        ("fit.learning_rate=0", ["fit.learning_rate = 0", "above 0"]),
        ("fit.clip_norm=.inf", ["fit.clip_norm = inf"]),
        ("fit.weight_decay=-0.1", ["fit.weight_decay = -0.1", "0 or more"]),
        ("fit.weight_decay=.inf", ["fit.weight_decay = inf"]),
        ("fit.cluster_weight=.nan", ["fit.cluster_weight = nan"]),
        ("fit.batch_regions=0", ["fit.batch_regions = 0", "1 or more"]),
        ("fit.seed=4294967296", ["fit.seed = 4294967296", "4294967295 or less"]),
        ("score.of=[]", ["score.of is empty"]),
        ("score.of=[modle]", ["score.of has 'modle'", "model"]),
        ("score.over=[strong rigde]", ["score.over has 'strong rigde'", "strong ridge"]),
    ],
)
def test_a_setting_that_would_fail_late_is_refused_when_the_config_is_made(assignment, words):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [assignment])
    for word in words:
        assert word in str(caught.value)


def test_settings_at_the_border_are_taken(tmp_path: Path):
    words = ["score.over=[]", "score.of=[model, training mean]", "fit.weight_decay=0"]
    words += ["model.width=60", "model.dropout=0", "fit.seed=4294967295", "prepare.overlap_px=496"]
    config = load_config(None, [*words, "prepare.view.tile_um=0.3", "prepare.view.margin_um=0"])
    assert (config.score.over, config.model) == ((), {"width": 60, "dropout": 0.0})
    (tmp_path / "all.yaml").write_text(to_yaml(values_of(config)))
    assert load_config(tmp_path / "all.yaml") == make_config(values_of(config))
