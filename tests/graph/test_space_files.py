"""Space files: what is written is read, and nothing else is."""

import json
from functools import partial

import pytest
from torch import nn

from pyro_nas import Space, primitive, read_space, write_space
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.graph.space_files import FORMAT, from_dict


def test_files_keep_spaces(tmp_path):
    space = zoo.cells(1, 10, channels=4)
    write_space(space, tmp_path / "space.json")
    assert read_space(tmp_path / "space.json") == space

    @primitive
    def my_gate(features: int) -> nn.Module:
        return nn.Linear(features, features)

    mine = Space({(0, 2): {"gate": my_gate(3)}, (1, 2): {"skip": skip()}}, {2: "mean"}, (0, 1), "mine", "cube")
    write_space(mine, tmp_path / "mine.json")
    assert read_space(tmp_path / "mine.json") == mine
    with pytest.raises(ValueError, match=r"edges\[\(0, 1\)\].*primitive"):
        write_space(Space({(0, 1): {"opaque": partial(nn.Linear, 3, 3)}}), tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()
    for text in ("{", "[]", '{"format": "pyro_nas space 1"}', '{"format": "pyro_nas space 1", "edges": [{}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="expected"):
            read_space(tmp_path / "bad.json")
    text = (tmp_path / "mine.json").read_text().replace("my_gate", "os.system")
    (tmp_path / "evil.json").write_text(text)
    with pytest.raises(ValueError, match="expected one of"):
        read_space(tmp_path / "evil.json")


def file_of(name, arguments):
    primitives = {"a": {"primitive": name, "arguments": arguments}}
    edges = [{"from": 0, "to": 1, "primitives": primitives}]
    return {"format": FORMAT, "name": "", "inputs": [0], "restriction": "simplex", "edges": edges, "aggregations": {}}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dense", {"inputs": 3, "outputs": 2, "activation": "tahn"}, r"dense\(activation\): .* Did you mean 'tanh'"),
        ("dense", {"inputs": 3, "outputs": -2}, r"dense\(outputs\): expected an integer of at least 1, got -2"),
        ("dense", {"inputs": 3}, "arguments: expected those of the primitive 'dense', .*missing .*'outputs'"),
        ("dense", {"input": 3, "outputs": 2}, "arguments: expected those of .*'input"),
        ("dense", [3, 2], "arguments: expected those of|space: expected"),
        ("preactivated_separable", {"inputs": 1, "outputs": 1, "repeats": 10**7},
         r"preactivated_separable\(repeats\): expected an integer of at least 1 and at most 100, got 10000000"),
    ],
)  # fmt: skip
def test_arguments_of_a_file_are_checked_as_those_of_a_call(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_dict(file_of(name, arguments))


def test_a_file_has_what_its_writer_would_have_had():
    left_out = from_dict(file_of("dense", {"inputs": 3, "outputs": 2}))
    assert left_out == Space({(0, 1): {"a": dense(3, 2)}})


def test_deep_files_are_refused(tmp_path):
    value = file_of("skip", {})
    for depth in range(300):
        outer = file_of("skip", {})
        outer["edges"][0]["primitives"]["a"] = value
        value = outer
        if depth in (30, 100):
            with pytest.raises(ValueError, match="nested at most 20 deep"):
                from_dict(value)
    for text in (dumps(value), "[" * 100_000):
        (tmp_path / "deep.json").write_text(text)
        with pytest.raises(ValueError, match=r"^(path|edges|space): expected"):
            read_space(tmp_path / "deep.json")


def dumps(value, depth=300):
    """Write what json, which calls itself, cannot."""
    before = after = ""
    for _ in range(depth):
        inner = value["edges"][0]["primitives"]["a"]
        value["edges"][0]["primitives"]["a"] = "HERE"
        start, end = json.dumps(value).split('"HERE"')
        before, after, value = before + start, end + after, inner
    return before + json.dumps(value) + after
