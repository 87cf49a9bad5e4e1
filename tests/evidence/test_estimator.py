"""The estimator: evidence of guides that are not ours, of a λ that is drawn, of discrete sites by sum and by score."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyro_nas import Evidence, Space
from pyro_nas.evidence import evaluate
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, svi
from pyro_nas.inference.batches import Batches
from pyro_nas.models import Model, guides, priors, structures

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def space():
    return Space({(0, 1): {"tanh": dense(3, 4, "tanh"), "relu": dense(3, 4, "relu")}, (1, 2): {"out": dense(4, 2)}})


@pytest.mark.parametrize("auto", [AutoNormal, AutoLowRankMultivariateNormal])
def test_autoguides_get_the_models_complexity(auto):
    fits = {}
    for complexity in (1.0, 0.001):
        torch.manual_seed(0)
        model = Model(space(), num_data=40, complexity=complexity)
        guide = auto(model, init_scale=0.05)
        terms = Evidence(model, guide)(X, Y)
        for site, value in terms.divergence.items():
            assert torch.allclose(terms.penalty[site], complexity * value)
        history = svi.fit(model, guide, (X, Y), epochs=60, optimizer=adam(0.03)).records
        fits[complexity] = history[-1]["log_likelihood"]
    assert fits[0.001] > fits[1.0] + 2


A, B = torch.tensor([0.6, -0.2]), torch.tensor([[1.5, -0.7], [-1.0, 2.0]])
GAIN = torch.tensor([[0.3, -1.2], [0.8, -0.4]])


def chain_model():
    z = pyro.sample("structure.z", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
    w = pyro.sample("structure.w", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
    pyro.sample("y", dist.Normal(z @ GAIN @ w, 1.0), obs=torch.tensor(0.5))


class Chain(nn.Module):
    """q(z) q(w | z): the law of one discrete site depends on the draw of another."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self):
        z = pyro.sample("structure.z", dist.OneHotCategorical(logits=self.a))
        pyro.sample("structure.w", dist.OneHotCategorical(logits=z @ self.b))


def exact(a, b):
    total = 0.0
    for i in range(2):
        for j in range(2):
            log_q = a.log_softmax(0)[i] + b[i].log_softmax(0)[j]
            log_p = math.log(0.5) + math.log([0.3, 0.7][j]) + dist.Normal(GAIN[i, j], 1.0).log_prob(torch.tensor(0.5))
            total = total + log_q.exp() * (log_p - log_q)
    return total


def test_hierarchical_discrete_guides_are_exact_under_enumeration_and_unbiased_without():
    guide = Chain()
    truth = torch.autograd.grad(exact(guide.a, guide.b), (guide.a, guide.b))
    terms = Evidence(chain_model, guide, enumerate_discrete=True)()
    assert terms.evidence.item() == pytest.approx(exact(A, B).item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(terms.surrogate, (guide.a, guide.b)), truth, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    evidence, draws = Evidence(chain_model, guide), []
    for _ in range(4000):
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(evidence().surrogate, (guide.a, guide.b))]))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - torch.cat([g.flatten() for g in truth])).abs() < 4.5 * error + 1e-6).all()


def test_complexity_as_a_site_with_several_particles():
    """E λ KL, not E λ · E KL: λ and the divergence go together."""

    def model():
        scale = pyro.sample("complexity", dist.Uniform(0.5, 4.0))
        with poutine.scale(scale=scale):
            pyro.sample("weights", dist.Normal(0.0, 1.0))

    def guide():
        scale = pyro.sample("complexity", dist.Uniform(0.5, 4.0))
        with poutine.scale(scale=scale):
            pyro.sample("weights", dist.Normal(scale, 1.0))

    grid = torch.linspace(0.5, 4.0, 100_001)
    truth = -(grid * grid**2 / 2).mean().item()
    values = torch.stack([Evidence(model, guide, particles=20)().evidence for _ in range(300)])
    assert abs(values.mean().item() - truth) < 4.5 * values.std().item() / 300**0.5


def test_enumeration_refuses_before_it_explodes():
    many = Space({(i, i + 1): {c: dense(2, 2) for c in "abcd"} for i in range(40)})
    model = Model(many, num_data=4, structure=structures.categorical())
    with pytest.raises(ValueError, match="at most 10000 structures"):
        svi.fit(model, guides.MeanField(model), (torch.ones(4, 2), torch.tensor([0, 1, 0, 1])), enumerate_discrete=True)
    relaxed = Model(space(), num_data=40)
    with pytest.raises(ValueError, match="discrete sites, got none"):
        svi.fit(relaxed, guides.MeanField(relaxed), (X, Y), enumerate_discrete=True)


def test_evaluate_has_a_standard_error(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = guides.MeanField(model)
    guide.structure["structure"].data = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
    batches = Batches("train", small_data, 7, torch.device("cpu"))
    result = evaluate(model, guide, batches, draws=50)
    direct = torch.tensor([Evidence(model, guide)(*small_data).summary()["evidence"] for _ in range(400)])
    error = math.hypot(result["standard_error"], direct.std().item() / 20)
    assert abs(result["evidence"] - direct.mean().item()) < 4.5 * error
    assert result["evidence"] == pytest.approx(
        result["log_likelihood"] - result["kl_weights"] - result["kl_structure"], rel=1e-4
    )


def test_the_baseline_of_the_evidence_takes_the_variance_of_its_score_away():
    """REINFORCE as the bilevel search runs it. The wrong variant is the same without memory of past rewards."""
    space = Space({(0, 1): {n: dense(2, 3) for n in "ab"}, (1, 2): {n: dense(3, 3) for n in "cd"}})
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 2, generator=generator), torch.randint(3, (40,), generator=generator)
    torch.manual_seed(0)
    model = Model(space, num_data=4000, structure=structures.categorical())
    guide = guides.PointWeights(model)

    def gradients(forget):
        torch.manual_seed(1)
        evidence, found = Evidence(model, guide), []
        for _ in range(500):
            if forget:
                evidence.baseline.zero_()
            found.append(torch.autograd.grad(evidence(x, y).surrogate, list(guide.structure.parameters()))[0].flatten())
        return torch.stack(found[20:])

    without, with_baseline = gradients(True), gradients(False)
    difference = without.mean(0) - with_baseline.mean(0)
    assert (difference / (without.var(0) / len(without)).sqrt()).abs().max() < 4
    assert with_baseline.var(0).sum() < 0.1 * without.var(0).sum()


def test_data_that_a_mask_leaves_out_do_not_count():
    """The likelihood is that of the others, in closed form; 𝔏 is Pyro's."""
    y, w, mask = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])

    def model():
        value = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(value, 2.0), obs=y)

    def guide():
        pyro.sample("weights", dist.Normal(w, 1e-6).to_event(1))

    terms = Evidence(model, guide)()
    expected = -0.5 * (y - w).square() / 4 - math.log(2) - 0.5 * math.log(2 * math.pi)
    assert terms.log_likelihood.item() == pytest.approx(float(expected[mask].sum()), abs=1e-4)
    assert terms.evidence.item() == pytest.approx(-TraceMeanField_ELBO().loss(model, guide), abs=1e-3)
