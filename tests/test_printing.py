"""Printing: everything that passes between wings fits on a screen, and is a table in a notebook."""

import pytest
import torch

from pyro_nas import choice_probabilities, draw
from pyro_nas.evidence.currencies import Draws
from pyro_nas.graph.families import cell_spaces, zoo
from pyro_nas.inference import sampling
from pyro_nas.models import Model, guides, hypernets, priors, structures
from pyro_nas.printing import ROWS


def objects():
    space = cell_spaces.darts(1, 10)
    model = Model(space, num_data=100, complexity=0.1, structure=structures.gumbel_softmax(0.5))
    guide = guides.MeanField(model)
    layers = Model(zoo.layers(4, 3), num_data=10, complexity=priors.log_uniform(0.1, 10.0))
    tiny = Model(zoo.layers(1, 2, width=1), num_data=6, structure=structures.categorical())
    chains = sampling.nuts(tiny, (torch.randn(6, 1), torch.arange(6) % 2), draws=4, warmup=2, chains=2)
    return {
        "space": space, "cell": zoo.cell(4), "model": model, "guide": guide, "draws": draw(guide, num_samples=2),
        "probabilities": choice_probabilities(guide), "hypernet": hypernets.Linear(guides.MeanField(layers)),
        "chains": chains, "weight prior": model.weights, "structure prior": model.structure_prior,
    }  # fmt: skip


@pytest.fixture(scope="module")
def printed():
    return objects()


@pytest.mark.parametrize("name", ["space", "cell", "model", "guide", "draws", "probabilities", "hypernet", "chains",
                                  "weight prior", "structure prior"])  # fmt: skip
def test_each_prints_on_a_screen(printed, name):
    lines = repr(printed[name]).splitlines()
    assert 1 <= len(lines) <= ROWS + 2
    assert "0x" not in "".join(lines)  # no address of an object


@pytest.mark.parametrize("name", ["space", "cell", "model", "guide", "draws", "probabilities", "chains"])
def test_each_is_a_table_in_a_notebook(printed, name):
    html = printed[name]._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr>") <= ROWS + 1


def test_a_table_says_what_it_is_of(printed):
    text = repr(printed["probabilities"])
    assert text.startswith("probability of each choice; λ = 0.1, a tempered posterior; temperature 0.5")
    assert "structure.normal 0→2" in text
    assert "skip 0.143" in text
    assert "λ = 1;" in repr(choice_probabilities(guides.MeanField(Model(zoo.cells(1, 2), num_data=4))))


def test_cells_are_escaped_and_counted():
    draws = Draws({f"<{i}>": torch.tensor([[1.0, 3.0], [1.0, 3.0]]) for i in range(ROWS + 3)})
    assert repr(draws).splitlines()[0] == f"2 draws of {ROWS + 3} sites"
    assert repr(draws).splitlines()[1].split() == ["<0>", "(2,", "2)", "mean", "2,", "sd", "1"]
    assert repr(draws).splitlines()[-1].strip() == "and 3 more"
    assert "&lt;0&gt;" in draws._repr_html_()
