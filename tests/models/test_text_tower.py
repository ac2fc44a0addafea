import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.models.text_tower import load_text_tower
from histoscribe.preprocess import weights

TEXTS = [
    "T cells",
    "a tissue sample containing plasma cells",
    "tumour",
    "T cells",
    "the b cell of a sample of the tissue",
]


def one_by_one(folder, pooling: str) -> torch.Tensor:
    """Features without any padding, by transformers alone."""
    net, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            out = net(**tokenizer(text, return_tensors="pt"))
        h = out.last_hidden_state[0]
        rows.append({"mean": h.mean(0), "cls": h[0], "pooler": out.pooler_output[0]}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_features_are_those_of_the_network_without_padding(tiny_bert, pooling):
    tower = load_text_tower(tiny_bert, pooling)
    wanted = one_by_one(tiny_bert, pooling)
    got = tower.encode(TEXTS)
    assert got.shape == (5, 12) == (5, tower.width)
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 13, 10_000])
def test_batches_order_and_the_other_texts_do_not_matter(tiny_bert, tokens_at_once):
    tower = load_text_tower(tiny_bert)
    together = tower.encode(TEXTS)
    torch.testing.assert_close(tower.encode(TEXTS, tokens_at_once), together, atol=1e-5, rtol=1e-5)
    order = [4, 2, 0, 3, 1]
    torch.testing.assert_close(
        tower.encode([TEXTS[row] for row in order], tokens_at_once),
        together[order],
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_text_is_encoded_once(tiny_bert):
    tower, n_rows = load_text_tower(tiny_bert), []
    hook = tower.encoder.register_forward_pre_hook(
        lambda _net, _args, said: n_rows.append(len(said["input_ids"])), with_kwargs=True
    )
    x = tower.encode([*TEXTS, *TEXTS])
    hook.remove()
    assert sum(n_rows) == 4
    assert torch.equal(x[:5], x[5:])
    assert torch.equal(x[0], x[3])


def test_no_texts_and_empty_ones(tiny_bert):
    tower = load_text_tower(tiny_bert)
    assert tower.encode([]).shape == (0, 12)
    with pytest.raises(DataError, match="text 1 is empty"):
        tower.encode(["a", " "])


def test_long_texts_are_cut(tiny_bert):
    assert load_text_tower(tiny_bert).most_tokens == 20  # the tokenizer's own limit
    tower = load_text_tower(tiny_bert, most_tokens=6)
    cut = tower.encode(["x y z x y z y x y z"])
    torch.testing.assert_close(cut, tower.encode(["x y z x"]))
    assert not torch.allclose(cut, tower.encode(["x y z y"]))


def test_it_is_frozen_and_stays_in_eval_until_it_is_unfrozen(tiny_bert):
    tower = load_text_tower(tiny_bert)
    holder = torch.nn.ModuleList([tower]).train()
    assert not tower.is_learning
    assert not any(module.training for module in tower.modules())
    assert not tower.encode(TEXTS).requires_grad
    assert torch.equal(tower.encode(TEXTS), tower.encode(TEXTS))
    tower.unfreeze()
    holder.train()
    assert all(module.training for module in tower.modules())
    assert not torch.equal(tower.encode(TEXTS), tower.encode(TEXTS))  # dropout
    tower.eval()
    (tower.encode(TEXTS) * torch.arange(12.0)).square().sum().backward()
    for name, parameter in tower.named_parameters():
        if "word_embeddings" in name:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            # Key biases cancel in the softmax, and no text has a second segment.
    tower.unfreeze(has_tokens=True)
    assert all(parameter.requires_grad for parameter in tower.parameters())
    with torch.no_grad():
        assert not tower.encode(TEXTS).requires_grad


def test_what_pooling_leaves_out_is_no_parameter(tiny_bert):
    names = {name for name, _ in load_text_tower(tiny_bert).named_parameters()}
    assert not any("pooler" in name for name in names)
    names = {name for name, _ in load_text_tower(tiny_bert, "pooler").named_parameters()}
    assert any("pooler" in name for name in names)


def test_saved_and_loaded_it_is_the_same(tiny_bert, tmp_path):
    tower = load_text_tower(tiny_bert)
    before = tower.encode(TEXTS)
    tower.save(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.bin"))
    again = load_text_tower(tmp_path / "again")
    assert torch.equal(again.encode(TEXTS), before)


def test_identity_says_what_makes_the_features(tiny_bert, tmp_path):
    tower = load_text_tower(tiny_bert)
    assert tower.identity.startswith("tiny-bert@")
    tower.encode(TEXTS)
    assert load_text_tower(tiny_bert).identity == tower.identity
    assert load_text_tower(tiny_bert, name="mine").identity == "mine@" + tower.identity[10:]
    others = {tower.identity}
    others.add(load_text_tower(tiny_bert, "cls").identity)
    others.add(load_text_tower(tiny_bert, most_tokens=9).identity)
    changed = tmp_path / "tiny-bert"
    shutil.copytree(tiny_bert, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    others.add(load_text_tower(changed).identity)
    shutil.copytree(tiny_bert, changed, dirs_exist_ok=True)
    (changed / "config.json").write_text(
        json.dumps({**config, "transformers_version": "0.0.1", "_name_or_path": "elsewhere"})
    )
    assert load_text_tower(changed).identity == tower.identity
    said = (changed / "tokenizer.json").read_text()
    (changed / "tokenizer.json").write_text(said.replace('"tumour"', '"tumor"'))
    others.add(load_text_tower(changed).identity)
    assert len(others) == 5


def test_broken_folders_are_refused(tiny_bert, tmp_path):
    def copy(name: str):
        return shutil.copytree(tiny_bert, tmp_path / name)

    with pytest.raises(DataError, match="lacks"):
        load_text_tower(tmp_path)
    folder = copy("no weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks \*\.safetensors"):
        load_text_tower(folder)
    folder = copy("wider")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 28}))
    with pytest.raises(MismatchError):
        load_text_tower(folder)
    folder = copy("deeper")
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(MismatchError, match="missing"):
        load_text_tower(folder)


def test_a_name_that_is_no_folder_and_not_on_the_hub(monkeypatch):
    import huggingface_hub

    def offline(*_args, **_more):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MissingExtra, match="copy the model's folder"):
        load_text_tower("nobody/nothing")


def test_wrong_settings_are_refused(tiny_bert):
    with pytest.raises(ConfigError, match="most_tokens"):
        load_text_tower(tiny_bert, most_tokens=2)


@pytest.mark.weights
def test_minilm_knows_what_words_mean():
    try:
        folder = weights.verify("all-minilm-l6-v2").parent
    except MissingExtra as absent:
        pytest.skip(str(absent))
    tower = load_text_tower(folder)
    assert tower.identity.startswith("all-minilm-l6-v2@")
    assert tower.width == 384
    x = torch.nn.functional.normalize(
        tower.encode(["B cells", "B lymphocyte", "pancreatic acinar cell", "fibroblasts"]), dim=1
    )
    near = x @ x.T
    assert float(near[0, 1]) > 0.5 > float(near[0, 2:].max())
