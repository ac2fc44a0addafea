"""The small released model: the default on all four sections of her2st's patient C, with its card.

    python benchmarks/release_her2st.py --data ../shared/data/her2st --study /tmp/her2st \
        --out her2st-c

Ingests and prepares C2-C5 as `her2st.py` does (what is current in the study is taken up), chooses
250 genes and fits on all four sections: nothing is kept apart, so nothing is scored here. The card
states what leaving each section out in turn gave, as it stands in `RESULTS.md`. The checkpoint is a
release artefact and is not committed. The same data and code give the same bytes.
"""

import argparse
import hashlib
import json
import re
import time
from pathlib import Path

from her2st import MAIN_PANEL, MAIN_SPACE, N_GENES, ingest, load_section, prepare
from histoscribe import __version__
from histoscribe.data.splits import Split
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import RECORD, Checkpoint
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.gene_panel import PanelConfig, choose_panel

SECTIONS = ("C2", "C3", "C4", "C5")
CARD = "MODEL_CARD.md"
METHODS = ("training mean", "cell features + ridge", "strong ridge", "model")
"""Rows of the table of results that the card states."""
CREDIT = (
    "Andersson, A. et al. Spatial deconvolution of HER2-positive breast cancer delineates "
    "tumor-associated cell type interactions. Nature Communications 12, 6012 (2021)"
)


def train(slides: list[SlideData], config: FitConfig) -> Checkpoint:
    """The default model on all slides."""
    panel_config = PanelConfig(rule=MAIN_PANEL, n_genes=N_GENES)
    panel = choose_panel([slide.regions for slide in slides], panel_config)
    split = Split(tuple(slide.slide_id for slide in slides), (), "none")
    return fit(slides, split, panel, config=config)


def read_scores(results: str) -> dict[str, str]:
    """Mean score and interval of each method, from the first table of `RESULTS.md`.

    Raises:
        SystemExit: If they are not found.
    """
    _, _, part = results.partition(f"### Per-gene PCC: panel {MAIN_PANEL}, {MAIN_SPACE}")
    table = part.partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    header = next((row for row in rows if row[0] == "method"), None)
    if header is None:
        raise SystemExit(f"RESULTS.md has no table of {MAIN_PANEL}, {MAIN_SPACE}")
    column = header.index("mean [95 %]")
    name_of = {re.sub(r" \(seed sd .*\)", "", row[0]): row for row in rows if len(row) > column}
    missing = [method for method in METHODS if method not in name_of]
    if missing:
        raise SystemExit(f"RESULTS.md has no row of {', '.join(missing)}")
    return {method: name_of[method][column] for method in METHODS}


def write_card(
    checkpoint: Checkpoint, slides: list[SlideData], scores: dict[str, str], folder: Path
) -> str:
    """What the model is, what it may be used for and what not."""
    settings = slides[0].cells.provenance.settings
    mpp = slides[0].regions.provenance.settings["mpp"]
    record = folder / RECORD
    n_spots = sum(len(slide.regions) for slide in slides)
    rows = "\n".join(f"| {method} | {score} |" for method, score in scores.items())
    return f"""\
# {folder.resolve().name}: expression of breast cancer from H&E, one patient

A BiTro model of histoscribe {__version__}: reads the nuclei of an H&E slide and predicts the
expression (log1p of counts per 10,000) of {len(checkpoint.panel)} genes in discs of
{2 * (checkpoint.region_size.radius_um or 0):g} µm, and the share of each cell. An ensemble of
{len(checkpoint.nets)} small nets.

| | |
|---|---|
| model | `{checkpoint.model_id}` |
| SHA-256 of `{RECORD}` | `{hashlib.sha256(record.read_bytes()).hexdigest()}` |
| trained on | {checkpoint.region_size}; {n_spots} spots of {", ".join(checkpoint.split.train)} |
| encoder | `{checkpoint.encoder_id}` |
| nuclei | `{slides[0].cells.segmenter_id}` |
| µm per pixel | slides of {mpp[0]:g}, read at {settings["mpp_read"]:g} |
| held back | nothing: it was fitted on all four sections |

`{RECORD}` names the SHA-256 of every other file; a changed file is refused.

## Use

```
histoscribe ingest slides.csv study/ && histoscribe prepare study/
histoscribe predict study/ --checkpoint {folder.resolve().name}/
```

`slides.csv` has the columns sample, patient, slide, mpp, expression, the last one empty. Slides
must be prepared with the encoder above, which is the default of this version.

## What it may be used for

- To try histoscribe where there are slides and no expression: maps of genes on breast tissue, as
  hypotheses.
- As a start: `histoscribe fit STUDY --from {folder.resolve().name}/` on data of your own.

## What it must not be used for

- **One patient.** All {len(slides)} sections are neighbours in one HER2-positive breast tumour,
  cut, stained and scanned together. Nothing is known of how it does on another patient, stain,
  scanner or tissue, and it is likely to be wrong there without saying so.
- No diagnosis, no decision on treatment, no statement on HER2 status, no ranking of patients.
- Values of cells are shares of a disc by attention. Nothing was measured in cells.
- Whole samples (`--regions sample`): it was not trained on any.

## Scores

Not of this checkpoint, which has seen all sections, but of the same settings fitted four times with
one of the sections left out in turn (`benchmarks/RESULTS.md`): mean per-gene PCC over
{N_GENES} genes, 95 % interval. Sections of one patient on both sides: optimistic.

| method | mean per-gene PCC |
|---|---|
{rows}

## Data and licence

her2st (HER2-positive breast tumours, first-generation spatial transcriptomics), patient C,
{", ".join(checkpoint.split.train)}: {CREDIT}; https://doi.org/10.1038/s41467-021-26271-2, data
https://doi.org/10.5281/zenodo.4751624, licence CC BY 4.0. Changes: spots with too few counts were
left out; a model was fitted. Whoever passes these weights on gives the same credit. They hold
numbers fitted on the data, and no image, count or name of a person. The code is Apache-2.0;
InstanSeg's weights (Apache-2.0) are not part of this folder.

## Genes

{", ".join(checkpoint.panel.symbols)}
"""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as her2st")
    parser.add_argument("--study", type=Path, required=True, help="where sections are prepared")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--mpp", type=float, default=0.690, help="µm per pixel of the images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    scores = read_scores((Path(__file__).parent / "RESULTS.md").read_text(encoding="utf-8"))
    for row in ingest(arguments.data, arguments.study, SECTIONS, arguments.mpp):
        cost = prepare(row, arguments.study)
        if cost:
            print("prepared: " + json.dumps(cost), flush=True)
    slides = [load_section(arguments.study, name) for name in SECTIONS]
    started = time.perf_counter()
    checkpoint = train(slides, FitConfig(target_space=MAIN_SPACE, device=arguments.device))
    checkpoint.save(arguments.out)
    card = write_card(checkpoint, slides, scores, arguments.out)
    (arguments.out / CARD).write_text(card, encoding="utf-8")
    seconds = time.perf_counter() - started
    n_bytes = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{checkpoint.model_id}: {seconds:.0f} s, {n_bytes / 1e6:.1f} MB in {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
