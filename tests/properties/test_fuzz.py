"""The fuzz (make fuzz) in small, and that it finds what it is for."""

import importlib.util
from pathlib import Path

import pytest

from pyro_nas.evidence import Terms

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


def test_fits_refuse_or_keep_below_the_exact_evidence():
    outcomes = {}
    fuzz.fuzz(12, 1, outcomes)
    assert set(outcomes) == {"refused", "fitted", "bounded"}


@pytest.mark.slow
def test_evidence_above_the_exact_is_found(monkeypatch):
    wrong_sign = property(lambda terms: terms.log_likelihood + sum(terms.divergence.values()))
    monkeypatch.setattr(Terms, "evidence", wrong_sign)
    with pytest.raises(AssertionError, match="above log p"):
        fuzz.fuzz(200, 0)
