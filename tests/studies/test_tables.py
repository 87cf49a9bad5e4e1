"""Tables of the reports."""

import pytest

from pyro_nas.studies.tables import markdown_table, plus_minus, spread


def test_spread_by_hand():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5)}
    assert spread([3.0]) == {"mean": 3.0, "sd": 0.0}


def test_lines_of_a_table():
    cell = plus_minus({"mean": 0.98765, "sd": 0.00123}, 2, 100)
    assert cell == "98.77 ± 0.12"
    assert plus_minus({"mean": -9035.4, "sd": 12.6}, 0) == "-9035 ± 13"
    assert markdown_table(["row", "accuracy"], [["a", cell]]) == [
        "| row | accuracy |",
        "|---|---|",
        "| a | 98.77 ± 0.12 |",
    ]
