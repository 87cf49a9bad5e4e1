"""q(Γ | λ) on digits: towards the prior as λ grows, and as trained directly at one λ."""

import pytest
import torch

from pyro_nas import Space, choice_probabilities, edge_entropies
from pyro_nas.data import load
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, guides, hypernets, priors, structures

FAVOURITE, GRID = 0, (0.3, 3.0, 5.6, 100.0)  # the prior's favourite is tanh, which the data do not like


def build(complexity):
    first, second = ({name: dense(size, 32, name) for name in ("tanh", "relu", "identity")} for size in (64, 32))
    edges = {(0, 1): {"flatten": flatten()}, (1, 2): first, (2, 3): second, (3, 4): {"readout": dense(32, 10)}}
    return Model(
        Space(edges),
        num_data=len(load("digits").known[1]),
        weights=priors.normal(priors.fan_in(0.7)),
        structure=structures.gumbel_softmax(0.5, [0.4, 0.3, 0.3]),
        complexity=complexity,
    )


def fit(guide, seed, **options):
    svi.fit(
        guide.model, guide, load("digits").known, epochs=120, batch_size=64, optimizer=adam(0.02),
        scheduler=one_cycle(0.02), local_reparameterization=True, seed=seed, **options,
    )  # fmt: skip


def over_complexity(frozen):
    torch.manual_seed(0)
    hypernet = hypernets.Spline(guides.MeanField(build(priors.log_interval(0.1, 100.0, ends=1.0))))
    if frozen:
        at, hypernet.parameters_at = hypernet.parameters_at, lambda complexity: at(torch.full_like(complexity, 3.0))
    fit(
        hypernet, 0, particles=8, vectorize_particles=True, stratified=True,
        emphasis=lambda complexity: (1 + complexity / 3).rsqrt(),
    )  # fmt: skip
    return hypernet


def at(hypernet, complexity):
    return choice_probabilities(hypernet.at(complexity)[1])["structure"]


def rises(hypernet):
    tables = torch.stack([at(hypernet, complexity) for complexity in GRID])
    entropies = torch.stack([edge_entropies(hypernet.model.space, {"structure": t})["structure"] for t in tables])
    return bool((entropies.mean(-1).diff() > 0).all() and (tables[..., FAVOURITE].mean(-1).diff() > 0).all())


@pytest.mark.slow
def test_structure_returns_to_the_prior_with_complexity_and_agrees_with_direct_training():
    hypernet = over_complexity(frozen=False)
    assert rises(hypernet)
    assert not rises(over_complexity(frozen=True))
    restarts = []
    for seed in range(5):
        torch.manual_seed(seed)
        guide = guides.MeanField(build(0.3))
        fit(guide, seed)
        restarts.append(choice_probabilities(guide)["structure"])
    low, high = torch.stack(restarts).aminmax(dim=0)

    def agrees(table):
        return bool(((table >= low - 0.005) & (table <= high + 0.005)).all())

    assert agrees(at(hypernet, 0.3)), (at(hypernet, 0.3), low, high)
    assert not agrees(at(hypernet, 10.0))
