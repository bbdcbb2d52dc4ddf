"""The JSON schema of the configuration and a commented YAML of its defaults, made from the models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from forceuq.configuration.models import Configuration
from forceuq.files import whole_file

HEADER = (
    "# Every key of the configuration with its default. Made from the models by `make schema`; do not edit.\n"
    "# Entries in <angle brackets> are names of your choice; a key without a default is marked (required).\n"
)


def json_schema() -> str:
    """Return the configuration's JSON schema as text."""
    return json.dumps(Configuration.model_json_schema(), indent=2, sort_keys=True) + "\n"


def commented_defaults() -> str:
    """Return the commented default configuration as YAML text; required values are null."""
    return HEADER + "\n".join(_lines(Configuration, 0)) + "\n"


def write_schema(directory: Path) -> None:
    """Write ``forceuq.schema.json`` and ``defaults.yaml`` into a directory."""
    for name, text in (("forceuq.schema.json", json_schema()), ("defaults.yaml", commented_defaults())):
        with whole_file(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _lines(model: type[BaseModel], depth: int, skip: tuple[str, ...] = ()) -> Iterator[str]:
    indent = "  " * depth
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        required = field.is_required()
        comment = (field.description or "") + (" (required)" if required else "")
        if comment:
            yield f"{indent}# {comment.strip()}"
        members = [m for m in _members(field.annotation)]
        if members and _is_dictionary(field.annotation):
            yield f"{indent}{name}:"
            for member in members:
                kind = _kind(member)
                yield f"{indent}  <{kind or name}>:"
                yield from _lines(member, depth + 2)
        elif members:
            empty = " {}" if not any(member.model_fields for member in members) else ""
            yield f"{indent}{name}:{empty}" + (" # null unless given" if field.default is None else "")
            for number, member in enumerate(members):
                if len(members) > 1:
                    yield f"{indent}  # {'or ' if number else ''}kind {_kind(member)}"
                lines = _lines(member, depth + 1)
                if len(members) > 1 and number:
                    yield from (f"{indent}  #{line.removeprefix(indent + '  ')}" for line in lines)
                else:
                    yield from lines
        else:
            kind = _kind(model) if name == "kind" else None
            yield f"{indent}{name}: {kind or _value(field.get_default(call_default_factory=True))}"


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return "null"
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if len(values) == 1 else None


def _is_dictionary(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _members(argument)]


if __name__ == "__main__":
    import sys

    write_schema(Path(sys.argv[1]))
