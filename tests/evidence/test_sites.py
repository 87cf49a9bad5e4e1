"""Sites: running a model at a draw, telling laws apart, and parameters that stay in their guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import AffineTransform

from pyro_nas.evidence.sites import innermost, local_parameters, run_at, same_law, sample_sites, transformed, unjoined
from pyro_nas.models import Model
from pyro_nas.models.distributions import GumbelSoftmax
from pyro_nas.models.normals import MeanFieldNormal

ZERO, ONE = torch.zeros(3), torch.ones(3)


def test_a_model_is_run_at_a_draw(small_space, small_data):
    x, y = small_data
    model = Model(small_space, num_data=40)
    draw = {name: site["value"] for name, site in sample_sites(model, (x, y)).items() if not site["is_observed"]}
    outputs, sites = run_at(model, draw, (x,))
    assert outputs.shape == (40, 2)
    assert torch.equal(run_at(model, draw, (x, y)).outputs, outputs)  # nothing is left to chance
    assert torch.equal(sites["weights"]["value"], draw["weights"])
    for missing in draw:
        with pytest.raises(ValueError, match=rf"draws: expected the model's latent sites.*missing \['{missing}'\]"):
            run_at(model, {name: value for name, value in draw.items() if name != missing}, (x, y))


@pytest.mark.parametrize(
    ("law", "same", "other"),
    [
        (dist.Normal(ZERO, ONE), dist.Normal(ZERO.clone(), ONE), dist.Normal(ZERO, 2 * ONE)),
        (dist.Normal(ZERO, ONE).to_event(1), dist.Normal(ZERO, ONE).to_event(1), dist.Normal(ONE, ONE).to_event(1)),
        (MeanFieldNormal(ZERO, ZERO), MeanFieldNormal(ZERO, ZERO), MeanFieldNormal(ZERO, ONE)),
        (GumbelSoftmax(1.0, ZERO), GumbelSoftmax(1.0, ZERO), GumbelSoftmax(1.0, torch.tensor([0.0, 0.0, 1.0]))),
        (dist.Dirichlet(ONE), dist.Dirichlet(ONE.clone()), dist.Dirichlet(2 * ONE)),
        (dist.Delta(ZERO), dist.Delta(ZERO), dist.Delta(ONE)),
        (dist.Delta(ZERO), dist.Delta(ZERO.clone()), dist.Normal(ZERO, ONE)),
        (
            dist.TransformedDistribution(dist.Normal(ZERO, ONE), [AffineTransform(ZERO, ONE)]),
            dist.TransformedDistribution(dist.Normal(ZERO, ONE), [AffineTransform(ZERO, ONE)]),
            dist.TransformedDistribution(dist.Normal(ZERO, ONE), [AffineTransform(ZERO, 2 * ONE)]),
        ),
    ],
    ids=lambda law: type(law).__name__,
)
def test_laws_are_told_apart_by_their_parameters(law, same, other):
    assert same_law(law, same)
    _ = law.has_rsample and law.rsample()  # a lazy property may now be there in one alone
    assert same_law(law, same)
    assert not same_law(law, other)


def test_a_law_without_tensors_is_never_known_to_be_the_same():
    class Opaque(dist.TorchDistribution):
        def __init__(self):
            super().__init__(validate_args=False)

    assert not same_law(Opaque(), Opaque())


def test_wrappers_are_peeled():
    base = dist.Normal(ZERO, ONE)
    law = dist.TransformedDistribution(base, [AffineTransform(0.0, 2.0)])
    assert unjoined(base.expand([2, 3]).to_event(1).to_event(1)).batch_shape == (2, 3)
    assert isinstance(unjoined(law.to_event(1)), dist.TransformedDistribution)
    assert innermost(law.to_event(1)) is law.base_dist


def test_a_law_is_transformed_whole():
    law = dist.Normal(ZERO, ONE).to_event(1)
    moved = transformed(law, torch.Tensor.double)
    assert moved.base_dist.loc.dtype == torch.double
    assert law.base_dist.loc.dtype == torch.float


@pytest.mark.parametrize("setting", [False, True])
def test_parameters_stay_in_their_guide_and_the_setting_is_the_users(setting):
    """Two autoguides of one name: in the global store the second would take over the parameters of the first."""

    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=setting):
        first, second = AutoNormal(model), AutoNormal(model)
        for value, guide in enumerate((first, second)):
            with local_parameters(guide):
                guide()
            with torch.no_grad():
                guide.get_parameter("locs.w").fill_(value)
        wrapped = pyro.poutine.scale(pyro.poutine.condition(first, data={}), 2.0)
        assert sample_sites(wrapped, ())["w"]["value"].abs().max() < 1.0
        locations = [guide.get_parameter("locs.w")[0].item() for guide in (first, second)]
        assert locations == [0.0, 1.0]
        assert len(pyro.get_param_store()) == 0
        assert pyro.settings.get("module_local_params") is setting
