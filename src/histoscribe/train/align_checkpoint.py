"""The checkpoint of an alignment: a space of images, genes and words as safetensors and JSON."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from safetensors import SafetensorError
from safetensors.numpy import save as pack_arrays
from torch import Tensor

from histoscribe import __version__
from histoscribe.data.atomic import replacing
from histoscribe.data.bags import BagBatch, BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.grid import sample_regions
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionSize
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.models.trimodal import Trimodal
from histoscribe.train.align_embed import (
    embed_bags,
    embed_cells,
    embed_expression_of_bags,
    embed_expression_of_cells,
    predict_bags,
)
from histoscribe.train.align_features import profile_rows
from histoscribe.train.align_store import (
    FORMAT,
    RECORD,
    REFERENCE,
    SCALING,
    TEXT,
    WEIGHTS,
    build_net,
    config_of,
    pack_adapters,
    pack_nets,
    read_parts,
    read_record,
)
from histoscribe.train.align_text import TextPart
from histoscribe.train.assemble import SlideData, assemble, cut_bags
from histoscribe.train.checkpoint import Adapters, Checkpoint
from histoscribe.train.feature_standardiser import FeatureStandardiser
from histoscribe.train.gene_standardiser import GeneStandardiser
from histoscribe.train.lora import merge
from histoscribe.train.scaling import Scaling

PROFILES_AT_ONCE = 1024
SHARES = ("log1p_cp10k", "log1p_tpm")
"""Target spaces in which depth does not count; counts and RSEM have it."""

Rows = Float32[np.ndarray, "row e"]
Embed = Callable[[Trimodal, BagBatch], Tensor]


@dataclass(frozen=True, eq=False)
class AlignCheckpoint:
    """A fitted space and all that is needed to use it.

    Each net of the ensemble has a space of its own. What is embedded here is the nets' embeddings
    side by side, of length 1 together: a cosine is the mean of the nets' cosines.

    Attributes:
        model_settings: Every field of the TrimodalConfig.
        nets: Weights of each net; with adapters those without them.
        scaling: What was fitted beside the nets, as in `Checkpoint`.
        panel: Genes whose expression is predicted, the first of the table.
        table: All genes that profiles are read by.
        standardiser: Of the table's genes, or of the vectors that stand in for them.
        text: The text tower.
        bags: How bags are cut.
        encoder_id: Encoder of the cells it was trained on.
        region_size: What kind of regions it was trained on.
        split: Slides it was trained on, and those kept from it.
        settings: Every field of the AlignConfig ("align") and the FitConfig ("fit").
        report: For each net: held-out slides, best step, score, number of steps, and the scores and
            losses on the way.
        provenance: What made it, from what.
        references: Embeddings of units of the training side by "level/route", to calibrate on.
        adapters: What a fit with LoRA has learned beside the new parts, or None.
        home: The folder it was read from.
    """

    model_settings: Mapping[str, Any]
    nets: tuple[Mapping[str, Tensor], ...]
    scaling: Scaling
    panel: GenePanel
    table: GenePanel
    standardiser: GeneStandardiser | FeatureStandardiser
    text: TextPart
    bags: BagConfig
    encoder_id: str
    region_size: RegionSize
    split: Split
    settings: Mapping[str, Any]
    report: tuple[Mapping[str, Any], ...]
    provenance: Provenance
    references: Mapping[str, Rows] = field(default_factory=dict)
    adapters: Adapters | None = None
    home: Path | None = None
    _packed: dict[str, bytes] = field(default_factory=dict, repr=False)
    _built: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def model_id(self) -> str:
        """Name of the model and the hash of everything that changes what it says."""
        digest = hashlib.sha256()
        for name, content in self._pack().items():
            digest.update(name.encode() + content)
        return f"trimodal@{digest.hexdigest()[:12]}"

    @property
    def scale(self) -> float:
        """Mean over the nets of s, what cosines were multiplied by; 1/.07 for the anchor loss."""
        return float(np.mean([float(net.scale().detach()) for net in self.build()]))

    @property
    def has_expression(self) -> bool:
        """Whether it learned to predict expression."""
        config = self.settings["align"]
        return config["objective"] == "joint" and config["expression_weight"] > 0

    @property
    def profile_embedding(self) -> str | None:
        """What the vectors are called that profiles are read by; None for genes."""
        own = self.standardiser
        return own.by if isinstance(own, FeatureStandardiser) else None

    @property
    def has_expression_route(self) -> bool:
        """Whether what it predicts can be embedded as what was measured.

        Not by vectors of another model; nor where what is predicted is no share of all expression.
        """
        is_share = self.scaling.target.space in SHARES
        return self.has_expression and is_share and self.profile_embedding is None

    def build(self) -> list[Trimodal]:
        """The nets, in eval mode, adapters merged; kept for the next call."""
        if "nets" not in self._built:
            config = config_of(self.model_settings)
            self._built["nets"] = [build_net(config, net) for net in self._merged()]
        return self._built["nets"]

    def embed_regions(self, slides: Sequence[SlideData]) -> Rows:
        """One row a region, in the order of the slides and of their regions; NaN without nuclei."""
        return self._of_regions(slides, embed_bags)

    def embed_cells(self, slides: Sequence[SlideData]) -> Rows:
        """One row a cell of the slides, whatever regions they have.

        Cells are looked at in squares over all tissue, as those of a whole sample are. A cell
        without a described surrounding gets NaN.

        Raises:
            ConfigError: If the model does not look at cells.
        """
        return self._of_cells(slides, embed_cells)

    def embed_by_expression(self, slides: Sequence[SlideData], level: str) -> Rows | None:
        """The same of "region" or "cell" by the expression that is predicted of each.

        None where none was learned, or profiles are read by what another model makes of them.
        """
        if not self.has_expression_route:
            return None
        if level == "cell":
            return self._of_cells(slides, embed_expression_of_cells)
        return self._of_regions(slides, embed_expression_of_bags)

    def embed_profiles(self, profiles: Profiles) -> Rows:
        """One row a profile, by its genes or its vector; NaN for one without.

        Raises:
            MismatchError: See `profile_rows`.
        """
        source, kept = profile_rows(profiles, self.standardiser, self.table)
        out = np.full((len(profiles), self._width()), np.nan, np.float32)
        for rows in np.array_split(kept, -(-len(kept) // PROFILES_AT_ONCE) or 1):
            if not len(rows):
                continue
            z, seen = (torch.from_numpy(part) for part in source.read(rows))
            with torch.inference_mode():
                out[rows] = self.join([net.embed_rows(z, seen) for net in self.build()])
        return out

    def embed_texts(self, texts: Sequence[str]) -> Rows:
        """One row a text.

        Raises:
            MissingExtra, MismatchError: The text tower is not to be had, or is another.
        """
        if "texts" not in self._built:
            tower = self.text.find(self.home)
            self._built["texts"] = [self.text.learned(tower, n) for n in range(len(self.nets))]
        with torch.inference_mode():
            towers = self._built["texts"]
            first = towers[0].encode(texts)
            features = [first if t is towers[0] else t.encode(texts) for t in towers]
            pairs = zip(self.build(), features, strict=True)
            return self.join([net.embed_texts(some) for net, some in pairs])

    def predict_expression(self, slides: Sequence[SlideData]) -> Float32[np.ndarray, "region gene"]:
        """Expression of each region over `panel`, in the space it was learned in; NaN as above.

        Raises:
            ConfigError: If none was learned.
        """
        return self.scaling.target.restore(self._z_of_regions(slides))

    def to_predictor(self) -> Checkpoint:
        """Its regression as a checkpoint of BiTro, for everything that takes one.

        Raises:
            ConfigError: If none was learned.
        """
        self._check_expression()
        prefix = "bitro."
        nets = tuple(
            {n.removeprefix(prefix): t for n, t in net.items() if n.startswith(prefix)}
            for net in self._merged()
        )
        return Checkpoint(
            model="bitro",
            model_settings=self.model_settings["bitro"],
            nets=nets,
            scaling=self.scaling,
            panel=self.panel,
            bags=self.bags,
            encoder_id=self.encoder_id,
            region_size=self.region_size,
            split=self.split,
            fit_settings=self.settings["fit"],
            report=self.report,
            provenance=self.provenance,
        )

    def reference(self, level: str, route: str) -> Rows | None:
        """Embeddings of units of the training side, to calibrate on; None if none are kept."""
        return self.references.get(f"{level}/{route}")

    def phenotypes_of(self, slides: Sequence[SlideData]) -> Int64[np.ndarray, " cell"]:
        """The phenotype (cluster of features) of each cell, counted from 0."""
        self._check(slides)
        scaling = self.scaling
        return np.concatenate(
            [scaling.phenotypes.assign(scaling.cells.apply(s.cells.features)) for s in slides]
        )

    def save(self, folder: Path) -> None:
        """Write the checkpoint; the folder appears whole, or the old one stays."""
        with replacing(folder) as (beside,):
            for name, content in self._pack().items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                (beside / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> "AlignCheckpoint":
        """Read what `save` wrote.

        Raises:
            DataError: If it is missing, broken, changed, or of another format.
        """
        record = read_record(folder)
        try:
            return cls(**read_parts(folder, record), home=folder)
        except (KeyError, TypeError, ValueError, IndexError, OSError, SafetensorError) as error:
            raise DataError(f"corrupted checkpoint at {folder} ({error!r}); fit again") from error

    def _merged(self) -> list[Mapping[str, Tensor]]:
        if self.adapters is None:
            return list(self.nets)
        settings = self.adapters.settings
        return [
            merge(net, adapters, settings)
            for net, adapters in zip(self.nets, self.adapters.nets, strict=True)
        ]

    def _width(self) -> int:
        return len(self.nets) * int(self.model_settings["embedding_width"])

    def join(self, of_nets: Sequence[Float[Tensor, "row own"]]) -> Rows:
        """Embeddings of the nets side by side, of length 1 together."""
        return (torch.cat(list(of_nets), dim=1) / len(of_nets) ** 0.5).float().numpy()

    def _of_regions(self, slides: Sequence[SlideData], embed: Embed) -> Rows:
        batch, bag_of_row = self._assemble(slides)
        rows = self.join([embed(net, batch) for net in self.build()])
        return np.where(bag_of_row[:, None] >= 0, rows[bag_of_row], np.float32(np.nan))

    def _z_of_regions(self, slides: Sequence[SlideData]) -> Float32[np.ndarray, "region gene"]:
        self._check_expression()
        batch, bag_of_row = self._assemble(slides)
        z = torch.stack([predict_bags(net, batch) for net in self.build()]).mean(0).numpy()
        return np.where(bag_of_row[:, None] >= 0, z[bag_of_row], np.float32(np.nan))

    def _assemble(self, slides: Sequence[SlideData]) -> tuple[BagBatch, Int64[np.ndarray, " row"]]:
        """All bags, and the bag of each region, -1 where there is none."""
        self._check(slides)
        cut = [cut_bags(slide, self.bags) for slide in slides]
        bags = assemble(cut, self.scaling, self.panel, has_target=False)
        bag_of = dict(zip((s.slide_id for s in bags.slides), bags.bag_of_row, strict=True))
        return bags.batch, np.concatenate([bag_of[slide.slide_id] for slide in slides])

    def _of_cells(self, slides: Sequence[SlideData], embed: Embed) -> Rows:
        self._check(slides)
        if not self.model_settings["bitro"]["has_cells"]:
            raise ConfigError(
                "the model was trained with model.has_cells off; annotate regions, or fit again"
            )
        parts = []
        for slide in slides:
            whole = sample_regions(slide.cells, slide.patient_id)
            cut = cut_bags(SlideData(slide.cells, slide.tiles, whole), self.bags)
            batch = assemble([cut], self.scaling, self.panel, has_target=False).batch
            rows = self.join([embed(net, batch) for net in self.build()])
            of_cell = np.full((len(slide.cells), rows.shape[1]), np.nan, np.float32)
            inside = cut.members.is_inside
            of_cell[cut.members.cell[inside]] = rows[inside]
            parts.append(of_cell)
        return np.concatenate(parts)

    def _check(self, slides: Sequence[SlideData]) -> None:
        if not slides:
            raise DataError("no slides to embed; name at least one")
        for slide in slides:
            if slide.cells.encoder_id != self.encoder_id:
                raise MismatchError(
                    f"checkpoint expects features of {self.encoder_id}, the cells of "
                    f"{slide.slide_id} have {slide.cells.encoder_id}. Re-run 'histoscribe prepare' "
                    "with encoder, prepare.view and prepare.stain as the first of these says."
                )

    def _check_expression(self) -> None:
        if not self.has_expression:
            raise ConfigError("the model predicts no expression; fit with --objective joint")

    def _pack(self) -> dict[str, bytes]:
        if not self._packed:
            arrays = {**self.scaling.to_arrays(), **self.standardiser.to_arrays()}
            packed = {
                WEIGHTS: pack_nets(self.nets),
                SCALING: pack_arrays({n: np.ascontiguousarray(a) for n, a in arrays.items()}),
                REFERENCE: pack_arrays(
                    {n: np.ascontiguousarray(a) for n, a in self.references.items()}
                ),
                TEXT: pack_nets(self.text.nets),
                **pack_adapters(Trimodal(config_of(self.model_settings)), self.adapters),
            }
            packed[RECORD] = self._record(packed).encode()
            self._packed.update(packed)
        return self._packed

    def _record(self, packed: Mapping[str, bytes]) -> str:
        text = {n: v for n, v in vars(self.text).items() if n not in ("nets", "lora")}
        adapters = self.adapters
        record = {
            "format": FORMAT,
            "model_settings": dict(self.model_settings),
            "target_space": self.scaling.target.space,
            "panel": asdict(self.panel),
            "table": asdict(self.table),
            "platforms": list(self.standardiser.platforms),
            "profile_embedding": self.profile_embedding,
            "text": {**text, "lora": asdict(self.text.lora)},
            "bags": asdict(self.bags),
            "encoder_id": self.encoder_id,
            "regions": asdict(self.region_size),
            "split": asdict(self.split),
            "settings": dict(self.settings),
            "report": [dict(net) for net in self.report],
            "provenance": json.loads(self.provenance.to_json()),
            "adapters": None
            if adapters is None
            else {"settings": asdict(adapters.settings), "base_id": adapters.base_id},
            "versions": {"histoscribe": __version__, "torch": str(torch.__version__)},
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()},
        }
        return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
