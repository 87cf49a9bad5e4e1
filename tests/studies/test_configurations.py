"""Configurations: values that are read, and texts that would grow."""

import pytest
import yaml

from pyro_nas.__main__ import main
from pyro_nas.studies.configurations import bounded

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_what_is_written_out_is_read_as_before():
    text = "epochs: 3\nprimitives: [zero, skip]\nnested: {a: {b: [1.5, null, true]}}\n"
    assert bounded(yaml.safe_load)(text) == yaml.safe_load(text)
    with pytest.raises(yaml.YAMLError):
        bounded(yaml.safe_load)("a: [")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"expected values written out, got the alias \*a"),
        ("[" * 10_000, "nested at most 20 deep"),
        ("a: " + "x" * 2**20, "at most 1,048,576 characters"),
    ],
)
def test_what_grows_is_refused(text, message, tmp_path, capsys):
    with pytest.raises(yaml.YAMLError, match=message):
        bounded(yaml.safe_load)(text)
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["search", "--config", str(tmp_path / "bomb.yaml"), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_configuration_sets_what_it_names(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("data: digitz\n")
    assert main(["search", "--config", str(tmp_path / "own.yaml")]) == 2
    assert "Did you mean 'digits'" in capsys.readouterr().err
    assert main(["search", "--data", "[" * 5000]) == 2
    assert "Traceback" not in capsys.readouterr().err
