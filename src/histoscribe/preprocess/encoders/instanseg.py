"""InstanSeg's own encoder: the four stages that found a nucleus also describe it."""

from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.encoder import EncoderIdentity
from histoscribe.preprocess.encoders.map_encoder import MapEncoder, map_pooling
from histoscribe.preprocess.encoders.networks.patch_network import choose_device
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.segmenters import instanseg
from histoscribe.preprocess.segmenters.instanseg_network import STAGES


def load_instanseg_maps(view: ViewConfig) -> MapEncoder:
    """Pools the maps of `InstanSegSegmenter`: mean and deviation of 480 channels, 960 values.

    Nuclei and features come from one pass of the network, so that it needs no weights of its own
    unless another segmenter finds the nuclei.
    """
    name, sha256 = weights.identity_of(instanseg.NAME).rsplit("@", 1)
    pooling, per_channel = map_pooling(view, instanseg.MPP)
    return MapEncoder(
        EncoderIdentity(name, sha256, pooling, 0.0, instanseg.MPP, per_channel * sum(STAGES)),
        weights.find_source(instanseg.NAME).licence,
        instanseg.load_instanseg,
        instanseg.fit_range,
        window_um=view.window_um,
        precision=instanseg.precision_on(choose_device(None)),
    )
