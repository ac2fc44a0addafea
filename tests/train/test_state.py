import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histoscribe.errors import DataError
from histoscribe.train.state import SafetensorsCheckpointIO, read_state, write_state

NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=9,
)


@given(state=st.dictionaries(st.text(max_size=4), NESTED, max_size=4))
def test_any_nested_state_comes_back_as_it_was(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "s"
    write_state(state, path)
    assert read_state(path) == state


def test_the_state_of_an_optimiser_comes_back_bit_for_bit(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    optimiser = torch.optim.AdamW([weight])
    weight.grad = torch.full_like(weight, 0.1)
    optimiser.step()
    state = {"optimizer_states": [optimiser.state_dict()], "best": torch.tensor(float("-inf"))}
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(state, tmp_path / "deep" / "s")
    again = io.load_checkpoint(tmp_path / "deep" / "s")
    assert again["best"] == float("-inf")
    before, after = state["optimizer_states"][0], again["optimizer_states"][0]
    assert after["param_groups"] == before["param_groups"]
    for name, value in before["state"][0].items():
        assert torch.equal(value, after["state"][0][name])
    io.remove_checkpoint(tmp_path / "deep" / "s")
    assert not list((tmp_path / "deep").iterdir())


def test_what_would_need_pickle_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="object cannot be kept"):
        write_state({"a": object()}, tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_bytes", [0, 7, 60])
def test_a_broken_state_is_told(n_bytes, tmp_path):
    path = tmp_path / "s"
    write_state({"a": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match="broken"):
        read_state(path)
