"""A study: the folder that `ingest` and `prepare` write, and every run is kept in.

STUDY/study.json                    the manifest as ingested, with the hash of every input
STUDY/samples/<sample>/regions.zarr what was measured, and where
                      /cells.zarr   nuclei with raw features; outlines beside it
                      /tiles.zarr   the whole field on a grid
                      /prepare.json what made the two, written last
STUDY/runs/<run>/                   checkpoint, predictions, scores, report
STUDY/log.jsonl                     what ran when: the only file with times in it
"""

import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.readers.nuclei_config import NUCLEI_COLUMNS, NUCLEI_FILES, NucleiConfig
from histoscribe.slides.open import hash_slide_file

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = {"mean": "tables of scores use it", "none": "'fit --test none' uses it"}


@dataclass(frozen=True)
class Sample:
    """One row of the manifest as it was ingested.

    Attributes:
        sample: Name of the sample, and of its slide.
        patient: Whose tissue it is; splits are made by it.
        slide: The H&E image, relative to the study folder.
        mpp: µm per pixel as given, or None where the file itself says it.
        expression: The table of counts, relative to the study folder, or None.
        spots: The table of spot positions, relative to the study folder, or None.
        genes: The table of gene names, relative to the study folder, or None.
        platform: Layout of the counts, or None without counts.
        inputs: SHA-256 of each file by role.
        report: What the reader dropped, and why, by reason.
        tissue: A tissue mask as GeoJSON, relative to the study folder, or None to find it.
        nuclei: Nuclei of another program, relative to the study folder, or None to find them.
        nuclei_options: What was given of `NucleiConfig`, files relative to the study folder; in
            study.json each goes by its column of the manifest.
        profile: Which profile of the expression it goes with, for bulk, else None.
    """

    sample: str
    patient: str
    slide: str
    mpp: float | None
    expression: str | None
    spots: str | None
    genes: str | None
    platform: str | None
    inputs: Mapping[str, str]
    report: Mapping[str, Any]
    tissue: str | None = None
    nuclei: str | None = None
    nuclei_options: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None

    def file_of(self, role: str) -> str:
        """The file of a role of `inputs`, relative to the study folder."""
        if role in NUCLEI_FILES:
            return self.nuclei_options[NUCLEI_COLUMNS[role]]
        return getattr(self, role)


@dataclass(frozen=True)
class Study:
    """An opened study folder; nothing but `study.json` is read when it is opened."""

    folder: Path
    samples: tuple[Sample, ...]

    def find(self, name: str) -> Sample:
        """The sample of that name; ConfigError with the known names otherwise."""
        for sample in self.samples:
            if sample.sample == name:
                return sample
        known = ", ".join(sample.sample for sample in self.samples)
        raise ConfigError(f"Study {self.folder} has no sample '{name}'. It has: {known}.")

    def folder_of(self, sample: Sample) -> Path:
        """Where the stores of a sample are."""
        return self.folder / "samples" / sample.sample

    def path_of(self, relative: str) -> Path:
        """An input of the manifest as a path that can be opened."""
        return (self.folder / relative).resolve()

    def nuclei_config_of(self, sample: Sample) -> NucleiConfig:
        """How the nuclei that are given for a sample are to be read."""
        options = dict(sample.nuclei_options)
        for name in (NUCLEI_COLUMNS[column] for column in NUCLEI_FILES):
            if name in options:
                options[name] = self.path_of(options[name])
        return NucleiConfig(**options)

    def run_folder(self, run: str) -> Path:
        """Where the run of that name is kept; ConfigError if the name is no file name."""
        check_name(run, "run")
        return self.folder / "runs" / run

    def prepared_record(self, sample: Sample) -> dict[str, Any] | None:
        """What `prepare` noted when it had finished the sample; None if nothing whole is there."""
        try:
            return read_json(self.folder_of(sample) / "prepare.json")
        except (DataError, OSError):
            return None

    def check_inputs(self, sample: Sample) -> None:
        """MismatchError if a file of the sample is no longer the one that was ingested."""
        for role, wanted in sample.inputs.items():
            path = self.path_of(sample.file_of(role))
            if not path.exists():
                raise DataError(
                    f"{role} of sample '{sample.sample}' is gone: {path}. "
                    "Put it back, or correct the manifest and run 'histoscribe ingest' again."
                )
            if hash_input(role, path) != wanted:
                raise MismatchError(
                    f"{role} of sample '{sample.sample}' changed since it was ingested: {path}. "
                    "Run 'histoscribe ingest' again, then 'histoscribe prepare'."
                )

    def log(self, step: str, **facts: object) -> None:
        """Append one line to the run log: the only place where times are kept."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            "step": step,
            **facts,
        }
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second writing command out of the study while this one runs.

        The lock belongs to the process: it is free again however the process ends.
        """
        with (self.folder / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise ConfigError(
                    f"Study {self.folder} is being written by {holder}. "
                    "Wait for it to end, or work on a copy of the study."
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
            try:
                yield
            finally:
                stream.truncate(0)


def open_study(folder: Path) -> Study:
    """Open a study folder.

    Args:
        folder: The folder that `ingest` wrote.

    Raises:
        DataError: There is no study, or its `study.json` is broken or of another format.
    """
    path = folder / "study.json"
    if not path.exists():
        raise DataError(
            f"No study at {folder}: it has no study.json. "
            "Make one with 'histoscribe ingest MANIFEST STUDY'."
        )
    record = read_json(path)
    if record.get("format") != FORMAT:
        raise DataError(
            f"{path} is of format {record.get('format')!r}, this version reads {FORMAT}. "
            "Ingest the manifest into a new folder."
        )
    try:
        samples = tuple(_from_record(row) for row in record["samples"])
    except (KeyError, TypeError, AttributeError) as fault:
        raise DataError(
            f"{path} is not a study of this version ({fault}). "
            "Ingest the manifest into a new folder."
        ) from fault
    return Study(folder, samples)


def create_study(folder: Path, samples: tuple[Sample, ...]) -> Study:
    """Write `study.json`; an existing one is replaced in one step, the stores are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "samples": [_to_record(sample) for sample in samples]}
    write_json(folder / "study.json", record)
    return Study(folder, samples)


def _to_record(sample: Sample) -> dict[str, Any]:
    record = asdict(sample)
    options = record.pop("nuclei_options")
    return record | {column: options.get(name) for column, name in NUCLEI_COLUMNS.items()}


def _from_record(record: Mapping[str, Any]) -> Sample:
    options = {
        name: record[column]
        for column, name in NUCLEI_COLUMNS.items()
        if record.get(column) is not None
    }
    rest = {name: value for name, value in record.items() if name not in NUCLEI_COLUMNS}
    return Sample(**rest, nuclei_options=options)


def hash_input(role: str, path: Path) -> str:
    """SHA-256 of a file of the manifest; a slide may be several files."""
    return hash_slide_file(path) if role == "slide" else hash_file(path)


def check_name(name: str, noun: str) -> None:
    """ConfigError unless the name can be a folder on every system and is not taken."""
    if name in TAKEN:
        raise ConfigError(f"'{name}' cannot name a {noun}: {TAKEN[name]}. Rename it.")
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot name a {noun}: "
            "letters, digits, '.', '_' and '-' are wanted, a letter or digit first."
        )


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write in one step: a reader sees the old file or the new one, never a part of one."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to the disk, then rename over the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; DataError that names the file if it is broken."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise DataError(
            f"{path} is corrupted ({fault}). Restore it, or make it anew with the command "
            "that wrote it."
        ) from fault
    if not isinstance(record, dict):
        raise DataError(f"{path} is corrupted: an object is wanted, a list or value came.")
    return record
