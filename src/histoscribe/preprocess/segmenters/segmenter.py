"""The contract of a segmenter, and the names under which segmenters are found."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor


class Calibration(NamedTuple):
    """What is fitted once per slide, from its pixels alone: the value range of each channel.

    Channels are red, green and blue, or stains where a segmenter says so.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]


def make_calibration(low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> Calibration:
    """From arrays to plain floats, which provenance can record."""
    return Calibration(
        (float(low[0]), float(low[1]), float(low[2])),
        (float(high[0]), float(high[1]), float(high[2])),
    )


@dataclass(frozen=True)
class Segmentation:
    """The nuclei of one field, and what the network saw on the way.

    Attributes:
        labels: 0 = none, 1 to n = a nucleus each.
        maps: Feature maps "channel my mx" over the same field, from fine to coarse; empty if
            there are none.
    """

    labels: Int32[np.ndarray, "y x"]
    maps: tuple[Float[Tensor, "_ _ _"], ...] = ()


class NetworkOutput(NamedTuple):
    """What a segmenter's network answers for one field.

    Attributes:
        heads: What nuclei are found in, on the CPU.
        maps: As `Segmentation` has them.
    """

    heads: Float32[np.ndarray, "head y x"]
    maps: tuple[Float[Tensor, "_ _ _"], ...]


@runtime_checkable
class Segmenter(Protocol):
    """Finds nuclei in fields that were read at its own `mpp`."""

    @property
    def identity(self) -> str:
        """Name and weights hash, e.g. "instanseg-brightfield_nuclei-0.1.1@0c724da169d5"."""
        ...

    @property
    def mpp(self) -> float:
        """The resolution it wants, µm per pixel."""
        ...

    def calibrate(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Calibration:
        """Fit the value range on tissue pixels of one slide; DataError if they are constant."""
        ...

    def segment(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[Segmentation]:
        """Segment fields of one slide."""
        ...


@runtime_checkable
class NetworkSegmenter(Segmenter, Protocol):
    """A segmenter in two steps, so that its network sees the next fields meanwhile.

    `segment` is `find_nuclei` of each that `run_network` answers.
    """

    def run_network(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[NetworkOutput]:
        """What runs on the device."""
        ...

    def find_nuclei(self, output: NetworkOutput) -> Segmentation:
        """What runs on the CPU, for one field; in any thread."""
        ...


SEGMENTERS = {
    "instanseg": "histoscribe.preprocess.segmenters.instanseg:load_instanseg",
    "threshold": "histoscribe.preprocess.segmenters.threshold:ThresholdSegmenter",
    "toy": "histoscribe.preprocess.segmenters.toy:ToySegmenter",
}
"""name -> "module:factory", imported when asked for; a factory takes no argument."""
