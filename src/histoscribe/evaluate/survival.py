"""Survival from what is known of patients: a Cox head in folds of patients, scored with care.

Each fold is foretold by a head that was fitted on the others; whatever else is fitted (penalty,
standardisation, z-scores of genes, the cut between high and low risk) sees these alone, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.evaluate.concordance import (
    c_interval,
    concordance,
    concordance_draws,
    draw_patients,
)
from histoscribe.evaluate.covariates import Covariates, PatientFeatures
from histoscribe.evaluate.kaplan_meier import logrank_p
from histoscribe.evaluate.survival_table import (
    OutOfFold,
    SurvivalGain,
    SurvivalRow,
    SurvivalTable,
)
from histoscribe.readers.follow_up import FollowUp
from histoscribe.train.cox import CoxConfig, CoxHead, deal_patients, fit_cox, is_varying

CONSTANT = "constant"
"""The baseline that knows nothing: the same risk for all, whose C-index is 0.5.

A random number instead would add its own chance to every gain.
"""


@dataclass(frozen=True)
class SurvivalConfig:
    """How survival is scored.

    Attributes:
        n_folds: Folds of patients, each with its share of deaths.
        seed: What deals the patients to them.
        cox: How each head is fitted, its inner folds included.
        bootstrap: How intervals are drawn.
    """

    n_folds: int = 5
    seed: int = 0
    cox: CoxConfig = field(default_factory=CoxConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        if self.n_folds < 2 or self.seed < 0:
            raise ConfigError(
                f"n_folds = {self.n_folds}, seed = {self.seed}; give two folds or more, and a "
                "seed of 0 or more"
            )


def score_survival(
    follow_up: FollowUp,
    methods: Mapping[str, Covariates],
    baselines: Mapping[str, Covariates] | None = None,
    config: SurvivalConfig | None = None,
) -> SurvivalTable:
    """Score methods and baselines on the same patients and folds.

    The interval is that of a bootstrap over the patients with the fits as they are: it does not
    hold what other folds or training patients would give.

    Args:
        follow_up: The patients, as `share_patients` gives them.
        methods: What is of interest.
        baselines: What it is compared with, e.g. age and stage; a constant joins them.
        config: Folds, penalties, draws.

    Raises:
        MismatchError: If a method's patients are not those of the follow-up, in their order.
        DataError: If there are too few deaths, or nothing varies over a fold's training patients.
        ConfigError: If there are more folds than patients.
        MissingExtra: If lifelines is not installed.
    """
    config = config or SurvivalConfig()
    if not methods:
        raise MismatchError("no method of survival to score; give at least one")
    known = dict(baselines or {})
    if both := sorted(set(methods) & {*known, CONSTANT}):
        raise MismatchError(f"{both[0]} is both a method and a baseline; rename one")
    fold = deal_patients(follow_up.event, config.n_folds, config.seed)
    answers = {}
    for name, covariates in {**methods, **known}.items():
        _check_patients(name, follow_up, covariates)
        answers[name] = foretell(follow_up, covariates, fold, config.cox)
    answers[CONSTANT] = _say_nothing(len(follow_up))
    weights = draw_patients(len(follow_up), config.bootstrap)
    rows, draws = [], {}
    for name, answer in answers.items():
        value = concordance(follow_up, answer.risk, fold)
        draws[name] = concordance_draws(follow_up, answer.risk, fold, weights)
        c_index = c_interval(value, draws[name], config.bootstrap)
        p = logrank_p(follow_up, answer.is_high)
        rows.append(SurvivalRow(name, name not in methods, c_index, p, answer))
    return SurvivalTable(
        rows=tuple(rows),
        gains=tuple(_gains(rows, draws, config.bootstrap)),
        follow_up=follow_up,
        fold=fold,
        protocol=_protocol(config),
        seed=config.seed,
        n_draws=config.bootstrap.n_draws,
    )


def foretell(
    follow_up: FollowUp,
    covariates: Covariates,
    fold: Int64[np.ndarray, " patient"],
    config: CoxConfig,
) -> OutOfFold:
    """The risk of each patient by a head fitted on the other folds.

    Raises:
        DataError: If nothing varies over the training patients of a fold, or nobody died there.
    """
    risk = np.empty(len(follow_up))
    is_high = np.empty(len(follow_up), dtype=bool)
    penalties, n_constant = [], []
    for left_out in np.unique(fold):
        is_training = np.asarray(fold != left_out)
        head, x = fit_head(follow_up, covariates, is_training, config)
        answer = head.risk(x)
        risk[~is_training] = answer[~is_training]
        is_high[~is_training] = answer[~is_training] > np.median(answer[is_training])
        penalties.append(head.penalty)
        n_constant.append(len(covariates.names) - len(head.names))
    return OutOfFold(risk, is_high, tuple(penalties), len(covariates.names), tuple(n_constant))


def fit_head(
    follow_up: FollowUp,
    covariates: Covariates,
    is_training: Bool[np.ndarray, " patient"],
    config: CoxConfig,
) -> tuple[CoxHead, Float64[np.ndarray, "patient kept"]]:
    """A head fitted on training patients, and the features of all patients it wants.

    Features that are constant over the training patients are left out.

    Raises:
        DataError: If none varies, or nobody died.
    """
    x = covariates.seen_from(is_training)
    varies = is_varying(x[is_training])
    if not varies.any():
        raise DataError(
            f"none of {len(varies)} features ({', '.join(covariates.names[:3])}, ...) varies over "
            f"{int(is_training.sum())} training patients; they cannot tell who dies"
        )
    names = [name for name, is_kept in zip(covariates.names, varies, strict=True) if is_kept]
    x = x[:, varies]
    head = fit_cox(
        x[is_training],
        follow_up.time_days[is_training],
        follow_up.event[is_training],
        names,
        config,
    )
    return head, x


def share_patients(
    follow_up: FollowUp, covariates: Sequence[Covariates]
) -> tuple[FollowUp, list[Covariates]]:
    """The patients that all know of, in order of their names.

    Raises:
        MismatchError: If there are none.
    """
    shared = set(follow_up.patient_id).intersection(*(part.patient_id for part in covariates))
    if not shared:
        firsts = [follow_up.patient_id[0], *(part.patient_id[0] for part in covariates)]
        raise MismatchError(
            f"no patient is both in the follow-up and in the data ({', '.join(firsts)}, ...); "
            "call patients the same in both"
        )
    names = sorted(shared)

    def rows_in(patients: Sequence[str]) -> Int64[np.ndarray, " row"]:
        row_of = {patient: row for row, patient in enumerate(patients)}
        return np.array([row_of[name] for name in names], dtype=np.int64)

    taken = [part.take(rows_in(part.patient_id)) for part in covariates]
    return follow_up.take(rows_in(follow_up.patient_id)), taken


def clinical_covariates(follow_up: FollowUp) -> PatientFeatures:
    """The further columns of the clinical table, gaps to be filled."""
    return PatientFeatures(
        follow_up.patient_id, follow_up.covariate_names, follow_up.covariates, is_filled=True
    )


def _say_nothing(n_patients: int) -> OutOfFold:
    return OutOfFold(np.zeros(n_patients), np.zeros(n_patients, dtype=bool), (), 0, ())


def _gains(
    rows: Sequence[SurvivalRow],
    draws: Mapping[str, Float64[np.ndarray, " draw"]],
    config: BootstrapConfig,
) -> list[SurvivalGain]:
    return [
        SurvivalGain(
            row.method,
            other.method,
            c_interval(
                row.c_index.value - other.c_index.value,
                draws[row.method] - draws[other.method],
                config,
            ),
        )
        for row in rows
        for other in rows
        if other.is_baseline and not row.is_baseline
    ]


def _check_patients(name: str, follow_up: FollowUp, covariates: Covariates) -> None:
    if covariates.patient_id != follow_up.patient_id:
        raise MismatchError(
            f"{name} has {len(covariates.patient_id)} patients and the follow-up "
            f"{len(follow_up)}, or in another order; bring them together with share_patients"
        )


def _protocol(config: SurvivalConfig) -> str:
    return (
        f"{config.n_folds} folds of patients, deaths dealt evenly; each fold foretold by a Cox "
        "model fitted on the others, its penalty chosen there. C-index over the pairs within a "
        f"fold; {config.bootstrap.level:.0%} interval by bootstrap over patients. High risk: above "
        "the median of the training patients."
    )
