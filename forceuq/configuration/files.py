"""The files of a configuration, held to what YAML asks for and its readers let pass: each key once."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from forceuq.errors import ConfigurationError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, where it was built
_MERGE = "tag:yaml.org,2002:merge"


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the plain values of one configuration file.

    Raises:
        ConfigurationError: naming the file: it cannot be read, is no mapping, or has a key twice.
    """
    try:
        values = _plain(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: has no keys; a configuration is a mapping, as in config/demo.yaml")
    refuse_repeated_keys([path])
    return values


def _plain(text: str) -> Any:
    try:  # as Snakemake does: JSON may be indented by tabs, which YAML's reader refuses
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def refuse_repeated_keys(paths: Iterable[Path]) -> None:
    """Look through YAML (or JSON) files for a key that stands twice in one mapping; readers keep the last in silence.

    Args:
        paths: the files.

    Raises:
        ConfigurationError: naming file, lines and key of each; or a file that cannot be opened.
    """
    faults = []
    for path in paths:
        try:
            whole = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        except yaml.YAMLError:  # refused by its reader too, or JSON that is no YAML
            continue
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read ({error})") from error
        faults += [
            f"{path}, line {again.start_mark.line + 1}: '{again.value}' is given a second time (first in line "
            f"{first.start_mark.line + 1}); give one of them another name, or remove it"
            for first, again in _repeated(whole)
        ]
    if faults:
        raise ConfigurationError("\n".join(faults))


def _repeated(whole: yaml.Node | None) -> Iterator[tuple[yaml.ScalarNode, yaml.ScalarNode]]:
    """Yield each key that is in a mapping already, with the first of its name."""
    seen: set[int] = set()
    waiting = [whole]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias leads to what was seen
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], yaml.ScalarNode] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                    continue
                if (other := first.setdefault((key.tag, key.value), key)) is not key:
                    yield other, key
            waiting += reversed([value for _, value in node.value])
