"""InstanSeg's own encoder: the four stages that found a nucleus also describe it."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.encoder import EncoderIdentity
from histoscribe.preprocess.features import pool_nuclei
from histoscribe.preprocess.segmenters import instanseg
from histoscribe.preprocess.segmenters.instanseg_network import STAGES


class InstansegEncoder:
    """Pools the maps of `InstanSegSegmenter`: mean and deviation of 480 channels, 960 values.

    Nuclei and features come from one pass of the network, so that it needs no weights of its own.
    """

    kind: ClassVar[Literal["dense"]] = "dense"
    segmenter = "instanseg"

    def __init__(self) -> None:
        name, sha256 = weights.identity_of(instanseg.NAME).rsplit("@", 1)
        self.identity = EncoderIdentity(
            name, sha256, "nucleus-mean-std", 0.0, instanseg.MPP, 2 * sum(STAGES)
        )

    def pool(
        self, maps: Sequence[Tensor], labels: np.ndarray
    ) -> Float32[np.ndarray, "nucleus feature"]:
        """Mean and deviation of each map over each nucleus."""
        return pool_nuclei(maps, labels)
