"""Bad input raises before the first step an error that names the argument, what came and what is accepted.

No ``assert`` here: the same file is run under ``python -O``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_nas import Evidence, Network, Space, derive, probable_structures, to_arviz
from pyro_nas.__main__ import main
from pyro_nas.data import load
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import convolution, dense, skip
from pyro_nas.inference import adam, bilevel, clipped, delayed, one_cycle, schedules, svi
from pyro_nas.models import Model, guides, hypernets, likelihoods, priors, structures
from pyro_nas.reading.pruning import masks, moments

X, Y = torch.arange(36.0).view(12, 3) / 36, torch.tensor([0, 1] * 6)
NAN = X.clone()
NAN[2, 1] = float("nan")
PLAIN = {"skip": skip(), "relu": nn.ReLU}
TWO = {(0, 1): {"a": dense(3, 2), "b": dense(3, 2, "tanh")}}


def model(space=None, **options):
    return Model(space or Space(TWO), **{"num_data": 12, **options})


def fit(x=X, y=Y, valid=None, make=guides.MeanField, space=None, likelihood=None, procedure=svi.fit, **options):
    one = model(space, likelihood=likelihood)
    return procedure(one, make(one), (x, y), valid, **{"epochs": 1, **options})


def guide_without_structure(one):
    return pyro.infer.autoguide.AutoNormal(pyro.poutine.block(one, hide=["structure"]))


def guide_with_another_site(one):
    whole = guides.MeanField(one)

    class More(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = whole

        def forward(self, *args):
            self.whole()
            pyro.sample("extra", dist.Normal(0.0, 1.0))

    return More()


BAD = {
    # spaces
    "cycle": (lambda: Space({(0, 1): {"a": skip()}, (1, 2): {"a": skip()}, (2, 1): {"a": skip()}}), "edges", "cycle"),
    "unreachable vertex": (lambda: Space({(0, 2): {"a": skip()}, (1, 2): {"a": skip()}}), "edges", r"\[1\]"),
    "two outputs": (lambda: Space({(0, 1): {"a": skip()}, (0, 2): {"a": skip()}}), "edges", r"\[1, 2\]"),
    "no edges": (lambda: Space({}), "edges", r"\{\}"),
    "edge without operations": (lambda: Space({(0, 1): {}}), r"edges\[\(0, 1\)\]", r"\{\}"),
    "edge not a pair": (lambda: Space({(0, 1, 2): {"a": skip()}}), "edges", r"\(0, 1, 2\)"),
    "module, not factory": (lambda: Space({(0, 1): {"a": nn.Linear(3, 2)}}), r"edges\[\(0, 1\)\]", "Linear"),
    "not a factory": (lambda: Space({(0, 1): {"a": 3}}), r"edges\[\(0, 1\)\]", "3"),
    "factory of no module": (lambda: Network(Space({(0, 1): {"a": lambda: 3}})), r"edges\[\(0, 1\)\]", "3"),
    "aggregation name": (lambda: Space(TWO, {1: "summ"}), "aggregations", "Did you mean 'sum'"),
    "aggregation vertex": (lambda: Space(TWO, {7: "sum"}), "aggregations", "7"),
    "input vertex": (lambda: Space(TWO, inputs=(5,)), "inputs", "5"),
    "restriction": (lambda: Space(TWO, restriction="simplexx"), "restriction", "Did you mean 'simplex'"),
    "space name": (lambda: Space(TWO, name="a b"), "name", "a b"),
    "nested without name": (lambda: Space({(0, 1): {"cell": Space(TWO)}}), "edge", "name"),
    "one name, two cells": (
        lambda: Space({(0, 1): {"c": zoo.cell(4, 2)}, (1, 2): {"c": zoo.cell(4, 1)}}), "edge", "'cell'"),
    "output shapes differ": (
        lambda: fit(space=Space({(0, 1): {"a": dense(3, 2), "b": dense(3, 4)}})), r"edges\[\(0, 1\)\]", r"\(2, 4\)"),
    "vertex shapes differ": (
        lambda: fit(space=Space({(0, 1): {"a": dense(3, 4)}, (0, 2): {"b": dense(3, 2)}, (1, 2): {"s": skip()}})),
        r"aggregations\[2\]", r"\(2, 4\)"),
    "input does not fit": (lambda: fit(x=torch.ones(12, 5)), "x", r"\(2, 5\)"),
    "primitive argument": (lambda: dense(0, 3), "inputs", "0"),
    "activation": (lambda: dense(3, 3, "tahn"), "activation", "Did you mean 'tanh'"),
    "stride": (lambda: convolution(1, 2, stride=-1), "stride", "-1"),
    "structure site missing": (lambda: derive(Space(TWO), {}), "structure", "structure"),
    "structure shape": (lambda: derive(Space(TWO), {"structure": torch.ones(2, 2)}), "structure", r"\(2, 2\)"),
    "structure off the simplex": (
        lambda: derive(Space(TWO), {"structure": torch.tensor([[0.9, 0.9]])}), "structure", "0.8999"),
    # priors
    "temperature 0": (lambda: structures.gumbel_softmax(0.0), "temperature", "0.0"),
    "temperature negative": (lambda: structures.relaxed_bernoulli(-1.0), "temperature", "-1"),
    "temperature NaN": (lambda: structures.dirichlet(float("nan")), "temperature", "nan"),
    "temperature too low": (lambda: structures.straight_through(1e-4), "temperature", "0.0001"),
    "temperature text": (lambda: structures.gumbel_softmax("hot"), "temperature", "hot"),
    "temperature of a family without": (
        lambda: setattr(model(structure=structures.categorical()), "temperature", 1.0), "temperature", "none"),
    "probabilities sum": (
        lambda: model(structure=structures.categorical([0.5, 0.6])), "probabilities", "sum to 1"),
    "probability zero": (lambda: model(structure=structures.categorical([0.0, 1.0])), "probabilities", "above zero"),
    "probabilities length": (
        lambda: model(structure=structures.gumbel_softmax(1.0, [0.2, 0.3, 0.5])), "probabilities", "2"),
    "probabilities site": (
        lambda: model(structure=structures.categorical({"struct": [0.5, 0.5]})), "probabilities", "struct"),
    "cube probability": (
        lambda: model(Space(TWO, restriction="cube"), structure=structures.bernoulli([0.5, 1.5])),
        "probabilities", "1.5"),
    "prior off the restriction": (
        lambda: model(Space(TWO, restriction="cube"), structure=structures.gumbel_softmax()), "structure", "simplex"),
    "scale 0": (lambda: priors.normal(0.0), "scale", "0.0"),
    "scale negative": (lambda: priors.laplace(-1.0), "scale", "-1.0"),
    "scale of a tensor": (lambda: model(weights=priors.normal(lambda name, shape: 0.0)), "scale", "edges"),
    "relevance groups": (lambda: priors.relevance_determination(per="inputs"), "per", "Did you mean 'input'"),
    "law of wrong shape": (
        lambda: model(weights=priors.each(lambda name, shape: dist.Normal(0.0, 1.0))), "make", "event shape"),
    "noise": (lambda: likelihoods.gaussian(-1.0), "noise", "-1.0"),
    "log-uniform ends": (lambda: priors.log_uniform(10.0, 1.0), "high", "1.0"),
    # models
    "complexity 0": (lambda: model(complexity=0.0), "complexity", "0.0"),
    "complexity negative": (lambda: model(complexity=-2.0), "complexity", "-2"),
    "complexity shape": (lambda: model(complexity=dist.Gamma(torch.ones(2), 1.0)), "complexity", "scalar"),
    "num_data 0": (lambda: model(num_data=0), "num_data", "0"),
    "num_data fraction": (lambda: model(num_data=1.5), "num_data", "1.5"),
    "space of another type": (lambda: Model(TWO, num_data=3), "space", "dict"),
    "weights not callable": (lambda: model(weights=1.0), "weights", "1.0"),
    "structure not a prior": (lambda: model(structure=0.5), "structure", "0.5"),
    "likelihood not one": (lambda: model(likelihood="gaussian"), "likelihood", "gaussian"),
    "patterns as text": (lambda: model(point_estimates="edges.*"), "point_estimates", "list"),
    "guide of no model": (lambda: guides.MeanField(nn.Linear(1, 1)), "model", "Linear"),
    "initial scale": (lambda: guides.MeanField(model(), initial_scale=0.0), "initial_scale", "0.0"),
    "rank": (lambda: guides.LowRankNormal(model(), rank=0), "rank", "0"),
    # data
    "label too large": (lambda: fit(y=Y + 1), "y", "from 1 to 2"),
    "label negative": (lambda: fit(y=Y - 1), "y", "from -1 to 0"),
    "labels real": (lambda: fit(y=Y.float()), "y", "float32"),
    "labels of shape [n, 1]": (lambda: fit(y=Y[:, None]), "y", r"\(12, 1\)"),
    "regression y of shape [n]": (
        lambda: fit(y=X[:, 0], likelihood=likelihoods.gaussian()), "y", r"\(12,\)"),
    "regression y of shape [n, 1] against [n, 2]": (
        lambda: fit(y=X[:, :1], likelihood=likelihoods.gaussian()), "y", r"\(12, 1\)"),
    "regression integer y": (lambda: fit(y=Y[:, None], likelihood=likelihoods.gaussian()), "y", "int64"),
    "bernoulli y not 0 or 1": (lambda: fit(y=X[:, :2], likelihood=likelihoods.bernoulli()), "y", "zeros and ones"),
    "NaN in x": (lambda: fit(x=NAN), "train x", "1 NaN"),
    "infinity in validation x": (lambda: fit(valid=(X / 0, Y)), "valid x", "NaN or infinite"),
    "empty": (lambda: fit(x=X[:0], y=Y[:0]), "train", "at least one"),
    "unequal lengths": (lambda: fit(y=Y[:5]), "train x", "5"),
    "not tensors": (lambda: fit(x=X.numpy()), "train x", "ndarray"),
    "not a pair": (lambda: (lambda pair: svi.fit(pair, guides.MeanField(pair), X))(model()), "train", "pair"),
    # fits
    "epochs": (lambda: fit(epochs=0), "epochs", "0"),
    "batch size": (lambda: fit(batch_size=0), "batch_size", "0"),
    "particles": (lambda: fit(particles=0), "particles", "0"),
    "seed": (lambda: fit(seed=-1), "seed", "-1"),
    "patience without validation": (lambda: fit(patience=2), "patience", "valid"),
    "bilevel without validation": (lambda: fit(procedure=bilevel.fit), "valid", "None"),
    "bilevel without weights": (
        lambda: fit(X[:, :2], valid=(X[:, :2], Y), space=Space({(0, 1): PLAIN}), procedure=bilevel.fit),
        "guide",
        "svi.fit",
    ),
    "bilevel without choices": (
        lambda: fit(valid=(X, Y), space=Space({(0, 1): {"a": dense(3, 2)}}), procedure=bilevel.fit),
        "guide",
        "svi",
    ),
    "unknown option": (lambda: fit(epohcs=3), "option", "Did you mean 'epochs'"),
    "optimizer": (lambda: fit(optimizer="adam"), "optimizer", "adam"),
    "optimizer returns none": (lambda: fit(optimizer=lambda parameters: None), "optimizer", "None"),
    "learning rate": (lambda: adam(0.0), "lr", "0.0"),
    "highest learning rate": (lambda: one_cycle(-1.0), "max_lr", "-1.0"),
    "delay": (lambda: delayed(2.0), "fraction", "2.0"),
    "schedule not callable": (lambda: fit(temperature=0.5), "temperature", "0.5"),
    "schedule below the range": (lambda: fit(temperature=schedules.linear(1.0, 0.0)), "temperature", "0.0"),
    "schedule of λ below 0": (lambda: fit(complexity=schedules.linear(1.0, -1.0)), "complexity", "-1"),
    "schedule ends": (lambda: schedules.geometric(1.0, 0.0), "end", "0.0"),
    "gradient norm": (lambda: fit(max_gradient_norm=0.0), "max_gradient_norm", "0.0"),
    "resume without folder": (lambda: fit(resume=True), "resume", "checkpoint"),
    "callbacks": (lambda: fit(callbacks=[3]), "callbacks", "3"),
    "guide lacks a site": (lambda: fit(make=guide_without_structure), "guide", r"missing \['structure'\]"),
    "guide has another site": (lambda: fit(make=guide_with_another_site), "guide", r"unknown \['extra'\]"),
    "local reparameterisation without normals": (
        lambda: fit(make=guides.PointMass, local_reparameterization=True), "local_reparameterization", "normal"),
    "too many to enumerate": (
        lambda: fit(space=Space({(i, i + 1): {"a": skip(), "b": skip(), "c": skip()} for i in range(9)}), x=X,
                    enumerate_discrete=True, procedure=_categorical), "enumerate_discrete", "19683"),
    # complexity
    "strata without particles": (lambda: fit(stratified=True), "stratified", "particles=1"),
    "emphasis": (lambda: fit(emphasis=2.0), "emphasis", "2.0"),
    "emphasis without λ": (lambda: fit(emphasis=torch.sqrt), "emphasis", "site 'complexity'"),
    "enumeration in a plate": (
        lambda: fit(enumerate_discrete=True, particles=2, vectorize_particles=True), "vectorize_particles", "both"),
    "strata without quantiles": (
        lambda: fit_all(dist.Gamma(1.0, 1.0)), "stratified", "icdf"),
    "hypernetwork without λ": (lambda: hypernets.Linear(guides.MeanField(model())), "guide", "complexity=1.0"),
    "hypernetwork of no guide": (lambda: hypernets.Spline(model()), "guide", "Model"),
    "hypernetwork with batch normalisation": (
        lambda: hypernets.Spline(guides.MeanField(model(zoo.cells(1, 2), complexity=dist.Gamma(1.0, 1.0)))),
        "guide", "batch normalisation"),
    "hypernetwork unit": (lambda: hypernets.Linear(over_all(), unit=0.0), "unit", "0.0"),
    "hypernetwork hidden": (lambda: hypernets.LowRank(over_all(), hidden=0), "hidden", "0"),
    "hypernetwork bases": (lambda: hypernets.Spline(over_all(), bases=2), "bases", "2"),
    "fixed λ": (lambda: hypernets.Linear(over_all()).at(-1.0), "complexity", "-1.0"),
    "λ of another library": (
        lambda: model(complexity=torch.distributions.LogNormal(0.0, 1.0)), "complexity", "pyro.distributions"),
    "λ below 0": (lambda: hypernets.Spline(over_all(dist.Normal(0.0, 1.0))), "complexity", "above 0"),
    "several λ for one particle": (
        lambda: evidence_at(torch.tensor([[1.0], [2.0]])), "complexity", "vectorize_particles=True"),
    "emphasis of another shape": (
        lambda: fit_all(emphasis=lambda complexity: complexity[:, None]), "emphasis", r"\(2,\)"),
    "strata of nothing": (
        lambda: fit(particles=2, vectorize_particles=True, stratified=True), "stratified", "draws λ"),
    "joint guide of two λ": (
        lambda: svi.fit(over_all().model, pyro.infer.autoguide.AutoLowRankMultivariateNormal(over_all().model),
                        (X, Y)), "guide", "joint"),
    "module that cannot be batched": (
        lambda: fit(space=Space({(0, 1): {"a": Recurrent}}), particles=2, vectorize_particles=True),
        "vectorize_particles", "cannot run batched"),
    "moments of points": (
        lambda: moments(guides.PointMass(model()), model().packing), "guide", "spread"),
    "moments that depend on structure": (
        lambda: moments(structure_conditioned("loc_shift"), model().packing), "guide", "different from run to run"),
    "spreads that depend on structure": (
        lambda: moments(structure_conditioned("log_scale_shift"), model().packing), "guide", "from run to run"),
    "seed too large": (lambda: fit(seed=2**63), "seed", "2⁶³"),
    "clip value": (lambda: clipped(adam(), 0.0), "value", "0.0"),
    "pruned fraction": (lambda: masks({"a": X}, 1.5), "fraction", "1.5"),
    "pruning scope": (lambda: masks({"a": X}, 0.5, "layers"), "scope", "Did you mean 'layer'"),
    "moments of other sites": (
        lambda: moments(guides.MeanField(model(weights=priors.each(unit_normal))), model().packing), "guide", "packed"),
    # reading
    "draws of no chain": (lambda: to_arviz([], Space(TWO)), "draws", "empty"),
    "draws without site": (lambda: to_arviz({"weights": X}, Space(TWO)), "draws", "structure"),
    "derived space has none": (lambda: to_arviz({"w": X}, Space({(0, 1): {"a": skip()}})), "space", "none"),
    "data name": (lambda: load("digit"), "data", "Did you mean 'digits'"),
    "data file": (lambda: load("nowhere.npz"), "data", "nowhere.npz"),
    "root": (lambda: load("mnist"), "root", "None"),
    "validation fraction": (lambda: load("digits", valid_fraction=1.5), "valid_fraction", "1.5"),
}  # fmt: skip


def over_all(complexity=None):
    return guides.MeanField(model(complexity=complexity or priors.log_uniform(0.1, 100.0)))


def fit_all(complexity=None, **options):
    guide = over_all(complexity)
    options = {"particles": 2, "vectorize_particles": True, "stratified": True, **options}
    return svi.fit(guide.model, hypernets.Linear(guide), (X, Y), **options)


def evidence_at(complexity):
    guide = over_all()
    conditioned = pyro.poutine.condition(hypernets.Linear(guide), data={"complexity": complexity})
    return Evidence(guide.model, conditioned)(X, Y)


def structure_conditioned(part):
    guide = guides.StructureConditioned(model())
    getattr(guide, part)["weights"].data.normal_()
    return guide


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(3, 2)

    def forward(self, x):
        return self.layer(x)[0]


def unit_normal(name, shape):
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))


def _categorical(one, guide, *data, **options):
    other = Model(one.space, num_data=12, structure=structures.categorical())
    return svi.fit(other, guides.MeanField(other), *data, **options)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, argument, detail = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    import re

    if not re.match(rf"{argument}|.*\({argument}\)", message) or not re.search(detail, message):
        pytest.fail(f"the error does not name {argument!r} and {detail!r}: {message}")
    if any(tmp_path.iterdir()):
        pytest.fail(f"something was written: {list(tmp_path.iterdir())}")


def test_no_step_is_made_before_bad_input_is_seen():
    one = model()
    guide = guides.MeanField(one)
    before = guide.loc["weights"].clone()
    with pytest.raises(ValueError, match="y"):
        svi.fit(one, guide, (X, torch.cat([Y[:-1], torch.tensor([9])])), batch_size=2, epochs=1)  # in the last batch
    if not torch.equal(guide.loc["weights"], before):
        pytest.fail("a step was made")


COMMANDS = {
    "--data digitz": "digits",
    "--guide mean_feild": "mean_field",
    "--weights norma": "normal",
    "--structure gumbel": "gumbel_softmax",
    "--space cels": "cells",
    "--device cuda:77": "device",
    "--epochs 0": "epochs",
    "--batch_size -3": "batch_size",
    "--lr 0": "lr",
    "--complexity 0": "complexity",
    "--seed -1": "seed",
    "--draws 0": "draws",
    "--data mnist": "root",
    "--prior_gain -1": "prior_gain",
}
STUDIES = {
    "--data digitz": "digits",
    "--protocol bes": "best",
    "--runs 0": "runs",
    "--epochs -1": "epochs",
    "--hypernet_epochs 0": "hypernet_epochs",
    "--hidden 0": "hidden",
    "--draws 1": "draws",
    "--protocol paper --speed true": "speed",
    "--data mnist": "root",
}
CALLS = [("search", flags, word) for flags, word in COMMANDS.items()]
CALLS += [("complexity", flags, word) for flags, word in STUDIES.items()]


@pytest.mark.parametrize(("command", "flags", "word"), CALLS)
def test_bad_command(command, flags, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if main([command, *flags.split()]) != 2:
        pytest.fail("expected exit status 2")
    message = capsys.readouterr().err
    if word not in message or "Traceback" in message:
        pytest.fail(message)
    if any(tmp_path.iterdir()):
        pytest.fail("something was written")


def test_a_run_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "precious").write_text("keep")
    if main(["search", "--out", str(tmp_path)]) != 2 or "new or empty folder" not in capsys.readouterr().err:
        pytest.fail("expected a refusal")
    if [path.name for path in tmp_path.iterdir()] != ["precious"]:
        pytest.fail("something was written")


def test_npz_files(tmp_path):
    import numpy as np

    path = tmp_path / "data.npz"
    for arrays, what in (
        ({"x": X.numpy()}, "'x' and 'y'"),
        ({"x": X.numpy(), "y": Y.float().numpy()}, "integer class indices"),
        ({"x": NAN.numpy(), "y": Y.numpy()}, "NaN"),
        ({"x": X.numpy(), "y": Y.numpy()[:4]}, "as many data"),
        ({"x": np.array([["a"]]), "y": np.array([0])}, "numeric"),
        ({"x": X.numpy(), "y": np.array([0] * 11 + [1])}, "at least 3 data of each class"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=what):
            load(str(path))


def test_a_root_whose_files_are_missing(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"root: .*MNIST/raw"):
        load("mnist", str(tmp_path))


def test_probable_structures_wants_probabilities():
    with pytest.raises(ValueError, match="probabilities"):
        probable_structures(Space(TWO), {"structure": torch.ones(3, 2)})


def test_there_are_at_least_forty():
    if len(BAD) < 40:
        pytest.fail(str(len(BAD)))


@pytest.mark.slow
@pytest.mark.skipif("PYRO_NAS_OPTIMISED" in os.environ, reason="this is the inner run")
def test_the_same_without_assertions():
    """All of this file under ``python -O``."""
    inner = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", __file__, "-p", "no:cacheprovider",
         "-W", "ignore::pytest.PytestConfigWarning", "-m", "not slow"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYRO_NAS_OPTIMISED": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if inner.returncode != 0:
        pytest.fail(inner.stdout[-3000:] + inner.stderr[-1000:])
