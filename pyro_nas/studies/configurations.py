"""Configurations: the YAML that the command line reads, bounded, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

__all__ = ["bound_loader", "bounded"]

LENGTH = 2**20  # characters
NESTED = 20


def bounded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a loader of YAML text that refuses what grows as it is read.

    It raises YAMLError for more than a million characters, for lists and mappings nested more than 20 deep, and for
    aliases (*name), by which a short text stands for a value of any size.
    """

    def checked(text: str) -> Any:
        if len(text) > LENGTH:
            raise yaml.YAMLError(f"expected at most {LENGTH:,} characters, got {len(text):,}.")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"expected values written out, got the alias *{event.anchor}. Write it again.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTED:
                raise yaml.YAMLError(f"expected lists and mappings nested at most {NESTED} deep, got more.")
        return load(text)

    return checked


def bound_loader() -> None:
    """Have jsonargparse read YAML so; twice is once."""
    load = get_loader("yaml")
    if load.__qualname__ != f"{bounded.__name__}.<locals>.checked":
        set_loader("yaml", bounded(load), (yaml.YAMLError,))
