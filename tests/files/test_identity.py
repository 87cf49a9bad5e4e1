"""Identity: equal for equal options in every process, another for others, and differences by their place."""

import json
import subprocess
import sys
from functools import partial
from importlib import metadata

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas.files.identity import describe_value, differences, identity_digest, tensor_digest, versions
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, clipped, cosine, delayed, one_cycle, schedules

RATE = 0.1


def named():
    return RATE


def enclosing(value):
    return lambda x: x * value


def later(x, power=2):
    return x**power


ALIKE = {
    "adam": lambda: adam(0.01),
    "adam of another rate": lambda: adam(0.02),
    "adam with betas": lambda: adam(0.01, betas=(0.8, 0.9)),
    "clipped": lambda: clipped(adam(0.01), 1.0),
    "clipped elsewhere": lambda: clipped(adam(0.01), 2.0),
    "one cycle": lambda: one_cycle(0.01),
    "one cycle, higher": lambda: one_cycle(0.02),
    "cosine": lambda: cosine(),
    "delayed": lambda: delayed(0.3),
    "delayed for longer": lambda: delayed(0.5),
    "linear": lambda: schedules.linear(1.0, 0.1),
    "linear to another end": lambda: schedules.linear(1.0, 0.2),
    "tanh": lambda: dense(3, 3, "tanh"),
    "gelu": lambda: dense(3, 3, "gelu"),
    "class": lambda: nn.Linear,
    "partial class": lambda: partial(nn.Linear, 3, 3),
    "without bias": lambda: partial(nn.Linear, 3, 3, bias=False),
    "function": lambda: later,
    "enclosing": lambda: enclosing(2.0),
    "enclosing another": lambda: enclosing(3.0),
    "enclosing a tensor": lambda: enclosing(torch.ones(2)),
    "enclosing another tensor": lambda: enclosing(torch.tensor([1.0, 2.0])),
    "array": lambda: np.arange(3.0),
    "module": lambda: nn.Dropout(0.5),
    "another module": lambda: nn.Dropout(0.1),
    "type": lambda: torch.float64,
    "device": lambda: torch.device("cpu"),
    "set": lambda: {"a", "b"},
    "infinite": lambda: float("inf"),
    "nothing": lambda: None,
}


def test_values_made_alike_are_alike_and_others_are_not():
    texts = {name: json.dumps(describe_value(make())) for name, make in ALIKE.items()}
    assert {name: json.dumps(describe_value(make())) for name, make in ALIKE.items()} == texts
    assert len(set(texts.values())) == len(ALIKE)


@pytest.mark.slow
def test_another_process_describes_them_in_the_same_words():
    script = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location(sys.argv[2], sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "values = {name: make() for name, make in module.ALIKE.items()}\n"
        "print(json.dumps(module.describe_value(values)))\n"
    )
    command = [sys.executable, "-c", script, __file__, __name__]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == describe_value({name: make() for name, make in ALIKE.items()})


def test_a_constant_that_a_function_names_counts(monkeypatch):
    before = describe_value(named)
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.2)
    assert differences(before, describe_value(named)) == ["constants.RATE 0.1 → 0.2"]


def test_values_that_hold_themselves_end():
    value = {"a": 1}
    value["self"] = value
    assert describe_value(value) == {"a": 1, "self": "itself"}


def test_what_a_law_computes_and_keeps_does_not_count():
    law = dist.Categorical(logits=torch.tensor([0.0, 1.0]))
    before = describe_value(law)
    law.probs.sum()
    assert describe_value(law) == before != describe_value(dist.Categorical(logits=torch.tensor([0.0, 2.0])))


def test_differences_have_their_places():
    before = {"seed": 0, "space": {"edges": [{"to": 1, "how": "tanh"}, 2]}, "gone": 1, "long": [1], "same": 2}
    now = {"seed": 1, "space": {"edges": [{"to": 1, "how": "gelu"}, 2]}, "new": "x", "long": [1, 2], "same": 2.0}
    assert differences(before, now) == [
        "gone 1 → None", "long [1] → [1, 2]", "new None → 'x'", "seed 0 → 1", "space.edges[0].how 'tanh' → 'gelu'",
    ]  # fmt: skip
    assert differences(before, before) == []
    assert differences({"on": 1}, {"on": True}) == ["on 1 → True"]
    assert differences({"text": "a" * 99}, {"text": "b"}) == [f"text '{'a' * 58}… → 'b'"]


@pytest.mark.parametrize(("now", "same"), [(1.00005, True), (1.001, False), (float("nan"), False)])
def test_numbers_may_differ_by_a_tolerance(now, same):
    assert (differences({"value": 1.0}, {"value": now}, tolerance=1e-4) == []) is same
    assert differences({"value": float("nan")}, {"value": float("nan")}, tolerance=1e-4) == []


def test_tensors_are_told_apart_by_values_shape_and_type():
    value = torch.arange(4.0)
    others = [value.view(2, 2), value.double(), value + 1e-6, value.int(), value[:0], value.requires_grad_(False)[:3]]
    digests = [tensor_digest(other) for other in others]
    assert len({*digests, tensor_digest(value)}) == 1 + len(others)
    assert tensor_digest(value.view(2, 2).T.T.reshape(4)) == tensor_digest(value)
    assert tensor_digest(torch.tensor(True)).startswith("bool ()")


def test_digests_do_not_depend_on_an_order_of_names():
    assert identity_digest({"a": 1, "b": 2}) == identity_digest({"b": 2, "a": 1}) != identity_digest({"a": 2, "b": 2})
    assert versions()["torch"] == metadata.version("torch")
    assert set(versions()) == {"python", "pyro-nas", "torch", "pyro-ppl", "numpy"}
