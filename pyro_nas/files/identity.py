"""Identity: what a run or a fit was started with, as JSON values, and how that differs from what it goes on with."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import metadata
from types import CodeType, FunctionType, MethodType

import numpy as np
import torch
from torch import nn
from torch.distributions import Distribution

from pyro_nas.files.seals import digest

__all__ = ["describe_value", "differences", "identity_digest", "tensor_digest", "versions"]

LIBRARIES = ("pyro-nas", "torch", "pyro-ppl", "numpy")
PLAIN = (bool, int, str, type(None))
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LENGTH = 60  # of a value in a list of differences


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on, of Python and of libraries by name."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def identity_digest(value: object) -> str:
    """Return the first 16 hexadecimal digits of the digest of JSON values, whatever the order of their names."""
    return digest(json.dumps(value, sort_keys=True).encode())[:16]


def tensor_digest(value: torch.Tensor) -> str:
    """Return type, shape and digest of a tensor of any shape, as text."""
    whole = value.detach().cpu().contiguous().flatten()
    content = hashlib.sha256(whole.view(torch.uint8).numpy().data if whole.numel() else b"").hexdigest()
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} sha256:{content[:16]}"


def describe_value(value: object) -> object:
    """Return JSON values that are equal for equal options, in every process.

    Functions by their code, defaults, what they enclose and the plain constants that they name; tensors by their
    digest; modules as they print; other objects by their class and public attributes.
    """
    return _describe(value, ())


def _describe(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if id(value) in above:
        return "itself"
    return _described(value, (*above, id(value)))


def _described(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        value = torch.as_tensor(np.asarray(value))
    if isinstance(value, torch.Tensor):
        return tensor_digest(value)
    if isinstance(value, nn.Module):
        return ADDRESS.sub("", nn.Module.__repr__(value))
    if isinstance(value, Mapping):
        return {_key(key): _describe(item, above) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item, above) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_describe(item, above)) for item in value)
    if isinstance(value, partial):
        return {"of": _describe(value.func, above), "arguments": _describe([*value.args, value.keywords], above)}
    if isinstance(value, MethodType):
        return {"method": value.__name__, "of": _describe(value.__self__, above)}
    if isinstance(value, FunctionType):
        return _function(value, above)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return name if hasattr(value, "__qualname__") else ADDRESS.sub("", repr(value))
    attributes = {name: _describe(getattr(value, name), above) for name in _attributes(value)}
    return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **attributes}


def _attributes(value: object) -> list[str]:
    """Return the names of what an object is made of, not of what it keeps on the way, such as a law its logits."""
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    if isinstance(value, Distribution):
        return [name for name in (*value.arg_constraints, "base_dist", "transforms") if hasattr(value, name)]
    return [name for name in vars(value) if not name.startswith("_")]


def _key(key: object) -> str:
    return key if isinstance(key, str) else ADDRESS.sub("", repr(key))


def _function(value: FunctionType, above: tuple[int, ...]) -> dict[str, object]:
    enclosed = {}
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            enclosed[name] = _describe(cell.cell_contents, above)
        except ValueError:  # a name that is bound later
            enclosed[name] = "unbound"
    constants = {name: value.__globals__.get(name) for name in value.__code__.co_names}
    parts = {
        "defaults": _describe([value.__defaults__ or (), value.__kwdefaults__ or {}], above),
        "encloses": enclosed,
        "constants": {n: c for n, c in constants.items() if c is not None and isinstance(c, (bool, int, float, str))},
    }
    described = {"function": f"{value.__module__}.{value.__qualname__}", "code": _code(value.__code__)}
    return described | {name: part for name, part in parts.items() if part not in ({}, [[], {}])}


def _code(code: CodeType) -> str:
    constants = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return digest(repr((code.co_code.hex(), code.co_names, code.co_varnames, constants)).encode())[:16]


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def differences(before: object, now: object, *, tolerance: float = 0.0) -> list[str]:
    """Return where JSON values differ, "place before → now" each; numbers may by this relative ``tolerance``."""
    return _differences("", before, now, tolerance)


def _differences(place: str, before: object, now: object, tolerance: float) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        dot = f"{place}." if place else ""
        parts = [(f"{dot}{name}", before.get(name), now.get(name)) for name in sorted({**before, **now})]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [(f"{place}[{index}]", *pair) for index, pair in enumerate(zip(before, now, strict=True))]
    else:
        return [] if _same(before, now, tolerance) else [f"{place} {_short(before)} → {_short(now)}"]
    return [text for part in parts for text in _differences(*part, tolerance)]


def _same(before: object, now: object, tolerance: float) -> bool:
    if isinstance(before, float) and isinstance(now, float) and tolerance:
        close = math.isclose(before, now, rel_tol=tolerance, abs_tol=tolerance)
        return close or (math.isnan(before) and math.isnan(now))
    return isinstance(before, bool) is isinstance(now, bool) and bool(before == now)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"
