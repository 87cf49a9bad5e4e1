"""Identity of a fit: what goes on is what was started; all else is refused, with its place and both values."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_nas import Space
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam, bilevel, clipped, darts, empirical_bayes, one_cycle, schedules, svi
from pyro_nas.inference.batches import Batches
from pyro_nas.inference.fit_identity import sample_batch, values_at
from pyro_nas.models import Model, guides, hypernets, learned_priors, priors, structures


def space(activation="tanh"):
    return Space({(0, 1): {"a": dense(3, 4, activation), "b": dense(3, 4)}, (1, 2): {"out": dense(4, 2)}})


def run(folder, epochs=1, resume=False, data=None, guide=guides.MeanField, options=None, **changed):
    """Fit a pair, of which a part may be changed, in a checkpoint folder."""
    parts = {"space": space(), "weights": priors.normal(0.5), "num_data": 12, "complexity": 1.0, **changed}
    torch.manual_seed(0)
    model = Model(parts.pop("space"), **parts)
    x = torch.arange(36.0).view(12, 3) / 36
    train = (x, torch.arange(12) % 2) if data is None else data(x, torch.arange(12) % 2)
    svi.fit(
        model, guide(model), train, epochs=epochs, batch_size=4, checkpoint=folder, resume=resume, **(options or {})
    )


CHANGES = {
    "activation": ({"space": space("gelu")}, "fit.model.space.edges.(0, 1).a.arguments.activation 'tanh' → 'gelu'"),
    "prior": ({"weights": priors.normal(0.6)}, "values.divergence of weights "),
    "family": ({"weights": priors.laplace(0.5)}, "values.divergence of weights "),
    "lambda": ({"complexity": 0.5}, "fit.model.complexity 1.0 → 0.5"),
    "prior of lambda": ({"complexity": priors.log_uniform(0.1, 1.0)}, "fit.model.complexity 1.0 → {"),
    "structure": ({"structure": structures.gumbel_softmax(0.5)}, "fit.model.temperature 1.0 → 0.5"),
    "data": ({"data": lambda x, y: (x + 1, y)}, "fit.data.train.tensors[0] "),
    "labels": ({"data": lambda x, y: (x, 1 - y)}, "fit.data.train.tensors[1] "),
    "seed": ({"options": {"seed": 1}}, "fit.options.seed 0 → 1"),
    "batch size": ({"options": {"batch_size": 6}}, "fit.options.batch_size 4 → 6"),
    "particles": ({"options": {"particles": 2}}, "fit.options.particles 1 → 2"),
    "learning rate": ({"options": {"optimizer": adam(0.02)}}, "fit.steps.all.optimizer"),
    "clipping": ({"options": {"optimizer": clipped(adam(), 1.0)}}, "fit.steps.all.optimizer"),
    "scheduler": ({"options": {"scheduler": one_cycle(0.01)}}, "fit.steps.all.scheduler"),
    "schedule": ({"options": {"temperature": schedules.linear(1.0, 0.5)}}, "fit.schedules.temperature"),
    "clip": ({"options": {"max_gradient_norm": 1.0}}, "fit.options.max_gradient_norm None → 1.0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_fit_of_equal_shapes_is_refused_with_what_differs(name, tmp_path):
    changes, place = CHANGES[name]
    run(tmp_path)
    run(tmp_path, epochs=2, resume=True)  # the same goes on
    content = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=re.escape(place)) as error:
        run(tmp_path, epochs=3, resume=True, **changes)
    assert str(error.value).startswith(f"checkpoint: expected the fit that '{tmp_path}' was started with, got ")
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == content


POSITIVE = priors.each(lambda name, shape: dist.Gamma(2.0, 2.0).expand(shape).to_event(len(shape)))
PAIRS = {
    "mean field": {"guide": guides.MeanField, "weights": POSITIVE},
    "low rank": {"guide": lambda model: guides.LowRankNormal(model, rank=2)},
    "points": {"guide": guides.PointMass, "weights": POSITIVE, "structure": structures.dirichlet()},
    "structure-conditioned": {"guide": lambda model: guides.StructureConditioned(model, rank=2)},
    "learned scales": {"weights": learned_priors.learned_normal(0.5)},
    "AutoNormal": {"guide": AutoNormal, "weights": POSITIVE, "structure": structures.dirichlet()},
    "AutoMultivariateNormal": {"guide": AutoMultivariateNormal},
    "AutoLowRank": {"guide": AutoLowRankMultivariateNormal},
    "AutoIAFNormal": {"guide": lambda model: AutoIAFNormal(model, hidden_dim=[40])},
    "AutoDelta": {"guide": AutoDelta, "structure": structures.dirichlet()},
    "hypernetwork": {
        "guide": lambda model: hypernets.Linear(guides.MeanField(model)), "complexity": priors.log_uniform(0.1, 1.0)},
    "hard": {"structure": structures.straight_through(), "options": {"particles": 2}},
    "enumerated": {"structure": structures.categorical(), "options": {"enumerate_discrete": True}},
    "augmented": {"options": {"augmentation": lambda x: x + 0.01 * torch.randn_like(x)}},
    "dataset": {"data": TensorDataset},
    "loader": {"data": lambda x, y: DataLoader(TensorDataset(x, y), 4, shuffle=True), "options": {"batch_size": None}},
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_fit_goes_on_whatever_it_is_made_of(name, tmp_path):
    run(tmp_path, **PAIRS[name])
    torch.randn(3)
    run(tmp_path, epochs=2, resume=True, **PAIRS[name])


def test_a_pair_that_cannot_run_at_those_values_is_told_by_the_rest(tmp_path):
    def guide(model):
        def function(x, y):
            scale = pyro.param("scale", torch.full((len(model.packing),), 2.0))
            if scale.max() < 1:
                raise ValueError("scale: expected one that is larger")
            pyro.sample("weights", dist.Normal(0.0, scale).to_event(1))
            pyro.sample("structure", dist.Dirichlet(pyro.param("p", torch.ones(1, 2)).exp()).to_event(1))

        return function

    run(tmp_path, guide=guide, structure=structures.dirichlet())
    run(tmp_path, epochs=2, resume=True, guide=guide, structure=structures.dirichlet())
    with pytest.raises(ValueError, match=r"fit.model.complexity 1.0 → 0.5"):
        run(tmp_path, epochs=3, resume=True, guide=guide, structure=structures.dirichlet(), complexity=0.5)
    pyro.clear_param_store()


def test_versions_of_libraries_are_compared(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr("pyro_nas.inference.fit_identity.versions", lambda: {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"fit.versions.torch '.*' → '1.0'"):
        run(tmp_path, epochs=2, resume=True)


def test_another_procedure_and_its_own_options_are_refused(tmp_path):
    x, y = torch.randn(12, 3), torch.arange(12) % 2

    def pair(weights=None):
        torch.manual_seed(0)
        model = Model(space(), num_data=12, weights=weights, structure=structures.dirichlet())
        return model, guides.PointMass(model)

    options = {"epochs": 1, "checkpoint": tmp_path / "darts"}
    darts.fit(*pair(), (x, y), (x, y), rate=0.1, **options)
    with pytest.raises(ValueError, match=r"fit.procedure.rate 0.1 → 0.2"):
        darts.fit(*pair(), (x, y), (x, y), rate=0.2, resume=True, **options)
    with pytest.raises(ValueError, match=r"fit.procedure.fit 'darts' → 'bilevel'"):
        bilevel.fit(*pair(), (x, y), (x, y), resume=True, **options)
    with pytest.raises(ValueError, match=r"fit.steps.weights {"):
        svi.fit(*pair(), (x, y), (x, y), resume=True, **options)

    def learned():
        torch.manual_seed(0)
        model = Model(space(), num_data=12, weights=learned_priors.learned_normal(0.5))
        return model, guides.MeanField(model)

    options = {"epochs": 2, "checkpoint": tmp_path / "bayes"}
    empirical_bayes.fit(*learned(), (x, y), every=1, **options)
    with pytest.raises(ValueError, match=r"fit.procedure.every 1 → 2"):
        empirical_bayes.fit(*learned(), (x, y), every=2, resume=True, **options)


def plain(scale):
    """A pair of plain functions: y ~ N(w x, 1), w ~ N(0, scale)."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), pyro.param("sd", torch.ones(())).exp()))

    return model, guide


def test_plain_functions_are_told_apart_by_what_they_compute(tmp_path):
    x = torch.randn(8, 1)
    options = {"checkpoint": tmp_path, "batch_size": 8}
    svi.fit(*plain(1.0), (x, x[:, 0]), epochs=1, **options)
    pyro.clear_param_store()
    svi.fit(*plain(1.0), (x, x[:, 0]), epochs=2, resume=True, **options)
    with pytest.raises(ValueError, match=r"got values.divergence of w [\d.]+ → [\d.]+, values.penalty of w"):
        svi.fit(*plain(2.0), (x, x[:, 0]), epochs=3, resume=True, **options)
    pyro.clear_param_store()


def test_values_are_those_at_parameters_of_one_value_and_leave_them(small_data, build):
    model, guide = build()
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    live = {name: value.data for name, value in guide.named_parameters()}
    evidence = svi.Options().evidence(model, guide)
    state = torch.get_rng_state()
    values = values_at(live, evidence, small_data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())
    other_model, other_guide = build(seed=5)
    live = {name: value.data for name, value in other_guide.named_parameters()}
    assert values_at(live, svi.Options().evidence(other_model, other_guide), small_data) == values
    assert values.keys() == {
        "log_likelihood", "divergence of weights", "divergence of structure", "penalty of weights",
        "penalty of structure"}  # fmt: skip


class Drawn(Dataset):
    """Data that are drawn anew each time, by Python."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor([float(id(object()) % 1000 + next(COUNTER))]), index % 2


COUNTER = iter(range(1000))


def test_a_sample_batch_is_the_same_whatever_was_drawn_before():
    x, y = torch.arange(6.0)[:, None], torch.arange(6)
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    for source in ((x, y), TensorDataset(x, y), loader):
        batches = Batches("train", source, 4, torch.device("cpu"))
        for _ in range(2):
            drawn, labels = sample_batch(batches)
            assert torch.equal(drawn, x[:4])
            assert torch.equal(labels, y[:4])
            next(iter(batches))
    assert sample_batch(Batches("train", Drawn(), 4, torch.device("cpu"))) is None
