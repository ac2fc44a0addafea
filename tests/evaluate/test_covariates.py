import numpy as np
import pytest

from histoscribe.data.genes import GenePanel
from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.covariates import PatientFeatures, score_signatures
from histoscribe.readers.signatures import Signature

PANEL = GenePanel(
    ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004"),
    ("STAT1", "IDO1", "GZMA", "IDO1"),
    "ensembl",
)
PATIENTS = tuple("abcdefg")


def expression() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32) + 3


def test_a_signature_is_the_mean_of_z_scores_of_its_genes():
    y = expression()
    signatures = (
        Signature("by symbol", ("IDO1", "STAT1", "XYZ")),
        Signature("by id", ("ENSG00000000003",)),
        Signature("elsewhere", ("MKI67",)),
    )
    scores, found = score_signatures(PATIENTS, PANEL, y, signatures)
    assert found == {"by symbol": 3, "by id": 1, "elsewhere": 0}  # IDO1 has two ids here
    assert scores.names == ("by symbol", "by id")
    train = np.array([True, True, False, True, True, False, True])
    z = (y - y[train].mean(0)) / y[train].std(0)
    wanted = np.stack([z[:, [0, 1, 3]].mean(1), z[:, 2]], axis=1)
    np.testing.assert_allclose(scores.seen_from(train), wanted, rtol=1e-5)


def test_what_is_fitted_does_not_see_the_patients_left_out():
    y, train = expression(), np.arange(7) < 5
    signatures = (Signature("s", ("STAT1", "GZMA")),)
    scores, _ = score_signatures(PATIENTS, PANEL, y, signatures)
    poisoned = np.where(train[:, None], y, 1e6).astype(np.float32)
    others, _ = score_signatures(PATIENTS, PANEL, poisoned, signatures)
    np.testing.assert_array_equal(scores.seen_from(train)[train], others.seen_from(train)[train])
    values = np.where(np.arange(7)[:, None] == 1, np.nan, y.astype(float))
    filled = PatientFeatures(PATIENTS, ("a", "b", "c", "d"), values, is_filled=True)
    np.testing.assert_allclose(
        filled.seen_from(train)[1], values[[0, 2, 3, 4]].mean(axis=0), rtol=1e-12
    )


def test_a_gene_constant_over_the_training_patients_adds_nothing():
    y, train = expression(), np.arange(7) < 5
    y[:5, 2] = 0.1
    scores, _ = score_signatures(PATIENTS, PANEL, y, (Signature("s", ("GZMA",)),))
    np.testing.assert_array_equal(scores.seen_from(train), 0)


def test_patients_are_taken_in_the_order_asked_for():
    values = np.arange(14.0).reshape(7, 2)
    features = PatientFeatures(PATIENTS, ("x", "y"), values)
    taken = features.take(np.array([4, 0]))
    assert taken.patient_id == ("e", "a")
    np.testing.assert_array_equal(taken.values, values[[4, 0]])
    scores, _ = score_signatures(PATIENTS, PANEL, expression(), (Signature("s", ("IDO1",)),))
    taken_scores = scores.take(np.array([6, 2]))
    assert taken_scores.patient_id == ("g", "c")
    np.testing.assert_array_equal(taken_scores.expression, expression()[[6, 2]])


def test_wrong_input_is_refused():
    values = np.ones((7, 2))
    values[3, 1] = np.nan
    with pytest.raises(DataError, match="y of patient d is missing"):
        PatientFeatures(PATIENTS, ("x", "y"), values)
    PatientFeatures(PATIENTS, ("x", "y"), values, is_filled=True)
    with pytest.raises(DataError, match="repeats 'a'"):
        PatientFeatures(("a",) * 7, ("x", "y"), np.ones((7, 2)))
    with pytest.raises(DataError, match="7 entries; wanted 6"):
        PatientFeatures(PATIENTS[:6], ("x", "y"), np.ones((7, 2)))
    unknown = PatientFeatures(PATIENTS, ("x",), np.full((7, 1), np.nan), is_filled=True)
    with pytest.raises(DataError, match="x is known of no training patient"):
        unknown.seen_from(np.arange(7) < 5)
    with pytest.raises(MismatchError, match="no gene of 1 signatures"):
        score_signatures(PATIENTS, PANEL, expression(), (Signature("s", ("MKI67",)),))
    y = expression()
    y[2, 3] = np.inf
    with pytest.raises(DataError, match="ENSG00000000004 of patient c"):
        score_signatures(PATIENTS, PANEL, y, (Signature("s", ("IDO1",)),))
