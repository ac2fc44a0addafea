r"""Regions, cells, expression profiles and texts in one space.

    cells    h, c as in BiTro         e_C = unit(Head_C(AttentionPool(h)))     e_X = unit(Head_X(c))
    region   e_I = unit(m e_C + (1 - m) e_X)       each of the two is trained by itself, as in BiTro
    cell     e_N = unit(Head_N(h of the cell alone)), or unit(Head_C(h_i)): see `embed_cells`
    profile  e_G = unit(Head_G(GeneTower(v, observed, Q)))     or unit(v M), M fixed beforehand
    text     e_T = unit(Head_T(features of a text tower))

Q, the table of genes, begins with BiTro's gene queries: what expression is predicted from and what
it is read by are one. So a prediction and a measurement come to lie in one place.

Source: SpatialWhisperer, whose image is one patch and whose towers are frozen but for the text's;
its heads and its learned scale. Departs from it: the image is a region's cells and surroundings,
so that a cell can be named by itself; the gene tower is trained on a table that it shares with the
regression; the scale is bounded; every thing is embedded by itself, so that neither the rest of a
batch nor a modality that a row lacks can change it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.models.bitro import Bitro, Encoded
from histoscribe.models.predictor import Answer
from histoscribe.models.stream import average_blocks
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.nn.attention_pool import AttentionPool, RunningPool
from histoscribe.nn.gene_tower import GeneTower
from histoscribe.nn.projection import Projection, unit
from histoscribe.nn.ragged import draw_few_cells, segment_mean, segment_sum
from histoscribe.nn.temperature import FIRST_LOG_SCALE, bounded_scale

SIGLIP_START = math.log(10), -10.0  # tau and b0 of Zhai et al. 2023, algorithm 1


class Seen(NamedTuple):
    """What one pass over some regions says.

    Attributes:
        embedding: e_I, what regions are compared by.
        branches: The embeddings that are trained, each by itself: e_X and e_C, or the one of them
            that there is; in training also e_N of a few of the cells, where the model has it.
        answer: Expression, where it was asked for.
    """

    embedding: Float[Tensor, "bag e"]
    branches: tuple[Float[Tensor, "bag e"], ...]
    answer: Answer | None


class Trimodal(nn.Module):
    """The model of this file's first lines; texts come as features of a `TextTower`.

    Attributes:
        bitro: Encoder of images, owner of the gene queries, and the regression of expression,
            whose readouts learn only where the objective has it.
        log_scale: tau, shared by all pairs; see `histoscribe.nn.temperature`.
        bias: b0 of the SigLIP loss, or None.
        gene_map: The linear map of a fixed gene space, gene x e, zero until it is set; or None.
    """

    GENE_TENSORS = tuple(f"bitro.{name}" for name in Bitro.GENE_TENSORS)
    """Parameters whose rows are the panel of `bitro`; those of `more_genes` are the other genes."""
    ADAPTED = tuple(f"bitro.{name}" for name in Bitro.ADAPTED)
    """Where the linear maps begin that take adapters in a transfer."""

    def __init__(self, config: TrimodalConfig) -> None:
        super().__init__()
        self.config, bitro = config, config.bitro
        self.bitro = Bitro(bitro)
        if bitro.has_cells:
            self.pool = AttentionPool(bitro.width, config.pool_width)
            self.cell_head = self._head(bitro.width)
        self.lone_head = None
        if bitro.has_cells and config.has_lone_cells:
            self.lone_head = self._head(bitro.width)
        if bitro.has_context:
            self.context_head = self._head(bitro.context_width)
        self.gene_tower, self.more_genes = None, None
        self.gene_map: Tensor | None
        is_fixed, shape = (
            config.gene_space == "fixed",
            (config.n_table_genes, config.embedding_width),
        )
        self.register_buffer("gene_map", torch.zeros(shape) if is_fixed else None)
        if config.has_gene_tower and not is_fixed:
            self.gene_tower = GeneTower(
                bitro.width, config.gene_width, config.gene_heads, config.gene_dropout
            )
            n_own = config.n_table_genes - len(self._queries())
            if n_own:
                self.more_genes = nn.Parameter(torch.empty(n_own, bitro.width))
                nn.init.normal_(self.more_genes, std=bitro.query_std or 0.5)
        if not is_fixed:
            self.gene_head = self._head(config.n_profile_features or config.gene_width)
        self.text_head = self._head(config.n_text)
        is_siglip = config.loss == "siglip"
        start = SIGLIP_START[0] if is_siglip else FIRST_LOG_SCALE
        self.log_scale = nn.Parameter(torch.tensor(start))
        self.bias = nn.Parameter(torch.tensor(SIGLIP_START[1])) if is_siglip else None

    def embed_regions(self, batch: BagBatch) -> Float[Tensor, "bag e"]:
        """e_I of each region."""
        return self.see(batch).embedding

    def see(self, batch: BagBatch, *, has_answer: bool = False, few_cells: int = 1) -> Seen:
        """Embed regions and, if asked, predict their expression, in one pass of the encoder.

        Args:
            batch: Regions.
            has_answer: Whether to predict expression.
            few_cells: In training a model that embeds lone cells does so with 1 to so many cells of
                each region, drawn by chance, and averages them.

        Raises:
            MismatchError: If the batch has features or tokens of another size.
        """
        context, cells = self.bitro.encode(batch)
        answer = self.bitro.answer_from(batch, context, cells) if has_answer else None
        around = None if context is None else average_blocks(context, batch)
        pooled = None if cells is None else self._pool(cells, batch.n_bags)
        embedding, branches = self.mix(around, pooled)
        if self.lone_head is not None and self.training:
            branches = (*branches, self._embed_few(batch, few_cells))
        return Seen(embedding, branches, answer)

    def answer(self, batch: BagBatch) -> Answer:
        """Expression, as BiTro alone says it."""
        return self.bitro.answer(batch)

    def embed_cells(self, batch: BagBatch) -> Float[Tensor, "cell e"]:
        """e_I of every cell of a batch, context cells included.

        With `has_lone_cells` it is e_N: the encoder sees the cell alone, without graph, place or
        surroundings, as it did in training with a few cells of each region. Else it is a cell as
        its region has it, told of all that lies around: on her2st and NuCLS such a cell was mostly
        called what its neighbourhood is.

        Raises:
            ConfigError: If the model does not look at cells, or draws some of them in training;
                to train on cells, give regions of one cell each.
        """
        if self.lone_head is not None:
            rows = torch.arange(batch.n_cells, device=batch.features.device)
            return self._unit_of_lone(self._encode_alone(batch, rows))
        _, cells = self.bitro.encode(batch)
        if cells is None:
            raise ConfigError("the model was trained with has_cells off; it embeds no cells")
        if len(cells.h) < batch.n_cells:
            raise ConfigError("cells are drawn in training; call eval() to embed all of them")
        return unit(self.cell_head(cells.h))

    def embed_profiles(
        self,
        values: Float[Tensor, "profile gene"],
        is_observed: Bool[Tensor, "profile gene"],
        rows_of_table: Int[Tensor, " gene"] | None = None,
    ) -> Float[Tensor, "profile e"]:
        """e_G of profiles over any of the table's genes.

        Args:
            values: Standardised expression.
            is_observed: Which genes were measured; in each profile, one at least.
            rows_of_table: Row of each column in the table of genes; None where the columns are
                the table.

        Raises:
            ConfigError: If the model takes profile features that were computed elsewhere.
            DataError: If a profile has no measured gene.
        """
        if not self.config.has_gene_tower:
            raise ConfigError(
                f"the model was trained on {self.config.n_profile_features} profile features "
                "computed elsewhere and has no gene tower; give those of the new profiles"
            )
        table = self.table() if self.gene_map is None else self.gene_map
        if rows_of_table is not None:
            table = table.index_select(0, rows_of_table)
        if len(table) != values.shape[1]:
            raise MismatchError(
                f"profiles have {values.shape[1]} columns, the table has {len(table)} genes for "
                "them; give the row of the table for each column"
            )
        if self.gene_tower is None:
            return unit(torch.where(is_observed, values, 0.0) @ table)
        return unit(self.gene_head(self.gene_tower(values, is_observed, table)))

    def embed_expression(self, expression: Float[Tensor, "bag gene"]) -> Float[Tensor, "bag e"]:
        """e_G of what was predicted for BiTro's panel, as z-scores: the second route to a text."""
        rows = torch.arange(expression.shape[1], device=expression.device)
        return self.embed_profiles(expression, torch.ones_like(expression, dtype=torch.bool), rows)

    def embed_profile_features(
        self, features: Float[Tensor, "profile feature"]
    ) -> Float[Tensor, "profile e"]:
        """e_G of profiles whose features were computed elsewhere.

        Raises:
            MismatchError: If the model wants features of another width, or none.
        """
        wanted = self.config.n_profile_features
        if features.shape[1] != wanted:
            raise MismatchError(
                f"profiles have {features.shape[1]} features, the model takes "
                + (f"{wanted}; use what computed those" if wanted else "expression itself")
            )
        return unit(self.gene_head(features))

    def embed_rows(
        self, z: Float[Tensor, "profile column"], is_observed: Bool[Tensor, "profile column"]
    ) -> Float[Tensor, "profile e"]:
        """e_G of what the model reads of profiles: the whole table of genes, or features."""
        if self.config.has_gene_tower:
            return self.embed_profiles(z, is_observed)
        return self.embed_profile_features(z)

    def embed_texts(self, features: Float[Tensor, "text feature"]) -> Float[Tensor, "text e"]:
        """e_T of texts.

        Args:
            features: Of the text tower.

        Raises:
            MismatchError: If they are of another width.
        """
        if features.shape[1] != self.config.n_text:
            raise MismatchError(
                f"texts have {features.shape[1]} features, the model takes {self.config.n_text}; "
                "use the text tower it was trained with"
            )
        return unit(self.text_head(features))

    def table(self) -> Float[Tensor, "gene d"]:
        """Q: a row for each gene, BiTro's panel first."""
        queries = self._queries()
        if self.more_genes is None:
            return queries
        return torch.cat([queries.to(self.more_genes), self.more_genes])

    def scale(self) -> Float[Tensor, ""]:
        """s, the factor of cosines: exp(tau), at most 100."""
        return bounded_scale(self.log_scale)

    def stream(self, n_bags: int) -> "RegionStream":
        """What embeds regions of any size, block by block, as `embed_regions` would have them.

        Raises:
            ConfigError: In training, where cells are drawn.
        """
        if self.training:
            raise ConfigError("regions are streamed for prediction only; call eval() first")
        return RegionStream(self, n_bags)

    def mix(
        self, context: Float[Tensor, "bag c"] | None, cells: Float[Tensor, "bag d"] | None
    ) -> tuple[Float[Tensor, "bag e"], tuple[Float[Tensor, "bag e"], ...]]:
        """e_I and its branches, from what was averaged and pooled over whole bags."""
        around = None if context is None else unit(self.context_head(context))
        own = None if cells is None else unit(self.cell_head(cells))
        if around is None or own is None:
            alone = own if around is None else around
            assert alone is not None
            return alone, (alone,)
        return unit(torch.lerp(around, own, self.config.cell_share)), (around, own)

    def _queries(self) -> Float[Tensor, "gene d"]:
        """BiTro's part of the table: none where it does not ask by gene."""
        own = self.bitro.config
        if own.has_cells and own.pooling == "gene_query":
            return self.bitro.queries
        return torch.zeros(0, own.width)

    def _pool(self, cells: Encoded, n_bags: int) -> Float[Tensor, "bag d"]:
        return self.pool(cells.h, cells.stands_for, cells.bag_of_cell, n_bags)[0]

    def _embed_few(self, batch: BagBatch, most: int) -> Float[Tensor, "bag e"]:
        """e_N of each bag by the mean of 1 to `most` of its cells, each of them alone."""
        inside = batch.is_inside.nonzero()[:, 0]
        bag = batch.bag_of_block[batch.block_of_cell][inside]
        few = draw_few_cells(bag, batch.n_bags, most)
        h = segment_mean(self._encode_alone(batch, inside[few]), bag[few], batch.n_bags)
        return self._unit_of_lone(h)

    def _encode_alone(self, batch: BagBatch, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Cells through the encoder as if there were nothing around them."""
        n = torch.arange(len(rows), device=rows.device)
        lone = BagBatch(
            features=batch.features[rows],
            offset_um=torch.zeros_like(batch.offset_um[rows]),
            is_inside=torch.ones_like(batch.is_inside[rows]),
            neighbours=n[:, None],
            phenotype=batch.phenotype[rows],
            block_of_cell=n,
            bag_of_block=n,
            field=batch.field.new_zeros(len(rows), 1, 1),
            n_bags=len(rows),
        )
        return self.bitro.cells(lone, None).h

    def _unit_of_lone(self, h: Float[Tensor, "row d"]) -> Float[Tensor, "row e"]:
        assert self.lone_head is not None
        return unit(self.lone_head(h))

    def _head(self, n_in: int) -> Projection:
        config = self.config
        return Projection(n_in, config.embedding_width, config.head_norm, config.head_dropout)


class RegionStream:
    """Embeddings of regions that come in portions of blocks, in any cut.

    Args:
        model: In `eval()`.
        n_bags: Number of regions.
    """

    def __init__(self, model: Trimodal, n_bags: int) -> None:
        self.model, self.n_bags = model, n_bags
        self.pool = RunningPool(model.pool, n_bags) if model.bitro.config.has_cells else None
        self.context: Tensor | None = None
        self.n_inside: Tensor | None = None

    @torch.no_grad()
    def add(self, batch: BagBatch) -> None:
        """Look at some more blocks; the bags of the batch are those of the stream."""
        context, cells = self.model.bitro.encode(batch)
        if self.pool is not None and cells is not None:
            self.pool.add(cells.h, cells.stands_for, cells.bag_of_cell)
        if context is not None:
            inside = batch.is_inside.double()[:, None]
            n_of_block = segment_sum(inside, batch.block_of_cell, batch.n_blocks)
            n_seen = segment_sum(n_of_block, batch.bag_of_block, self.n_bags)
            seen = segment_sum(context.double() * n_of_block, batch.bag_of_block, self.n_bags)
            self.n_inside = n_seen if self.n_inside is None else self.n_inside + n_seen
            self.context = seen if self.context is None else self.context + seen

    @torch.no_grad()
    def embeddings(self) -> Float[Tensor, "bag e"]:
        """e_I of each region; NaN for one of which nothing was seen.

        Raises:
            DataError: If nothing was seen at all.
        """
        around = None
        if self.model.bitro.config.has_context:
            if self.context is None or self.n_inside is None:
                raise DataError("nothing was seen yet; add blocks first")
            around = (self.context / self.n_inside).float()
        pooled = None if self.pool is None else self.pool.pooled()
        return self.model.mix(around, pooled)[0]
