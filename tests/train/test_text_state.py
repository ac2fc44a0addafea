from pathlib import Path

import pytest
import torch

from histoscribe.errors import ConfigError
from histoscribe.models.text_tower import TextTower, load_text_tower
from histoscribe.train.lora import LoraSettings, merge, take_out
from histoscribe.train.text_state import set_text_state

TEXTS = ["alpha beta", "gamma", "beta beta alpha gamma delta", "delta alpha"]
LORA = LoraSettings(rank=2, alpha=8.0, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizer

    where = tmp_path_factory.mktemp("texts") / "tiny-distilbert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "alpha", "beta", "gamma", "delta"]
    DistilBertTokenizer(vocab={word: row for row, word in enumerate(words)}).save_pretrained(where)
    torch.manual_seed(5)
    config = DistilBertConfig(
        vocab_size=len(words), dim=8, n_layers=2, n_heads=2, hidden_dim=12,
        max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    DistilBertModel(config).save_pretrained(where)
    return where


def tower(folder: Path, state: str, seed: int = 1) -> TextTower:
    net = load_text_tower(folder)
    torch.manual_seed(seed)
    set_text_state(net, state, LORA)
    return net


def descend(net: TextTower, n_steps: int = 3) -> None:
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=0.05)
    wanted = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    for _ in range(n_steps):
        optimiser.zero_grad()
        (net.encode(TEXTS) - wanted).square().mean().backward()
        optimiser.step()


def test_adapters_are_the_identity_at_insertion(folder):
    assert torch.equal(
        tower(folder, "lora").eval().encode(TEXTS), tower(folder, "frozen").encode(TEXTS)
    )


def test_only_adapters_learn_and_the_rest_stays_bit_for_bit(folder):
    net, before = tower(folder, "lora"), load_text_tower(folder).state_dict()
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learning
    assert all(".lora_" in name for name in learning)
    assert net.is_learning
    descend(net)
    plain, adapters = take_out(net.state_dict())
    assert set(plain) == set(before)
    for name, tensor in before.items():
        assert torch.equal(plain[name], tensor), name
    # Query, key, value, output and the feed-forward part of both layers, each with A and B.
    assert len(adapters) == 2 * 2 * 6
    for name, parameter in net.named_parameters():
        if name in learning:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_merged_it_is_what_it_was_with_adapters(folder):
    net = tower(folder, "lora")
    descend(net)
    learned = net.eval().encode(TEXTS).detach()
    plain, adapters = take_out(net.state_dict())
    merged = load_text_tower(folder)
    merged.load_state_dict(merge(plain, adapters, LORA))
    torch.testing.assert_close(merged.encode(TEXTS), learned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learned, load_text_tower(folder).encode(TEXTS), atol=1e-2)


def test_frozen_nothing_learns_and_unlocked_the_network_does(folder):
    assert not tower(folder, "frozen").is_learning
    net = tower(folder, "unlocked")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    descend(net)
    still = {n for n, p in net.named_parameters() if torch.equal(p, before[n])}
    assert still == {"encoder.embeddings.word_embeddings.weight"}


def test_the_same_seed_draws_the_same_adapters(folder):
    states = [tower(folder, "lora", seed).state_dict() for seed in (1, 1, 2)]
    same = [all(torch.equal(states[0][n], other[n]) for n in other) for other in states[1:]]
    assert same == [True, False]


def test_wrong_states_are_refused(folder):
    net = tower(folder, "lora")
    with pytest.raises(ConfigError, match="adapters already"):
        set_text_state(net, "lora")
