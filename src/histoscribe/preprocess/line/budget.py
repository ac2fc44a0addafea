"""What a preparation may take of the machine: memory and threads. It never changes a result."""

import logging
import math
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from histoscribe.errors import ConfigError
from histoscribe.slides.tiles import CACHE_BYTES

LOG = logging.getLogger(__name__)
GB = 10**9
LEAST_GB = 1.5
FIELDS_SHARE = 0.75  # of the memory, for the program and fields in hand; the rest joins them
# Measured on fields of 512 px, in bytes per pixel of the segmenter.
READ_BYTES = 20  # its image, and what an encoder reads for itself
MAP_BYTES = 270  # what InstanSeg's network answers on a CPU
MAP_BYTES_GPU = 30  # what of it comes to the host
WORK_BYTES = 150  # while nuclei are found, or described
NETWORK_BYTES = 2000  # while InstanSeg's network runs on a CPU
PROGRAM_BYTES = 9 * GB // 10  # Python, PyTorch, tables, a network of 100 MB, at least
ENCODER_BYTES = 8 * GB // 10  # an encoder's network on a CPU, `encoders.passes.PIXELS_AT_ONCE`
GPU_PIXELS = 8 * 512**2  # of the segmenter, at once: 4 GB of its memory
DENSE_PER_MM2 = 10_000  # nuclei of lymphoid tissue
OUTLINE_BYTES = 400  # of a nucleus, with its centroid and area
MAX_FIELDS_OF_PART = 16  # what a kill may cost; and a slide of 40,000 px has 500 files of them
MAX_READERS = 4  # beyond it disks do not read faster
MAX_DEPTH = 4  # of a queue: enough to even out fields of different cost


class Load(NamedTuple):
    """What a plan of fields asks of the machine.

    Attributes:
        field_px: Side of a field.
        owned_mm2: What a field owns of the slide.
        n_features: Of a nucleus.
        has_network: Whether the segmenter is a network, whose maps go on with a field.
        on_gpu: Whether networks run on a GPU: fields go to it several at once, their maps stay
            there, and two threads have nuclei described, so that one prepares while one waits.
        resident_bytes: What the process has in memory before the first field: the program, its
            networks, an image that was decoded whole.
    """

    field_px: int
    owned_mm2: float
    n_features: int
    has_network: bool
    on_gpu: bool
    resident_bytes: int = 0


class Shares(NamedTuple):
    """How a budget is spent on fields of one kind.

    Attributes:
        fields_at_once: Fields that a network is shown together.
        n_readers: Threads that read.
        n_finders: Threads that find nuclei in what the network answered.
        n_describers: Threads that have them described.
        depth: How many fields (batches of them, before a network) may wait before each of those.
        fields_of_part: Fields whose results are kept together, a multiple of `fields_at_once`.
        mapped_bytes: Of a file's pages, how many may be in memory before they are given back.
    """

    fields_at_once: int
    n_readers: int
    n_finders: int
    n_describers: int
    depth: int
    fields_of_part: int
    mapped_bytes: int


@dataclass(frozen=True)
class Budget:
    """Memory and threads for one slide.

    Attributes:
        memory_gb: What the process should stay below, in GB of 1e9 bytes. It counts memory of the
            host, not of a GPU. Below 3 GB networks on a CPU may need more than is given, and so
            may fields beyond 1,000 px: they then go one by one.
        n_threads: Threads for reading and for finding nuclei; None for all cores that the process
            may use, in `prepare` for as many as PyTorch has (OMP_NUM_THREADS).
    """

    memory_gb: float = 4.0
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if not LEAST_GB <= self.memory_gb < math.inf:
            raise ConfigError(
                f"--memory {self.memory_gb:g}: {LEAST_GB:g} GB or more are wanted; the program "
                "alone takes about 1 GB"
            )
        if self.n_threads is not None and self.n_threads < 1:
            raise ConfigError(f"{self.n_threads} threads were asked for; give 1 or more")

    def share_out(self, load: Load) -> Shares:
        """Threads, queues and sizes: the most that fits."""
        memory, threads = self.memory_gb * GB, self.n_threads or n_cores()
        nucleus_bytes = OUTLINE_BYTES + 2 * load.n_features
        field_bytes = max(1.0, DENSE_PER_MM2 * load.owned_mm2 * nucleus_bytes)
        n_fields = max(1, min(MAX_FIELDS_OF_PART, int(memory / 64 / field_bytes)))
        batched = load.on_gpu and load.has_network
        most_at_once = max(1, GPU_PIXELS // load.field_px**2) if batched else 1
        shares = Shares(1, 1, 1, 1, 1, n_fields, int(memory / 16))
        for at_once, n_finders, depth in product(
            halved(most_at_once), halved(threads), range(MAX_DEPTH, 0, -1)
        ):
            larger = shares._replace(
                fields_at_once=at_once,
                n_readers=min(n_finders, MAX_READERS),
                n_finders=n_finders,
                n_describers=2 if load.on_gpu else 1,
                depth=depth,
                fields_of_part=-(-n_fields // at_once) * at_once,
            )
            if bytes_needed(larger, load) + CACHE_BYTES <= FIELDS_SHARE * memory:
                return larger
        if (least := bytes_needed(shares, load) + CACHE_BYTES) > memory:
            LOG.warning(
                "--memory %g: about %.1f GB are needed, %.1f of them for the program, its networks "
                "and what was read already; fields go one by one",
                self.memory_gb,
                least / GB,
                max(PROGRAM_BYTES, load.resident_bytes) / GB,
            )
        return shares


def bytes_needed(shares: Shares, load: Load) -> int:
    """Memory that the program and the fields in hand take, at most, with every queue full."""
    map_bytes = (MAP_BYTES_GPU if load.on_gpu else MAP_BYTES) if load.has_network else 0
    n_workers = shares.n_finders + shares.n_describers
    n_looked_at = shares.fields_at_once + 2 * shares.depth + n_workers
    n_read = shares.fields_at_once * (shares.n_readers + shares.depth) + n_looked_at
    per_px = READ_BYTES * n_read + map_bytes * n_looked_at + WORK_BYTES * n_workers
    per_px += NETWORK_BYTES if load.has_network and not load.on_gpu else 0
    encoder_bytes = 0 if load.on_gpu else ENCODER_BYTES
    program_bytes = max(PROGRAM_BYTES, load.resident_bytes)
    return program_bytes + encoder_bytes + per_px * load.field_px**2


def resident_bytes() -> int:
    """What this process has in memory now, files mapped into it not counted; 0 if not known."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def halved(most: int) -> list[int]:
    """A number, half of it, and so on down to 1."""
    return [most >> i for i in range(most.bit_length())]


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
