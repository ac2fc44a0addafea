"""What every test may ask for."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from histoscribe.data.join import assign_cells
from histoscribe.data.profiles import Profiles
from histoscribe.data.regions import RegionSize
from histoscribe.data.toy import AXES_UM, PITCH_UM, RADIUS_UM, toy_world
from histoscribe.train.assemble import SlideData
from histoscribe.train.processes import NAMES

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAIT_S = 600


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data; tests that need it skip by name where it is missing."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOSCRIBE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HISTOSCRIBE_DATA")
    return folder


@dataclass(frozen=True)
class ToyWords:
    """A model of words for toy worlds: a cell lies between "alpha" and "beta" as its size says.

    A third axis is common to all that is not text, a constant gap between the modalities; a fourth
    raises every unit's score of "beta" alike, a bias of that class.
    """

    predicts_expression: bool = True
    has_reference: bool = True
    model_id: str = "toy-words@1"
    scale: float = 20.0
    bias: float = 0.4

    @property
    def region_size(self) -> RegionSize:
        return RegionSize("spot", RADIUS_UM, PITCH_UM)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), 5), 0.05, np.float32)
        for row, text in enumerate(texts):
            rows[row, 0] += "alpha" in text
            rows[row, 1] += "beta" in text
            rows[row, 3] += 0.8 * ("beta" in text)
            rows[row, 4] += 0.2 * text.startswith("a ")
        return _unit(rows)

    def embed_cells(self, slides: Sequence[SlideData]) -> np.ndarray:
        return np.concatenate([self._place(mix_of(slide)) for slide in slides])

    def embed_regions(self, slides: Sequence[SlideData]) -> np.ndarray:
        return np.concatenate([self._place(_pool(slide, mix_of(slide))) for slide in slides])

    def embed_profiles(self, profiles: Profiles) -> np.ndarray:
        """By the genes ALPHA1 to 4 and BETA1 to 4."""
        counts = profiles.expression.toarray().astype(np.float64) + 1e-3
        mix = np.stack([counts[:, :4].sum(1), counts[:, 4:8].sum(1)], axis=1)
        return self._place(mix / mix.sum(axis=1, keepdims=True))

    def embed_by_expression(self, slides: Sequence[SlideData], level: str) -> np.ndarray | None:
        if not self.predicts_expression:
            return None
        rows = []
        for slide in slides:
            mix = np.random.default_rng(5).normal(mix_of(slide), 0.3)
            rows.append(self._place(_pool(slide, mix) if level == "region" else mix))
        return np.concatenate(rows)

    def reference(self, level: str, route: str) -> np.ndarray | None:
        if not self.has_reference:
            return None
        slide = slide_of(31)
        if route == "expression":
            return self.embed_by_expression([slide], level)
        return (self.embed_regions if level == "region" else self.embed_cells)([slide])

    def phenotypes_of(self, slides: Sequence[SlideData]) -> np.ndarray:
        return np.concatenate([mix_of(slide).argmax(axis=1) for slide in slides])

    def _place(self, mix: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(mix), 5))
        rows[:, :2] = mix
        rows[:, 2], rows[:, 3] = 1.5, self.bias
        return _unit(rows)


@pytest.fixture
def toy_words() -> ToyWords:
    return ToyWords()


@cache
def slide_of(seed: int, *, has_lumen: bool = False) -> SlideData:
    """A toy slide, as a study holds it."""
    world = toy_world(seed, f"s{seed}", f"p{seed}", has_lumen=has_lumen)
    return SlideData(world.cells, world.tiles, world.regions)


def mix_of(slide: SlideData) -> np.ndarray:
    """How much of each kind the size of each nucleus says it is."""
    small, large = np.pi * np.prod(AXES_UM, axis=1)
    share = ((slide.cells.area_um2.astype(np.float64) - small) / (large - small)).clip(0, 1)
    return np.stack([1 - share, share], axis=1)


def _pool(slide: SlideData, mix: np.ndarray) -> np.ndarray:
    """Mean over the cells inside each region; NaN without one."""
    regions = slide.regions
    inside = assign_cells(slide.cells.xy_um, regions.xy_um, regions.radius_um, ring_um=0.0)
    total, n = np.zeros((len(regions), 2)), np.zeros((len(regions), 1))
    np.add.at(total, inside.region, mix[inside.cell])
    np.add.at(n, inside.region, 1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


WORDS = ["a", "b", "t", "cell", "cells", "tissue", "sample", "of", "containing", "plasma", "tumour"]
WORDS += ["the", "x", "y", "z"]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tiny_bert(folder: Path, seed: int = 3) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: row for row, word in enumerate([*MARKS, *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=20)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=24,
        initializer_range=0.4,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("texts") / "tiny-bert")


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Two processes on this machine; a hang is a failure."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in NAMES}
        command = [*TORCHRUN, *map(str, words)]
        with subprocess.Popen(
            command,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as started:
            try:
                said = started.communicate(timeout=WAIT_S)
            except subprocess.TimeoutExpired:
                started.terminate()  # it ends its two processes, which a kill would leave
                raise
        return subprocess.CompletedProcess(command, started.returncode, *said)

    return run
