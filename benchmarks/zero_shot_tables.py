"""The table of `zero_shot_her2st.py`: scores by class, gains with intervals, and the bars."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zero_shot_baselines import NON_TEXT, TWO_STAGE

LABELLED = (
    "b_cells", "t_cells", "plasma_cells", "myeloid_cells", "endothelial_cells", "epithelial_cells"
)  # fmt: skip
"""Classes of which there are labelled cells; stellate cells are not counted as fibroblasts."""

N_DRAWS = 10_000
ALL_BAR, LABELLED_BAR = 0.60, 0.65

Found = dict[str, dict[str, np.ndarray]]


def print_table(found: Found, arms: Sequence[Any], out: Path, keys: Sequence[str]) -> None:
    """Print scores, gains and bars as Markdown, and keep them as JSON."""
    sections = list(next(iter(found.values())))
    labelled = [keys.index(key) for key in LABELLED]
    record: dict[str, Any] = {"classes": list(keys), "labelled": list(LABELLED)}
    names = [name for name in found if ": net " not in name]
    head = ["", "all 8", "labelled 6", *sections, *keys]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    print("| chance | " + " | ".join([".500"] * (len(head) - 1)) + " |")
    for name in names:
        at = np.array([found[name][section] for section in sections])
        numbers = [at.mean(), at[:, labelled].mean(), *at.mean(axis=1), *at.mean(axis=0)]
        print(f"| {name} | " + " | ".join(f"{value:.3f}"[1:] for value in numbers) + " |")
        record[name] = {section: found[name][section].tolist() for section in sections}
    for arm in arms:
        nets = np.array(
            [
                [found[f"{arm.name}: net {net}"][section] for net in range(arm.n_nets)]
                for section in sections
            ]
        )  # section net class
        single = nets.mean(axis=(0, 1))
        print(
            f"\n{arm.name}, single seeds, mean of {arm.n_nets}: all {single.mean():.3f}, labelled "
            f"{single[labelled].mean():.3f}; over sections and seeds "
            f"{interval(nets)} and {interval(nets[:, :, labelled])}"
        )
        record[f"{arm.name}: single seeds"] = nets.tolist()
        for other in (*NON_TEXT, TWO_STAGE):
            base = np.array([found[other][section] for section in sections])[:, None]
            gain, own = nets - base, (nets - base)[:, :, labelled]
            print(
                f"- over {other}: all {gain.mean():+.3f} {interval(gain)}, labelled "
                f"{own.mean():+.3f} {interval(own)}"
            )
            record[f"{arm.name}: gain over {other}"] = [
                [gain.mean(), *_bounds(gain)],
                [own.mean(), *_bounds(own)],
            ]
    record["bars"] = print_bars(found, sections, labelled, record, arms[0].name)
    (out / "table.json").write_text(json.dumps(record, indent=1))


def print_bars(
    found: Found, sections: Sequence[str], labelled: Sequence[int], record: dict[str, Any], arm: str
) -> dict[str, bool]:
    """The bars of the first arm, image to text, all its seeds together."""
    at = np.array([found[f"{arm}: image to text"][section] for section in sections])
    better = max(NON_TEXT, key=lambda name: np.mean([found[name][s] for s in sections]))
    gains = record[f"{arm}: gain over {better}"]
    bars = {
        f"all classes at least {ALL_BAR:.2f}": bool(at.mean() >= ALL_BAR),
        f"labelled classes at least {LABELLED_BAR:.2f}": bool(
            at[:, labelled].mean() >= LABELLED_BAR
        ),
        f"above {better}, interval without zero": bool(gains[0][1] > 0 and gains[1][1] > 0),
    }
    print()
    for bar, is_met in bars.items():
        print(f"{'PASS' if is_met else 'FALLS SHORT'}: {bar}")
    return bars


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """95 % of draws of sections, and of a seed for each, with replacement; mean over classes."""
    chance = np.random.default_rng(0)
    n_sections, n_nets = values.shape[:2]
    by_class = values.mean(axis=2)
    rows = chance.integers(n_sections, size=(N_DRAWS, n_sections))
    nets = chance.integers(n_nets, size=(N_DRAWS, n_sections))
    low, high = np.quantile(by_class[rows, nets].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def interval(values: np.ndarray) -> str:
    """The same in words."""
    low, high = _bounds(values)
    return f"[{low:.3f}, {high:.3f}]"
