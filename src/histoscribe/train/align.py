"""Align: regions, expression and words in one space, with the regression of expression beside it.

Pairs of images and expression come from the regions of the training slides, pairs of expression
and words from labelled profiles and marker lists, pairs of images and words, where there are some,
from the regions' text keys. Words reach images across expression.

Who sees what: as in `train/fit.py`. Test slides, and profiles of their patients as far as donors
are known, are dropped before anything is looked at; what is fitted beside the nets comes from all
training slides and the training donors' profiles. A net that stops early does so on an inner fold
of the slides and on donors that it does not learn from, by how often a thing is nearer to its
partner than to another. No image is ever held against a text to choose anything.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.splits import Split
from histoscribe.data.texts import Texts
from histoscribe.errors import DataError, MismatchError
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.text_tower import MOST_TOKENS, TextTower
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.nn.projection import Projection
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import (
    AlignData,
    HeldBags,
    HeldOut,
    TextRows,
    fit_gene_map,
)
from histoscribe.train.align_embed import (
    embed_bags,
    embed_cells,
    embed_expression_of_bags,
    embed_expression_of_cells,
    take_some_blocks,
)
from histoscribe.train.align_features import make_profile_side
from histoscribe.train.align_genes import GeneSide, Words, leave_out_donors, name_words, pair_genes
from histoscribe.train.align_loop import AlignedNet, AlignTask, align_net
from histoscribe.train.align_step import Aligner
from histoscribe.train.align_text import TextPart, keep_text
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Adapters
from histoscribe.train.draw import mix
from histoscribe.train.feature_cache import cache_path, cached_features, identity_of
from histoscribe.train.fit import make_ready
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.lora import LoraSettings, insert_adapters, take_out
from histoscribe.train.net_task import FitLog
from histoscribe.train.nets import Ready, inner_folds
from histoscribe.train.pairs import Pairs, pair_rows, pair_texts
from histoscribe.train.text_state import set_text_state
from histoscribe.train.transfer import Start, carry_weights

MAP_ROWS = 20_000
"""Regions that a fixed gene space is fitted on, evenly spaced."""
REFERENCE_BLOCKS = 256
"""Blocks whose cells are kept to calibrate on, evenly spaced."""


@dataclass(frozen=True, eq=False)
class TextSource:
    """A text tower, and what it was asked for by.

    Attributes:
        tower: Frozen.
        source: As `find_text_tower` took it.
        most_tokens: Likewise.
    """

    tower: TextTower
    source: str
    most_tokens: int = MOST_TOKENS


def fit_align(  # noqa: PLR0913 - the data; then, by name, one setting of each part
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    words: Words,
    text: TextSource,
    *,
    config: AlignConfig | None = None,
    fit: FitConfig | None = None,
    bags: BagConfig | None = None,
    model_settings: Mapping[str, Any] | None = None,
    start: Start | None = None,
    log: FitLog | None = None,
) -> AlignCheckpoint:
    """Align on the training slides of the split; same arguments, same checkpoint, bit for bit.

    Args:
        slides: Slides; those outside `split.train` are not looked at. Their regions' text keys,
            where they have some, are image-text pairs.
        split: Which slides to train on.
        panel: Genes whose expression is predicted, chosen from the training slides; the first of
            the table of genes.
        words: Labelled profiles, marker lists and texts; genes by Ensembl id or symbol.
        text: The text tower, frozen; it is not changed.
        config: How to align.
        fit: How what stands beside the nets is fitted, and the target of the regression; its
            learning rate, epochs and cluster weight have no part.
        bags: How bags are cut; from a start, as they were cut there.
        model_settings: Settings of BiTro that are not its defaults.
        start: A fitted BiTro to go on from, of spots or whole samples, by its transfer's mode.
        log: Where to write and whom to tell.

    Returns:
        The checkpoint, not yet saved.

    Raises:
        DataError: A training slide is missing or has no expression, or no profile has a text.
        MismatchError: Slides differ in encoder, profiles share no gene with the slides (or no
            vectors), a net diverged, or the start has seen a slide that is to be tested.
        ConfigError: A setting is not known.
        MissingExtra: This machine has no such device.
    """
    config, log = config or AlignConfig(), log or FitLog()
    fit = replace(fit or FitConfig(), device=config.device)
    ready = make_ready(
        slides, split, panel, config=fit, bags=bags, model_settings=model_settings, start=start
    )
    words = leave_out_donors(words, {s.patient_id for s in slides if s.slide_id in split.test})
    if config.profile_embedding is None:
        words = name_words(words, [slide.regions for slide in ready.assembled.slides])
    genes = make_profile_side(ready.assembled, ready.panel, words, config)
    settings = _settings(ready, fit, genes, text.tower, config)
    provenance = _provenance(ready, fit, (words, text.tower, config))
    lora = LoraSettings() if start is None else start.config.lora
    texts = _text_rows(genes.texts, text.tower, config, log)
    _, folds = np.unique(inner_folds(ready.assembled, fit.n_folds), return_inverse=True)
    n_folds = int(folds.max()) + 1
    results: list[AlignedNet] = []
    reports: list[dict[str, Any]] = []
    for number in range(config.n_nets):
        task = AlignTask(number, config.n_nets, mix(config.seed, number, 13), provenance.key)
        is_left_aside = folds == number % n_folds if config.has_held_out else folds < 0
        data = _data(ready, genes, texts, is_left_aside, fit)
        net = _new_net(settings, ready, genes, task, start)
        tower = _new_tower(text.tower, config, lora, task.seed)
        aligner = Aligner(net, tower).to(config.device)
        results.append(align_net(aligner, data, task, config, log))
        reports.append(_report(results[-1], ready, is_left_aside))
    checkpoint = _gather(ready, genes, results, (settings, config, fit), text, lora)
    checkpoint = replace(checkpoint, report=tuple(reports), provenance=provenance)
    return replace(checkpoint, references=_references(checkpoint, ready, config), _packed={})


def _settings(
    ready: Ready, fit: FitConfig, genes: GeneSide, tower: TextTower, config: AlignConfig
) -> dict[str, Any]:
    """Every field of the model's config."""
    bitro = ready.provenance(fit, ready.model_settings).settings["model"]
    return asdict(
        TrimodalConfig(
            bitro=BitroConfig(**bitro),
            n_text=tower.width,
            n_more_genes=len(genes.table) - len(ready.panel),
            n_profile_features=genes.n_features,
            gene_space=config.gene_space,
            embedding_width=config.embedding_width,
            gene_width=config.gene_width,
            gene_heads=config.gene_heads,
            gene_dropout=config.gene_dropout,
            head_dropout=config.head_dropout,
            has_lone_cells=config.few_cells > 0,
            loss="siglip" if config.loss == "siglip" else "softmax",
        )
    )


def _text_rows(texts: Texts, tower: TextTower, config: AlignConfig, log: FitLog) -> TextRows:
    """The texts; of a frozen tower their features, made once, in half precision in any case."""
    number_of = {key: number for number, key in enumerate(texts.keys)}
    key = np.array([number_of[one] for one in texts.text_key], dtype=np.int64)
    if config.text_state != "frozen":
        return TextRows(key, None, texts.text)

    def make(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return tower.encode([texts.text[row] for row in rows]).cpu().numpy()

    if log.folder is None:
        features = make(np.arange(len(texts))).astype(np.float16)
    else:
        path = cache_path(log.folder / "features", "texts", identity_of(tower.identity, texts.text))
        features = cached_features(path, (len(texts), tower.width), make)
    return TextRows(key, features, texts.text)


def _data(
    ready: Ready, genes: GeneSide, texts: TextRows, is_held_out: np.ndarray, fit: FitConfig
) -> AlignData:
    """What one net is aligned on."""
    is_there = genes.has_values[: genes.n_regions]
    rows = np.flatnonzero(is_there & ~is_held_out).astype(np.int64)
    held = np.flatnonzero(is_there & is_held_out).astype(np.int64)
    pairs: list[Pairs] = [pair_rows("image-gene", rows, rows)]
    if len(genes.train):
        pairs.append(pair_genes(genes))
    said = [genes.alias.get(key, key) for key in _said_of_bags(ready)]
    shown = np.array([row for row in np.flatnonzero(~is_held_out) if said[row]], dtype=np.int64)
    if len(shown):
        pairs.append(pair_texts("image-text", said, genes.texts, shown))
    if len(pairs) == 1:
        raise DataError(
            "no profile, marker list or region has a text; give labelled cells or marker lists"
        )
    number_of = {key: number for number, key in enumerate(genes.texts.keys)}
    key = np.array([number_of[genes.text_key[row]] for row in genes.held_out], dtype=np.int64)
    return AlignData(
        HeldBags(ready.assembled.batch, fit.blocks_in_training),
        genes.rows,
        texts,
        tuple(pairs),
        HeldOut(held, held, genes.held_out, key),
    )


def _said_of_bags(ready: Ready) -> list[str]:
    """Text key of each bag's region, "" for none."""
    bags = ready.assembled
    keys = [slide.regions.text_key for slide in bags.slides]
    pairs = zip(bags.slide_of_bag.tolist(), bags.row_of_bag.tolist(), strict=True)
    return ["" if (own := keys[slide]) is None else own[row] for slide, row in pairs]


def _new_net(
    settings: Mapping[str, Any], ready: Ready, genes: GeneSide, task: AlignTask, start: Start | None
) -> Trimodal:
    """A net to begin with: drawn from the seed, with what a start knows carried into it."""
    config = TrimodalConfig(**{**settings, "bitro": BitroConfig(**settings["bitro"])})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed % 2**63)
        net = Trimodal(config)
        if start is not None:
            _carry(net, carry_weights(start.checkpoint, ready.panel), task.net, start)
    if net.gene_map is not None:
        for part in net.modules():  # towards a space that is linear, heads begin linear
            if isinstance(part, Projection):
                torch.nn.init.zeros_(part.mix.weight)
        rows = np.flatnonzero(genes.has_values[: genes.n_regions])
        some = rows[np.unique(np.linspace(0, len(rows) - 1, MAP_ROWS).round().astype(np.int64))]
        z, seen = genes.rows.read(some)
        net.gene_map.copy_(torch.from_numpy(fit_gene_map(z, seen, config.embedding_width)))
    return net


def _carry(
    net: Trimodal, carried: Sequence[Mapping[str, Tensor]], number: int, start: Start
) -> None:
    """Put a start's weights in; let learn what its mode says, and all that is new."""
    try:
        net.bitro.load_state_dict(dict(carried[number % len(carried)]))
    except RuntimeError as error:
        raise MismatchError(
            f"the weights are not those of this version's model ({error}); fit the checkpoint again"
        ) from error
    if start.config.mode == "full":
        return
    if start.config.mode == "lora":
        insert_adapters(net, start.config.lora)
    for name, parameter in net.named_parameters():
        is_new = not name.startswith("bitro.") or name in Trimodal.GENE_TENSORS
        parameter.requires_grad_(is_new or ".lora_" in name)


def _new_tower(
    tower: TextTower, config: AlignConfig, lora: LoraSettings, seed: int
) -> TextTower | None:
    """A copy that learns; None for a frozen tower."""
    if config.text_state == "frozen":
        return None
    own = copy.deepcopy(tower)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, 5))
        set_text_state(own, config.text_state, lora)
    return own


def _report(net: AlignedNet, ready: Ready, is_held_out: np.ndarray) -> dict[str, Any]:
    slides = ready.assembled.slides
    held = {slides[number].slide_id for number in ready.assembled.slide_of_bag[is_held_out]}
    return {
        "held_out": sorted(held),
        "best_step": net.best_step,
        "best_score": net.best_score if held else None,
        "n_steps": net.step,
        "history": net.history,
    }


def _gather(
    ready: Ready,
    genes: GeneSide,
    results: Sequence[AlignedNet],
    settings: tuple[dict[str, Any], AlignConfig, FitConfig],
    text: TextSource,
    lora: LoraSettings,
) -> AlignCheckpoint:
    """The checkpoint of the nets, adapters taken apart."""
    model, config, fit = settings
    spaces = [_part(one.weights, "space.") for one in results]
    start, adapters = ready.start, None
    if start is not None and start.config.mode == "lora":
        apart = [take_out(space) for space in spaces]
        spaces = [plain for plain, _ in apart]
        adapters = Adapters(tuple(own for _, own in apart), lora, start.checkpoint.model_id)
    towers = tuple(keep_text(_part(one.weights, "text."), config.text_state) for one in results)
    return AlignCheckpoint(
        model_settings=model,
        nets=tuple(spaces),
        scaling=ready.assembled.scaling,
        panel=ready.panel,
        table=genes.table,
        standardiser=genes.standardiser,
        text=TextPart(
            text.source,
            text.tower.identity,
            text.tower.pooling,
            text.most_tokens,
            config.text_state,
            lora,
            towers,
        ),
        bags=ready.bags,
        encoder_id=ready.encoder_id,
        region_size=ready.region_size,
        split=ready.split,
        settings={"align": asdict(config), "fit": asdict(fit.resolve(ready.region_size.kind))},
        report=(),
        provenance=Provenance("histoscribe"),
        adapters=adapters,
    )


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def _references(
    checkpoint: AlignCheckpoint, ready: Ready, config: AlignConfig
) -> dict[str, np.ndarray]:
    """Embeddings of some training regions and cells, by each route, to calibrate on."""
    batch, nets = ready.assembled.batch, checkpoint.build()

    def spaced(n: int, most: int) -> Tensor:
        return torch.linspace(0, max(0, n - 1), min(n, most)).round().long().unique()

    bags = batch.take(spaced(batch.n_bags, config.n_reference))
    blocks = take_some_blocks(batch, spaced(batch.n_blocks, REFERENCE_BLOCKS))
    inside = blocks.is_inside.nonzero()[:, 0]
    cells = inside[spaced(len(inside), config.n_reference)]
    kept = {"region/image": [embed_bags(net, bags) for net in nets]}
    if nets[0].bitro.config.has_cells:
        kept["cell/image"] = [embed_cells(net, blocks)[cells] for net in nets]
    if checkpoint.has_expression_route:
        kept["region/expression"] = [embed_expression_of_bags(net, bags) for net in nets]
        if nets[0].bitro.config.has_cells:
            kept["cell/expression"] = [embed_expression_of_cells(n, blocks)[cells] for n in nets]
    return {name: checkpoint.join(of_nets) for name, of_nets in kept.items()}


def _provenance(
    ready: Ready, fit: FitConfig, said: tuple[Words, TextTower, AlignConfig]
) -> Provenance:
    words, tower, config = said
    below = ready.provenance(fit, ready.model_settings)
    inputs = dict(below.inputs)
    for number, profiles in enumerate(words.profiles):
        inputs[f"profiles{number}"] = profiles.provenance.key
    if words.region_features is not None:
        inputs["region_features"] = words.region_features.provenance.key
    markers = repr([(one.term, one.genes, one.weights) for one in words.markers])
    texts = repr(([(one.text_key, one.text) for one in words.texts], _said_of_bags(ready)))
    inputs["markers"] = hashlib.sha256(markers.encode()).hexdigest()
    inputs["texts"] = hashlib.sha256(texts.encode()).hexdigest()
    inputs["text_tower"] = tower.identity
    settings = {**below.settings, "align": asdict(config)}
    return Provenance(f"histoscribe {__version__} fit_align", settings, inputs)
