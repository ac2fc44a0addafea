"""What describing a cell costs: a tile for each nucleus against one pass for the whole field.

    python benchmarks/encoder_cost.py --data ../shared/data/her2st
    python benchmarks/encoder_cost.py --cells 2000 --at-once 16     # on a GPU

Cells per second of both ways of `prepare.view.way`, by the functions that `prepare` itself calls:
reading, the network and pooling are counted, finding the nuclei is not. The pixels are real (her2st
C2, or the embedded Visium crop), in fields that are tissue throughout; on each field of 112 µm 20,
50 or 100 nuclei of 7 µm are planted at random, at least 8 µm apart, and both ways describe the
same ones, batch by batch in turn. Networks see 0.5 µm/px, which all four have as their native
scale: in the dense way a field of 112 µm and 16 µm of context on each side, 288 px; in the tile way
24 µm, once enlarged to 224 px as the BiTro paper has it, and once left at about its own size.

ViT-L/16 and ViT-S/16 are DINOv3's configuration with random weights; InstanSeg's encoder and
EfficientNet-Lite0 have their published ones. InstanSeg's dense way is timed with a pass of its own,
which costs nothing where InstanSeg finds the nuclei too.

On a CPU with one thread CPU seconds are counted, which other work on the machine hardly changes. A
tile costs the same however many there are on a field: how far its rates at the three densities are
apart, printed below the table, is the error of all figures.

Bar: for ViT-L/16 at 50 cells a field the dense way describes at least 15 times as many a second.
"""

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from histoscribe.data.slide import Slide
from histoscribe.demo_data.folder import demo_folder
from histoscribe.errors import DataError
from histoscribe.preprocess.describe import describe_nuclei, look_at_fields, read_field
from histoscribe.preprocess.encoders.dense_encoder import DenseEncoder
from histoscribe.preprocess.encoders.encoder import Encoder
from histoscribe.preprocess.encoders.names import load_encoder, load_network
from histoscribe.preprocess.encoders.networks.patch_network import NetworkFacts, PatchNetwork
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.networks.vit_presets import IMAGENET
from histoscribe.preprocess.encoders.tile_encoder import TileEncoder
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.fields import FieldPlan, plan_grid
from histoscribe.preprocess.nuclei import Found, take_owned
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.segmenters.segmenter import Segmentation
from histoscribe.preprocess.tissue import sample_tissue_pixels, tissue_mask
from histoscribe.slides.open import open_slide

MPP = 0.5
FIELD_PX, OVERLAP_PX = 288, 64  # a field owns 224 px, 112 µm
TILE_SIDE_UM = 32.0
RADIUS_UM, SPACING_UM = 3.5, 8.0
DENSITIES = (20, 50, 100)  # cells per field of 112 µm
WARM_UP_CELLS = 5
HER2ST_MPP, DEMO_MPP = 0.690, 0.7252
BAR_NETWORK, BAR_DENSITY, BAR_RATIO = "ViT-L/16", 50, 15.0
VITS = {  # depth, width, heads: DINOv3
    "ViT-L/16": (24, 1024, 16),
    "ViT-S/16": (12, 384, 6),
}
REAL = {"InstanSeg": "instanseg", "EfficientNet-Lite0": "efficientnet-lite0"}


@dataclass(frozen=True)
class Field:
    """A field of the plan, and the nuclei planted on it."""

    number: int
    segmentation: Segmentation
    found: Found


def random_vit(name: str, device: str | None) -> TokenNetwork:
    """DINOv3's architecture at its published size, with random weights."""
    depth, width, n_heads = VITS[name]
    config = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=n_heads,
        num_register_tokens=4,
        patch_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DINOv3ViTModel(config)
    facts = NetworkFacts(
        name=name,
        weights_sha256="random",
        licence="none",
        mean=IMAGENET[0],
        std=IMAGENET[1],
        patch_px=16,
        step_px=16,
        n_channels=width,
        native_mpp=MPP,
        native_px=224,
        least_px=16,
    )
    return TokenNetwork(
        model, lambda pixels: model(pixel_values=pixels).last_hidden_state, 5, facts, device
    )


def make_encoders(name: str, device: str | None) -> dict[str, Encoder]:
    """The dense way, BiTro's, and tiles that are not enlarged."""
    dense, tile = ViewConfig(way="dense"), ViewConfig(way="tile")
    network: PatchNetwork = (
        random_vit(name, device) if name in VITS else load_network(REAL[name], "")
    )
    step, least = network.facts.step_px, network.facts.least_px
    own_px = max(least, round(tile.tile_um / MPP / step) * step)
    return {
        "dense": DenseEncoder(network, dense, name)
        if name in VITS
        else load_encoder(REAL[name], dense),
        "tile": TileEncoder(network, tile, name),
        f"tile {own_px} px": TileEncoder(network, replace(tile, input_px=own_px), name),
    }


def open_pixels(data: Path | None) -> Slide:
    """Her2st C2, or the crop that comes with the package."""
    if data is None:
        return open_slide(demo_folder() / "visium_crop.jpg", mpp=DEMO_MPP, slide_id="visium_crop")
    (path,) = (data / "ST-imgs" / "C" / "C2").glob("*.jpg")
    return open_slide(path, mpp=HER2ST_MPP, slide_id="C2")


def plan_tissue(slide: Slide, n_fields: int) -> FieldPlan:
    """The first fields that own nothing but tissue, in reading order."""
    mask = tissue_mask(slide)
    plan = plan_grid(slide, mask, MPP, FIELD_PX, OVERLAP_PX)
    side_um = (FIELD_PX - OVERLAP_PX) * MPP
    rows = []
    for number, centre in enumerate(plan.centre_um):
        x, y = np.floor((centre - side_um / 2) / mask.mpp).astype(int)
        n = int(np.ceil(side_um / mask.mpp))
        part = mask.mask[y : y + n, x : x + n]
        if part.shape == (n, n) and part.mean() > 0.99:
            rows.append(number)
    if len(rows) < n_fields:
        raise DataError(
            f"{slide.slide_id} has {len(rows)} fields of tissue alone, {n_fields} are wanted; give "
            "fewer --cells, or a larger slide by --data"
        )
    rows = rows[:n_fields]
    return replace(plan, origin_px=plan.origin_px[rows], centre_um=plan.centre_um[rows])


def plant(plan: FieldPlan, number: int, n_cells: int, rng: np.random.Generator) -> Field:
    """Discs at random within what a field owns, none nearer to another than `SPACING_UM`."""
    side_um = (FIELD_PX - OVERLAP_PX) * MPP
    places = np.zeros((0, 2))
    while len(places) < n_cells:
        place = rng.uniform(1.0, side_um - 1.0, 2)
        if not len(places) or np.hypot(*(places - place).T).min() >= SPACING_UM:
            places = np.vstack([places, place])
    centre_px = (places / MPP) + OVERLAP_PX / 2
    y, x = np.mgrid[:FIELD_PX, :FIELD_PX] + 0.5
    distance = np.hypot(
        x[None] - centre_px[:, 0, None, None], y[None] - centre_px[:, 1, None, None]
    )
    labels = np.where(distance.min(axis=0) < RADIUS_UM / MPP, distance.argmin(axis=0) + 1, 0)
    labels = labels.astype(np.int32)
    found = take_owned(labels, plan, number)
    assert len(found.xy_um) == n_cells
    return Field(number, Segmentation(labels), found)


def describe(
    slide: Slide, encoder: Encoder, plan: FieldPlan, fields: list[Field]
) -> tuple[float, int]:
    """Seconds from the file to the features of all cells of some fields, and how many they are."""
    sight = encoder.sight(plan, TILE_SIDE_UM)
    is_alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if is_alone else time.perf_counter
    start = clock()
    pixels = [read_field(slide, plan, field.number, sight) for field in fields]
    segmented = [field.segmentation for field in fields]
    looks = look_at_fields(encoder, pixels, segmented, "planted", plan, sight)
    rows = [
        describe_nuclei(encoder, look, field.found, CropTally())
        for look, field in zip(looks, fields, strict=True)
    ]
    seconds = clock() - start
    features = np.concatenate(rows)
    assert np.isfinite(features).all()
    return seconds, len(features)


def time_network(slide: Slide, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cells per second of every way at every density."""
    mask = tissue_mask(slide)
    tissue = sample_tissue_pixels(slide, mask, 100_000, MPP, np.random.default_rng(0))
    encoders = {
        way: encoder.calibrated(tissue)
        for way, encoder in make_encoders(name, options.device).items()
    }
    table = []
    plan = plan_tissue(slide, 1)
    few = [plant(plan, 0, WARM_UP_CELLS, np.random.default_rng(0))]
    for encoder in encoders.values() if options.warm_up else ():
        describe(slide, encoder, plan, few)  # the first pass of a size is slower
    for n_cells in options.densities:
        plan = plan_tissue(slide, max(1, options.cells // n_cells))
        rng = np.random.default_rng(n_cells)
        fields = [plant(plan, number, n_cells, rng) for number in range(len(plan))]
        seconds, described = dict.fromkeys(encoders, 0.0), dict.fromkeys(encoders, 0)
        for start in range(0, len(fields), options.at_once):
            for way, encoder in encoders.items():
                batch = fields[start : start + options.at_once]
                spent, n_described = describe(slide, encoder, plan, batch)
                seconds[way] += spent
                described[way] += n_described
        assert len(set(described.values())) == 1
        rates = {way: described[way] / seconds[way] for way in encoders}
        table.append({"network": name, "per_field": n_cells, "n": described["dense"], **rates})
    return table


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    own = next(way for way in row if way.startswith("tile "))
    print(
        f"| {row['network']} | {row['per_field']} | {row['n']} | {row['dense']:.3g} "
        f"| {row['tile']:.3g} | {row['dense'] / row['tile']:.1f} "
        f"| {row[own]:.3g} ({own.removeprefix('tile ')}) | {row['dense'] / row[own]:.1f} |",
        flush=True,
    )


def print_error(rows: list[dict[str, Any]]) -> None:
    """How far the rates of equal tiles are apart."""
    for name in dict.fromkeys(row["network"] for row in rows):
        rates = [row["tile"] for row in rows if row["network"] == name]
        print(f"{name}: tiles at {', '.join(f'{rate:.3g}' for rate in rates)} cells/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="her2st; the embedded crop without it")
    parser.add_argument("--networks", nargs="+", default=[*VITS, *REAL], choices=[*VITS, *REAL])
    parser.add_argument("--cells", type=int, default=200, help="at each density")
    parser.add_argument("--densities", type=int, nargs="+", default=DENSITIES, metavar="N")
    parser.add_argument("--at-once", type=int, default=2, help="fields")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="of the two ViTs; by default a GPU if there is one")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    slide = open_pixels(options.data)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{slide.slide_id}, {slide.mpp[0]:.4g} µm/px read at {MPP:g}; {device}, {options.threads} "
        f"CPU threads, load {os.getloadavg()[0]:.1f}; {options.at_once} fields at once\n"
    )
    print(
        "| network | cells per field | cells | dense, cells/s | tile 224 px, cells/s | ratio "
        "| tile not enlarged, cells/s | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for row in time_network(slide, name, options):
            print_row(row)
            rows.append(row)
    print()
    print_error(rows)
    for row in rows:
        if (row["network"], row["per_field"]) == (BAR_NETWORK, BAR_DENSITY):
            ratio = row["dense"] / row["tile"]
            verdict = "PASS" if ratio >= BAR_RATIO else "FALLS SHORT"
            print(
                f"\n{verdict}: {BAR_NETWORK} at {BAR_DENSITY} cells a field, dense describes "
                f"{ratio:.1f} times as many cells a second (bar {BAR_RATIO:g})"
            )


if __name__ == "__main__":
    main()
