"""Spaces as JSON. Only registered primitives are written and read: reading never runs code that a file names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyro_nas import checks
from pyro_nas.files import write_json
from pyro_nas.graph.primitives import RECIPES, Primitive
from pyro_nas.graph.space import Factory, Space

__all__ = ["from_dict", "read_space", "to_dict", "write_space"]

FORMAT = "pyro_nas space 1"


def to_dict(space: Space) -> dict[str, Any]:
    """Return a space as JSON values; raise ValueError for a factory that is not a registered primitive."""
    return {
        "format": FORMAT,
        "name": space.name,
        "inputs": list(space.inputs),
        "restriction": space.restriction,
        "edges": [
            {
                "from": j,
                "to": k,
                "primitives": {name: _write(f"edges[{(j, k)}][{name!r}]", f) for name, f in primitives.items()},
            }
            for (j, k), primitives in space.edges.items()
        ],
        "aggregations": {str(v): _write(f"aggregations[{v}]", f) for v, f in space.aggregations.items()},
    }


def from_dict(value: Any) -> Space:
    """Return the space that ``to_dict`` described; raise ValueError for anything else."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"space: expected a JSON object with format {FORMAT!r}, got {checks.describe(value)}.")
    try:
        edges = {
            (edge["from"], edge["to"]): {name: _read(f) for name, f in edge["primitives"].items()}
            for edge in value["edges"]
        }
        aggregations = {int(vertex): _read(f) for vertex, f in value["aggregations"].items()}
        return Space(edges, aggregations, tuple(value["inputs"]), value["name"], value["restriction"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"space: expected what a space is written as, got {error!r} in it.") from error


def write_space(space: Space, path: str | Path) -> None:
    """Write a space to a JSON file, atomically; raise ValueError as ``to_dict``."""
    write_json(Path(path), to_dict(space))


def read_space(path: str | Path) -> Space:
    """Read a space from a JSON file; primitives of your own must be registered first (``primitives.primitive``).

    Raises ValueError for a file that is missing or holds anything else.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"path: expected a JSON file of a space, got {str(path)!r}: {error}") from error
    try:
        return from_dict(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"path: expected a space in {str(path)!r}, got one that is refused: {error}") from error


def _write(where: str, factory: Factory | str) -> Any:
    if isinstance(factory, str):
        return factory
    if isinstance(factory, Space):
        return to_dict(factory)
    if isinstance(factory, Primitive):
        try:
            json.dumps(factory.arguments)
        except TypeError as error:
            raise ValueError(f"{where}: expected JSON arguments, got {factory.arguments!r}.") from error
        return {"primitive": factory.name, "arguments": factory.arguments}
    raise ValueError(
        f"{where}: expected a registered primitive to write, got {checks.describe(factory)}. "
        "Decorate the function that builds the module with pyro_nas.graph.primitives.primitive."
    )


def _read(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if "format" in value:
        return from_dict(value)
    name, arguments = checks.one_of("primitive", value["primitive"], RECIPES), value["arguments"]
    try:
        return RECIPES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"arguments: expected those of the primitive {name!r}, got {arguments}: {error}.") from error
