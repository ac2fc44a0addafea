"""From toy slides to their C-index through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.app.conftest import SMALL_FIT, TOY_PARTS, check, row_of, spot_table, write_manifest

from histoscribe.app.cli import main
from histoscribe.app.prepare import load_slide
from histoscribe.app.study import open_study
from histoscribe.app.survival_run import describe_patients, load_patients
from histoscribe.data.toy import toy_world
from histoscribe.predict import predict_regions, represent_samples
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.cox_store import read_cox

pytest.importorskip("lifelines", reason="no lifelines: the extra 'survival'")

N_PATIENTS = 11
SIDE_PX = 821
"""Of the piece of one toy slide that each section is; with a few spots."""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Eleven patients with a section each, one of them twice; read only."""
    folder = tmp_path_factory.mktemp("survival")
    world, rows = toy_world(5), []
    spots = spot_table(world)
    for number in range(N_PATIENTS + 1):
        sample, corner = f"s{number}", np.array([97, 61]) * number
        x, y = corner
        crop = world.slide.pixels[y : y + SIDE_PX, x : x + SIDE_PX]
        Image.fromarray(crop).save(folder / f"{sample}.png")
        xy = spots.obsm["spatial"] - corner
        table = spots[((xy > 20) & (xy < SIDE_PX - 20)).all(axis=1)].copy()
        table.obsm["spatial"] = table.obsm["spatial"] - corner
        table.write_h5ad(folder / f"{sample}.h5ad")
        rows.append(row_of(sample, f"p{number % N_PATIENTS}"))
    write_manifest(folder / "manifest.csv", rows)
    home = folder / "study"
    assert main(["ingest", str(folder / "manifest.csv"), str(home), "--json"]) == 0
    assert main(["prepare", str(home), *TOY_PARTS, "--json"]) == 0
    quick = ["--set", "fit.n_folds=2", "--set", "fit.max_epochs=1"]
    assert main(["fit", str(home), "--test", "s3", *SMALL_FIT, *quick, "--json"]) == 0
    return home


@pytest.fixture
def clinical(tmp_path) -> Path:
    lines = ["patient,OS,OS.time,age"]
    lines += [f"p{i},{int(i % 3 > 0)},{90 + 37 * (i * 7 % 11)},{50 + i}" for i in range(N_PATIENTS)]
    path = tmp_path / "clinical.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_patients_are_described_by_the_mean_of_their_regions(study):
    opened = open_study(study)
    checkpoint = Checkpoint.load(study / "runs" / "first" / "checkpoint")
    slides = [load_slide(opened, sample) for sample in opened.samples]
    described = describe_patients(checkpoint, slides)
    assert described.patient_id == tuple(sorted(f"p{i}" for i in range(N_PATIENTS)))
    assert described.representation.patient_id == described.patient_id
    assert described.trained_on == set(described.patient_id) - {"p3"}
    both = [slide for slide in slides if slide.patient_id == "p0"]
    assert len(both) == 2
    wanted = np.nanmean(predict_regions(checkpoint, both).mean, axis=0)
    row = described.patient_id.index("p0")
    np.testing.assert_allclose(described.expression[row], wanted, rtol=1e-4, atol=1e-5)
    vectors = represent_samples(checkpoint, both).vector
    np.testing.assert_allclose(
        described.representation.values[row], np.nanmean(vectors, axis=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_the_command_scores_and_writes(study, clinical, tmp_path, call):
    symbols = panel_of(study)
    signatures = tmp_path / "sets.json"
    signatures.write_text(json.dumps({"first three": symbols[:3], "last": symbols[-1:]}))
    out = tmp_path / "out"
    words = ["survival", study, "--clinical", clinical, "--folds", 2, "--out", out, "--json"]
    answer = call(*words, "--signatures", signatures, "--covariate", "age")
    assert answer.code == 0, answer.err
    record = answer.record["survival"]
    methods = [row["method"] for row in record["rows"]]
    assert methods[1:] == ["signatures", "first three", "last", "age", "constant"]
    assert (record["n_patients"], record["n_deaths"]) == (11, 7)
    assert all(0 <= row["c_index"] <= 1 for row in record["rows"])
    assert "trained on the expression of 10 of these 11" in " ".join(answer.record["notes"])
    assert (out / "survival.html").read_text().count("Illustration") == 1
    model_id = json.loads((out / "survival.json").read_text())["model_id"]
    assert read_cox(out / "cox").names[0].startswith(f"{model_id}/")


@pytest.mark.slow
def test_slides_without_expression_make_every_patient_a_whole_sample(
    study, clinical, tmp_path, call
):
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    record = json.loads((copied / "study.json").read_text())
    for row in record["samples"]:
        if row["sample"] in ("s0", "s4"):  # s11 is of the patient of s0
            row |= {"expression": None, "platform": None}
    (copied / "study.json").write_text(json.dumps(record))
    opened = open_study(copied)
    checkpoint = Checkpoint.load(study / "runs" / "first" / "checkpoint")
    slides = load_patients(opened, opened.samples)
    assert {slide.regions.kind for slide in slides} == {"bulk"}
    described = describe_patients(checkpoint, slides)
    assert described.representation.patient_id == tuple(sorted(f"p{i}" for i in range(N_PATIENTS)))
    both = [slide for slide in slides if slide.patient_id == "p0"]
    row = described.patient_id.index("p0")
    wanted = predict_regions(checkpoint, both).mean[0]
    np.testing.assert_allclose(described.expression[row], wanted, rtol=1e-4, atol=1e-5)
    out = tmp_path / "out"
    words = ["survival", copied, "--clinical", clinical, "--folds", 2, "--out", out, "--json"]
    answer = call(*words)
    assert answer.code == 0, answer.err
    assert "each patient is described as one whole sample" in " ".join(answer.record["notes"])
    assert "predicts whole samples" in " ".join(answer.record["notes"])


@pytest.mark.slow
def test_wrong_requests_are_refused_in_one_sentence(study, clinical, call):
    words = ["survival", study, "--clinical"]
    check(call(*words, clinical, "--folds", 12), 2, ["11 patients cannot fill 12 folds"])
    check(call(*words, clinical, "--time-column", "OS.time"), 2, ["give both"])
    check(call(*words, clinical, "--time-unit", "weeks"), 2, ["weeks", "months"])
    check(call(*words, clinical, "--covariate", "stage"), 3, ["no column stage"])
    check(call(*words, clinical.with_name("none.csv")), 3, ["no such file"])
    check(call(*words, clinical, "--run", "second"), 3, ["no run 'second'"])
    clinical.write_text(clinical.read_text().replace("\np", "\nTCGA-p"))
    check(call(*words, clinical, "--folds", 2), 4, ["no patient is both in the study"])


def panel_of(study: Path) -> list[str]:
    return list(Checkpoint.load(study / "runs" / "first" / "checkpoint").panel.symbols)
