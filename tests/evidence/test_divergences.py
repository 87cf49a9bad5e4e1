"""Divergences: those of draws that carry a density, of maps and of masks, against Pyro's own and closed forms."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from torch import nn
from torch.distributions import AffineTransform, ExpTransform

from pyro_nas import Evidence, Space
from pyro_nas.evidence import evaluate
from pyro_nas.evidence.divergences import divergence
from pyro_nas.evidence.sites import local_parameters, sample_sites
from pyro_nas.graph.primitives import skip
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures

ROWS = 20
DATA = torch.zeros(ROWS, 3), torch.zeros(ROWS, 3)
EXACT = -0.5 * ROWS * 3 * math.log(2 * math.pi)  # outputs are 0 whatever the draw
LINEAR = partial(nn.Linear, 3, 3, bias=False)
GUIDES = {
    "normal": autoguide.AutoNormal,
    "diagonal": autoguide.AutoDiagonalNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "structured": autoguide.AutoStructured,
    "flow": autoguide.AutoIAFNormal,
}
PRIORS = {
    "dirichlet": {"structure": structures.dirichlet(1.0)},
    "gumbel-softmax": {"structure": structures.gumbel_softmax(0.7)},
    "relaxed bernoulli": {"structure": structures.relaxed_bernoulli(0.7)},
    "scales": {"weights": priors.relevance_determination(0.5)},
}


def constrained(prior):
    """A model with constrained latent sites of which y does not tell."""
    restriction = "cube" if prior == "relaxed bernoulli" else "simplex"
    edge = {"dense": LINEAR} if prior == "scales" else {name: skip() for name in "abc"}
    space = Space({(0, 1): edge}, restriction=restriction)
    return Model(space, num_data=ROWS, likelihood=likelihoods.gaussian(1.0, learn=False), **PRIORS[prior])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", GUIDES)
def test_evidence_of_autoguides_is_pyros_draw_by_draw_and_below_the_exact(name, prior):
    model = constrained(prior)
    guide = GUIDES[name](model)
    values = []
    with torch.no_grad(), local_parameters(guide):
        guide(*DATA)
        for parameter in guide.parameters():  # away from where it starts
            parameter.add_(0.1 * torch.randn_like(parameter))
        for seed in range(40):
            torch.manual_seed(seed)
            values.append(Evidence(model, guide)(*DATA).evidence)
            torch.manual_seed(seed)
            assert -Trace_ELBO().loss(model, guide, *DATA) == pytest.approx(values[-1].item(), abs=1e-3)
    values = torch.stack(values)
    assert values.mean() <= EXACT + 4 * values.std() / 40**0.5


def test_a_fit_by_an_autoguide_ends_below_the_exact_evidence():
    model = constrained("dirichlet")
    fit = svi.fit(model, autoguide.AutoNormal(model), DATA, epochs=60, optimizer=adam(0.05))
    measured = evaluate(model, fit.posterior, DATA, draws=100)
    assert EXACT - 2 < measured["evidence"] < EXACT + 4 * measured["standard_error"]


def site(law, value=None, mask=None):
    return {"fn": law, "value": law.sample() if value is None else value, "mask": mask, "scale": 1.0}


def test_a_point_estimate_has_no_density_and_a_draw_made_elsewhere_has_its_own():
    p = dist.LogNormal(0.0, 1.0)
    point = torch.tensor(2.0)
    for log_density in (0.0, -0.7):
        value, exact = divergence(site(dist.Delta(point, log_density)), site(p, point), torch.sum)
        assert exact
        assert value == pytest.approx(log_density - p.log_prob(point).item())


def test_a_map_of_a_point_is_refused():
    q = dist.TransformedDistribution(dist.Delta(torch.tensor(0.3)), [AffineTransform(0.1, 0.7), ExpTransform()])
    with pytest.raises(ValueError, match=r"^guide: expected Delta\(map\(point\), log_density=…\), got a map of"):
        divergence(site(q), site(dist.LogNormal(0.0, 1.0)), torch.sum)


def test_a_map_that_is_not_one_to_one_has_not_the_divergence_of_what_it_maps():
    q, p = (dist.FoldedDistribution(dist.Normal(mean, 1.0)) for mean in (1.0, -1.0))  # the same law
    ours = site(q)
    value, exact = divergence(ours, site(p, ours["value"]), torch.sum)
    assert not exact
    assert value == pytest.approx(0.0, abs=1e-6)


def test_a_map_that_is_one_to_one_has():
    q, p = (dist.TransformedDistribution(dist.Normal(mean, 1.0), [ExpTransform()]) for mean in (1.0, -1.0))
    assert divergence(site(q), site(p), torch.sum) == (2.0, True)


@pytest.mark.parametrize("mask", [torch.tensor([True, False, True]), False, True])
def test_masked_values_do_not_count(mask):
    q, p = dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 1.0), dist.Normal(torch.zeros(3), 1.0)
    value, exact = divergence(site(q, mask=mask), site(p, mask=mask), torch.sum)
    assert exact
    assert value == 0.5 * (torch.tensor([1.0, 4.0, 9.0]) * mask).sum()


def test_masks_of_model_alone_are_pyros_too():
    def model(x, y):
        with pyro.plate("cases", 2), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))

    def guide(x, y):
        with pyro.plate("cases", 2):
            pyro.sample("z", dist.Normal(torch.ones(2), 0.5))

    for seed in range(3):
        torch.manual_seed(seed)
        ours = Evidence(model, guide)(*DATA).evidence
        torch.manual_seed(seed)
        assert -Trace_ELBO().loss(model, guide, *DATA) == pytest.approx(ours.item(), abs=1e-5)


def test_auxiliary_draws_have_the_complexity_of_the_site_they_serve():
    space = Space({(0, 1): dict.fromkeys("ab", LINEAR)})
    model = Model(space, num_data=ROWS, likelihood=likelihoods.gaussian(1.0, learn=False), complexity=0.3)
    terms = Evidence(model, autoguide.AutoStructured(model))(*DATA)
    assert set(terms.divergence) == {"structure", "structure_aux", "weights", "weights_aux"}
    for name, value in terms.divergence.items():
        assert terms.penalty[name].item() == pytest.approx(0.3 * value.item(), rel=1e-5)


def test_complexities_within_a_site_are_refused():
    def model(x, y):
        with pyro.plate("cases", 2), poutine.scale(scale=torch.tensor([1.0, 2.0])):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))

    def guide(x, y):
        with pyro.plate("cases", 2):
            pyro.sample("z", dist.Normal(torch.ones(2), 0.5))

    with pytest.raises(ValueError, match=r"^scale: expected one λ a site"):
        Evidence(model, guide)(*DATA)


def test_sites_of_an_autoguide_carry_the_density_of_their_map():
    model = constrained("dirichlet")
    guide = autoguide.AutoNormal(model)
    with torch.no_grad():
        drawn = sample_sites(guide, DATA)["structure"]
    assert drawn["fn"].log_prob(drawn["value"]).abs() > 0.1


def test_local_reparameterisation_asks_for_a_closed_form():
    weights = priors.each(lambda name, shape: dist.StudentT(4.0).expand(shape).to_event(len(shape)))
    model = Model(Space({(0, 1): {"only": LINEAR}}), num_data=ROWS, weights=weights, likelihood=likelihoods.gaussian())
    with pytest.raises(ValueError, match=r"^local_reparameterization: expected KL\(q ‖ p\) in closed form, got Joint"):
        svi.fit(model, guides.MeanField(model), DATA, epochs=1, local_reparameterization=True)
