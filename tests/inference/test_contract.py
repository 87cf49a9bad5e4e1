"""One contract for every guide × every prior × both procedures, and for NUTS."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam

from pyro_nas import choice_probabilities, derive, draw, predict
from pyro_nas.inference import adam, bilevel, svi
from pyro_nas.models import Model, guides, hypernets, priors, structures

WEIGHTS = {
    "normal": priors.normal(0.5),
    "fan-in normal": priors.normal(priors.fan_in()),
    "laplace": priors.laplace(0.5),
    "relevance determination": priors.relevance_determination(0.5),
    "each": priors.each(lambda name, shape: dist.StudentT(4.0).expand(shape).to_event(len(shape))),
    "each positive": priors.each(lambda name, shape: dist.Gamma(2.0, 2.0).expand(shape).to_event(len(shape))),
}
STRUCTURES = {
    "gumbel-softmax": structures.gumbel_softmax(0.5),
    "straight-through": structures.straight_through(0.5),
    "dirichlet": structures.dirichlet(0.7, [0.3, 0.7]),
    "categorical": structures.categorical([0.4, 0.6]),
    "relaxed bernoulli": structures.relaxed_bernoulli(0.5),
    "bernoulli": structures.bernoulli([0.4, 0.6]),
}


class ByHand(PyroModule):
    """A guide that a user might write: normal weights, structure in the prior's family."""

    def __init__(self, model):
        super().__init__()
        self.__dict__["model"] = model
        self.sites = list(model.latent_weights())
        for index, latent in enumerate(model.latent_weights().values()):
            setattr(self, f"loc{index}", PyroParam(latent.initial.clone(), latent.support))
        self.logits = PyroParam(model.structure_parameters("structure").clone())

    def forward(self, x=None, y=None):
        for index, site in enumerate(self.sites):
            value = getattr(self, f"loc{index}")
            with poutine.scale(scale=self.model.draw_complexity()):
                pyro.sample(site, dist.Delta(value).to_event(value.dim()))
        with poutine.scale(scale=self.model.draw_complexity()):
            pyro.sample("structure", self.model.structure_law("structure", self.logits))


GUIDES = {
    "mean field": guides.MeanField,
    "low rank": lambda model: guides.LowRankNormal(model, rank=2),
    "point mass": guides.PointMass,
    "point weights": guides.PointWeights,
    "structure-conditioned": lambda model: guides.StructureConditioned(model, rank=3),
    "AutoNormal": AutoNormal,
    "AutoLowRank": AutoLowRankMultivariateNormal,
    "by hand": ByHand,
}


def on_the_cube(space):
    """The space without its readout: on the cube edges of one primitive are choices too, and all need as many."""
    kept = {edge: primitives for edge, primitives in space.edges.items() if edge[1] != 3}
    edges = {edge: {**ops, "b": next(iter(ops.values()))} if len(ops) == 1 else ops for edge, ops in kept.items()}
    return dataclasses.replace(space, restriction="cube", edges=edges)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("procedure", ["svi", "bilevel"])
def test_every_combination(small_space, small_data, guide, weights, structure, procedure):
    prior = STRUCTURES[structure]
    space = on_the_cube(small_space) if "cube" in prior.restriction else small_space
    torch.manual_seed(1)
    count = 24 if procedure == "svi" else 40  # what a fit is given
    model = Model(space, num_data=count, weights=WEIGHTS[weights], structure=prior, complexity=0.5)
    fitted = GUIDES[guide](model)
    x, y = small_data
    train, valid = (x[:24], y[:24]), (x[24:], y[24:])
    options = {"epochs": 2, "batch_size": 12, "optimizer": adam(0.02)}

    def fit():
        return (
            svi.fit(model, fitted, train, **options)
            if procedure == "svi"
            else bilevel.fit(model, fitted, train, valid, **options)
        )

    if guide.startswith("Auto") and not prior.reparameterised:
        with pytest.raises((ValueError, NotImplementedError), match=r"discrete|support|enumerat"):
            fit()
        return
    if guide == "AutoLowRank" and procedure == "bilevel":
        with pytest.raises(ValueError, match="parameters of its own for the structure"):
            fit()
        return
    history = fit().records
    assert len(history) == 2
    assert all(torch.isfinite(torch.tensor([r["evidence"], r["kl_weights"], r["kl_structure"]])).all() for r in history)
    draws = draw(fitted, *train, num_samples=3)
    space.check_structure(draws)
    assert predict(model, draws, x).shape == (40, 3 if "cube" in prior.restriction else 2)
    probabilities = choice_probabilities(fitted, *train, num_samples=20)
    if "cube" not in prior.restriction:
        assert derive(space, probabilities).choices() == {}
    assert len(pyro.get_param_store()) == 0
    through_pyro = Predictive(fitted, num_samples=3)(*train)
    assert Predictive(model, {n: v for n, v in through_pyro.items() if n in draws})(x)["y"].shape == (3, 40)
    if guide not in ("by hand",) and prior.reparameterised:
        elbo = TraceMeanField_ELBO() if not guide.startswith("point") else pyro.infer.Trace_ELBO()
        assert torch.isfinite(elbo.differentiable_loss(model, fitted, x, y))
    pyro.clear_param_store()  # Pyro's own readings of an autoguide have put its parameters there


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("guide", [name for name in GUIDES if not name.startswith("Auto") and name != "by hand"])
@pytest.mark.parametrize("form", [hypernets.Linear, hypernets.LowRank, hypernets.Spline])
def test_every_hypernetwork(small_space, small_data, form, guide, structure):
    weights = WEIGHTS["relevance determination" if guide == "mean field" else "normal"]
    prior = {"weights": weights, "structure": STRUCTURES[structure], "complexity": priors.log_uniform(0.1, 10.0)}
    if "cube" in STRUCTURES[structure].restriction:
        small_space = on_the_cube(small_space)
    torch.manual_seed(1)
    model = Model(small_space, num_data=40, **prior)
    hypernet = form(GUIDES[guide](model))
    options = {"epochs": 2, "batch_size": 12, "optimizer": adam(0.02), "particles": 3, "vectorize_particles": True}
    history = svi.fit(model, hypernet, small_data, stratified=True, **options).records
    assert all(torch.isfinite(torch.tensor(record["evidence"])) for record in history)
    at_two = poutine.condition(hypernet, data={"complexity": torch.tensor(2.0)})
    draws = draw(at_two, num_samples=3)
    small_space.check_structure(draws)
    assert len(predict(model, {n: v for n, v in draws.items() if n != "complexity"}, small_data[0])) == 40
    plain, fixed = hypernet.at(2.0)
    assert plain.complexity == 2.0
    assert not isinstance(model.complexity, float)
    for site, table in choice_probabilities(fixed).items():
        assert torch.allclose(table, choice_probabilities(at_two, num_samples=1000)[site], atol=0.1)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("structure", ["gumbel-softmax", "dirichlet"])
def test_nuts_runs_on_the_model(small_space, small_data, structure):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5), structure=STRUCTURES[structure])
    sampler = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    sampler.run(*small_data)
    draws = sampler.get_samples()
    small_space.check_structure(draws)
    assert predict(model, draws, small_data[0]).shape == (40, 2)
    assert derive(small_space, draws).choices() == {}
