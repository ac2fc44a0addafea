"""Predictions of a study: of its regions as measured, of discs on a grid, or of whole samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from histoscribe.app.console import Voice
from histoscribe.app.prepare import load_slide
from histoscribe.app.study import Sample, Study
from histoscribe.data.cells import Cells
from histoscribe.data.grid import grid_regions, sample_regions
from histoscribe.data.prediction import Prediction
from histoscribe.data.regions import Regions
from histoscribe.data.store import write_prediction
from histoscribe.errors import ConfigError
from histoscribe.predict import describe_departure, predict_cells, predict_regions
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint

Level = Literal["region", "cell"]
Made = Literal["measured", "grid", "sample"]


@dataclass(frozen=True)
class PredictConfig:
    """What is asked of a checkpoint.

    Attributes:
        level: Regions, or each cell inside one.
        regions: As measured; discs on a grid; or the whole sample, all slides of a patient. None
            takes them as measured, and a grid where nothing was.
        pitch_um: Of the grid; None takes that of the checkpoint.
        genes: Symbols or ids of those that are wanted; none takes all.
        memory_gb: What a table of cells x genes may take.
    """

    level: str = "region"
    regions: str | None = None
    pitch_um: float | None = None
    genes: tuple[str, ...] = ()
    memory_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ConfigError(f"--level {self.level}: region or cell is wanted.")
        if self.regions not in (None, *get_args(Made)):
            raise ConfigError(f"--regions {self.regions}: measured, grid or sample is wanted.")
        if self.pitch_um is not None and self.regions not in (None, "grid"):
            raise ConfigError(f"--pitch is of a grid; --regions {self.regions} has none.")
        if not self.memory_gb > 0:
            raise ConfigError(f"--memory {self.memory_gb:g}: a number above 0 is wanted.")

    def made_of(self, sample: Sample) -> Made:
        """How the regions of a sample come about."""
        if self.regions is None:
            return "measured" if sample.expression else "grid"
        return next(made for made in get_args(Made) if made == self.regions)


def predict_study(
    study: Study,
    checkpoint_folder: Path,
    names: Sequence[str],
    config: PredictConfig,
    out: Path,
    voice: Voice,
) -> list[Path]:
    """Predict samples with a checkpoint; one store a sample.

    Slides of one whole sample are predicted together, and each store says the same of it.

    Args:
        study: A prepared study.
        checkpoint_folder: What `fit` wrote, of this study or another.
        names: Samples; all if empty.
        config: What is asked.
        out: Folder of the predictions.
        voice: Told which samples the checkpoint was trained on, and what it was not trained for.

    Raises:
        ConfigError: The checkpoint lacks a gene or a pitch, or a table would be too large.
        DataError: A sample is not prepared, or has nothing measured where this was asked for.
        MismatchError: The samples were prepared with another encoder than the checkpoint's.
    """
    checkpoint = Checkpoint.load(checkpoint_folder)
    if config.genes:
        checkpoint.panel.find(config.genes)
    wanted = {study.find(name).sample for name in names}
    samples = [one for one in study.samples if not wanted or one.sample in wanted]
    known = {key for name, key in checkpoint.provenance.inputs.items() if name.endswith("/cells")}
    seen, told, paths = [], set(), []
    for group in _groups(samples, config):
        _tell_left_out(study, group, config, voice)
        slides = [load_slide(study, one, _maker(checkpoint, one, config)) for one in group]
        departure = describe_departure(checkpoint, slides)
        if departure and departure not in told:
            told.add(departure)
            voice.warn(departure)
        seen += [slide.slide_id for slide in slides if slide.cells.provenance.key in known]
        prediction = _predict(checkpoint, slides, config)
        for sample in group:
            paths.append(out / f"{sample.sample}{_ending(sample, config)}")
            write_prediction(prediction.of_slide(sample.sample), paths[-1])
    if seen:
        voice.warn(
            f"the model was trained on tissue of {', '.join(seen)}: what it says of it looks "
            "better than it is, and is no test"
        )
    study.log(
        "predict",
        model_id=checkpoint.model_id,
        level=config.level,
        regions=config.regions,
        n_samples=len(samples),
    )
    return paths


def grid_size(checkpoint: Checkpoint, pitch_um: float | None) -> tuple[float, float]:
    """Radius and pitch of a grid, µm: those of the regions that the checkpoint was trained on.

    A model of whole samples saw them in squares: its discs are as wide, and touch each other.

    Raises:
        ConfigError: They lay on no lattice and no pitch was given.
    """
    size = checkpoint.region_size
    if size.radius_um is None:
        side_um = checkpoint.bags.block_side_um
        return side_um / 2, side_um if pitch_um is None else pitch_um
    pitch_um = size.pitch_um if pitch_um is None else pitch_um
    if pitch_um is None:
        raise ConfigError(
            f"the checkpoint was trained on {size}, which lay on no lattice; say with --pitch how "
            "far apart discs are to lie"
        )
    return size.radius_um, pitch_um


def _groups(samples: Sequence[Sample], config: PredictConfig) -> list[list[Sample]]:
    """Samples that are predicted together: those of one whole sample."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(_whole_of(sample, config) or (sample.sample,), []).append(sample)
    return list(groups.values())


def _whole_of(sample: Sample, config: PredictConfig) -> tuple[str, ...]:
    """What tells the whole sample that a slide is a part of; () for a grid, or spots."""
    made = config.made_of(sample)
    if made == "sample":
        return made, sample.patient
    if made == "measured" and sample.platform == "bulk":
        return made, sample.patient, str(sample.profile)
    return ()


def _tell_left_out(
    study: Study, group: Sequence[Sample], config: PredictConfig, voice: Voice
) -> None:
    whole = _whole_of(group[0], config)
    if not whole:
        return
    left_out = [
        one.sample for one in study.samples if one not in group and _whole_of(one, config) == whole
    ]
    if left_out:
        voice.warn(
            f"the whole sample of patient {group[0].patient} is taken without "
            f"{', '.join(left_out)}, which --sample does not name"
        )


def _maker(
    checkpoint: Checkpoint, sample: Sample, config: PredictConfig
) -> Callable[[Cells], Regions] | None:
    """What makes the regions of a sample; None where they were measured."""
    made = config.made_of(sample)
    if made == "measured":
        return None
    if made == "sample":
        return partial(sample_regions, patient_id=sample.patient)
    radius_um, pitch_um = grid_size(checkpoint, config.pitch_um)
    return partial(grid_regions, patient_id=sample.patient, radius_um=radius_um, pitch_um=pitch_um)


def _predict(
    checkpoint: Checkpoint, slides: Sequence[SlideData], config: PredictConfig
) -> Prediction:
    genes = config.genes or None
    if config.level == "cell":
        return predict_cells(checkpoint, slides, genes, config.memory_gb)
    return predict_regions(checkpoint, slides, genes)


def _ending(sample: Sample, config: PredictConfig) -> str:
    """What the file of a prediction ends in: made regions never overwrite measured ones."""
    made = config.made_of(sample)
    return ("" if made == "measured" else f".{made}") + (
        ".cells.zarr" if config.level == "cell" else ".zarr"
    )
