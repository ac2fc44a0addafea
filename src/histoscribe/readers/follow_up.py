"""FollowUp: how long each patient was followed, and whether death was seen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from histoscribe.data.checks import check_array, check_distinct, check_length, freeze
from histoscribe.errors import DataError


@dataclass(frozen=True, eq=False)
class FollowUp:
    """Follow-up of patients, and what else is known of them.

    Attributes:
        patient_id: Each patient once.
        time_days: Days until death, or until the last contact.
        event: Whether it ended by death; False is censoring.
        covariate_names: Further columns that were asked for, e.g. age.
        covariates: Their values; NaN where they are not known.
    """

    patient_id: tuple[str, ...]
    time_days: Float64[np.ndarray, " patient"]
    event: Bool[np.ndarray, " patient"]
    covariate_names: tuple[str, ...]
    covariates: Float64[np.ndarray, "patient covariate"]

    def __post_init__(self) -> None:
        n_patients = len(self.patient_id)
        if not n_patients:
            raise DataError("there is no patient with follow-up; give at least one")
        check_distinct("follow-up", self.patient_id, "row", "keep one row a patient")
        check_array("time_days", self.time_days, np.float64, (n_patients,))
        check_array("event", self.event, bool, (n_patients,))
        check_length("covariate_names", self.covariate_names, self.covariates.shape[1])
        check_array("covariates", self.covariates, np.float64, (n_patients, None))
        bad = ~(np.isfinite(self.time_days) & (self.time_days >= 0))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"the follow-up of patient {self.patient_id[row]} is {self.time_days[row]:g} days; "
                "wanted 0 or more"
            )
        freeze(self, "time_days", "event", "covariates")

    def __len__(self) -> int:
        return len(self.patient_id)

    def take(self, rows: Int[np.ndarray, " row"]) -> "FollowUp":
        """These patients, in this order."""
        return FollowUp(
            tuple(self.patient_id[row] for row in rows),
            self.time_days[rows],
            self.event[rows],
            self.covariate_names,
            self.covariates[rows],
        )
