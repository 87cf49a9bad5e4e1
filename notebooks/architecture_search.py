# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Architecture search: a posterior over cells
#
# DARTS' cell space, searched by bilevel variational inference (VarDARTS) and by a point estimate (DARTS): the same
# `Space`, `Model` and procedure, another guide. Then what the posterior knows that the point does not, robustness, and
# a Pareto front of accuracy against operations from one training.

# %%

import json
from pathlib import Path

import torch

from pyro_nas import Space, by_edge, choice_probabilities, derive, draw, edge_entropies, predict
from pyro_nas.batch_normalization import recalibrated
from pyro_nas.comparison import sizes_of
from pyro_nas.comparison_report import tables
from pyro_nas.costs import measure
from pyro_nas.data import load
from pyro_nas.inference import adam, bilevel, delayed, one_cycle, schedules, svi
from pyro_nas.models import Model, cell_spaces, costs, guides, hypernets, priors, structures
from pyro_nas.plots import plot_architecture
from pyro_nas.posterior import mean_draw
from pyro_nas.primitives import dense, flatten
from pyro_nas.robustness import robustness_curves
from pyro_nas.study_plots import plot_points, plot_robustness

data = load("digits", valid_fraction=0.5)
names = ("max pool", "average pool", "skip", "convolution 1", "convolution 3", "single separable 3")
space = cell_spaces.darts(1, 10, channels=8, cells=2, nodes=2, primitives=names, stem_channels=8)

# %% [markdown]
# ## Search
# Weights see one half of the training data, structure the other; the structure is held still for the first 30 % of the
# steps. VarDARTS has Normal weights and Gumbel-Softmax structure; DARTS points for both, under a constant density.


# %%
def search(prior, make, complexity, **own):
    torch.manual_seed(0)
    weights = priors.normal(priors.fan_in())
    model = Model(space, num_data=len(data.train[1]), weights=weights, structure=prior, complexity=complexity)
    guide = make(model)
    options = {"epochs": 40, "batch_size": 64, "optimizer": adam(0.01), "scheduler": one_cycle(0.01)}
    options |= {"structure_optimizer": adam(0.05), "structure_scheduler": delayed(), "measure_validation": False}
    bilevel.fit(model, guide, data.train, data.valid, **options, **own)
    return model, guide


def mean_field(model):
    return guides.MeanField(model, 0.02)


model, guide = search(structures.gumbel_softmax(), mean_field, 0.003, temperature=schedules.geometric(1.0, 0.2))
point_model, point = search(structures.dirichlet(), guides.PointMass, 0.1)
probabilities = choice_probabilities(guide)
figure = plot_architecture(space, probabilities)

# %% [markdown]
# ## What the posterior knows
# For every edge: the entropy of its choice, and the accuracy lost when its best primitive gives way to the second best,
# all else as derived, with the searched weights. (Batch normalisation takes its statistics anew for each structure.)

# %%
best = {site: torch.eye(table.shape[1])[table.argmax(-1)] for site, table in probabilities.items()}
weights = {site: value for site, value in mean_draw(guide).items() if site not in model.choices}
x, y = data.valid


def accuracy(structure):
    draws = {**weights, **{site: table[None] for site, table in structure.items()}}
    with recalibrated(model, draws, data.train):
        return float((predict(model, draws, x).argmax(-1) == y).double().mean())


lost = {}
for site, table in probabilities.items():
    lost[site] = torch.zeros(len(table))
    for edge, row in enumerate(table):
        changed = {**best, site: best[site].clone()}
        changed[site][edge] = torch.eye(len(row))[row.topk(2).indices[1]]
        lost[site][edge] = accuracy(best) - accuracy(changed)
entropies = by_edge(space, edge_entropies(space, probabilities))
for edge, loss in by_edge(space, lost).items():
    print(f"{edge:28} entropy {entropies[edge]:.2f} nats, accuracy lost {100 * loss:+.1f} points")
figure = plot_points(
    {"entropy of the choice, nats": list(entropies.values())},
    {"accuracy lost by the second best": list(by_edge(space, lost).values())},
)

# %% [markdown]
# ## Derive, retrain, attack
# Both cells, twice as wide, on all known data. DARTS' network is a point, VarDARTS' keeps a posterior of its weights.


# %%
def retrain(structure, make, complexity):
    torch.manual_seed(0)
    large = cell_spaces.darts(1, 10, channels=16, cells=2, nodes=2, primitives=names, stem_channels=16)
    weights = priors.normal(priors.fan_in())
    model = Model(derive(large, structure), num_data=len(data.known[1]), weights=weights, complexity=complexity)
    guide = make(model)
    svi.fit(model, guide, data.known, epochs=30, batch_size=64, optimizer=adam(0.01), scheduler=one_cycle(0.01))
    return model, guide


final, final_guide = retrain(probabilities, mean_field, 0.003)
point_final, point_final_guide = retrain(choice_probabilities(point), guides.PointWeights, 0.1)
curves = {
    "VarDARTS, posterior": robustness_curves(final, draw(final_guide, num_samples=10), *data.test),
    "VarDARTS, its mean": robustness_curves(final, mean_draw(final_guide), *data.test),
    "DARTS": robustness_curves(point_final, mean_draw(point_final_guide), *data.test),
}
for name, curve in curves.items():
    for part, levels in curve.items():
        print(f"{name:20} {part:14}", {level: round(value, 3) for level, value in levels.items()})

# %% [markdown]
# ## A Pareto front from one training
# What a structure costs may enter the model: `additive` makes structures improbable that have many operations, and
# inside λ's scale. With λ a site, one hypernetwork q(Γ | λ) holds the whole front. Here the choice is the width of two
# layers.

# %%
widths = (4, 8, 16, 32, 64)


def bottleneck(inputs, outputs, width):
    return Space({(0, 1): {"in": dense(inputs, width, "relu")}, (1, 2): {"out": dense(width, outputs)}})


layers = Space(
    {
        (0, 1): {"flatten": flatten()},
        (1, 2): {str(width): bottleneck(64, 32, width) for width in widths},
        (2, 3): {str(width): bottleneck(32, 10, width) for width in widths},
    }
)
table = measure(layers, data.test[0][:1], "multiply_accumulates")
front = Model(
    layers,
    num_data=len(data.train[1]),
    weights=priors.normal(priors.fan_in()),
    structure=structures.gumbel_softmax(0.5),
    complexity=priors.log_uniform(0.001, 1.0),
    cost=costs.additive(table, strength=0.1),
)
torch.manual_seed(0)
hypernet = hypernets.Spline(guides.MeanField(front, 0.02))
options = {"epochs": 100, "batch_size": 64, "optimizer": adam(0.02), "scheduler": one_cycle(0.02)}
several = {"particles": 4, "vectorize_particles": True, "stratified": True, "local_reparameterization": True}
svi.fit(front, hypernet, data.train, **options, **several)

operations, accuracies = {}, {}
for complexity in torch.logspace(-3, 0, 9).tolist():
    fixed = Model(
        layers,
        num_data=len(data.train[1]),
        weights=priors.normal(priors.fan_in()),
        structure=structures.gumbel_softmax(0.5),
        complexity=complexity,
    )
    at = hypernet.fixed(complexity, fixed)
    operations[complexity] = float(table(choice_probabilities(at)))
    accuracies[complexity] = float((predict(fixed, mean_draw(at), x).argmax(-1) == y).double().mean())
    print(f"λ = {complexity:.4f}: {operations[complexity]:6.0f} multiply-accumulates expected, "
          f"validation accuracy {accuracies[complexity]:.3f}")  # fmt: skip
figure = plot_points(
    {"expected multiply-accumulates": list(operations.values())}, {"validation accuracy": list(accuracies.values())}
)

# %% [markdown]
# ## FashionMNIST, every method
# 60 000 images, half of them for the weights of a search and half for structure; each search sees 120 000 images (with
# repetition), what it finds is retrained for six epochs and tested once; three seeds (`make compare ROOT=DIR` wrote
# the numbers). VarDARTS' network keeps a posterior of its weights, and its edges become rarer in training: *weights*
# averages over draws of the weights with all edges present, *posterior* over draws of both.

# %%
short = json.loads(Path("compare_short.json").read_text())
print(tables(short["methods"]))
figure = plot_robustness(short["methods"])

# %% [markdown]
# The cells of the first seed, with the probabilities of their edges' primitives: VarDARTS',

# %%
searched = sizes_of(cell_spaces)["short"].searched(1, 10)


def found(method, seed=0):
    return {site: torch.tensor(table) for site, table in short["structures"][method][seed].items()}


figure = plot_architecture(searched, found("vardarts"))

# %% [markdown]
# and DARTS':

# %%
figure = plot_architecture(searched, found("darts"))
