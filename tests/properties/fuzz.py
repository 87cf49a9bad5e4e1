"""Fuzzing of fits: spaces, priors, guides, options and data at random (make fuzz).

Either a fit refuses its input before the first step, in words that name the argument, or it ends with 𝔏 ≤ log p(D)
within four standard errors. The models are linear in normal weights, so that log p(D | Γ) is in closed form; log p(D)
is then a sum over all Γ, or for relaxed Γ a mean over draws of the prior.
"""

import math
import re
import time
from functools import partial

import hypothesis
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from jsonargparse import auto_cli
from pyro.infer import autoguide
from torch import nn

from pyro_nas import Space, draw
from pyro_nas.evidence import evaluate
from pyro_nas.evidence.sites import run_at
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.primitives import skip, zero
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides, likelihoods, priors, structures

OURS = re.compile(r"^[a-z_][\w '.\[\]\"-]*: .*(expected|the network cannot run)", re.DOTALL)  # the argument, then words
PYROS = re.compile(r"Consider enumerating that variable|found no latent variables")  # what its autoguides refuse
PRIMITIVES = ["linear", "affine", "skip", "zero"]
ON_SIMPLEX = {
    "categorical": structures.categorical,
    "gumbel_softmax": partial(structures.gumbel_softmax, 0.6),
    "straight_through": partial(structures.straight_through, 0.6),
    "dirichlet": partial(structures.dirichlet, 0.4),
}
ON_CUBE = {"bernoulli": structures.bernoulli, "relaxed_bernoulli": partial(structures.relaxed_bernoulli, 0.6)}
DISCRETE = {"categorical", "straight_through", "bernoulli"}
WEIGHTS = {
    "normal": partial(priors.normal, 0.7),
    "fan-in": lambda: priors.normal(priors.fan_in()),
    "laplace": partial(priors.laplace, 0.5),
    "relevance determination": priors.relevance_determination,
    "student": lambda: priors.each(lambda name, shape: dist.StudentT(4.0).expand(shape).to_event(len(shape))),
}
GUIDES = {
    "mean field": guides.MeanField,
    "low rank": guides.LowRankNormal,
    "structure conditioned": guides.StructureConditioned,
    "point weights": guides.PointWeights,
    "point mass": guides.PointMass,
    "AutoNormal": autoguide.AutoNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoStructured": autoguide.AutoStructured,
}
POINTS = {"point weights", "point mass"}  # without a density of the weights
FAULTS = {
    "x with NaN": lambda x, y: (x.index_fill(0, torch.tensor([0]), torch.nan), y),
    "y infinite": lambda x, y: (x, y.index_fill(0, torch.tensor([0]), torch.inf)),
    "x of integers": lambda x, y: (x.long(), y),
    "x doubled": lambda x, y: (x.double(), y),
    "x without an axis": lambda x, y: (x[:, 0], y),
    "x too wide": lambda x, y: (torch.cat([x, x], 1), y),
    "y without an axis": lambda x, y: (x, y[:, 0]),
    "y too wide": lambda x, y: (x, torch.cat([y, y], 1)),
    "y of classes": lambda x, y: (x, torch.zeros(len(x), dtype=torch.long)),
    "y too short": lambda x, y: (x, y[:-1]),
    "no data": lambda x, y: (x[:0], y[:0]),
    "x of numpy": lambda x, y: (x.numpy(), y),
    "x alone": lambda x, y: x,
}


RARELY = st.sampled_from([False] * 7 + [True])


@st.composite
def cases(draw_from):
    """A description of a fit, in plain values that hypothesis prints."""
    restriction = draw_from(st.sampled_from(["simplex", "cube"]))
    middle = draw_from(st.integers(1, 2))
    choice = partial(st.lists, unique=True, min_size=1, max_size=3)
    size = draw_from(st.integers(1, 6))
    structure = draw_from(st.sampled_from(sorted(ON_SIMPLEX if restriction == "simplex" else ON_CUBE)))
    fitting = [name for name in sorted(GUIDES) if structure not in DISCRETE or not name.startswith("Auto")]
    return {
        "width": draw_from(st.integers(1, 3)),
        "first": [draw_from(choice(st.sampled_from(PRIMITIVES))) for _ in range(middle)],
        "last": [draw_from(choice(st.sampled_from(["skip", "zero"]))) for _ in range(middle)],
        "restriction": restriction,
        "structure": structure,
        "weights": draw_from(st.sampled_from(sorted(WEIGHTS))),
        "guide": draw_from(st.sampled_from(fitting * 6 + sorted(GUIDES))),
        "noise": draw_from(st.sampled_from([0.3, 1.0, 2.0])),
        "complexity": draw_from(st.sampled_from([1.0, 1.0, 1.0, 1.0, 0.01, 10.0])),
        "size": size,
        "fault": draw_from(st.sampled_from([None] * 2 * len(FAULTS) + sorted(FAULTS))),
        "seed": draw_from(st.integers(0, 2**31)),
        "options": {
            "batch_size": draw_from(st.integers(1, size + 2)),
            "particles": draw_from(st.integers(1, 2)),
            "enumerate_discrete": draw_from(RARELY),
            "local_reparameterization": draw_from(RARELY),
            "structure_per_example": draw_from(RARELY),
            "vectorize_particles": draw_from(RARELY),
        },
    }


def model_of(case):
    """The model that a case describes: y = Σ over middle vertices of affine maps of x, chosen by Γ, and noise."""
    width = case["width"]
    primitives = {
        "linear": partial(nn.Linear, width, width, bias=False),
        "affine": partial(nn.Linear, width, width),
        "skip": skip(),
        "zero": zero(),
    }
    count = len(case["first"])
    edges = {(0, i + 1): {name: primitives[name] for name in names} for i, names in enumerate(case["first"])}
    edges |= {(i + 1, count + 1): {name: primitives[name] for name in names} for i, names in enumerate(case["last"])}
    return Model(
        Space(edges, restriction=case["restriction"]),
        num_data=case["size"],
        weights=WEIGHTS[case["weights"]](),
        structure=(ON_SIMPLEX | ON_CUBE)[case["structure"]](),
        likelihood=likelihoods.gaussian(case["noise"], learn=False),
        complexity=case["complexity"],
    )


def data_of(case):
    """Data of a case, (size, width) each."""
    generator = torch.Generator().manual_seed(case["seed"])
    x, y = (torch.randn(case["size"], case["width"], generator=generator) for _ in range(2))
    return x, x + case["noise"] * y


def log_evidence_given(model, structure, data, noise):
    """log N(y; f(0), noise² + J S Jᵀ) of outputs f(0) + J w, w ~ N(0, S)."""
    x, y = data
    size = model.packing.size

    def outputs(weights):
        named = {"weights": weights} if size else {}
        return run_at(model, {**named, **structure}, (x,)).outputs.flatten()

    zeros = torch.zeros(size)
    with torch.no_grad():
        mean = outputs(zeros).double()
    covariance = noise**2 * torch.eye(len(mean), dtype=torch.double)
    if size:
        slope = torch.autograd.functional.jacobian(outputs, zeros).double()
        covariance += (slope * model.weights.scale.double().square()) @ slope.T
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(y.flatten().double())


def log_evidence(model, data, noise, draws=100):
    """log p(D) and its standard error: exact for discrete Γ, else by draws of the prior."""
    laws = {site: model.structure_law(site) for site in model.choices}
    if model.structure_prior.reparameterised and laws:
        drawn = [{site: law.sample() for site, law in laws.items()} for _ in range(draws)]
        values = torch.stack([log_evidence_given(model, structure, data, noise) for structure in drawn])
        shares = (values - values.max()).exp()
        return float(values.logsumexp(0)) - math.log(draws), float(shares.std() / shares.mean()) / draws**0.5
    terms = []
    for structure in all_structures(model.space):
        log_p = sum(law.log_prob(structure[site]).double() for site, law in laws.items())
        terms.append(log_p + log_evidence_given(model, structure, data, noise))
    return float(torch.stack(terms).logsumexp(0)), 0.0


def check(case):
    """Fit a case; raise AssertionError where it neither refuses in words at once nor keeps below log p(D)."""
    steps = []

    def counted(parameters):
        optimizer = adam(0.02)(parameters)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    torch.manual_seed(0)
    good = data_of(case)
    data = good if case["fault"] is None else FAULTS[case["fault"]](*good)
    try:
        model = model_of(case)
        guide = GUIDES[case["guide"]](model)
        svi.fit(model, guide, data, epochs=3, optimizer=counted, **case["options"])
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        if steps or not (OURS.match(str(error)) or PYROS.search(str(error))):
            raise AssertionError(f"after {len(steps)} steps an error, or one in other words: {error!r}") from error
        return "refused"
    assert case["fault"] in (None, "x doubled", "x of integers", "x of numpy"), "data that were to be refused"
    assert steps
    normal = case["weights"] in ("normal", "fan-in") or not model.packing.size
    straight = case["structure"] == "straight_through"  # by pathwise gradients, but a discrete law
    if not normal or case["guide"] in POINTS or case["complexity"] != 1.0 or straight:
        assert draw(guide, num_samples=2)
        return "fitted"
    measured = evaluate(model, guide, good, draws=100)
    exact, error = log_evidence(model, good, case["noise"])
    slack = 4 * math.hypot(measured["standard_error"], error) + 1e-3
    assert measured["evidence"] <= exact + slack, f"𝔏 = {measured['evidence']:.4f} above log p(D) = {exact:.4f}"
    return "bounded"


def fuzz(examples, seed, outcomes=None):
    """Check so many cases; raise what hypothesis finds, made small."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(cases())
    def run(case):
        outcome = check(case)
        if outcomes is not None:
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    run()


def main(seconds: float = 300.0, seed: int = 0) -> None:
    """Fuzz for so many seconds, and say what became of the cases.

    Args:
        seconds: how long.
        seed: of the first fifty cases; those of the next fifty are one higher.
    """
    outcomes: dict[str, int] = {}
    start = time.monotonic()
    rounds = 0
    while time.monotonic() - start < seconds:
        fuzz(50, seed + rounds, outcomes)
        rounds += 1
    print(f"{sum(outcomes.values())} cases in {time.monotonic() - start:.0f} s, seeds {seed} to {seed + rounds - 1}:")
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


if __name__ == "__main__":
    auto_cli(main)
