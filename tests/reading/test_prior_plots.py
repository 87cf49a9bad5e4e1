"""Pictures of structure priors: densities integrate to one and stand where they should; bad input is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_nas.models import structures
from pyro_nas.models.distributions import GumbelSoftmax
from pyro_nas.reading.plots import save
from pyro_nas.reading.prior_plots import CORNERS, plot_cube, plot_simplex

TEMPERATURES = [0.2, 0.995, 5.0]
FAMILIES = {"Gumbel-Softmax": structures.gumbel_softmax, "Dirichlet": structures.dirichlet}
EQUAL, UNEQUAL = (1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)


def law_of(family, temperature, probabilities=EQUAL):
    prior = FAMILIES[family](temperature)
    return prior.distribution(prior.parameters(torch.tensor(probabilities), temperature), temperature)


def plotted(law):
    """Return the log-densities of a picture, relative to the uniform law, and the centres of its cells, (cell, 2)."""
    figure = plot_simplex({"law": law})
    (mesh,) = figure.axes[0].collections
    corners = np.stack([path.vertices[:3] for path in mesh.get_paths()])  # (cell, 3, 2)
    areas = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1]))
    assert np.allclose(areas, areas[0])
    plt.close(figure)
    return np.asarray(mesh.get_array()), corners.mean(1)


def integrates_to_one(law):
    values, _ = plotted(law)
    assert np.isfinite(values).all()
    assert np.exp(values).mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("family", "temperature", "probabilities"),
    [
        *((family, temperature, EQUAL) for family in FAMILIES for temperature in TEMPERATURES[1:]),
        ("Gumbel-Softmax", 0.995, UNEQUAL),
        ("Gumbel-Softmax", 5.0, UNEQUAL),
        ("Dirichlet", 5.0, UNEQUAL),
    ],
)
def test_the_plotted_density_integrates_to_one(family, temperature, probabilities):
    integrates_to_one(law_of(family, temperature, probabilities))


class LogSpace(GumbelSoftmax):
    """The density of log γ instead of γ."""

    def log_prob(self, value):
        return super().log_prob(value) + value.log().sum(-1)


class WithoutTemperature(GumbelSoftmax):
    """τ^(K−1) missing."""

    def log_prob(self, value):
        return super().log_prob(value) - 2 * np.log(self.temperature)


@pytest.mark.parametrize(("wrong", "temperature"), [(LogSpace, 0.995), (LogSpace, 5.0), (WithoutTemperature, 5.0)])
def test_a_wrong_jacobian_does_not(wrong, temperature):
    with pytest.raises(AssertionError):
        integrates_to_one(wrong(temperature, torch.zeros(3)))


def test_the_mean_of_the_picture_is_the_mean_of_the_law():
    law = law_of("Dirichlet", 5.0, UNEQUAL)
    values, centres = plotted(law)
    mean = (np.exp(values)[:, None] * centres).mean(0)
    assert np.allclose(mean, law.mean.numpy() @ CORNERS, atol=0.005)
    assert not np.allclose(mean, law.mean.numpy()[[1, 0, 2]] @ CORNERS, atol=0.05)  # corners confused


@pytest.mark.parametrize("family", FAMILIES)
def test_low_temperatures_go_to_the_vertices_and_high_ones_to_the_centre(family):
    contrast = {}
    for temperature in TEMPERATURES:
        values, centres = plotted(law_of(family, temperature))
        nearest = [np.linalg.norm(centres - place, axis=1).argmin() for place in (CORNERS.mean(0), *CORNERS)]
        centre, *vertices = values[nearest]
        assert np.allclose(vertices, vertices[0], atol=1e-4)
        contrast[temperature] = vertices[0] - centre
    assert contrast[0.2] > 4
    assert contrast[5.0] < -4
    assert contrast[0.2] > contrast[0.995] > contrast[5.0]


def test_double_precision_is_what_keeps_low_temperatures_finite():
    law = GumbelSoftmax(0.01, torch.zeros(3))
    values, _ = plotted(law)
    assert np.isfinite(values).all()
    plain = dist.RelaxedOneHotCategorical(torch.tensor(0.05), logits=torch.zeros(3), validate_args=False)
    assert not torch.isfinite(plain.log_prob(plain.sample((10_000,)))).all()


def points_of(figure):
    """Return {title: (point, 2)} and the number of points of each colour."""
    axes = figure.axes
    colours = {axis.get_title(): [len(c.get_offsets()) for c in axis.collections] for axis in axes}
    return {
        a.get_title(): np.concatenate([np.ma.getdata(c.get_offsets()) for c in a.collections]) for a in axes
    }, colours


def test_the_cube_shows_every_draw_where_it_is():
    vertices = torch.tensor([[float(i), float(j), float(k)] for i in range(2) for j in range(2) for k in range(2)])
    prior = structures.relaxed_bernoulli(0.995, 0.5)
    draws = prior.distribution(torch.zeros(3), 0.995).sample((400,))
    points, colours = points_of(plot_cube({"vertices": vertices, "draws": draws}))
    assert colours["vertices"] == [1, 3, 3, 1]  # none, one, two and all on
    assert len(points["draws"]) == 400
    assert len({*map(tuple, points["vertices"].round(6).tolist())}) == 8  # none behind another
    (origin, *_), axes = points["vertices"], points_of(plot_cube({"axes": torch.eye(3)}))[0]["axes"]
    expected = draws.numpy() @ axes
    assert np.allclose(origin, 0)
    assert np.allclose(sorted(expected.tolist()), sorted(points["draws"].tolist()), atol=1e-5)
    assert not np.allclose(
        sorted((draws.numpy()[:, ::-1] @ axes).tolist()), sorted(points["draws"].tolist()), atol=0.01
    )
    plt.close("all")


def test_pictures_are_written(tmp_path):
    laws = {f"{family}, τ = {t:g}": law_of(family, t) for family in FAMILIES for t in TEMPERATURES}
    figure = plot_simplex(laws)
    assert [axis.get_title() for axis in figure.axes[:6]] == [*laws]
    save(figure, tmp_path / "simplex.png")
    save(plot_cube({"draws": torch.rand(5, 3)}), tmp_path / "cube.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("simplex.png", "cube.png"))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="laws: expected"):
        plot_simplex({})
    with pytest.raises(TypeError, match=r"laws\['a'\]: expected a distribution, got 3"):
        plot_simplex({"a": 3})
    for law in (
        dist.Dirichlet(torch.ones(4)),
        dist.Dirichlet(torch.ones(2, 3)),
        dist.Beta(torch.ones(3), torch.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"laws\['a'\]: expected batch shape \(\) and event shape \(3,\)"):
            plot_simplex({"a": law})
    with pytest.raises(ValueError, match="draws: expected"):
        plot_cube({})
    for draws in (torch.rand(5, 2), torch.rand(3), torch.full((4, 3), 1.5), torch.full((4, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"draws\['a'\]: expected numbers within \[0, 1\]"):
            plot_cube({"a": draws})
