"""From nested plain values to a checked configuration, with errors that name key, value and what is near."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from forceuq.configuration.benchmark import nearest
from forceuq.configuration.models import Configuration
from forceuq.errors import ConfigurationError


def load_configuration(values: Mapping[str, Any]) -> Configuration:
    """Check nested plain values (from YAML) and return the configuration.

    Raises:
        ConfigurationError: naming, for each fault, the key, the value and the nearest valid ones.
    """
    try:
        return Configuration.model_validate(dict(values))
    except ValidationError as error:
        found = error.errors(include_url=False)
        # Pydantic counts what is valid in a list: one with a single, wrong entry is said to be empty as well.
        entries = {fault["loc"][:-1] for fault in found}
        told = [fault for fault in found if fault["type"] != "too_short" or fault["loc"] not in entries]
        faults = [_explain(dict(fault), values) for fault in told]
        raise ConfigurationError(
            "the configuration cannot be run:\n" + "\n".join(f"  {fault}" for fault in dict.fromkeys(faults))
        ) from None


def _explain(fault: dict[str, Any], values: Mapping[str, Any]) -> str:
    path, value, unset = _locate(fault["loc"], values)
    key = ".".join(path)
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {nearest(path[-1], _fields(fault['loc']))}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in str(fault["ctx"]["expected_tags"]).split(",")]
        tag = fault["ctx"]["tag"]
        return f"{key}.kind: unknown kind {tag!r}; {nearest(tag, tags)}"
    if kind == "union_tag_not_found":
        return f"{key}.kind: missing"
    if kind in {"tuple_type", "dict_type", "model_type", "model_attributes_type"} and key:
        wanted = "list" if kind == "tuple_type" else "mapping of keys"
        if value is None:  # what YAML makes of a key whose value was left out
            return f"{key}: is empty; give a {wanted}, or leave it out"
        listed = f"; write [{value}]" if wanted == "list" and not isinstance(value, Mapping) else ""
        return f"{key}: {value!r} is no {wanted}{listed}"
    message = str(fault["msg"]).removeprefix("Value error, ").replace("Tuple should", "List should")
    if not key:  # what several keys have wrong together; the message names them
        return message
    if kind in {"literal_error", "enum"}:
        expected = [part.strip(" '") for part in str(fault["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return f"{key}: {value!r} is not valid; {nearest(value, expected)}"
    if unset or isinstance(value, Mapping):
        return f"{key}: {message}"
    return f"{key}: {message} (it is {value!r})"


def _locate(location: tuple[str | int, ...], values: Any) -> tuple[list[str], Any, bool]:
    """Return the path as the user wrote it, the value there, and whether it is not set.

    Pydantic's locations hold the tag of each union beside the keys; those are not in the user's file.
    """
    path: list[str] = []
    value = values
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if isinstance(value, Mapping):
            if step in value:
                value = value[step]
                path.append(str(step))
            elif value.get("kind") == step:
                continue
            elif last:
                path.append(str(step))
                return path, None, True
        elif isinstance(value, (list, tuple)) and isinstance(step, int) and step < len(value):
            value = value[step]
            path[-1] += f"[{step}]"
    return path, value, False


def _fields(location: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields beside an unknown key, by walking the models along its location."""
    candidates: list[Any] = [Configuration]
    for step in location[:-1]:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                field = candidate.model_fields.get(str(step))
                if field is not None:
                    following.extend(_models(field.annotation))
                elif candidate.model_fields.get("kind") is not None and step in get_args(
                    candidate.model_fields["kind"].annotation
                ):
                    following.append(candidate)
        # A key of a dictionary or the index of a list stays at the same models.
        candidates = following or candidates
    names = {name for c in candidates if issubclass(c, BaseModel) for name in c.model_fields}
    return sorted(names)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return every model that stands somewhere inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
