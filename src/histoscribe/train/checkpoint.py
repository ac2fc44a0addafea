"""Checkpoints: a fitted model as a folder of safetensors and JSON, and the state of a fit."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as pack_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn

from histoscribe import __version__
from histoscribe.data.atomic import replacing
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionSize
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.models.predictor import MODELS, Predictor
from histoscribe.train.lora import LoraSettings, merge, write_config
from histoscribe.train.scaling import Scaling

FORMAT = 1
ADAPTERS = "adapters"
WEIGHTS, SCALING, RECORD = "model.safetensors", "scaling.safetensors", "checkpoint.json"


@dataclass(frozen=True, eq=False)
class Adapters:
    """Low-rank adapters of the nets of a checkpoint.

    Attributes:
        nets: For each net, its adapters by the names of peft's files.
        settings: Rank, weight, dropout.
        base_id: The checkpoint whose nets they were trained on.
    """

    nets: tuple[Mapping[str, Tensor], ...]
    settings: LoraSettings
    base_id: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fitted model and all that is needed to apply it.

    Attributes:
        model: Name of the model in MODELS.
        model_settings: Every field of the model's config.
        nets: Weights of each net of the ensemble; predictions are averaged. With adapters: the
            weights without them.
        scaling: What was fitted beside the nets.
        panel: Genes, in the order of the output.
        bags: How bags are cut.
        encoder_id: Encoder of the cells it was trained on.
        region_size: What kind of regions it was trained on, how large and how far apart.
        split: Slides it was trained on, and those kept from it.
        fit_settings: Every field of the FitConfig.
        report: For each net: held-out slides, best epoch, score, number of epochs.
        provenance: What made it, from what.
        adapters: What a fit with LoRA has learned beside what belongs to genes, or None.
    """

    model: str
    model_settings: Mapping[str, Any]
    nets: tuple[Mapping[str, Tensor], ...]
    scaling: Scaling
    panel: GenePanel
    bags: BagConfig
    encoder_id: str
    region_size: RegionSize
    split: Split
    fit_settings: Mapping[str, Any]
    report: tuple[Mapping[str, Any], ...]
    provenance: Provenance
    adapters: Adapters | None = None
    _packed: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def model_id(self) -> str:
        """Name of the model and the hash of everything that changes what it says."""
        digest = hashlib.sha256()
        for name, content in self._pack().items():
            digest.update(name.encode() + content)
        return f"{self.model}@{digest.hexdigest()[:12]}"

    def merged(self) -> "Checkpoint":
        """The same without adapters: their products are added to the weights."""
        if self.adapters is None:
            return self
        settings = self.adapters.settings
        nets = tuple(
            merge(net, adapters, settings)
            for net, adapters in zip(self.nets, self.adapters.nets, strict=True)
        )
        return replace(self, nets=nets, adapters=None, _packed={})

    def build(self) -> list[Predictor]:
        """The nets, in eval mode, adapters merged."""
        nets = []
        for weights in self.merged().nets:
            net = build_model(self.model, self.model_settings, seed=0)
            try:
                net.load_state_dict(dict(weights))
            except RuntimeError as error:
                raise MismatchError(
                    f"the weights are not those of this version's {self.model} ({error}); fit "
                    "again, or use the version that made the checkpoint"
                ) from error
            nets.append(net.eval())
        return nets

    def save(self, folder: Path) -> None:
        """Write the folder whole or not at all.

        The same fit gives the same bytes; there are no times in it.
        """
        with replacing(folder) as (beside,):
            for name, content in self._pack().items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                (beside / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            DataError: If it is missing, broken, changed, or of another format.
        """
        record = _read_record(folder)
        for name, wanted in record["sha256"].items():
            path = folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                raise DataError(f"corrupted checkpoint: {path} is missing or changed; fit again")
        nets: list[dict[str, Tensor]] = [{} for _ in record["report"]]
        try:
            for name, tensor in load_tensors(folder / WEIGHTS).items():
                net, _, rest = name.partition(".")
                nets[int(net.removeprefix("net"))][rest] = tensor
            arrays = load_arrays(folder / SCALING)
            return cls(
                model=record["model"],
                model_settings=record["model_settings"],
                nets=tuple(nets),
                scaling=Scaling.from_arrays(arrays, record["target_space"]),
                panel=GenePanel(
                    tuple(record["panel"]["ids"]),
                    tuple(record["panel"]["symbols"]),
                    record["panel"]["namespace"],
                ),
                bags=BagConfig(**{**record["bags"], "rings_um": tuple(record["bags"]["rings_um"])}),
                encoder_id=record["encoder_id"],
                region_size=RegionSize(**record["regions"]),
                split=Split(
                    tuple(record["split"]["train"]),
                    tuple(record["split"]["test"]),
                    record["split"]["unit"],
                    record["split"]["seed"],
                ),
                fit_settings=record["fit_settings"],
                report=tuple(record["report"]),
                adapters=_load_adapters(folder, record),
                provenance=Provenance.from_json(json.dumps(record["provenance"])),
            )
        except (KeyError, TypeError, ValueError, IndexError, SafetensorError) as error:
            raise DataError(f"corrupted checkpoint at {folder} ({error!r}); fit again") from error

    def _pack(self) -> dict[str, bytes]:
        if not self._packed:
            nets = {
                f"net{i}.{name}": tensor.detach().cpu().contiguous()
                for i, net in enumerate(self.nets)
                for name, tensor in net.items()
            }
            arrays = {n: np.ascontiguousarray(a) for n, a in self.scaling.to_arrays().items()}
            packed = {WEIGHTS: pack_tensors(nets), SCALING: pack_arrays(arrays)}
            packed |= self._pack_adapters()
            packed[RECORD] = self._record(packed).encode()
            self._packed.update(packed)
        return self._packed

    def _pack_adapters(self) -> dict[str, bytes]:
        """For each net a folder as peft writes it."""
        if self.adapters is None:
            return {}
        net = build_model(self.model, self.model_settings, seed=0)
        config = write_config(net, self.adapters.settings, self.adapters.base_id).encode()
        packed = {}
        for number, adapters in enumerate(self.adapters.nets):
            tensors = {
                name: tensor.detach().cpu().contiguous() for name, tensor in adapters.items()
            }
            packed[_adapter_file(number)] = pack_tensors(tensors)
            packed[f"{ADAPTERS}/net{number}/adapter_config.json"] = config
        return packed

    def _record(self, packed: Mapping[str, bytes]) -> str:
        record = {
            "format": FORMAT,
            "model": self.model,
            "model_settings": dict(self.model_settings),
            "target_space": self.scaling.target.space,
            "panel": asdict(self.panel),
            "bags": asdict(self.bags),
            "encoder_id": self.encoder_id,
            "regions": asdict(self.region_size),
            "split": asdict(self.split),
            "fit_settings": dict(self.fit_settings),
            "report": [dict(net) for net in self.report],
            "provenance": json.loads(self.provenance.to_json()),
            "adapters": None
            if self.adapters is None
            else {"settings": asdict(self.adapters.settings), "base_id": self.adapters.base_id},
            "versions": {"histoscribe": __version__, "torch": str(torch.__version__)},
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()},
        }
        return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"


def build_model(name: str, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Make a model with weights drawn from the seed; the global random state is left alone.

    Raises:
        ConfigError: If there is no such model, or it has no such setting.
    """
    model_class, config_class = find_model(name)
    known = get_type_hints(config_class)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"model {name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    listed = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**listed))


def find_model(name: str) -> tuple[type, type]:
    """The class of a model and the class of its config."""
    if name not in MODELS:
        raise ConfigError(f"model {name!r} is not known; give one of {', '.join(MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    model_class = getattr(import_module(module), attribute)
    return model_class, get_type_hints(model_class.__init__)["config"]


def _adapter_file(net: int) -> str:
    return f"{ADAPTERS}/net{net}/adapter_model.safetensors"


def _load_adapters(folder: Path, record: Mapping[str, Any]) -> Adapters | None:
    stored = record.get("adapters")
    if stored is None:
        return None
    nets = tuple(load_tensors(folder / _adapter_file(n)) for n in range(len(record["report"])))
    return Adapters(nets, LoraSettings(**stored["settings"]), stored["base_id"])


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if (folder / "align.json").is_file():
        raise DataError(
            f"the checkpoint at {folder} is a space of images, genes and words; if it was fitted "
            f"with --objective joint, {folder.parent / 'predictor'} predicts expression"
        )
    if not path.is_file():
        raise DataError(f"no checkpoint at {folder}; run 'histoscribe fit' first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_ours = record["format"] == FORMAT and isinstance(record["sha256"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"corrupted checkpoint: {path} cannot be read; fit again") from error
    if not is_ours:
        raise DataError(f"{path} is of format {record['format']!r}, wanted {FORMAT}; fit again")
    if "regions" not in record:
        raise DataError(
            f"{path} does not say what regions it was fitted on: an earlier version wrote it. Fit "
            "again, or predict with the version that made it"
        )
    return record
