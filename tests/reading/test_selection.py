"""Selection: structures scored with shared weights."""

import torch
from pyro import poutine

from pyro_nas import Space, predict
from pyro_nas.graph.enumeration import all_structures, key_of_structure
from pyro_nas.graph.primitives import dense
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.reading.posterior import mean_draw
from pyro_nas.reading.selection import probable_draws, shared_weight_score


def test_structures_are_scored_with_the_weights_given_them(small_space, small_data):
    model = Model(small_space, num_data=40, weights=priors.normal(0.5))
    guide = guides.StructureConditioned(model)
    with torch.no_grad():
        guide.loc_shift["weights"].normal_()
    score, (x, y) = shared_weight_score(model, guide, small_data, small_data), small_data
    every = list(all_structures(small_space))

    def accuracies(weights_of):
        draws = ({**weights_of(one), "structure": one["structure"][None]} for one in every)
        return [float((predict(model, each, x).argmax(-1) == y).double().mean()) for each in draws]

    scores = [score(one) for one in every]
    assert scores == accuracies(lambda one: mean_draw(poutine.condition(guide, data=one)))
    assert scores != accuracies(lambda one: mean_draw(guide))


def test_structures_that_run_no_batch_normalisation_are_scored(small_data):
    def normalised():
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    space = Space({(0, 1): {"normalised": normalised, "plain": dense(3, 2)}})
    model = Model(space, num_data=40, weights=priors.normal(0.5), structure=structures.categorical())
    score = shared_weight_score(model, guides.PointWeights(model), small_data, small_data)
    assert all(0 <= score(one) <= 1 for one in all_structures(space))


def test_probable_draws_are_the_distinct_vertices_of_draws(build, small_space):
    """Of four structures; where q has its mass at one of them, that one."""
    model, guide = build(structures.gumbel_softmax(0.5))
    drawn = [key_of_structure(structure) for structure in probable_draws(model, guide, 200)]
    assert sorted(drawn) == sorted(key_of_structure(structure) for structure in all_structures(small_space))
    guide.structure["structure"].data = torch.tensor([[40.0, 0.0], [0.0, 40.0]])
    (structure,) = probable_draws(model, guide, 20)
    assert structure["structure"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
