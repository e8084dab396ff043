"""Reading and checking YAML: every problem is one ConfigError that names the file or the key."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wmse.errors import ConfigError, shorten, unknown

MOST_VALUES = 100_000  # No YAML file may hold more values, where an alias counts as all that it stands for.


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; ConfigError names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        count_values(node, {})
        content = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except Exception as error:  # PyYAML raises many kinds where a value does not fit its tag
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {shorten(detail, 500)}") from None
    if not isinstance(content, dict | types.NoneType):
        raise ConfigError(f"{path}: must hold a mapping of keys to values")
    return content or {}


def count_values(value: Any, sizes: dict[int, int]) -> int:
    """The number of values inside `value` (plain, or nodes of YAML) if every alias were written out.

    Nine short lines of aliases that refer to aliases can stand for millions of values and exhaust the memory, so this
    is checked before anything is built. `sizes` remembers what has been counted, by identity.

    Raises ValueError: there are more than MOST_VALUES, or a value contains itself.
    """
    if isinstance(value, dict):
        items = [*value, *value.values()]
    elif isinstance(value, yaml.MappingNode):
        items = [node for pair in value.value for node in pair]
    elif isinstance(value, yaml.SequenceNode):
        items = value.value
    elif isinstance(value, list):
        items = value
    else:
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = MOST_VALUES  # while it is being counted, so that a value which contains itself is too large
        sizes[id(value)] = 1 + sum(count_values(item, sizes) for item in items)
    if sizes[id(value)] > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, or one that contains itself")
    return sizes[id(value)]


def plain_values(value: Any) -> Any:
    """Turn strings that spell a number, true, false or null into that value, at any depth.

    Snakemake hands over everything inside ``--config key='[...]'`` as strings, and YAML 1.1 reads 1e-3 as one.
    """
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "null": None, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def validate(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Check the top-level configuration against its JSON schema; one ConfigError for the first problem."""
    import jsonschema  # here, because it is needed in this place only and slows every start-up

    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(settings))
    if not errors:
        return
    error = jsonschema.exceptions.best_match(errors)
    key = shorten(".".join(map(str, error.absolute_path)))
    where = f"key '{key}': " if key else ""
    if error.validator == "additionalProperties":
        allowed = error.schema.get("properties", {})
        extra = next(str(name) for name in error.instance if name not in allowed)
        raise ConfigError(where + unknown("key", extra, allowed))
    if error.validator == "enum":
        raise ConfigError(where + unknown("value", str(error.instance), map(str, error.validator_value)))
    note = error.schema.get("description")
    raise ConfigError(where + shorten(error.message) + (f"; expected: {note}" if note else ""))
