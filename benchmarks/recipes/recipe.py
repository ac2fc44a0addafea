"""A recipe: which samples of which data set, how they are split, and with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from histoscribe.app.settings import build, merge, read_yaml
from histoscribe.errors import ConfigError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """What a YAML of this folder says.

    Attributes:
        name: Of the recipe.
        layout: How the data lie: HEST-1k's folders, or what GDC's client downloads.
        source: Whose data they are.
        notes: In what the recipe is not the paper's.
        samples: Ids of HEST-1k.
        n_samples: How many the paper counts; what is found is held against it and said.
        n_patients: How many patients, where the paper or its data say it.
        n_spots: How many spots.
        diameter_um: Of the assay, where the metadata are known to be wrong; else theirs.
        pitch_um: The same for the distance of spots.
        nuclei: Found by us, or those that HEST-1k brings (CellViT), as in the paper.
        project: Of TCGA.
        sample_types: Of TCGA, the preferred first.
        slide_types: Of TCGA.
        test_share: Share of TCGA's patients that is tested.
        seed: What draws them.
        settings: What is not as it is by default, as in a config file.
    """

    name: str = ""
    layout: Literal["hest", "tcga"] = "hest"
    source: str = ""
    notes: str = ""
    samples: tuple[str, ...] = ()
    n_samples: int | None = None
    n_patients: int | None = None
    n_spots: int | None = None
    diameter_um: float | None = None
    pitch_um: float | None = None
    nuclei: Literal["ours", "hest"] = "ours"
    project: str = ""
    sample_types: tuple[str, ...] = ("01",)
    slide_types: tuple[str, ...] = ("DX",)
    test_share: float = 0.2
    seed: int = 0
    settings: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.settings, Mapping):
            raise ConfigError("a recipe wants a name, and settings by group")
        if self.layout == "hest" and (
            not self.samples or len(set(self.samples)) < len(self.samples)
        ):
            raise ConfigError(f"recipe {self.name}: give the ids of its samples, each once")
        if self.layout == "tcga" and not (self.project and 0 < self.test_share < 1):
            raise ConfigError(f"recipe {self.name}: give its project, and a test_share within 0, 1")
        if (self.diameter_um is None) != (self.pitch_um is None):
            raise ConfigError(f"recipe {self.name}: give both diameter_um and pitch_um, or neither")


def read_recipe(given: str) -> Recipe:
    """A recipe by its path, or by its name in this folder.

    Raises:
        ConfigError: A key is unknown or of the wrong type.
        DataError: There is no such file.
    """
    path = Path(given)
    beside = HERE / f"{given}.yaml"
    return build(Recipe, merge(Recipe, read_yaml(beside if beside.is_file() else path)))
