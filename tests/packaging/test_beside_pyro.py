"""A user's own Pyro beside ours: settings and parameter store stay the user's, and neither fit touches the other."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_nas import draw
from pyro_nas.inference import adam, svi
from pyro_nas.models import Model, guides


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def normal_mean(y):
    """The mean of normal data; its posterior is N(Σy / (n + 1), 1 / (n + 1))."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def with_input(x, y=None):
    return normal_mean(y)


def normal_guide(y):
    """A guide whose parameters a user keeps in Pyro's parameter store."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def data_about(center):
    return center + torch.linspace(-1, 1, 40)


def users_fit(model, guide, y, steps=300):
    procedure = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99}), TraceMeanField_ELBO())
    for _ in range(steps):
        procedure.step(y)


def our_fit(guide, y):
    svi.fit(with_input, guide, (y[:, None], y), epochs=150, batch_size=40, optimizer=adam(0.05), particles=2)


def store():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def test_settings_stay_as_the_user_has_them(small_space, small_data):
    assert pyro.settings.get("module_local_params") is False
    model = Model(small_space, num_data=40)
    svi.fit(model, guides.MeanField(model), small_data, epochs=1)
    assert pyro.settings.get("module_local_params") is False
    with pyro.settings.context(module_local_params=True):
        svi.fit(model, guides.MeanField(model), small_data, epochs=1)
        assert pyro.settings.get("module_local_params") is True
    assert len(pyro.get_param_store()) == 0


def test_the_parameter_store_has_the_users_parameters_and_none_of_ours(small_space, small_data, tmp_path):
    y = data_about(2.0)
    users_fit(normal_mean, normal_guide, y)
    before = store()
    model = Model(small_space, num_data=40)
    guide = guides.MeanField(model)
    svi.fit(model, guide, small_data, epochs=2)
    draw(guide, num_samples=2)
    assert store() == before
    users_fit(normal_mean, normal_guide, y)
    assert torch.allclose(pyro.param("loc"), y.sum() / 41, atol=0.15)
    assert torch.allclose(pyro.param("scale"), torch.tensor(41.0).rsqrt(), rtol=0.3)

    pyro.get_param_store().save(str(tmp_path / "params"))
    kept = store()
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "params"))
    assert set(pyro.get_param_store()) == {"loc", "scale"}
    assert store() == kept


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_two_guides_of_one_class_do_not_overwrite_each_other(first):
    """Pyro's autoguides have the same parameter names: only where they are kept tells two of them apart."""
    low, high = data_about(-3.0), data_about(3.0)
    ours, theirs = AutoNormal(with_input), AutoNormal(normal_mean)
    fits = {"ours": lambda: our_fit(ours, low), "theirs": lambda: users_fit(normal_mean, theirs, high)}
    for name in sorted(fits, key=lambda name: name != first):
        fits[name]()

    def both_are_right():
        assert draw(ours, low[:, None], low, num_samples=200)["mean"].mean() == pytest.approx(-3 * 40 / 41, abs=0.15)
        assert float(theirs.median()["mean"].detach()) == pytest.approx(3 * 40 / 41, abs=0.15)
        assert float(ours.median()["mean"].detach()) == pytest.approx(-3 * 40 / 41, abs=0.15)

    both_are_right()
    users_fit(normal_mean, theirs, high, steps=5)
    our_fit(ours, low)
    both_are_right()
    assert all(name.startswith("AutoNormal.") for name in pyro.get_param_store())
