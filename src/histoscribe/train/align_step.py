r"""One step of an alignment: from the pairs that were drawn to the losses.

    L = sum_p w_p L_p / sum_p w_p + w_e L_expression + w_c L_cycle

over the pairs p that the step has. Every thing is embedded once a step, and only things that a pair
of the step owns; no row stands in for a modality that is missing. Regions learn by their branches,
each by itself; expression as in `train/losses.py`, without its cluster term.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from histoscribe.data.bags import BagBatch
from histoscribe.models.text_tower import TextTower
from histoscribe.models.trimodal import Seen, Trimodal
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import AlignData, Rows
from histoscribe.train.contrastive import (
    anchor_loss,
    cycle_loss,
    pair_loss,
    siglip_loss,
    weigh,
)
from histoscribe.train.losses import expression_loss
from histoscribe.train.pairs import PairDraw, PairKind

IMAGE_KINDS: tuple[PairKind, ...] = ("image-gene", "image-text")
GENE_KINDS: tuple[PairKind, ...] = ("image-gene", "gene-text")
TEXT_KINDS: tuple[PairKind, ...] = ("gene-text", "image-text")


class Aligner(nn.Module):
    """The space, and the text tower where it learns.

    Attributes:
        space: Regions, profiles and text features to embeddings.
        text: A tower that learns; None where texts come as features.
    """

    def __init__(self, space: Trimodal, text: TextTower | None = None) -> None:
        super().__init__()
        self.space, self.text = space, text

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.space.log_scale.device

    def embed_genes(self, data: AlignData, rows: Rows) -> Float[Tensor, "row e"]:
        """e_G of rows of expression, or of vectors that another model made of it."""
        z, is_observed = data.genes.read(rows)
        return self.space.embed_rows(
            torch.from_numpy(z).to(self.device), torch.from_numpy(is_observed).to(self.device)
        )

    def embed_texts(
        self, data: AlignData, rows: Rows, *, is_waiting: bool = False
    ) -> Float[Tensor, "row e"]:
        """e_T of rows of text; the tower itself gets no gradient while it is waiting."""
        if self.text is None or not is_waiting:
            features = data.texts.read(rows, self.text)
        else:
            was_training = self.text.training
            with torch.no_grad():
                features = data.texts.read(rows, self.text.eval())
            self.text.train(was_training)
        return self.space.embed_texts(features.to(self.device))


class Embedded(NamedTuple):
    """Everything that a step owns, each thing once.

    Attributes:
        seen: Regions: of the image-gene pairs, then of the image-text pairs; None without any.
        batch: The same regions.
        genes: Expression: of the image-gene pairs, then of the gene-text pairs.
        texts: The distinct texts.
        text_row: Their rows, ascending.
    """

    seen: Seen | None
    batch: BagBatch | None
    genes: Float[Tensor, "gene_row e"]
    texts: Float[Tensor, "text e"]
    text_row: Int64[np.ndarray, " text"]

    def texts_of(self, draw: PairDraw) -> tuple[Float[Tensor, "own e"], Int64[np.ndarray, " own"]]:
        """The texts of some pairs, each once, and their rows: no others are held against them."""
        own = np.unique(draw.right)
        place = torch.from_numpy(np.searchsorted(self.text_row, own)).to(self.texts.device)
        return self.texts.index_select(0, place), own


def losses_of(
    net: Aligner,
    data: AlignData,
    draws: Mapping[PairKind, PairDraw],
    config: AlignConfig,
    *,
    seed: int,
    is_text_waiting: bool = False,
) -> dict[str, Tensor]:
    """Losses of the pairs of a step: "loss", and its parts by name.

    Args:
        net: In training mode, unless the loss is to be looked at only.
        data: What the pairs are of.
        draws: The pairs, by kind.
        config: How they are weighed.
        seed: What draws the blocks of large regions.
        is_text_waiting: The text tower does not learn yet.
    """
    all_of = embed_step(net, data, draws, config, seed=seed, is_text_waiting=is_text_waiting)
    first = len(draws["image-gene"].left) if "image-gene" in draws else 0
    parts: dict[str, Tensor] = {}
    for kind, draw in draws.items():
        key = torch.from_numpy(draw.key).to(net.device)
        here = slice(0, first) if kind == "image-gene" else slice(first, None)
        other, other_key = all_of.genes[here], key
        if kind in TEXT_KINDS:
            other, rows = all_of.texts_of(draw)
            other_key = torch.from_numpy(data.texts.key[rows]).to(net.device)
        if kind == "gene-text":
            parts[kind] = _pull(net, other, all_of.genes[here], other_key, key, config)
            continue
        assert all_of.seen is not None
        each = [
            _pull(net, branch[here], other, key, other_key, config)
            for branch in all_of.seen.branches
        ]
        parts[kind] = torch.stack(each).mean()
    losses = {"loss": weigh(parts, config.pair_weights()), **parts}
    for name, weight, loss in _expression(net.space, all_of, config):
        losses[name] = loss
        losses["loss"] = losses["loss"] + weight * loss
    return losses


def embed_step(
    net: Aligner,
    data: AlignData,
    draws: Mapping[PairKind, PairDraw],
    config: AlignConfig,
    *,
    seed: int,
    is_text_waiting: bool,
) -> Embedded:
    """Embed everything that the pairs of a step are of; arguments are those of `losses_of`."""
    image = [draws[kind].left for kind in IMAGE_KINDS if kind in draws]
    gene = [
        draws[kind].right if kind == "image-gene" else draws[kind].left
        for kind in GENE_KINDS
        if kind in draws
    ]
    text = [draws[kind].right for kind in TEXT_KINDS if kind in draws]
    seen = batch = None
    if image:
        batch = data.images.bags(np.concatenate(image), seed).to(net.device)
        seen = net.space.see(batch, has_answer=config.has_expression, few_cells=config.few_cells)
    nothing = torch.zeros(0, net.space.config.embedding_width, device=net.device)
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *text]))
    return Embedded(
        seen,
        batch,
        net.embed_genes(data, np.concatenate(gene)) if gene else nothing,
        net.embed_texts(data, rows, is_waiting=is_text_waiting) if text else nothing,
        rows,
    )


def _pull(
    net: Aligner,
    moving: Float[Tensor, "n_a e"],
    other: Float[Tensor, "n_b e"],
    key: Int[Tensor, " n_a"],
    other_key: Int[Tensor, " n_b"],
    config: AlignConfig,
) -> Float[Tensor, ""]:
    """The loss of some pairs; where one side is an anchor it is the second."""
    if config.loss == "anchor":
        return anchor_loss(moving, other, key, other_key)
    if config.loss == "siglip":
        assert net.space.bias is not None
        scale = net.space.log_scale
        return siglip_loss(moving, other, key, other_key, scale, net.space.bias)
    return pair_loss(moving, other, key, other_key, net.space.log_scale)


def _expression(
    space: Trimodal, all_of: Embedded, config: AlignConfig
) -> Iterator[tuple[str, float, Tensor]]:
    """The regression over the regions of the step, and the cycle term: name, weight, loss."""
    seen, batch = all_of.seen, all_of.batch
    if seen is None or seen.answer is None or batch is None or batch.target is None:
        return
    parts = [expression_loss(y, batch.target, batch.is_observed) for y in seen.answer.branches]
    yield "expression", config.expression_weight, torch.stack(parts).mean()
    if config.cycle_weight:
        with torch.no_grad():  # no gradient goes that way
            predicted = space.embed_expression(seen.answer.expression)
        yield "cycle", config.cycle_weight, cycle_loss(seen.embedding, predicted)


@torch.no_grad()
def score_held_out(
    net: Aligner, data: AlignData, most_rows: int = 1024, at_once: int = 128
) -> dict[str, float]:
    r"""How often a row is nearer to its own partner than to a wrong one; 0.5 is chance.

    Over the held-out regions and their expression, both ways, and over held-out profiles and the
    texts of all keys, a key by the mean of its wordings. "score" is the mean of the two, or the one
    there is. No image is ever held against a text.

    Args:
        net: Put into `eval()` and back.
        data: With what is held out.
        most_rows: Rows of each that are looked at, evenly spaced.
        at_once: Rows embedded at once.
    """
    was_training, held, said = net.training, data.held_out, {}
    net.eval()
    try:
        some = _evenly(len(held.image), most_rows)
        if len(some) > 1:
            parts = np.array_split(some, -(-len(some) // at_once))
            image = torch.cat(
                [
                    net.space.embed_regions(data.images.bags(held.image[p], 0).to(net.device))
                    for p in parts
                ]
            )
            gene = torch.cat([net.embed_genes(data, held.gene[p]) for p in parts])
            said["image-gene"] = _won(image @ gene.T)
        some = _evenly(len(held.profile), most_rows)
        if len(some) and len(np.unique(data.texts.key)) > 1:
            said["gene-text"] = _won_texts(net, data, some, at_once)
    finally:
        net.train(was_training)
    return {"score": float(np.mean(list(said.values()))) if said else float("nan"), **said}


def _won(similarity: Float[Tensor, "row row"]) -> float:
    """Share of wrong partners that are further than one's own, both ways; ties count half."""
    own = similarity.diagonal()
    n = len(own)
    total = 0.0
    for s in (similarity, similarity.T):
        less = (s < own[:, None]).double().sum(1) + ((s == own[:, None]).double().sum(1) - 1) / 2
        total += float((less / (n - 1)).mean()) / 2
    return total if bool(torch.isfinite(similarity).all()) else float("nan")


def _won_texts(net: Aligner, data: AlignData, some: Rows, at_once: int) -> float:
    """The same of held-out profiles among the keys of all texts."""
    keys, number = np.unique(data.texts.key, return_inverse=True)
    texts = net.embed_texts(data, np.arange(len(number)), is_waiting=True)
    of_key = torch.zeros(len(keys), texts.shape[1], device=texts.device)
    of_key.index_add_(0, torch.from_numpy(number).to(texts.device), texts)
    of_key = torch.nn.functional.normalize(of_key, dim=1)
    parts = np.array_split(some, -(-len(some) // at_once))
    gene = torch.cat([net.embed_genes(data, data.held_out.profile[p]) for p in parts])
    own = torch.from_numpy(np.searchsorted(keys, data.held_out.profile_key[some]))
    similarity = (gene @ of_key.T).cpu()
    mine = similarity.gather(1, own[:, None])
    less = (similarity < mine).double().sum(1) + ((similarity == mine).double().sum(1) - 1) / 2
    won = float((less / (len(keys) - 1)).mean())
    return won if bool(torch.isfinite(similarity).all()) else float("nan")


def _evenly(n: int, most: int) -> Rows:
    """Rows of n, as many as `most`, evenly spaced."""
    return np.unique(np.linspace(0, max(0, n - 1), min(n, most)).round().astype(np.int64))
