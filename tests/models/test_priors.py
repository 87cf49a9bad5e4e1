"""Weight priors: relevance that data decide, densities, sites."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_nas import Space
from pyro_nas.evidence.packing import Packing
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods, priors


def test_relevance_determination_shrinks_irrelevant_inputs():
    x = torch.randn(150, 4)
    y = 2 * x[:, :1] + 0.3 * torch.randn(150, 1)
    model = Model(
        Space({(0, 1): {"linear": partial(nn.Linear, 4, 1, bias=False)}}), num_data=150,
        weights=priors.relevance_determination(1.0, width=3.0), likelihood=likelihoods.gaussian(0.3, learn=False),
    )  # fmt: skip
    guide = guides.MeanField(model)
    svi.fit(model, guide, (x, y), epochs=800, batch_size=150, optimizer=adam(0.03))
    scales = guide.loc["scales"].exp()
    assert scales[0] > 5 * scales[1:].max()


LAYOUT = Packing({"a": torch.Size([2, 3]), "b": torch.Size([2])})


@pytest.mark.parametrize("scale", [0.5, "fan-in"])
@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_a_location_scale_prior_has_the_density_of_its_family(family, scale):
    """Σ −½ (w/s)² − log s √2π, or Σ −|w|/s − log 2s; by fan-in s is 2/√3 for "a", 2 for "b"."""
    prior = getattr(priors, family)(priors.fan_in(2.0) if scale == "fan-in" else scale)(LAYOUT)
    trace = poutine.trace(prior).get_trace()
    assert [name for name, node in trace.nodes.items() if node["type"] == "sample"] == ["weights"]
    w = trace.nodes["weights"]["value"]
    s = torch.tensor([2 / 3**0.5] * 6 + [2.0] * 2) if scale == "fan-in" else torch.full((8,), 0.5)

    def density(s):
        if family == "normal":
            return (-0.5 * (w / s).square() - (s * (2 * torch.pi) ** 0.5).log()).sum()
        return (-w.abs() / s - (2 * s).log()).sum()

    assert torch.allclose(trace.log_prob_sum(), density(s), atol=1e-5)
    assert not torch.allclose(trace.log_prob_sum(), density(1.1 * s), atol=1e-3)
    drawn = trace.nodes["_RETURN"]["value"]
    assert torch.equal(torch.cat([drawn["a"].flatten(), drawn["b"]]), w)


def test_groups_of_relevance_determination():
    """A scale for each of three inputs of "a", and for the bias "b"; or for each tensor, or each weight."""
    groups = {
        per: priors.relevance_determination(per=per)(LAYOUT).group.tolist() for per in ("input", "tensor", "weight")
    }
    assert groups["input"] == [0, 1, 2, 0, 1, 2, 3, 3]
    assert groups["tensor"] == [0] * 6 + [1] * 2
    assert groups["weight"] == list(range(8))


def test_each_draws_a_site_for_every_tensor():
    prior = priors.each(lambda name, shape: dist.Normal(float(name == "b"), 1.0).expand(shape).to_event(len(shape)))
    trace = poutine.trace(prior(LAYOUT)).get_trace()
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    assert {name: tuple(node["value"].shape) for name, node in sites.items()} == {
        "weights.a": (2, 3),
        "weights.b": (2,),
    }
    assert sites["weights.b"]["fn"].mean.tolist() == [1.0, 1.0]
