"""Transfer between spots and pseudo-bulk on her2st, both ways, with few target regions and all.

    python benchmarks/transfer.py --study /tmp/her2st --out /tmp/transfer --workers 2

Wants the sections that `her2st.py` has prepared in the study. Each fold takes one section for the
test, the next for the target regions, the other two as the source; no spot is in two of them. A
pseudo-bulk region is the sum of the counts of a patch of 3 x 3 spots, disjoint from all others, of
which at least six are there (with all nine a section has 12 or 13 patches, and 16 are wanted).
Source and target differ in kind: spots, then pseudo-bulk, or the other way round.

    from scratch   fitted on the target regions alone
    LoRA, full, frozen   the same, starting from the fit on the source
    source, as it is     0 target regions

Genes are chosen on the source sections. Nets stop on the loss of held-out target regions, in all
arms. Four serial sections of one patient: optimistic, and labelled so.

What is finished is kept in --out, keyed by the job and its settings; the same command goes on from
there. After a change of code or data give another --out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histoscribe.data.pseudobulk import lattice_of
from histoscribe.evaluate.bootstrap import BootstrapConfig, bootstrap_gene_pcc
from histoscribe.evaluate.metrics import measure_all
from histoscribe.train.checkpoint import build_model
from histoscribe.train.lora import insert_adapters
from histoscribe.train.targets import measure
from histoscribe.train.transfer import (
    TransferConfig,
    count_parameters,
    freeze_all_but_genes,
    gene_tensors,
)
from transfer_jobs import (
    MOST_TRAINED,
    NEAR_FULL,
    SECTIONS,
    SIZES,
    Bench,
    Job,
    Kind,
    Rates,
    as_kind,
    jobs_of,
    search_jobs,
)


def find_rates(records: Callable[[Job], dict[str, Any]]) -> Rates:
    """For each direction, test section and arm the rate that its own target regions like best.

    The score is the mean loss of the held-out target regions of that fold: nothing of the section
    that is tested has a part in it.
    """
    means: dict[tuple[Kind, str, str, int], dict[float, float]] = {}
    for job in search_jobs():
        scores = [net["best_score"] for net in records(job)["report"]]
        of_arm = means.setdefault((job.source, job.test, job.arm, job.n_regions), {})
        of_arm[job.rate] = float(np.mean(scores))
    found: Rates = {what: max(one, key=lambda rate: one[rate]) for what, one in means.items()}
    print("| from | found at | arm | " + " | ".join(f"rate for {test}" for test in SECTIONS) + " |")
    print("|---" * (len(SECTIONS) + 3) + "|")
    for source, arm, n in dict.fromkeys((source, arm, n) for source, _, arm, n in found):
        rates = " | ".join(f"{found[source, test, arm, n]:g}" for test in SECTIONS)
        print(f"| {source} | {n or 'all'} | {arm} | {rates} |")
    return found


def draws_of(
    bench: Bench, source: Kind, test: str, records: Sequence[dict[str, Any]]
) -> dict[str, tuple[float, np.ndarray]]:
    """Gene PCC on a test section by arm, and its bootstrap draws, averaged over seeds."""
    job = Job(source, test, 0, "", 0)
    slide = as_kind(bench.spots[test], job.target)
    panel = bench.panel(job.sections()[0])
    measured, _ = measure(slide.regions, panel, "log1p_cp10k")
    answers, names = {}, {}
    for record in records:
        for name, answer in record["answers"].items():
            key = f"{name}/{record['job']['seed']}"
            answers[key] = np.array(answer, dtype=np.float32)
            names.setdefault(name, []).append(key)
    usable = np.isfinite(measured).all(axis=1)
    for answer in answers.values():
        usable &= np.isfinite(answer).all(axis=1)
    answers = {key: answer[usable] for key, answer in answers.items()}
    block = np.arange(len(measured))
    if job.target == "spot":
        _, block = np.unique(lattice_of(slide.regions) // 3, axis=0, return_inverse=True)
    config = BootstrapConfig()
    draws = bootstrap_gene_pcc(answers, measured[usable], config, block.ravel()[usable])
    value = {key: measure_all(a, measured[usable]).gene_pcc for key, a in answers.items()}
    return {
        name: (
            float(np.mean([value[key] for key in keys])),
            np.mean([draws[key] for key in keys], axis=0),
        )
        for name, keys in names.items()
    }


def print_table(
    bench: Bench,
    source: Kind,
    rates: Rates,
    records: Callable[[Job], dict[str, Any]],
) -> list[str]:
    """The table of a direction; what falls short comes back."""
    target = "pseudo-bulk" if source == "spot" else "spots"
    print(f"\n#### From {'spots' if source == 'spot' else 'pseudo-bulk'} to {target}\n")
    print("| target regions | arm | gene PCC | over from scratch | by test section |")
    print("|---|---|---|---|---|")
    short = []
    for n_regions in SIZES:
        sections = []
        for test in SECTIONS:
            jobs = jobs_of(source, test, n_regions, rates)
            sections.append(draws_of(bench, source, test, [records(job) for job in jobs]))
        scratch = [section["scratch"] for section in sections]
        for arm in sections[0]:
            own = [section[arm] for section in sections]
            value = np.mean([v for v, _ in own])
            low, high = np.quantile(np.mean([d for _, d in own], axis=0), [0.025, 0.975])
            gain = np.mean([v - s for (v, _), (s, _) in zip(own, scratch, strict=True)])
            over = np.mean([d - s for (_, d), (_, s) in zip(own, scratch, strict=True)], axis=0)
            least, most = np.quantile(over, [0.025, 0.975])
            shown = ", ".join(f"{v:.3f}" for v, _ in own)
            print(
                f"| {n_regions or 'all'} | {arm} | {value:.3f} [{low:.3f}, {high:.3f}] | "
                f"{gain:+.3f} [{least:+.3f}, {most:+.3f}] | {shown} |"
            )
            if arm == "lora" and n_regions and least <= 0:
                short.append(f"{source}, {n_regions} regions: {gain:+.3f} [{least:+.3f}]")
        full = np.mean([section["full"][0] for section in sections])
        lora = np.mean([section["lora"][0] for section in sections])
        if abs(full - lora) > NEAR_FULL:
            short.append(f"{source}, {n_regions or 'all'}: LoRA {lora:.3f} against full {full:.3f}")
    return short


def print_parameters(bench: Bench) -> bool:
    """How many parameters learn, and whether LoRA's are below the bar."""
    start = bench.source_checkpoint("spot", SECTIONS[0], 0)
    net = build_model(start.model, start.model_settings, seed=0)
    genes = gene_tensors(net)
    freeze_all_but_genes(net)
    insert_adapters(net, TransferConfig().lora)
    sizes = count_parameters(net, genes)
    share = sizes.adapters / sizes.backbone
    print(
        f"\nLoRA trains {sizes.adapters:,} parameters beside a frozen backbone of "
        f"{sizes.backbone:,} ({share:.1%}, bar below 10 %); what belongs to genes, "
        f"{sizes.genes:,}, is trained in every arm."
    )
    return share < MOST_TRAINED


BENCH: Bench | None = None


def start_worker(study: Path, out: Path) -> None:
    global BENCH
    torch.set_num_threads(1)
    BENCH = Bench(study, out)


def work(job: Job) -> str:
    assert BENCH is not None
    record = BENCH.run(job)
    return f"{job}: {record['seconds']:.0f} s"


def carry_out(jobs: Sequence[Job], study: Path, out: Path, n_workers: int) -> None:
    """Run jobs in processes of their own; sources first, so that none is made twice."""
    seen: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        if job.arm != "baselines" and job.arm != "scratch":
            source = Job(job.source, job.test, 0, "source", job.seed)
            seen.setdefault((job.source, job.test, job.seed), source)
    context = get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, start_worker, (study, out)) as pool:
        for stage in (list(seen.values()), [job for job in jobs if job not in seen.values()]):
            for number, said in enumerate(pool.map(work, stage), start=1):
                print(f"{number} of {len(stage)}: {said}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="prepared by her2st.py")
    parser.add_argument("--out", type=Path, required=True, help="what is finished is kept here")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    carry_out(search_jobs(), options.study, options.out, options.workers)
    bench = Bench(options.study, options.out)
    rates = find_rates(bench.run)
    jobs = [
        job
        for source in ("spot", "bulk")
        for test in SECTIONS
        for n_regions in SIZES
        for job in jobs_of(source, test, n_regions, rates)
    ]
    carry_out(jobs, options.study, options.out, options.workers)
    short = [
        line for kind in ("spot", "bulk") for line in print_table(bench, kind, rates, bench.run)
    ]
    if not print_parameters(bench):
        short.append("LoRA trains too much")
    print(f"\n{time.monotonic() - started:.0f} s in this call.")
    print("PASS" if not short else "FALLS SHORT: " + "; ".join(short))
    return 0 if not short else 1


if __name__ == "__main__":
    raise SystemExit(main())
