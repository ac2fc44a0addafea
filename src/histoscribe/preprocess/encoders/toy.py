"""Encoders for tests and the toy world: colours, over each nucleus or over patches."""

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor

from histoscribe.preprocess.encoders.encoder import EncoderIdentity
from histoscribe.preprocess.encoders.map_encoder import MapEncoder, map_pooling
from histoscribe.preprocess.encoders.networks.patch_network import Looked, NetworkFacts, check_sides
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.segmenters.segmenter import Calibration
from histoscribe.preprocess.segmenters.toy import ToySegmenter

PATCH_PX = 4


def load_toy_maps(view: ViewConfig) -> MapEncoder:
    """Pools the maps of `ToySegmenter`."""
    pooling, per_channel = map_pooling(view, ToySegmenter.mpp)
    return MapEncoder(
        EncoderIdentity("toy", "none", pooling, 0.0, ToySegmenter.mpp, 9 * per_channel),
        "none",
        ToySegmenter,
        ToySegmenter().calibrate,
        window_um=view.window_um,
    )


class ToyNetwork:
    """A `PatchNetwork` of mean colours: three channels a patch, and three of their squares."""

    facts = NetworkFacts(
        name="toy",
        weights_sha256="none",
        licence="none",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        patch_px=PATCH_PX,
        step_px=PATCH_PX,
        n_channels=6,
        native_mpp=0.5,
        native_px=224,
        least_px=PATCH_PX,
        has_cls=False,
    )
    device = torch.device("cpu")

    def normalise(
        self,
        pixels: Float[Tensor, "b 3 y x"],
        calibration: Calibration | None = None,  # noqa: ARG002 - of the contract
    ) -> Float[Tensor, "b 3 y x"]:
        """As they are."""
        return pixels

    def look(self, pixels: Float[Tensor, "b 3 y x"]) -> Looked:
        """Mean colour of each patch."""
        check_sides(pixels, self.facts)
        colour = F.avg_pool2d(pixels, PATCH_PX)
        return Looked(None, torch.cat([colour, colour.square()], dim=1))
