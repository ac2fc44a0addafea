"""The contract of a word model, met by the real towers: what they embed can be annotated."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from histoscribe.annotate.label import annotate
from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.data.bags import BagConfig
from histoscribe.data.regions import RegionSize
from histoscribe.data.texts import Term
from histoscribe.data.toy import toy_world
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.assemble import SlideData, assemble, cut_bags
from histoscribe.train.fit import FitConfig, fit_scaling
from histoscribe.train.gene_panel import PanelConfig, choose_panel

CLASSES = [WordClass(name, (Term(name, (name,)),)) for name in ("alpha", "beta", "gamma")]
N_TEXT = 11


def slide_of(seed: int, *, has_lumen: bool = False) -> SlideData:
    world = toy_world(seed, f"s{seed}", f"p{seed}", has_lumen=has_lumen)
    return SlideData(world.cells, world.tiles, world.regions)


class Parts:
    """Untrained towers behind the contract; texts are hashed to features."""

    model_id = "trimodal@untrained"
    region_size = RegionSize("spot", 27.5, 100.0)

    def __init__(self, slide: SlideData) -> None:
        self.bags = BagConfig(rings_um=(150.0,))
        self.panel = choose_panel([slide.regions], PanelConfig(n_genes=7))
        cut = cut_bags(slide, self.bags)
        config = FitConfig(seed=1, n_components=5, n_field_components=3, n_phenotypes=3)
        self.scaling = fit_scaling([cut], self.panel, config)
        batch = assemble([cut], self.scaling, self.panel, has_target=False).batch
        bitro = BitroConfig(
            batch.features.shape[1],
            batch.field.shape[2],
            batch.field.shape[1],
            len(self.panel),
            width=16,
            context_width=14,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Trimodal(TrimodalConfig(bitro, N_TEXT, embedding_width=13)).eval()
        self._reference = slide

    @property
    def scale(self) -> float:
        return float(self.net.scale().detach())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).normal(size=N_TEXT) for text in texts]
        with torch.inference_mode():
            return self.net.embed_texts(torch.tensor(np.stack(rows), dtype=torch.float32)).numpy()

    def embed_regions(self, slides: Sequence[SlideData]) -> np.ndarray:
        return self._spread(slides, lambda batch: self.net.embed_regions(batch))

    def embed_by_expression(self, slides: Sequence[SlideData], level: str) -> np.ndarray | None:
        assert level == "region"
        answer = self.net.answer
        return self._spread(slides, lambda b: self.net.embed_expression(answer(b).expression))

    def embed_cells(self, slides: Sequence[SlideData]) -> np.ndarray:
        parts = []
        for slide in slides:
            rows = np.full((len(slide.cells), 13), np.nan, np.float32)
            bags = self._assemble(slide)
            with torch.inference_mode():
                embedded = self.net.embed_cells(bags.batch).numpy()
            (members,) = bags.members
            rows[members.cell[members.is_inside]] = embedded[members.is_inside]
            parts.append(rows)
        return np.concatenate(parts)

    def embed_profiles(self, profiles):
        raise NotImplementedError

    def reference(self, level: str, route: str) -> np.ndarray | None:
        if route == "expression":
            return self.embed_by_expression([self._reference], level)
        embed = self.embed_regions if level == "region" else self.embed_cells
        return embed([self._reference])

    def phenotypes_of(self, slides: Sequence[SlideData]) -> np.ndarray:
        cells = np.concatenate([self.scaling.cells.apply(one.cells.features) for one in slides])
        return self.scaling.phenotypes.assign(cells)

    def _assemble(self, slide: SlideData):
        return assemble([cut_bags(slide, self.bags)], self.scaling, self.panel, has_target=False)

    def _spread(self, slides, embed):
        parts = []
        for slide in slides:
            bags = self._assemble(slide)
            with torch.inference_mode():
                of_bag = embed(bags.batch).numpy()
            (bag_of_row,) = bags.bag_of_row
            parts.append(np.where(bag_of_row[:, None] >= 0, of_bag[bag_of_row], np.float32("nan")))
        return np.concatenate(parts)


@pytest.fixture(scope="module")
def parts():
    return Parts(slide_of(31))


def test_real_towers_meet_the_contract(parts):
    assert isinstance(parts, WordModel)
    slides = [slide_of(7), slide_of(8, has_lumen=True)]
    said = annotate(parts, slides, CLASSES, AnnotateConfig(abstention="none"))
    assert said.label.count("") == 1
    known = said.is_said
    assert np.allclose(said.probability[known].sum(axis=1), 1, atol=1e-5)
    assert (np.abs(said.score[known]) <= 1 + 1e-5).all()
    assert ((said.uncertainty[known] >= 0) & (said.uncertainty[known] <= 1)).all()
    alone = annotate(parts, slides[1:], CLASSES, AnnotateConfig(abstention="none"))
    assert np.allclose(alone.score, said.of_slide("s8").score, atol=1e-5, equal_nan=True)


def test_cells_outside_every_region_are_left_blank(parts):
    config = AnnotateConfig(level="cell", route="image", abstention="none")
    slide = slide_of(7)
    said = annotate(parts, [slide], CLASSES, config)
    n_outside = said.label.count("")
    assert len(said) == len(slide.cells)
    assert 0 < n_outside < len(said)
