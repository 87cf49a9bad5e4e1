"""The sample of planted faults: even over files, the same for a seed, none where nothing is evaluated; its report."""

import runpy
from collections import Counter
from pathlib import Path

import pytest

MUTATE = runpy.run_path(str(Path(__file__).with_name("mutate.py")))


def faults(sizes):
    """So many places in each file, two kinds of faults at each."""
    return {
        path: {(line, 0): [f"{path}:{line}:{kind}" for kind in "ab"] for line in range(size)}
        for path, size in sizes.items()
    }


def test_a_sample_is_even_over_files_and_has_a_place_once():
    drawn = MUTATE["sample"](faults({"large": 500, "middle": 40, "small": 3}), 63, seed=1)
    assert Counter(name.split(":")[0] for name in drawn) == {"large": 30, "middle": 30, "small": 3}
    places = [name.rpartition(":")[0] for name in drawn]
    assert len(set(places)) == 63
    assert {name[-1] for name in drawn} == {"a", "b"}
    assert len(MUTATE["sample"](faults({"small": 3}), 10, seed=1)) == 3


def test_a_sample_is_that_of_its_seed():
    every = faults({"a": 50, "b": 50})
    samples = [MUTATE["sample"](every, 20, seed) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_annotations_are_left_alone():
    text = "def f(a: int | None = 1 + 2) -> str | None:\n    b: int | str = a | 3\n    return b\n"
    places = MUTATE["unevaluated"](text)
    found = sorted(text.splitlines()[line - 1][start:end] for (line, start), (_, end) in places)
    assert found == ["int | None", "int | str", "str | None"]


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("pyro_nas/models/priors.py", ["tests/models/test_priors.py"]),
        ("pyro_nas/inference/svi.py", ["tests/inference/test_svi.py"]),
        ("pyro_nas/graph/families/zoo.py", ["tests/graph/test_zoo.py"]),
        ("pyro_nas/studies/search/report.py", ["tests/studies/test_command_line.py"]),
        ("pyro_nas/studies/fit_arguments.py", []),
    ],
)
def test_a_fault_is_looked_for_by_the_tests_of_its_module_and_those_of_the_commands(path, own):
    assert MUTATE["tests_of"](path) == [*own, "tests/studies/test_protocols.py", "tests/studies"]


def test_a_copy_has_the_package_as_it_is_installed_and_shows_what_was_changed(tmp_path):
    MUTATE["lay_out"](tmp_path / "plain")
    MUTATE["lay_out"](tmp_path / "copy")
    paths = MUTATE["sources"](tmp_path / "copy")
    assert {"pyro_nas/models/model.py", "pyro_nas/inference/loop.py", "pyro_nas/__main__.py"} <= set(paths)
    assert not [path for path in paths if path.endswith("__init__.py")]
    assert MUTATE["changed"](tmp_path / "copy", tmp_path / "plain") == []
    (tmp_path / "copy" / "pyro_nas" / "models" / "model.py").write_text("1 / 0\n")
    assert MUTATE["changed"](tmp_path / "copy", tmp_path / "plain") == ["pyro_nas/models/model.py"]


def test_a_report_has_shares_by_group_and_what_was_not_found():
    found = [
        ("pyro_nas/studies/rank.py", True, ""),
        ("pyro_nas/inference/options.py", False, "-a < b\n+a > b"),
        ("pyro_nas/models/model.py", True, ""),
        ("pyro_nas/graph/space.py", True, ""),
    ]
    assert MUTATE["report"](found) == (
        "commands and options: 1 of 2 faults found, 50.0 %\nall: 3 of 4 faults found, 75.0 %\n"
        "\npyro_nas/inference/options.py\n-a < b\n+a > b\n"
    )
