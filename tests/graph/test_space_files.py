"""Space files: what is written is read, and nothing else is."""

from functools import partial

import pytest
from torch import nn

from pyro_nas import Space, primitive, read_space, write_space
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import skip


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
