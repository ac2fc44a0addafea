"""A preparation that was stopped, or killed, goes on to the same bytes; so do other budgets."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from histoscribe.data.atomic import hash_folder
from histoscribe.data.cells import Cells
from histoscribe.data.store import write_cells, write_tiles
from histoscribe.data.tiles import Tiles
from histoscribe.data.toy import ToySlide, toy_world
from histoscribe.errors import DataError
from histoscribe.preprocess import run
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.line import budget, field_stages
from histoscribe.preprocess.line.budget import Budget
from histoscribe.preprocess.line.parts import PartFolder
from histoscribe.preprocess.line.status import read_status
from histoscribe.preprocess.preparation import Preparation
from histoscribe.preprocess.run import Outcome, PrepareConfig, carry_out, plan_preparation

MAPS = PrepareConfig(segmenter="toy", encoder="toy", field_px=384, calibration_pixels=999)
TILES = dataclasses.replace(MAPS, view=ViewConfig(way="tile", tile_um=16.0, input_px=32))


class StopError(BaseException):
    """A kill: nothing in the program may catch it."""


@pytest.fixture(autouse=True)
def _small_parts_and_no_threads_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(budget, "MAX_FIELDS_OF_PART", 7)
    yield
    stages = {"reading", "segmenting", "finding", "describing"}
    assert not stages & {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def slide() -> ToySlide:
    """A quarter of the toy slide: 20 fields of 384 px."""
    whole = toy_world(11).slide
    return ToySlide("toy-a", np.ascontiguousarray(whole.pixels[:1201, :1503]))


@pytest.fixture(scope="module", params=["maps", "tiles"])
def preparation(request: pytest.FixtureRequest, slide: ToySlide) -> Preparation:
    """Nuclei described by pooled maps, or by a tile each (whose crops are tallied)."""
    return plan_preparation(slide, None, {"maps": MAPS, "tiles": TILES}[request.param])


def hash_stored(made: tuple[Cells, Tiles], folder: Path) -> str:
    write_cells(made[0], folder)
    write_tiles(made[1], folder)
    return hash_folder(folder)


@pytest.fixture(scope="module")
def wanted(preparation: Preparation, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bytes of an uninterrupted run that keeps nothing on disk meanwhile."""
    return hash_stored(carry_out(preparation), tmp_path_factory.mktemp("wanted"))


def stop_after(monkeypatch: pytest.MonkeyPatch, n_parts: int, before: bool) -> None:
    """Make the writing of a part end the program, before or after it is done."""
    add, count = PartFolder.add, iter(range(n_parts + 1))

    def stopping(self: PartFolder, part: object) -> None:
        is_last = next(count) == n_parts
        if is_last and before:
            raise StopError
        add(self, part)  # type: ignore[arg-type]
        if is_last:
            raise StopError

    monkeypatch.setattr(PartFolder, "add", stopping)


def telling(seen: list[int]) -> Callable[[int, int, int], None]:
    """Note how many fields were done at each step."""
    return lambda n_done, _n_fields, _n_nuclei: seen.append(n_done)


@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_is_stopped_at_every_part_gives_the_same_bytes(
    preparation: Preparation, wanted: str, tmp_path: Path, before: bool
) -> None:
    space, n_stops = tmp_path / "space", 0
    while True:
        n_kept = len(PartFolder(space, preparation.provenance.key, len(preparation.plan)))
        assert n_kept == n_stops
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 1 if before else 0, before)
            try:
                made = carry_out(preparation, workspace=space, on_progress=telling(seen))
            except StopError:
                n_stops += 1
            else:
                break
        if n_kept:
            assert seen[0] == min(7 * n_kept, len(preparation.plan))
    assert n_stops >= 2
    assert hash_stored(made, tmp_path / "stores") == wanted


def test_budgets_and_threads_do_not_change_the_result(
    preparation: Preparation, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do batches of several fields, as a GPU is shown them, nor where parts end."""
    outcomes: list[Outcome] = []
    for number, (gb, threads, length) in enumerate([(1.5, 1, 16), (64.0, 5, 3)]):
        monkeypatch.setattr(budget, "MAX_FIELDS_OF_PART", length)
        made = carry_out(
            preparation,
            workspace=tmp_path / f"space-{number}",
            budget=Budget(gb, threads),
            on_end=outcomes.append,
        )
        assert hash_stored(made, tmp_path / f"stores-{number}") == wanted
    assert [one.times.n_workers["finding"] for one in outcomes] == [1, 5]
    assert all(one.times.busy_s["writing"] > 0 for one in outcomes)
    batched = run.shares_of(preparation, Budget())._replace(fields_at_once=3, fields_of_part=6)
    monkeypatch.setattr(run, "shares_of", lambda *_: batched)
    made = carry_out(preparation, workspace=tmp_path / "space-0")  # all is there
    assert hash_stored(made, tmp_path / "again") == wanted
    made = carry_out(preparation, workspace=tmp_path / "space-2")
    assert hash_stored(made, tmp_path / "batched") == wanted


def test_a_run_takes_up_parts_of_another_budget(
    preparation: Preparation, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1, before=False)
        with pytest.raises(StopError):
            carry_out(preparation, workspace=tmp_path / "space")
    monkeypatch.setattr(budget, "MAX_FIELDS_OF_PART", 4)
    made = carry_out(preparation, workspace=tmp_path / "space")
    assert hash_stored(made, tmp_path / "stores") == wanted


def test_stores_are_written_from_files_and_stay_when_the_workspace_is_gone(
    slide: ToySlide, tmp_path: Path
) -> None:
    preparation = plan_preparation(slide, None, MAPS)
    space = tmp_path / "space"
    cells, tiles = carry_out(preparation, workspace=space)
    assert {path.name for path in space.glob("*.raw")} == {
        "features.raw",
        "square_features.raw",
        "vertex_um.raw",
    }
    told = read_status(space)
    assert told["key"] == preparation.provenance.key
    assert told["n_fields"] == len(preparation.plan)
    assert told["joining"] == told["writing"] == told["reading"] == []
    again, _ = carry_out(preparation, workspace=space)  # the files are made anew
    run.discard(space)
    run.discard(space)
    assert not space.exists()
    np.testing.assert_array_equal(cells.features, again.features)
    assert hash_stored((cells, tiles), tmp_path / "one") == hash_stored(
        (again, tiles), tmp_path / "two"
    )


def test_a_workspace_of_another_request_is_begun_anew(slide: ToySlide, tmp_path: Path) -> None:
    carry_out(plan_preparation(slide, None, MAPS), workspace=tmp_path / "space")
    other = plan_preparation(slide, None, dataclasses.replace(MAPS, tile_side_um=16.0))
    wanted = hash_stored(carry_out(other), tmp_path / "wanted")
    made = carry_out(other, workspace=tmp_path / "space")
    assert hash_stored(made, tmp_path / "stores") == wanted


@dataclasses.dataclass(frozen=True)
class SlideWithAHole(ToySlide):
    """Field 3 cannot be read."""

    def read(self, box: object, mpp: float) -> np.ndarray:
        if getattr(box, "width_um", 0) == 192 and getattr(box, "x_um", 0) == 464.0:
            raise DataError("a tile of the file is truncated")
        return super().read(box, mpp)  # type: ignore[arg-type]


def test_unreadable_fields_are_counted_after_a_stop_too(
    slide: ToySlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One column of fields is lost before the stop and after it; only together they are many."""
    preparation = plan_preparation(SlideWithAHole("toy-a", slide.pixels), None, MAPS)
    n_fields = len(preparation.plan)
    lost = [i for i in range(n_fields) if preparation.plan.box(i).x_um == 464.0]
    assert lost[0] < 7 <= lost[-1]
    monkeypatch.setattr(run, "MAX_UNREADABLE", (len(lost) - 0.5) / n_fields)
    with monkeypatch.context() as patch:
        stop_after(patch, 0, before=False)
        with pytest.raises(StopError):
            carry_out(preparation, workspace=tmp_path / "space")
    with pytest.raises(DataError, match=f"{len(lost)} of {n_fields} fields could not be read"):
        carry_out(preparation, workspace=tmp_path / "space")
    monkeypatch.setattr(run, "MAX_UNREADABLE", len(lost) / n_fields)
    wanted = hash_stored(carry_out(preparation), tmp_path / "wanted")
    made = carry_out(preparation, workspace=tmp_path / "space")
    assert hash_stored(made, tmp_path / "stores") == wanted


def test_crops_that_repeat_are_counted_after_a_stop_too(
    slide: ToySlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right half of the slide shows the left half once more."""
    half = slide.pixels[:, :704]  # fields own 160 µm, tiles of the grid measure 32
    preparation = plan_preparation(
        ToySlide("twice", np.concatenate([half, half], axis=1)), None, TILES
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 1, before=False)
        with pytest.raises(StopError):
            carry_out(preparation, workspace=tmp_path / "space")
    with pytest.raises(DataError, match=r"crops of nuclei: .* are the same as another"):
        carry_out(preparation, workspace=tmp_path / "space")


@pytest.mark.parametrize("stage", ["read", "run_network", "find", "describe"])
def test_an_error_in_any_stage_is_raised_and_the_next_run_goes_on(
    slide: ToySlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    plan = plan_preparation(slide, None, MAPS)
    work, count = getattr(field_stages, stage), iter(range(100))

    def fail(*arguments: object) -> object:
        if next(count) == 15:
            raise RuntimeError(f"{stage} broke")
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(field_stages, stage, fail)
        with pytest.raises(RuntimeError, match=f"{stage} broke"):
            carry_out(plan, workspace=tmp_path / "space")
    wanted = hash_stored(carry_out(plan), tmp_path / "wanted")
    made = carry_out(plan, workspace=tmp_path / "space")
    assert hash_stored(made, tmp_path / "stores") == wanted


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from histoscribe.data.toy import ToySlide, toy_world
from histoscribe.preprocess import run
from histoscribe.preprocess.line import budget
from histoscribe.preprocess.line.parts import PartFolder
from histoscribe.preprocess.preparation import PrepareConfig, plan_preparation

class SlowSlide(ToySlide):
    def read(self, box, mpp):
        time.sleep(0.02)
        return super().read(box, mpp)

budget.MAX_FIELDS_OF_PART = 2
pixels = np.ascontiguousarray(toy_world(11).slide.pixels[:1201, :1503])
config = PrepareConfig(segmenter="toy", encoder="toy", field_px=384, calibration_pixels=999)
plan = plan_preparation(SlowSlide("toy-a", pixels), None, config)
run.carry_out(plan, workspace=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_process_is_taken_up_to_the_same_bytes(slide: ToySlide, tmp_path: Path) -> None:
    """Killed (-9) as soon as so many parts are there, whatever it is doing then."""
    preparation = plan_preparation(slide, None, MAPS)
    wanted = hash_stored(carry_out(preparation), tmp_path / "wanted")
    space, rng, n_seen = tmp_path / "space", np.random.default_rng(0), []
    for n_parts in (0, 1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(space)])
        deadline = time.monotonic() + 120
        while (
            len(list(space.glob("part-*"))) < n_parts
            or read_status(space).get("pid") != process.pid
        ):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        told = read_status(space)
        assert told["pid"] == process.pid
        assert told["key"] == preparation.provenance.key
        n_seen.append(len(PartFolder(space, told["key"], len(preparation.plan))))
    assert n_seen == sorted(n_seen)
    assert n_seen[-1] >= 6
    made = carry_out(preparation, workspace=space)
    assert hash_stored(made, tmp_path / "stores") == wanted
