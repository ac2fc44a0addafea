"""An encoder for tests and the toy world: colours pooled over each nucleus."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from histoscribe.preprocess.encoders.encoder import EncoderIdentity
from histoscribe.preprocess.features import pool_nuclei


class ToyEncoder:
    """Pools the maps of `ToySegmenter`."""

    kind: ClassVar[Literal["dense"]] = "dense"
    segmenter = "toy"
    identity = EncoderIdentity("toy", "none", "nucleus-mean-std", 0.0, 0.5, 18)

    def pool(
        self, maps: Sequence[Tensor], labels: np.ndarray
    ) -> Float32[np.ndarray, "nucleus feature"]:
        """Mean and deviation of each map over each nucleus."""
        return pool_nuclei(maps, labels)
