"""The names under which encoders are found."""

from importlib import import_module
from pathlib import Path
from typing import Any

from histoscribe.errors import ConfigError
from histoscribe.preprocess.encoders.encoder import Encoder
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.networks.vit_presets import VIT_PRESETS
from histoscribe.preprocess.encoders.view import ViewConfig

HERE = "histoscribe.preprocess.encoders"
NETWORKS = {
    "instanseg": f"{HERE}.networks.instanseg_patches:load_instanseg_patches",
    "efficientnet-lite0": f"{HERE}.networks.efficientnet:load_efficientnet",
    "toy": f"{HERE}.toy:ToyNetwork",
    "vit": f"{HERE}.networks.hub_network:load_hub_network",
}
"""name -> "module:factory" of a `PatchNetwork`; "vit" takes the model's folder or hub id."""

DENSE_MAPS = {
    "instanseg": f"{HERE}.instanseg:load_instanseg_maps",
    "toy": f"{HERE}.toy:load_toy_maps",
}
"""name -> "module:factory" of the dense encoder whose maps a segmenter gives."""

WAYS = {
    "dense": f"{HERE}.dense_encoder:DenseEncoder",
    "tile": f"{HERE}.tile_encoder:TileEncoder",
}
"""way -> "module:class" that shows cells to a `PatchNetwork`."""

WITH_SOURCE = ("vit", *VIT_PRESETS)
"""What is asked for as NAME:SOURCE; a published checkpoint's source is its file or folder."""


def check_encoder(asked: str) -> None:
    """ConfigError, with what there is, if no encoder is called so or its source is not given."""
    name, colon, source = asked.partition(":")
    if name not in NETWORKS and name not in VIT_PRESETS:
        published = ", ".join(f"{one}:FILE" for one in VIT_PRESETS)
        plain = ", ".join(one for one in NETWORKS if one not in WITH_SOURCE)
        raise ConfigError(
            f"no encoder is called {name!r}; there are {plain}, vit:FOLDER-OR-HUB-ID, {published}"
        )
    if name in WITH_SOURCE and not source:
        wanted = "'vit:FOLDER' or 'vit:HUB-ID'" if name == "vit" else f"'{name}:FILE'"
        raise ConfigError(f"encoder {name!r} wants a model: {wanted}")
    if name not in WITH_SOURCE and colon:
        raise ConfigError(f"encoder {name!r} takes nothing after a colon; {asked!r} came")


def load_encoder(asked: str, view: ViewConfig) -> Encoder:
    """The encoder of a name, in the way that `view` says.

    Args:
        asked: "instanseg", "efficientnet-lite0", "vit:FOLDER-OR-HUB-ID", "uni2-h:FILE", ...
        view: How cells are shown to it.

    Raises:
        ConfigError: No such encoder, or it cannot be shown cells in this way.
        DataError, MismatchError: Its weights are not what they should be.
        MissingExtra: They are not there.
    """
    check_encoder(asked)
    name, _, source = asked.partition(":")
    if view.way == "dense" and name in DENSE_MAPS:
        return find(DENSE_MAPS[name])(view)
    network = load_network(name, source)
    # A hub model's own name says nothing of how it is asked for.
    shown_as = f"vit:{network.facts.name}" if name == "vit" else network.facts.name
    return find(WAYS[view.way])(network, view, shown_as)


def load_network(name: str, source: str) -> PatchNetwork:
    """The network of a name, from its source where it has one."""
    if name in VIT_PRESETS:
        load_named = find(f"{HERE}.networks.vit_checkpoints:load_named_network")
        return load_named(name, Path(source))
    factory = find(NETWORKS[name])
    return factory(source) if name in WITH_SOURCE else factory()


def find(place: str) -> Any:  # noqa: ANN401 - a factory of anything
    """Import what "module:name" stands for."""
    module, name = place.split(":")
    return getattr(import_module(module), name)
