"""Frozen dataclasses to YAML and back: the file and the flags are generated from the classes."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from histoscribe.errors import ConfigError, DataError

Settings = TypeVar("Settings")
Values = dict[str, Any]


def defaults_of(kind: type) -> Values:
    """The default of every field that has one, nested dataclasses as nested dicts.

    A field without a default is a size that only the data can tell (number of genes, length of
    a feature vector): it is no setting, and stays out of the file.
    """
    values: Values = {}
    for entry in _settable(kind):
        nested = _type_of(kind, entry)
        is_group = isinstance(nested, type) and is_dataclass(nested)
        values[entry.name] = defaults_of(nested) if is_group else plain(_default(entry))
    return values


def merge(kind: type, values: Mapping[str, Any], where: str = "") -> Values:
    """Check values against a dataclass and coerce them; only the given ones are returned.

    Args:
        kind: The dataclass.
        values: Given values, nested as the dataclass is.
        where: Dotted name of this level, for messages.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named) or of the wrong type.
    """
    known = {entry.name: entry for entry in _settable(kind)}
    merged: Values = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(_unknown(name, str(key), list(known)))
        nested = _type_of(kind, known[key])
        if is_dataclass(nested) and isinstance(nested, type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is a group of settings; {value!r} came.")
            merged[key] = merge(nested, value, name)
        else:
            merged[key] = coerce(value, nested, name)
    return merged


def build(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make the dataclass from values that `merge` has checked; the rest are its defaults."""
    arguments: Values = {}
    for key, value in values.items():
        nested = get_type_hints(kind)[key]
        if isinstance(nested, type) and is_dataclass(nested) and isinstance(value, Mapping):
            arguments[key] = build(nested, value)
        else:
            arguments[key] = value
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as fault:
        raise ConfigError(f"{kind.__name__} refuses these settings: {fault}.") from fault


def coerce(value: Any, kind: Any, name: str) -> Any:  # noqa: ANN401 - any YAML value
    """One value as the type of its field.

    Raises:
        ConfigError: It is of another type; the message names the setting, what came and what is
            wanted.
    """
    origin = get_origin(kind)
    if origin is Literal:
        return _one_of(value, get_args(kind), name)
    if origin in (Union, types.UnionType):
        return _coerce_optional(value, kind, name)
    if origin is tuple:
        return _coerce_tuple(value, kind, name)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if kind is Any:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{name} = {value!r}: {wanted} is wanted, {type(value).__name__} came.")


def parse_assignment(text: str) -> Values:
    """`fit.max_epochs=20` as nested values; the right side is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: KEY=VALUE is wanted, e.g. --set bags.neighbours=12.")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as fault:
        raise ConfigError(f"--set {text}: the value cannot be read as YAML.") from fault
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    """The values below, replaced key by key by those above."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = overlay(old, value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> Values:
    """A YAML mapping from a file; an empty file is an empty mapping."""
    if not path.is_file():
        raise DataError(
            f"No config file at {path}. 'histoscribe config > {path.name}' writes a full one."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(fault).split())}.") from fault
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: groups of settings are wanted, {values!r} came.")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text in the order of the fields, short lists on one line."""
    return yaml.safe_dump(plain(values), sort_keys=False, default_flow_style=None)


def plain(value: Any) -> Any:  # noqa: ANN401 - any setting
    """Dataclasses, tuples and paths as what YAML and JSON know."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _settable(kind: type) -> list[Field]:
    return [
        entry
        for entry in fields(kind)
        if entry.init and not (entry.default is MISSING and entry.default_factory is MISSING)
    ]


def _type_of(kind: type, entry: Field) -> Any:  # noqa: ANN401 - a type form
    return get_type_hints(kind)[entry.name]


def _default(entry: Field) -> Any:  # noqa: ANN401 - any setting
    if entry.default is not MISSING:
        return entry.default
    assert entry.default_factory is not MISSING
    return entry.default_factory()


def _unknown(name: str, key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean '{nearest[0]}'?" if nearest else f"Known here: {', '.join(known)}."
    return f"Unknown setting '{name}'. {hint} 'histoscribe config' prints them all."


def _one_of(value: Any, allowed: tuple, name: str) -> Any:  # noqa: ANN401 - any YAML value
    for choice in allowed:
        if type(value) is type(choice) and value == choice:
            return value
    listed = ", ".join(str(choice) for choice in allowed)
    raise ConfigError(f"{name} = {value!r}: one of {listed} is wanted.")


def _coerce_optional(value: Any, kind: Any, name: str) -> Any:  # noqa: ANN401 - any YAML value
    choices = get_args(kind)
    if value is None and type(None) in choices:
        return None
    problems: list[str] = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return coerce(value, choice, name)
        except ConfigError as fault:
            problems.append(str(fault))
    raise ConfigError(problems[0] if problems else f"{name} = {value!r} is not wanted here.")


def _coerce_tuple(value: Any, kind: Any, name: str) -> tuple:  # noqa: ANN401 - any YAML value
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} = {value!r}: a list is wanted.")
    items = get_args(kind)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{name} = {list(value)!r}: {len(items)} values are wanted.")
    return tuple(coerce(item, part, name) for item, part in zip(value, items, strict=True))
