"""The Cox head on measured expression of TCGA LUAD: a check of the head, NOT of images.

    pip download --no-deps --no-binary :all: openomics==0.8.8     (MIT; unpack the sdist)
    python benchmarks/survival_luad.py --openomics openomics-0.8.8

No slide is read and nothing is predicted: what is scored is RNA-seq of the tumours (RSEM,
normalised, primary tumours only), as principal components and as published signatures, beside age
and stage. Folds are of patients; genes, components, z-scores, penalties and cuts are those of the
training patients. The same folds and features go through lifelines' CoxPHFitter, whose ties are
Efron's; the difference is printed, too.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import lifelines
import numpy as np
import pandas as pd

from histoscribe.data.genes import GenePanel
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.evaluate.concordance import concordance
from histoscribe.evaluate.covariates import Covariates, score_signatures
from histoscribe.evaluate.survival import (
    SurvivalConfig,
    clinical_covariates,
    fit_head,
    score_survival,
    share_patients,
)
from histoscribe.readers.clinical import ClinicalConfig, read_clinical
from histoscribe.readers.follow_up import FollowUp
from histoscribe.readers.signatures import read_signatures
from histoscribe.train.cox import CoxConfig, deal_patients

TABLES = Path("tests") / "data" / "TCGA_LUAD"
EXPRESSION = "LUAD__geneExp.txt"
CLINICAL = "nationwidechildrens.org_clinical_patient_luad.txt"
AGE, STAGE = "age_at_initial_pathologic_diagnosis", "ajcc_pathologic_tumor_stage"
PRIMARY = "01"
N_VARIABLE, N_COMPONENTS = 2000, 30


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of the genes that vary most, both over the training patients."""

    patient_id: tuple[str, ...]
    names: tuple[str, ...]
    expression: np.ndarray

    def take(self, rows):
        """These patients, in this order."""
        patients = tuple(self.patient_id[row] for row in rows)
        return replace(self, patient_id=patients, expression=self.expression[rows])

    def seen_from(self, is_training):
        """The components of all patients; genes and axes of the training ones."""
        variance = self.expression[is_training].var(axis=0)
        y = self.expression[:, np.argsort(-variance, kind="stable")[:N_VARIABLE]]
        mean, deviation = y[is_training].mean(axis=0), y[is_training].std(axis=0)
        z = (y - mean) / deviation
        axes = np.linalg.svd(z[is_training], full_matrices=False)[2][: len(self.names)]
        return z @ axes.T


def read_expression(path: Path) -> tuple[tuple[str, ...], GenePanel, np.ndarray]:
    """Patients, genes, and log(1 + RSEM) of primary tumours; the mean of a patient's aliquots."""
    table = pd.read_csv(path, sep="\t", index_col=[0, 1])
    table = table[table.index.get_level_values(0) != "?"].groupby(level=0).sum()
    table = table[[barcode for barcode in table.columns if barcode[13:15] == PRIMARY]]
    table = np.log1p(table).T.groupby(lambda barcode: barcode[:12]).mean()
    genes = tuple(map(str, table.columns))
    return tuple(table.index), GenePanel(genes, genes, "symbol"), table.to_numpy(np.float64)


def by_lifelines(
    follow_up: FollowUp, covariates: Covariates, fold: np.ndarray, penalties: tuple[float, ...]
) -> np.ndarray:
    """Risks left out by lifelines, on the same features, folds and penalties."""
    risk = np.empty(len(follow_up))
    for left_out, penalty in enumerate(penalties):
        train = np.asarray(fold != left_out)
        x = fit_head(follow_up, covariates, train, CoxConfig(penalties=(penalty,)))[1]
        frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
        full = frame.assign(time=follow_up.time_days, event=follow_up.event)
        n = train.sum()
        fitter = lifelines.CoxPHFitter(penalizer=penalty * (n - 1) / n, l1_ratio=0.0)
        fitter.fit(full[train], "time", "event", fit_options={"precision": 1e-10})
        risk[~train] = fitter.predict_log_partial_hazard(frame[~train])
    return risk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--openomics", type=Path, required=True, help="the unpacked sdist")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5, help="ways to deal the folds")
    options = parser.parse_args()
    home = options.openomics / TABLES
    for name in (EXPRESSION, CLINICAL):
        if not (home / name).is_file():
            raise SystemExit(
                f"{home / name} is missing; give the unpacked sdist of openomics 0.8.8"
            )
    follow_up, report = read_clinical(home / CLINICAL, ClinicalConfig(covariates=(AGE, STAGE)))
    print(
        f"clinical: {report.n_patients} of {report.n_rows} patients with follow-up, "
        f"{report.n_deaths} deaths; missing: {dict(report.missing)}"
    )
    patients, genes, expression = read_expression(home / EXPRESSION)
    signatures = read_signatures(Path(__file__).with_name("luad_signatures.gmt"))
    scores, found = score_signatures(patients, genes, expression, signatures)
    print("genes found:", ", ".join(f"{name} {n}" for name, n in found.items()))
    names = tuple(f"component {i}" for i in range(N_COMPONENTS))
    given = {
        f"PCA of {N_VARIABLE} genes, {N_COMPONENTS} components": Components(
            patients, names, expression
        ),
        "signatures together": scores,
    }
    given |= {name: scores.alone(i) for i, name in enumerate(scores.names)}
    follow_up, parts = share_patients(follow_up, list(given.values()))
    methods = dict(zip(given, parts, strict=True))
    clinical = {"age + stage": clinical_covariates(follow_up)}
    config = SurvivalConfig(n_folds=options.folds, bootstrap=BootstrapConfig(n_draws=2000))
    table = score_survival(follow_up, methods, clinical, config)
    print("\nMEASURED EXPRESSION, no images\n\n" + table.to_text())
    all_methods = {**methods, **clinical}
    fold = deal_patients(follow_up.event, options.folds, config.seed)
    print("against lifelines (Efron's ties), same folds, features and penalties:")
    for name, covariates in all_methods.items():
        answer = table.row(name).answer
        theirs = by_lifelines(follow_up, covariates, fold, answer.penalties)
        c = concordance(follow_up, theirs, fold)
        print(
            f"  {name}: C-index {c:.5f}, ours {table.row(name).c_index.value:.5f}; "
            f"risks differ by at most {np.abs(theirs - answer.risk).max():.1e}"
        )
    print(f"\nC-index over {options.seeds} ways to deal the folds, mean (least to most):")
    again = [
        score_survival(follow_up, methods, clinical, replace(config, seed=seed))
        for seed in range(options.seeds)
    ]
    for name in all_methods:
        values = [one.row(name).c_index.value for one in again]
        print(f"  {name}: {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
