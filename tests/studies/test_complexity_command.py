"""The complexity study from the command line: its files, resuming, and how a trained hypernetwork reacts to λ."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from pyro_nas.__main__ import main
from pyro_nas.evidence import evaluate
from pyro_nas.evidence.effects import LocalReparameterization
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import hypernets, priors
from pyro_nas.reading.posterior import mean_draw, predict
from pyro_nas.reading.pruning import moments, pruning_curve, relative_density
from pyro_nas.studies.complexity.measures import measure, slope, slope_ratios
from pyro_nas.studies.complexity.protocols import ROWS, options_of, train
from pyro_nas.studies.complexity.race import race
from pyro_nas.studies.complexity.report import largest_gap, summarise, tables
from pyro_nas.studies.complexity.setting import COMPLEXITIES, GRID, Setting
from pyro_nas.studies.complexity.training import Trained

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMALL = ["complexity", "--epochs", "3", "--hypernet_epochs", "3", "--hidden", "6", "--draws", "2", "--runs", "2"]


def numbers(folder):
    """Return the rows without what a clock measured."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / "rows").iterdir()}
    for row in found.values():
        for name in ("seconds", "race", "seal"):
            row.pop(name, None)
    return found


@pytest.mark.parametrize(
    "protocol", [pytest.param(name, marks=[pytest.mark.slow] * (name == "paper")) for name in ROWS]
)
def test_a_study_and_its_continuation(protocol, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [*SMALL, "--protocol", protocol]
    assert main([*flags, "--out", str(whole)]) == 0
    text = capsys.readouterr().out
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "pruning.png", "rows", "summary.json", "tables.md"}  # fmt: skip
    assert (whole / "tables.md").read_text() in text
    assert matplotlib.image.imread(whole / "pruning.png").std() > 0.01
    assert len(numbers(whole)) == 2 * len(ROWS[protocol])
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["rows"]) == set(ROWS[protocol])
    for row in summary["rows"].values():
        for complexity in COMPLEXITIES:
            entry = row[str(complexity)]
            assert len(entry["pruning"]) == 10
            mean = sum(level["mean"] for level in entry["pruning"]) / 10
            assert entry["mean_accuracy"]["mean"] == pytest.approx(mean)
            terms = entry["log_likelihood"]["mean"] - complexity * entry["kl_weights"]["mean"]
            assert entry["evidence"]["mean"] == pytest.approx(terms, rel=1e-4)
    for name in ("low rank", "linear") if protocol == "paper" else ():  # and an epoch at one λ more, not at all four
        more = summary["rows"][f"{name} + 1 epoch"]["updates"] - summary["rows"][name]["updates"]
        assert more == summary["rows"]["direct, 1 epoch"]["updates"] / len(COMPLEXITIES)
    # the same after an interruption in the middle of the second run
    assert main([*flags, "--out", str(broken)]) == 0
    for name in ("summary.json", "tables.md", "pruning.png"):
        (broken / name).unlink()
    for path in sorted((broken / "rows").glob("1-*"))[1:]:
        path.unlink()
    assert main([*flags, "--out", str(broken), "--resume", "true"]) == 0
    assert numbers(broken) == numbers(whole)


def test_a_damaged_row_is_named(tmp_path, capsys):
    assert main([*SMALL[:-1], "1", "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "rows" / "0-direct.json").write_text("{")
    assert main([*SMALL[:-1], "1", "--out", str(tmp_path / "out"), "--resume", "true"]) == 2
    assert "0-direct.json" in capsys.readouterr().err


def test_a_study_is_not_continued_on_other_data(tmp_path, capsys):
    def write(seed):
        generator = np.random.default_rng(seed)
        np.savez(tmp_path / "mine.npz", x=generator.normal(size=(60, 5)).astype("float32"), y=np.arange(60) % 3)

    flags = [*SMALL[:-1], "1", "--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "out")]
    write(0)
    assert main(flags) == 0
    before = (tmp_path / "out" / "summary.json").read_text()
    write(1)
    assert main([*flags, "--resume", "true"]) == 2
    assert "data_digest" in capsys.readouterr().err
    assert (tmp_path / "out" / "summary.json").read_text() == before
    write(0)
    assert main([*flags, "--resume", "true"]) == 0


def test_a_row_that_goes_on_from_another_trains_that_where_it_is_not_at_hand():
    """As after an interruption between the two: what is stored of the first has no weights."""
    torch.manual_seed(0)
    data = (torch.randn(60, 4), torch.randint(3, (60,)))
    setting = Setting(data, data, 3, 5, 1, 2, 2, 0, torch.device("cpu"), "prior", options_of("paper"))
    done = {}
    train("linear", setting, done)
    whole, later = train("linear + 1 epoch", setting, done), train("linear + 1 epoch", setting, {})
    assert whole.updates == later.updates > done["linear"].updates
    first, second = (measure(setting, trained) for trained in (whole, later))
    assert first["complexities"] == second["complexities"]
    assert first["complexities"] != measure(setting, done["linear"])["complexities"]


def test_accuracies_are_of_the_test_part_and_terms_of_the_training_part():
    """There are as many of the one as of the other: nothing else fails where x or y are of the wrong part."""
    torch.manual_seed(0)
    data, test = ((torch.randn(40, 4), torch.randint(3, (40,))) for _ in range(2))
    setting = Setting(data, test, 3, 5, 1, 1, 2, 7, torch.device("cpu"), "prior", options_of("paper"))
    pairs = {}
    for complexity in (0.1, 10.0):
        model = setting.model(complexity)
        pairs[complexity] = (model, setting.guide(model))
    row = measure(setting, Trained(pairs, 9, 1.234))
    assert (row["updates"], row["seconds"], set(row["complexities"])) == (9, 1.23, {"0.1", "10.0"})
    for complexity, (model, guide) in pairs.items():
        found = row["complexities"][str(complexity)]
        right = (predict(model, mean_draw(guide), test[0]).argmax(-1) == test[1]).double().mean().item()
        assert found["accuracy"] == found["pruning"][0] == right
        scores = relative_density(*moments(guide, model.packing))
        assert found["pruning"] == pruning_curve(model, mean_draw(guide), scores, *test)
        torch.manual_seed(7)
        terms = evaluate(model, guide, [data], draws=2)
        assert {name: found[name] for name in terms} == terms
        assert found["stability"] == found["pruning"][0] / found["pruning"][-1]
        assert found["mean_accuracy"] == pytest.approx(sum(found["pruning"]) / 10)


def test_published_numbers_stand_in_brackets():
    metrics = ("mean_accuracy", "stability", "evidence", "accuracy")
    values = {str(complexity): dict.fromkeys(metrics, 0.5) for complexity in COMPLEXITIES}
    row = {"updates": 7, "seconds": 1.0, "complexities": values}
    summary = summarise([{"direct": row}], ["direct"])
    published = json.loads((NOTEBOOKS / "complexity_published.json").read_text())["rows"]
    assert "[-128929]" in tables(summary, published)
    assert "[7458976000]" in tables(summary, published)
    assert "[" not in tables(summary)
    assert set(published) == set(ROWS["paper"])


def test_means_spreads_and_gaps_of_runs():
    def run(evidence, pruning):
        return {"updates": 7, "seconds": 1.0, "complexities": {"1.0": {"evidence": evidence, "pruning": pruning}}}

    found = [{"direct": run(-1.0, [0.9, 0.5]), "spline": run(-5.0, [0.9, 0.8])},
             {"direct": run(-3.0, [0.7, 0.5]), "spline": run(-5.0, [0.7, 0.4])}]  # fmt: skip
    summary = summarise(found, ["direct", "spline"])
    assert summary["direct"]["1.0"]["evidence"] == {"mean": -2.0, "sd": pytest.approx(2**0.5)}
    assert summary["spline"]["1.0"]["pruning"][1] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0.08**0.5)}
    assert largest_gap(summary, "spline") == {"1.0": pytest.approx(0.1)}


class Unequal(Setting):
    """A setting whose training data come in batches of 25, 25 and 10."""

    def batches(self, size=25):
        return super().batches(size)


def test_slopes_are_those_of_the_evidence():
    """Against differences with the same noise; far from the optimum −KL, which leaves out that q moves, is another."""
    torch.manual_seed(0)
    data = (torch.randn(60, 4), torch.randint(3, (60,)))
    setting = Unequal(data, data, 3, 5, 1, 1, 2, 0, torch.device("cpu"), "prior", {})
    model = setting.model(priors.log_uniform(0.1, 100.0))
    hypernet = hypernets.Spline(setting.guide(model), bases=4)
    with torch.no_grad():
        for value in hypernet.parameters():
            value.add_(torch.randn_like(value), alpha=0.5)

    def terms(complexity):
        pair = hypernet.at(complexity)
        torch.manual_seed(0)
        with LocalReparameterization():
            return evaluate(*pair, setting.batches(), 8)

    ratios = {}
    for at, below, above in (
        (0.1, 1.0, 1.01),
        (0.5, 0.99, 1.01),
        (5.0, 0.99, 1.01),
        (50.0, 0.99, 1.01),
        (100.0, 0.99, 1),
    ):
        found = slope(setting, hypernet, at)
        low, high = terms(below * at), terms(above * at)
        expected = (high["evidence"] - low["evidence"]) / ((above - below) * at)
        assert found == pytest.approx(expected, rel=0.02 if above - below > 0.015 else 0.1), at
        ratios |= slope_ratios({at: {**terms(at), "slope": found}})
    assert any(abs(ratio - 1) > 0.1 for ratio in ratios.values())
    assert slope_ratios({1.0: {"slope": -6.0, "kl_weights": 2.0, "kl_structure": 1.0}}) == {1.0: 2.0}


def test_a_race_stops_where_the_evidence_is_reached():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    data = (x, (x @ torch.randn(4, 3)).argmax(-1))
    options = {"batch_size": 20, "optimizer": adam(0.02), "scheduler": one_cycle(0.02)}
    setting = Setting(data, data, 3, 5, 30, 4, 2, 0, torch.device("cpu"), "network", options)
    model = setting.model(priors.log_uniform(0.1, 100.0))
    hypernet = hypernets.Spline(setting.guide(model), bases=4)
    svi.fit(model, hypernet, data, epochs=8, **options)
    found = race(setting, hypernet, 3.0, (0.1, 1.0))
    assert found["ratio"] == 3.0 / sum(one["seconds"] for one in found["direct"].values())
    assert found["annealed_ratio"] == 3.0 / sum(one["annealed"]["seconds"] for one in found["direct"].values())
    for complexity, one in found["direct"].items():
        assert one["reached"]
        least = one["annealed"]["epochs"]
        assert 1 < least < one["epochs"] < 30
        for epochs, enough in ((least, True), (least - 1, False)):
            torch.manual_seed(0)
            fixed = setting.model(float(complexity))
            guide = setting.guide(fixed)
            svi.fit(fixed, guide, data, **options, epochs=epochs, seed=0)
            torch.manual_seed(0)
            with LocalReparameterization():
                assert (evaluate(fixed, guide, setting.batches())["evidence"] >= one["target"]) == enough


def test_the_stored_hypernetworks_react_to_the_complexity():
    """KL and E log p(y | x, w) fall with λ in every run, and d𝔏/dλ is −KL within a tenth."""
    stored = json.loads((NOTEBOOKS / "complexity_best.json").read_text())
    assert len(stored["reaction"]["spline"]) == 8
    for reacted, ratios in zip(stored["reaction"]["spline"], stored["slope_ratios"]["spline"], strict=True):
        for term in ("kl_weights", "log_likelihood"):
            values = [entry[term] for entry in reacted.values()]
            assert values == sorted(values, reverse=True)
        assert list(ratios) == [str(at) for at in GRID]
        assert all(abs(ratio - 1) < 0.1 for ratio in ratios.values())
