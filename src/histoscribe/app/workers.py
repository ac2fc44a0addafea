"""Where samples are prepared: in this process, in processes of this machine, or on a cluster.

The last two are Dask workers; Dask is imported only when they are asked for.
"""

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoscribe.app.cohort import CohortConfig, Ended, Prepare, SampleTask, Workers, failed
from histoscribe.app.faults import explain
from histoscribe.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPAWN_SETTING = "distributed.nanny.pre-spawn-environ"
GROUP = "prepare_sample"
"""Every task's key begins with it: of keys that begin alike Dask learns how long one takes, and
takes a task from the worker where it queues when another has nothing to do."""
TRIM = "MALLOC_TRIM_THRESHOLD_"
"""Dask's workers give every 64 KB back to the system at once, which costs a fourth of the time here
(InstanSeg on a CPU: 15.3 + 8.6 s of user and system time against 15.3 + 3.5 s)."""


class Here:
    """This process, one sample after another."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Prepare, SampleTask]] = deque()

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Run it."""
        return function(*arguments)

    def submit(self, function: Prepare, task: SampleTask) -> None:
        """Line a task up."""
        self._waiting.append((function, task))

    def next_ended(self) -> Ended:
        """Do the next one."""
        function, task = self._waiting.popleft()
        return Ended(task, function(task))


class DaskWorkers:
    """Workers that a Dask scheduler knows; each does one sample at a time."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._running: dict[Any, SampleTask] = {}
        self._n_submitted = 0

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Run it on some worker."""
        from distributed import CancelledError, KilledWorker

        try:
            return self._client.submit(function, *arguments, pure=False).result()
        except (CancelledError, OSError) as fault:
            raise _gone(fault) from fault
        except KilledWorker as fault:
            raise MissingExtra(
                "Worker processes die while they load segmenter and encoder, most often for want "
                "of memory. Give fewer --workers, or each of them more memory."
            ) from fault

    def submit(self, function: Prepare, task: SampleTask) -> None:
        """Line a task up at the scheduler."""
        self._n_submitted += 1
        key = f"{GROUP}-{self._n_submitted}-{task.run}"
        future = self._client.submit(
            function, task, pure=False, key=key, priority=-self._n_submitted
        )
        self._running[future] = task

    def next_ended(self) -> Ended:
        """Wait for whichever task ends first.

        Raises:
            MissingExtra: The scheduler went away.
        """
        from distributed import KilledWorker, wait

        done = self._wait(wait)
        task = self._running.pop(done)
        error = done.exception()
        if error is None:
            return Ended(task, done.result())
        if isinstance(error, KilledWorker):
            return Ended(task, None)
        return Ended(task, failed(task, explain(error), 0))

    def _wait(self, wait: Callable[..., Any]) -> Any:  # noqa: ANN401 - a future of Dask's
        from distributed import CancelledError

        try:
            return next(iter(wait(list(self._running), return_when="FIRST_COMPLETED").done))
        except (CancelledError, OSError) as fault:
            raise _gone(fault) from fault


def _gone(fault: BaseException) -> MissingExtra:
    return MissingExtra(
        f"The Dask scheduler went away ({fault}). Start it and its workers again, then run the "
        "same command: what is finished is kept."
    )


@contextmanager
def open_workers(
    cohort: CohortConfig, folder: Path, say: Callable[[str], None]
) -> Iterator[Workers]:
    """Start what is asked for, and end it afterwards.

    Args:
        cohort: What is asked for.
        folder: The study, which every worker must see by the same path.
        say: Told what is waited for.

    Raises:
        ConfigError: No scheduler answers, or its workers do not fit.
        MissingExtra: Dask is not installed.
    """
    if cohort.scheduler is not None:
        with _connected(cohort.scheduler) as client:
            _check_cluster(client, folder, say)
            yield DaskWorkers(client)
    elif cohort.workers > 1:
        _check_memory(cohort, say)
        with _local_client(cohort.workers, cohort.threads_each or 1) as client:
            yield DaskWorkers(client)
    else:
        yield Here()


def _check_memory(cohort: CohortConfig, say: Callable[[str], None]) -> None:
    """Say so if all workers together may take more than this machine has."""
    wanted_gb = cohort.workers * cohort.memory_gb
    there_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if wanted_gb > there_gb:
        say(
            f"{cohort.workers} workers may take {cohort.memory_gb:g} GB each, {wanted_gb:g} GB in "
            f"all, and this machine has {there_gb:.1f} GB: give fewer --workers or less --memory."
        )


@contextmanager
def _local_client(n_workers: int, n_threads: int) -> Iterator["Client"]:
    """Processes of one task each, on this machine, reached by it alone."""
    _check_dask()
    import dask.config
    from distributed import Client, LocalCluster

    # the numeric libraries read these when they are loaded, so they are set before the spawn
    variables: dict[str, str] = {name: str(n_threads) for name in THREAD_VARIABLES}
    with (
        _environment(variables),
        dask.config.set({SPAWN_SETTING: variables}),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # Dask would pause or kill workers at its own idea of a share
            silence_logs=logging.CRITICAL,
            preload=["histoscribe.app.worker_start"],
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _connected(address: str) -> Iterator["Client"]:
    """A client of a scheduler that runs somewhere."""
    _check_dask()
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # said in our words below
            client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as fault:
        raise ConfigError(
            f"--scheduler {address}: no Dask scheduler answers there within {CONNECT_S} s. Start "
            "one with 'dask scheduler', and give the address that it prints (tcp://HOST:PORT)."
        ) from fault
    with client:
        yield client


def _check_dask() -> None:
    try:
        import distributed  # noqa: F401 - only whether it can be
    except ImportError as fault:
        raise MissingExtra(
            f"Several workers need Dask, which does not load here ({fault}). Install it with "
            "\"pip install 'dask[distributed]'\", or leave out --workers and --scheduler."
        ) from fault


def _check_cluster(client: "Client", folder: Path, say: Callable[[str], None]) -> None:
    """ConfigError unless every worker that is there runs what runs here, and sees the study.

    Workers that come later are checked as to version by the tasks themselves.
    """
    if not client.nthreads():
        say("Waiting for a worker of the cluster ...")
        client.wait_for_workers(1)
    examine = _make_examiner()
    ours = examine(str(folder))
    check_versions("the scheduler", _of_scheduler(client), ours)
    found: Any = client.run(examine, str(folder))
    for address, facts in sorted(found.items()):
        who = f"the worker {address} on {facts['host']}"
        check_versions(who, facts, ours)
        check_study(who, facts, ours, folder)
    if any(facts["trims"] for facts in found.values()):
        say(
            f"The workers are slowed down by Dask's own {TRIM}: start them with "
            f"DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON=\"{{'{TRIM}': None}}\"."
        )
    n_threads_of: Any = client.nthreads()
    for address, n_threads in sorted(n_threads_of.items()):
        if n_threads != 1:
            raise ConfigError(
                f"The worker {address} takes {n_threads} tasks at a time, and would hold as many "
                "slides in memory. Start it with --nthreads 1, and OMP_NUM_THREADS for its cores."
            )


def check_versions(who: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """ConfigError if another process runs another Python, Dask or histoscribe."""
    for name in ("python", "distributed", "histoscribe"):
        if name in theirs and theirs[name] != ours[name]:
            came = theirs[name] or "none"
            raise ConfigError(
                f"{who[0].upper()}{who[1:]} has {name} {came}, here it is {ours[name]}. Give all "
                "machines the same environment, then run the same command again."
            )


def check_study(who: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    """ConfigError if another process does not find this study at its path."""
    if theirs["study"] != ours["study"]:
        raise ConfigError(
            f"{who[0].upper()}{who[1:]} does not see the study at {folder}. Study and slides must "
            "lie on a file system that all machines share, under the same path."
        )


def _of_scheduler(client: "Client") -> dict[str, Any]:
    """Versions of the scheduler that matter to it."""
    versions: Any = client.get_versions()
    packages = versions["scheduler"]["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, "distributed": packages["distributed"]}


def _make_examiner() -> Callable[[str], dict[str, Any]]:
    """What tells what a process runs, and the study that it sees.

    It is made anew, not imported, so that Dask sends it whole to machines without histoscribe.
    """

    def examine(folder: str) -> dict[str, Any]:
        import hashlib
        import os
        import platform
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        def version_of(package: str) -> str | None:
            try:
                return version(package)
            except PackageNotFoundError:
                return None

        study = Path(folder) / "study.json"
        return {
            "trims": os.environ.get("MALLOC_TRIM_THRESHOLD_") == "65536",
            "host": platform.node(),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "distributed": version_of("distributed"),
            "histoscribe": version_of("histoscribe"),
            "study": hashlib.sha256(study.read_bytes()).hexdigest() if study.is_file() else None,
        }

    return examine


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
