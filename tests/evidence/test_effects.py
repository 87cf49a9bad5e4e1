"""Effects: strata that cover a law, and a structure for each example: the same expectation, less variance."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_nas.evidence import Evidence
from pyro_nas.evidence.effects import LocalReparameterization, Stratified, StructurePerExample
from pyro_nas.evidence.gaussian_tensor import GaussianTensor
from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import adam, bilevel, svi
from pyro_nas.models import Model, guides, priors, structures

LOW, HIGH = 0.1, 100.0


def test_strata_cover_the_prior():
    law = priors.log_uniform(LOW, HIGH)
    first = []
    for _ in range(40):
        with Stratified("complexity"), poutine.trace() as trace, pyro.plate("particles", 5, dim=-2):
            pyro.sample("complexity", law)
        strata = (law.cdf(trace.trace.nodes["complexity"]["value"]).flatten() * 5).floor().tolist()
        assert sorted(strata) == [0, 1, 2, 3, 4]
        first.append(strata[0])
    assert set(first) == {0, 1, 2, 3, 4}  # in random order: each draw by itself has the site's law


@pytest.mark.parametrize("end", [0.0, 1 - 2**-24])
def test_strata_leave_out_infinite_quantiles(end, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda count: torch.full((count,), end))
    law = pyro.distributions.LogNormal(0.0, 1.0)
    with Stratified("complexity"), pyro.plate("particles", 8, dim=-2):
        value = pyro.sample("complexity", law)
    assert bool(((value > 0) & value.isfinite()).all())


def test_a_structure_per_example_has_the_same_expectation_and_less_variance(small_space, small_data):
    torch.manual_seed(0)
    model = Model(small_space, num_data=40, structure=structures.gumbel_softmax(0.5), complexity=1.0)
    guide = guides.PointWeights(model)
    with torch.no_grad():
        guide.structure["structure"].normal_()
    evidence = Evidence(model, guide)

    def estimates(each):
        found = []
        for _ in range(600):
            if each:
                with StructurePerExample(40):
                    terms = evidence(*small_data)
            else:
                terms = evidence(*small_data)
            (gradient,) = torch.autograd.grad(terms.surrogate, [guide.structure["structure"]])
            found.append(torch.cat([terms.evidence.detach()[None], gradient.flatten()]))
        return torch.stack(found)

    shared, own = estimates(False), estimates(True)
    error = (shared.var(0) / len(shared) + own.var(0) / len(own)).sqrt()
    assert ((shared.mean(0) - own.mean(0)) / error).abs().max() < 4
    assert own[:, 0].var() < 0.2 * shared[:, 0].var()


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("prior", ["gumbel_softmax", "straight_through", "dirichlet"])
@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_fits_draw_a_structure_per_example(small_images, prior, procedure, each):
    """Every step, that of the structure too, has a γ for each example, without the option one for all."""
    space = cell_spaces.nas_bench_201(1, 3, channels=2, repeats=1, nodes=2, stages=1)
    model = Model(space, num_data=24, structure=getattr(structures, prior)(), complexity=0.1)
    seen = []

    def look(_network, _inputs, options):
        if model.training:
            seen.append(options["structure"]["structure.cell"].detach())

    model.network.register_forward_pre_hook(look, with_kwargs=True)
    data = (small_images, small_images) if procedure is bilevel.fit else (small_images,)
    options = {"epochs": 2, "batch_size": 8, "measure_validation": False, "optimizer": adam(0.01)}
    procedure(model, guides.MeanField(model), *data, structure_per_example=each, **options)
    assert len(seen) == 6 * len(data)
    edges = model.choices["structure.cell"].shape
    assert {gamma.shape for gamma in seen} == {(8, *edges) if each else edges}
    distinct = [len(gamma.unique(dim=0)) for gamma in seen if each]
    assert all(count > 1 if prior == "straight_through" else count == 8 for count in distinct)
    assert len({tuple(gamma.flatten().tolist()) for gamma in seen}) > 1  # and anew in every step


def test_a_structure_per_example_needs_a_closed_form_and_draws_of_its_own(small_space, small_data):
    """Otherwise log q − log p would be summed over the data, or every example would see one point."""
    model = Model(small_space, num_data=40, structure=structures.dirichlet(0.7))
    with pytest.raises(ValueError, match="structure_per_example: expected a guide that draws a structure"):
        svi.fit(model, guides.PointMass(model), small_data, epochs=1, structure_per_example=True)

    class Other(guides.PointWeights):
        def draw_structure(self, site):
            return pyro.sample(site, structures.gumbel_softmax(0.5).distribution(self.structure[site], 0.5).to_event(1))

    with pytest.raises(ValueError, match="structure_per_example: expected a divergence in closed form"):
        svi.fit(model, Other(model), small_data, epochs=1, structure_per_example=True)
    model = Model(small_space, num_data=40)
    with pytest.raises(ValueError, match="structure_per_example: expected draws that do not depend on the structure"):
        svi.fit(model, guides.StructureConditioned(model), small_data, epochs=1, structure_per_example=True)
    with pytest.raises(ValueError, match="structure_per_example: expected no vectorize_particles"):
        svi.fit(model, guides.PointWeights(model), small_data, structure_per_example=True, vectorize_particles=True)


def test_a_structure_per_example_needs_reparameterised_draws(small_space, small_data):
    model = Model(small_space, num_data=40, structure=structures.categorical())
    with pytest.raises(ValueError, match="structure_per_example: expected a guide that draws a structure"):
        svi.fit(model, guides.PointWeights(model), small_data, epochs=1, structure_per_example=True)


def test_normal_draws_are_handed_on_as_mean_and_variance():
    """Those that are not given, observed or auxiliary; all other laws draw as before."""
    law = pyro.distributions.Normal(torch.arange(3.0), torch.arange(1.0, 4.0)).to_event(1)
    with LocalReparameterization() as effect, poutine.condition(data={"given": torch.ones(3)}):
        value = pyro.sample("w", law)
        others = [
            pyro.sample("given", law),
            pyro.sample("y", law, obs=torch.ones(3)),
            pyro.sample("auxiliary", law, infer={"is_auxiliary": True}),
            pyro.sample("laplace", pyro.distributions.Laplace(torch.zeros(3), 1.0).to_event(1)),
        ]
    assert effect.sites == {"w"}
    assert isinstance(value, GaussianTensor)
    assert torch.equal(value.mean_value, torch.arange(3.0))
    assert torch.equal(value.variance, torch.arange(1.0, 4.0).square())
    assert not any(isinstance(other, GaussianTensor) for other in others)
