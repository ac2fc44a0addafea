import math
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from histoscribe.preprocess.encoders.networks.vit_network import (
    Block,
    VitNetwork,
    VitShape,
    resample_positions,
    rotation_of,
)

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
PARTS = {  # of a block in transformers -> ours
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "layernorm": "norm",
    "norm": "norm",
}


def randomise(model, seed=3):
    """Values large enough that every part of the network matters, LayerScale too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours_from(theirs):
    """Our state dict from that of a model of transformers."""
    found = {}
    blocks = {}
    for key, value in theirs.state_dict().items():
        if match := re.match(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.*)", key):
            blocks.setdefault(match[1], {})[match[2]] = value
        elif name := renamed(key, WHOLE):
            found[name] = value
    for index, block in blocks.items():
        parts = {renamed(part, PARTS): value for part, value in block.items()} | fused(block)
        found |= {f"blocks.{index}.{part}": value for part, value in parts.items() if part}
    return found


def renamed(key, table):
    """By its whole name, or by what stands before .weight and .bias; "" if in neither."""
    stem, _, end = key.rpartition(".")
    return table.get(key) or (f"{table[stem]}.{end}" if stem in table else "")


def fused(block):
    names = [f"attention.{name}_proj" for name in "qkv"]
    made = {"attn.qkv.weight": torch.cat([block[f"{name}.weight"] for name in names])}
    if "attention.k_proj.bias" in block:
        made["attn.qkv.bias"] = torch.cat([block[f"{name}.bias"] for name in names])
    elif "attention.q_proj.bias" in block:
        made["attn.q_bias"] = block["attention.q_proj.bias"]
        made["attn.v_bias"] = block["attention.v_proj.bias"]
    if "mlp.gate_proj.weight" in block:
        for end in ("weight", "bias"):
            halves = [block[f"mlp.{name}_proj.{end}"] for name in ("gate", "up")]
            made[f"mlp.fc1.{end}"] = torch.cat(halves)
    return made


def assert_same(theirs, shape, state, sides, **options):
    network = VitNetwork(shape).eval()
    network.load_state_dict(state)
    for height, width in sides:
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            wanted = theirs(pixel_values=pixels, **options).last_hidden_state
            got = network(pixels)
        assert wanted.std() > 0.1
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_gated", [False, True])
def test_registers_layer_scale_and_swiglu_are_those_of_dinov2(is_gated):
    config = Dinov2WithRegistersConfig(
        **SMALL, num_register_tokens=4, patch_size=14, image_size=70, use_swiglu_ffn=is_gated
    )
    theirs = randomise(Dinov2WithRegistersModel(config))
    shape = VitShape(
        depth=3,
        width=24,
        n_heads=3,
        patch_px=14,
        native_px=70,
        mlp_rows=128 if is_gated else 96,
        mlp="swiglu" if is_gated else "gelu",
        n_registers=4,
        positions="patch-table",
    )
    state = ours_from(theirs)
    # The table's first row is CLS's; published "patch-table" files hold it in the token itself.
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    assert_same(theirs, shape, state, [(70, 70), (42, 98), (112, 84)])


def test_at_its_native_size_it_is_dinov2_without_registers():
    config = Dinov2Config(**SMALL, patch_size=14, image_size=56)
    theirs = randomise(Dinov2Model(config))
    shape = VitShape(depth=3, width=24, n_heads=3, patch_px=14, native_px=56, mlp_rows=96)
    assert_same(theirs, shape, ours_from(theirs), [(56, 56)])


@pytest.mark.parametrize("qkv_bias", ["query-value", "none"])
def test_rotary_positions_are_those_of_dinov3(qkv_bias):
    has_bias = qkv_bias == "query-value"
    config = DINOv3ViTConfig(
        **SMALL,
        intermediate_size=40,
        num_register_tokens=4,
        patch_size=16,
        query_bias=has_bias,
        value_bias=has_bias,
    )
    theirs = randomise(DINOv3ViTModel(config))
    shape = VitShape(
        depth=3,
        width=24,
        n_heads=3,
        patch_px=16,
        native_px=64,
        mlp_rows=40,
        n_registers=4,
        positions="rotary",
        qkv_bias=qkv_bias,
        eps=1e-5,
    )
    assert_same(theirs, shape, ours_from(theirs), [(64, 64), (48, 96), (112, 16)])


def test_without_layer_scale_it_is_the_first_vit():
    config = ViTConfig(
        **SMALL, intermediate_size=56, patch_size=8, image_size=40, layer_norm_eps=1e-6
    )
    theirs = randomise(ViTModel(config, add_pooling_layer=False))
    shape = VitShape(
        depth=3,
        width=24,
        n_heads=3,
        patch_px=8,
        native_px=40,
        mlp_rows=56,
        has_layer_scale=False,
    )
    assert_same(theirs, shape, ours_from(theirs), [(40, 40)])


def layer_norm(x, weight, bias, eps):
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [
        (value - mean) / math.sqrt(variance + eps) * w + b
        for value, w, b in zip(x, weight, bias, strict=True)
    ]


def linear(x, weight, bias):
    return [
        sum(w * value for w, value in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def plain_attention(tokens, state, n_heads):
    """Head by head, token by token, from the fused rows: all queries, all keys, all values."""
    width = len(tokens[0])
    size = width // n_heads
    fused_rows = [linear(x, state["attn.qkv.weight"], state["attn.qkv.bias"]) for x in tokens]
    mixed = [[] for _ in tokens]
    for head in range(n_heads):
        low = head * size
        q, k, v = (
            [row[third * width + low : third * width + low + size] for row in fused_rows]
            for third in range(3)
        )
        for index, query in enumerate(q):
            scores = [
                math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(size))
                for key in k
            ]
            for channel in range(size):
                total = sum(s * value[channel] for s, value in zip(scores, v, strict=True))
                mixed[index].append(total / sum(scores))
    return [linear(x, state["attn.proj.weight"], state["attn.proj.bias"]) for x in mixed]


def plain_swiglu(x, state):
    wide = linear(x, state["mlp.fc1.weight"], state["mlp.fc1.bias"])
    half = len(wide) // 2
    gated = [a / (1 + math.exp(-a)) * b for a, b in zip(wide[:half], wide[half:], strict=True)]
    return linear(gated, state["mlp.fc2.weight"], state["mlp.fc2.bias"])


def test_one_block_written_out():
    """The order of the fused thirds and of the gate's halves, against loops over numbers."""
    shape = VitShape(
        depth=1, width=6, n_heads=2, patch_px=14, native_px=28, mlp_rows=10, mlp="swiglu"
    )
    block = randomise(Block(shape).double(), seed=8)
    tokens = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = {key: value.tolist() for key, value in block.state_dict().items()}
    x = tokens.tolist()
    norms = {
        name: [state[f"{name}.weight"], state[f"{name}.bias"], shape.eps]
        for name in ("norm1", "norm2")
    }
    branch = plain_attention([layer_norm(t, *norms["norm1"]) for t in x], state, 2)
    x = [
        [a + g * b for a, b, g in zip(t, u, state["ls1.gamma"], strict=True)]
        for t, u in zip(x, branch, strict=True)
    ]
    branch = [plain_swiglu(layer_norm(t, *norms["norm2"]), state) for t in x]
    wanted = [
        [a + g * b for a, b, g in zip(t, u, state["ls2.gamma"], strict=True)]
        for t, u in zip(x, branch, strict=True)
    ]
    with torch.inference_mode():
        got = block(tokens[None], None)[0]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_registers_have_positions_only_in_a_whole_table():
    """Virchow2's table has rows for CLS and registers, UNI2-h's for the patches alone."""
    sizes = {"depth": 1, "width": 8, "n_heads": 2, "patch_px": 4, "native_px": 12, "mlp_rows": 12}
    for positions, n_rows, moved in (("table", 12, range(12)), ("patch-table", 9, range(3, 12))):
        network = randomise(VitNetwork(VitShape(**sizes, n_registers=2, positions=positions)))
        assert network.pos_embed.shape == (1, n_rows, 8)
        patches = torch.zeros(1, 9, 8)
        with torch.no_grad():
            before = network.add_prefix(patches, (3, 3))
            network.pos_embed += 1
            after = network.add_prefix(patches, (3, 3))
        changed = (after != before).any(dim=2)[0].nonzero().flatten().tolist()
        assert changed == list(moved)


@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_a_table_of_the_right_size_is_untouched_and_another_is_resampled(n_prefix):
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(1, n_prefix + 49, 11, generator=generator)
    assert resample_positions(table, n_prefix, (7, 7)) is table
    other = resample_positions(table, n_prefix, (5, 9))
    assert torch.equal(other[:, :n_prefix], table[:, :n_prefix])
    grid = table[:, n_prefix:].reshape(1, 7, 7, 11).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(5, 9), mode="bicubic", antialias=True)
    torch.testing.assert_close(other[:, n_prefix:].reshape(1, 5, 9, 11), wanted.permute(0, 2, 3, 1))


def test_enlarging_a_table_uses_the_softer_kernel():
    """With antialiasing the cubic kernel has a = -0.5 also where there is nothing to smooth."""
    table = torch.zeros(1, 81, 1)
    table[0, 40] = 1.0  # the middle of 9 x 9
    taps = resample_positions(table, 0, (18, 18)).reshape(18, 18)
    row = taps[8] / taps[8, 8]

    def keys(x, a=-0.5):
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    wanted = [keys((i + 0.5) / 2 - 4.5) / keys(0.25) for i in range(5, 13)]
    torch.testing.assert_close(row[5:13], torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_the_place():
    rotation = rotation_of((3, 5), 16, torch.device("cpu"))
    assert rotation.shape == (2, 15, 16)
    torch.testing.assert_close(rotation.square().sum(0), torch.ones(15, 16))
    angles = torch.atan2(rotation[1], rotation[0])
    assert len({tuple(row) for row in angles.tolist()}) == 15
