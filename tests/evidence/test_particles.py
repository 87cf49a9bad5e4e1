"""A batch dealt to particles: the same mean over all deals, and which noise of the data is the same."""

import itertools
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import Evidence, Space
from pyro_nas.evidence.particles import deal
from pyro_nas.evidence.sites import Substitute
from pyro_nas.graph.primitives import convolution, dense, flatten, skip
from pyro_nas.inference import svi
from pyro_nas.models import Model, guides, hypernets, likelihoods, priors, structures

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
IMAGES = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
CHOICE = Space({(0, 1): {"tanh": dense(3, 2, "tanh"), "relu": dense(3, 2, "relu")}, (1, 2): {"readout": dense(2, 2)}})
IMAGE_SPACE = Space(
    {
        (0, 1): {"convolution": convolution(2, 2, normalization="group"), "skip": skip()},
        (1, 2): {"flatten": flatten()},
        (2, 3): {"readout": dense(18, 2)},
    }
)


def over_complexity(space=CHOICE, num_data=40, **options):
    torch.manual_seed(0)
    model = Model(space, num_data=num_data, complexity=priors.log_uniform(0.1, 10.0), **options)
    return model, hypernets.Linear(guides.MeanField(model, 0.3))


def hard_images():
    torch.manual_seed(0)
    model = Model(IMAGE_SPACE, num_data=40, structure=structures.categorical())
    return model, guides.MeanField(model, 0.3)


CASES = {
    "classes": (over_complexity, X, Y),
    "real": (lambda: over_complexity(likelihood=likelihoods.gaussian(0.5)), X, IMAGES[:, :, 0, 0]),
    "hard structure, images": (hard_images, IMAGES, Y),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_all_deals_is_the_estimate_on_the_whole_batch(case):
    make, x, y = CASES[case]
    model, guide = make()
    evidence = Evidence(model, guide, 2, vectorize_particles=True).eval()

    def estimate(x, y):
        torch.manual_seed(1)  # the same λ, structures and weights every time
        with torch.no_grad():
            return evidence(x, y).log_likelihood

    orders = [list(order) for order in itertools.permutations(range(4))]
    dealt = [estimate(*deal(x[order], y[order], 2)) for order in orders]
    assert torch.stack(dealt).mean() == pytest.approx(float(estimate(x, y)), rel=1e-5)
    first = [estimate(*deal(x[order], y[order], 2)) for order in orders if order[0] == 0]  # never shuffled enough
    assert torch.stack(first).mean() != pytest.approx(float(estimate(x, y)), rel=1e-3)


def test_the_noise_of_the_data_is_that_of_the_whole_batch_where_particles_agree():
    """The gradient of what all λ share has the variance of the whole batch, that of what one λ moves alone up to L."""
    torch.manual_seed(0)
    model = Model(Space({(0, 1): {"readout": dense(3, 2)}}), num_data=40, complexity=priors.log_uniform(0.1, 10.0))
    guide = hypernets.Linear(guides.MeanField(model, 1e-5), unit=1.0)
    evidence = Evidence(model, guide, 4, vectorize_particles=True)
    complexities = torch.tensor([[1e-6], [1e-6], [1e-6], [3.0]])  # θ(λ) = b₃ + b₂ λ: the last particle alone moves b₂

    def spreads(change):
        torch.manual_seed(2)
        found = []
        for _ in range(1000):
            x, y = change(torch.randn(16, 3), torch.randint(2, (16,)))
            with Substitute({"complexity": complexities}):
                terms = evidence(x, y)
            (gradient,) = torch.autograd.grad(terms.log_likelihood, [guide.coefficients["loc/weights"]])
            found.append(gradient)
        return torch.stack(found).var(0).mean(-1)  # of b₃ and of b₂

    whole = spreads(lambda x, y: (x, y))
    shared, alone = (spreads(lambda x, y: deal(x, y, 4)) / whole).tolist()
    assert 0.85 < shared < 1.15
    assert 3.4 < alone < 4.6
    assert spreads(lambda x, y: (x[:4], y[:4]))[0] / whole[0] > 3.4  # all particles on one share


def test_a_fit_deals_what_it_can_and_shares_a_last_batch_of_few():
    x, y = torch.randn(35, 3), torch.randint(2, (35,))
    sizes = []

    class Seen(torch.nn.Linear):
        def forward(self, x):
            sizes.append(len(x))  # under vmap the size of one particle's data
            return super().forward(x)

    model, guide = over_complexity(Space({(0, 1): {"seen": lambda: Seen(3, 2)}}), num_data=35)
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    history = svi.fit(model, guide, loader, epochs=1, particles=4, vectorize_particles=True, dealt=True).records
    assert sizes[-3:] == [4, 4, 3]  # of 16, 16 and 3 data
    assert torch.isfinite(torch.tensor(history[-1]["evidence"]))


def foreign(x, y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def normalised():
    torch.manual_seed(0)
    model = Model(Space({(0, 1): {"convolution": convolution(2, 2)}, (1, 2): {"flatten": flatten()}}), num_data=4)
    return model, guides.MeanField(model)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (
            over_complexity,
            {"particles": 1},
            ValueError,
            "expected several particles in one computation, got particles=1",
        ),
        (over_complexity, {"vectorize_particles": False}, ValueError, "vectorize_particles=False. Pass particles=4"),
        (
            partial(over_complexity, num_data=4),
            {"batch_size": 3},
            ValueError,
            "expected 4 data in a batch or more, one a particle, got 3",
        ),
        (normalised, {}, ValueError, "without batch normalisation"),
        (lambda: (foreign, AutoNormal(foreign)), {}, TypeError, "expected a Model of pyro_nas.models"),
    ],
)
def test_dealing_asks_for_particles_data_and_a_network_that_can(make, options, error, message):
    with pytest.raises(error, match=f"^dealt: .*{message}"):
        svi.fit(
            *make(),
            (IMAGES if make is normalised else X, Y),
            **{"particles": 4, "vectorize_particles": True, "dealt": True, **options},
        )
