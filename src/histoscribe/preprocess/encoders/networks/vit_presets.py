"""What is known of each published Vision Transformer: its shape, its input, its licence.

The files cannot say it themselves: neither heads, activation, normalisation nor resolution are in
a state dict, and UNI and H-optimus share their shapes with other models. Sources are the model
cards and repositories of their authors; `timm` is the name of the architecture that a folder's
`config.json` gives in timm's way.
"""

from dataclasses import dataclass, field

from histoscribe.preprocess.encoders.networks.patch_network import Triple
from histoscribe.preprocess.encoders.networks.vit_network import VitShape

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Triple, Triple] = (  # OpenAI's CLIP, Radford et al. 2021
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
H_OPTIMUS: tuple[Triple, Triple] = (  # model card of H-optimus-0
    (0.707223, 0.578729, 0.703617),
    (0.211883, 0.230117, 0.177517),
)
NON_COMMERCIAL = "CC-BY-NC-ND-4.0 (non-commercial)"
CLASSIFIER = ("head.", "mask_token")  # of the training task; features do not pass through them


@dataclass(frozen=True, kw_only=True)
class VitPreset:
    """A published checkpoint.

    Attributes:
        shape: Its architecture.
        licence: Of the weights.
        source: Hub id, or where its authors publish it.
        timm: Architecture in timm's naming.
        normalisation: Mean and deviation of red, green and blue in 0 to 1.
        mpp: Resolution its authors show tissue at, µm per pixel.
        prefixes: What may stand before every key of the transformer.
        ignored: Starts of keys, of the file, that are not the transformer's.
        renamed: (our name, the file's), as parts of keys.
    """

    shape: VitShape
    licence: str
    source: str
    timm: str
    normalisation: tuple[Triple, Triple] = IMAGENET
    mpp: float = 0.5
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = CLASSIFIER
    renamed: tuple[tuple[str, str], ...] = field(default=())


UNI = VitPreset(
    shape=VitShape(depth=24, width=1024, n_heads=16, patch_px=16, native_px=224, mlp_rows=4096),
    licence=NON_COMMERCIAL,
    source="MahmoodLab/UNI",
    timm="vit_large_patch16_224",
)
UNI2_H = VitPreset(
    shape=VitShape(
        depth=24,
        width=1536,
        n_heads=24,
        patch_px=14,
        native_px=224,
        mlp_rows=8192,
        mlp="swiglu",
        n_registers=8,
        positions="patch-table",
    ),
    licence=NON_COMMERCIAL,
    source="MahmoodLab/UNI2-h",
    timm="vit_giant_patch14_224",
)
H_OPTIMUS_SHAPE = VitShape(
    depth=40,
    width=1536,
    n_heads=24,
    patch_px=14,
    native_px=224,
    mlp_rows=8192,
    mlp="swiglu",
    n_registers=4,
    positions="patch-table",
)
H_OPTIMUS_0 = VitPreset(
    shape=H_OPTIMUS_SHAPE,
    licence="Apache-2.0",
    source="bioptimus/H-optimus-0",
    timm="vit_giant_patch14_reg4_dinov2",
    normalisation=H_OPTIMUS,
)
H_OPTIMUS_1 = VitPreset(
    shape=H_OPTIMUS_SHAPE,
    licence=NON_COMMERCIAL,
    source="bioptimus/H-optimus-1",
    timm="vit_giant_patch14_reg4_dinov2",
    normalisation=H_OPTIMUS,
)
VIRCHOW = VitPreset(
    shape=VitShape(
        depth=32,
        width=1280,
        n_heads=16,
        patch_px=14,
        native_px=224,
        mlp_rows=6832,  # 2 x 3416, as published: no multiple of a power of two
        mlp="swiglu",
    ),
    licence="Apache-2.0, with the model card's terms",
    source="paige-ai/Virchow",
    timm="vit_huge_patch14_224",
)
VIRCHOW2 = VitPreset(
    shape=VitShape(
        depth=32,
        width=1280,
        n_heads=16,
        patch_px=14,
        native_px=224,
        mlp_rows=6832,
        mlp="swiglu",
        n_registers=4,
        positions="table",  # here registers have rows of their own, unlike UNI2-h and H-optimus
    ),
    licence=NON_COMMERCIAL,
    source="paige-ai/Virchow2",
    timm="vit_huge_patch14_224",
)
GIGAPATH = VitPreset(
    shape=VitShape(
        depth=40,
        width=1536,
        n_heads=24,
        patch_px=16,  # though timm's name for it says 14
        native_px=224,
        mlp_rows=8192,
        mlp="swiglu",
    ),
    licence="Apache-2.0, research only by the model card's conditions",
    source="prov-gigapath/prov-gigapath",
    timm="vit_giant_patch14_dinov2",
)
CONCH = VitPreset(
    shape=VitShape(
        depth=12,
        width=768,
        n_heads=12,
        patch_px=16,
        native_px=448,
        mlp_rows=3072,
        has_layer_scale=False,
    ),
    licence=NON_COMMERCIAL,
    source="MahmoodLab/CONCH",
    timm="vit_base_patch16_224",
    normalisation=CLIP,
    prefixes=("visual.trunk.", "trunk."),
    # The poolers that turn the tokens into one vector for a whole image, and the text half.
    ignored=(
        *CLASSIFIER,
        *(
            f"{visual}{part}"
            for visual in ("visual.", "")
            for part in (
                "attn_pool_contrast.",
                "attn_pool_caption.",
                "ln_contrast.",
                "ln_caption.",
                "proj_contrast",
            )
        ),
        "text.",
        "text_decoder.",
        "logit_scale",
    ),
)


def dinov2(depth: int, width: int, name: str, n_registers: int) -> VitPreset:
    """Meta's DINOv2 as timm publishes it; the giant has SwiGLU."""
    is_giant = width == 1536
    return VitPreset(
        shape=VitShape(
            depth=depth,
            width=width,
            n_heads=width // 64,
            patch_px=14,
            native_px=518,
            mlp_rows=8192 if is_giant else 4 * width,
            mlp="swiglu" if is_giant else "gelu",
            n_registers=n_registers,
            positions="patch-table" if n_registers else "table",
        ),
        licence="Apache-2.0",
        source=f"timm/{name}.lvd142m",
        timm=name,
    )


def dinov3(depth: int, width: int, name: str) -> VitPreset:
    """Meta's DINOv3 as timm publishes it; "qkvb" files keep the biases of queries and values."""
    return VitPreset(
        shape=VitShape(
            depth=depth,
            width=width,
            n_heads=width // 64,
            patch_px=16,
            native_px=256,
            mlp_rows=4 * width,
            n_registers=4,
            positions="rotary",
            qkv_bias="query-value" if name.endswith("qkvb") else "none",
            eps=1e-5,
        ),
        licence="DINOv3 licence",
        source=f"timm/{name}.lvd1689m",
        timm=name,
        renamed=(("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")),
    )


SIZES = {"small": (12, 384), "base": (12, 768), "large": (24, 1024), "giant": (40, 1536)}

VIT_PRESETS = {
    "uni": UNI,
    "uni2-h": UNI2_H,
    "h-optimus-0": H_OPTIMUS_0,
    "h-optimus-1": H_OPTIMUS_1,
    "virchow": VIRCHOW,
    "virchow2": VIRCHOW2,
    "gigapath": GIGAPATH,
    "conch": CONCH,
    **{
        name: dinov2(depth, width, name, 4 if registers else 0)
        for size, (depth, width) in SIZES.items()
        for registers in ("", "reg4_")
        for name in [f"vit_{size}_patch14_{registers}dinov2"]
    },
    **{
        name: dinov3(*SIZES[size], name)
        for size in ("small", "base", "large")
        for biases in ("", "_qkvb")
        for name in [f"vit_{size}_patch16_dinov3{biases}"]
    },
}
"""Name -> what is known of it; H0-mini and CONCH v1.5 wait for a file to be checked against."""
