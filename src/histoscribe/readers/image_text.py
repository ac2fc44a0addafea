"""Texts of images: a table that says of a slide, or of a region of it, what is to be seen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from histoscribe.data.regions import Regions
from histoscribe.data.texts import Texts, key_of
from histoscribe.errors import DataError, MismatchError
from histoscribe.readers.tables import read_table

IMAGE_COLUMNS = ("slide_id", "slide", "image")
REGION_COLUMNS = ("region_id", "region")

Place = tuple[str, str]
"""Slide and region; the region is "" for the whole slide."""


@dataclass(frozen=True)
class ImageTexts:
    """Which image has which texts.

    Attributes:
        key_of_place: Text key of each slide and region.
        texts: The wordings of each key.
    """

    key_of_place: Mapping[Place, str]
    texts: Texts

    def attach(self, regions: Regions) -> Regions:
        """The regions with their text keys, "" for those without a text.

        A text of a whole slide is one of its regions only where that is the whole sample.

        Raises:
            MismatchError: If no region has a text, a text is of a region that a slide lacks, or
                one of a whole slide that is cut into regions.
        """
        places = list(zip(regions.slide_id, regions.region_id, strict=True))
        if regions.kind == "bulk":
            keys = [
                self.key_of_place.get((s, r)) or self.key_of_place.get((s, "")) for s, r in places
            ]
        else:
            keys = [self.key_of_place.get(place) for place in places]
        self._check(regions, set(places))
        if not any(keys):
            raise MismatchError(
                f"no text is of a region of {', '.join(sorted(set(regions.slide_id))[:5])}; "
                "name slides and regions as the study does"
            )
        return replace(regions, text_key=tuple(key or "" for key in keys))

    def _check(self, regions: Regions, places: set[Place]) -> None:
        slides = set(regions.slide_id)
        for slide, region in self.key_of_place:
            if slide not in slides or (slide, region) in places:
                continue
            if region:
                raise MismatchError(
                    f"there is a text of region {region} of {slide}, which lacks it"
                )
            if regions.kind != "bulk":
                raise MismatchError(
                    f"a text is of the whole of {slide}, and the study has {regions.kind}s of it; "
                    "name the region in a column region_id, or pair it with whole samples"
                )


def read_image_texts(path: Path) -> ImageTexts:
    """Read a table (.csv, else by tabs) of images and texts.

    Columns: slide_id (or slide, image); region_id (or region; empty or missing for the whole
    slide); text; perhaps text_key, equal where texts mean the same. Without keys, equal texts have
    equal keys, and the texts of an image that has several are wordings of one key.

    Raises:
        DataError: Missing, without these columns, an empty cell, an image with two keys, or a text
            with two keys.
    """
    table = read_table(path, ("text",)).fillna("").astype(str)
    slides = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
    if slides is None:
        raise DataError(f"{path}: no column of images; wanted one of {', '.join(IMAGE_COLUMNS)}")
    regions = next((name for name in REGION_COLUMNS if name in table.columns), None)
    given: dict[Place, list[str]] = {}
    said: dict[Place, dict[str, None]] = {}
    for row in range(len(table)):
        slide = table[slides].iloc[row].strip()
        text = " ".join(table["text"].iloc[row].split())
        if not slide or not text:
            raise DataError(f"{path}: line {row + 2} lacks an image or a text; fill or remove it")
        place = (slide, "" if regions is None else table[regions].iloc[row].strip())
        said.setdefault(place, {})[text] = None
        if "text_key" in table.columns:
            given.setdefault(place, []).append(table["text_key"].iloc[row].strip())
    keys = {place: _key(path, place, tuple(said[place]), given.get(place)) for place in said}
    rows = dict.fromkeys((keys[place], text) for place in said for text in said[place])
    try:
        texts = Texts(tuple(key for key, _ in rows), tuple(text for _, text in rows))
    except DataError as fault:
        raise DataError(f"{path}: {fault}") from fault
    return ImageTexts(keys, texts)


def _key(path: Path, place: Place, texts: tuple[str, ...], given: list[str] | None) -> str:
    if given is None:
        return " | ".join(sorted(key_of(text) for text in texts))
    if len(set(given)) > 1 or not given[0]:
        where = " ".join(place).strip()
        raise DataError(f"{path}: {where} has the text keys {sorted(set(given))}; wanted one")
    return given[0]
