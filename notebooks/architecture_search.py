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
# `Space` and procedure, another guide and another prior of the structure. Then what each choice is worth under the
# posterior and under the point, how curved the loss is in the structure, robustness, a file that runs without this
# package, a search that pays for milliseconds, a Pareto front of accuracy against multiply-accumulates from one
# training, and FashionMNIST by every method.

# %%

import json
import statistics
import tempfile
from pathlib import Path

import torch
from pyro import poutine
from scipy.stats import spearmanr

from pyro_nas import Space, by_edge, choice_probabilities, derive, draw, edge_entropies, predict
from pyro_nas.data import load
from pyro_nas.graph.costs import measure, total_cost
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, bilevel, delayed, one_cycle, schedules, svi
from pyro_nas.models import Model, cost_factors, guides, hypernets, priors, structures
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.curvature import compare_expectations, hessian_trace, rademacher
from pyro_nas.reading.export import export
from pyro_nas.reading.plots import plot_architecture
from pyro_nas.reading.posterior import evaluation_mode, mean_draw
from pyro_nas.reading.robustness import robustness_curves
from pyro_nas.studies.compare.command import sizes_of
from pyro_nas.studies.compare.report import tables
from pyro_nas.studies.plots import plot_points, plot_robustness

data = load("digits", valid_fraction=0.5)
names = ("max pool", "average pool", "skip", "convolution 1", "convolution 3", "single separable 3")
space = cell_spaces.darts(1, 10, channels=8, cells=2, nodes=2, primitives=names, stem_channels=8)

# %% [markdown]
# ## Search
# Weights see one half of the training data, structure the other; the structure is held still for the first 30 % of the
# steps. VarDARTS has Normal weights and Gumbel-Softmax structure, whose temperature falls from 1 to 0.2; DARTS has
# points for both: weights under the same normal prior, structure under a constant density.


# %%
def search(prior, make, cost=None, **own):
    torch.manual_seed(0)
    weights, num_data = priors.normal(priors.fan_in()), len(data.train[1])
    model = Model(space, num_data=num_data, weights=weights, structure=prior, complexity=0.003, cost=cost)
    guide = make(model)
    options = {"epochs": 40, "batch_size": 64, "optimizer": adam(0.01), "scheduler": one_cycle(0.01)}
    options |= {"structure_optimizer": adam(0.05), "structure_scheduler": delayed(), "measure_validation": False}
    bilevel.fit(model, guide, data.train, data.valid, **options, **own)
    return model, guide


def mean_field(model):
    return guides.MeanField(model, 0.02)


annealed = {"temperature": schedules.geometric(1.0, 0.2)}
model, guide = search(structures.gumbel_softmax(), mean_field, **annealed)
point_model, point = search(structures.dirichlet(), guides.PointMass)
probabilities = choice_probabilities(guide)
figure = plot_architecture(space, probabilities)

# %% [markdown]
# ## What each choice is worth
# For every edge: the entropy of its choice, and the accuracy lost on test images (which chose nothing) when its best
# primitive gives way to the second best, all else as derived, with the searched weights. DARTS has no posterior; its
# mixture weights are read here as if they were probabilities. (Batch normalisation takes its statistics anew for each
# structure.)

# %%
x, y = data.test


def losses(model, guide, probabilities):
    best = {site: torch.eye(table.shape[1])[table.argmax(-1)] for site, table in probabilities.items()}
    weights = {site: value for site, value in mean_draw(guide).items() if site not in model.choices}

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
    return by_edge(space, lost)


mixture = {site: mean_draw(point)[site][0] for site in point_model.choices}
edges = {}
for name, pair in {"VarDARTS": (model, guide, probabilities), "DARTS": (point_model, point, mixture)}.items():
    entropies, lost = by_edge(space, edge_entropies(space, pair[2])), losses(*pair)
    edges[name] = list(entropies.values()), list(lost.values())
    for edge, loss in lost.items():
        print(f"{name:8} {edge:24} entropy {entropies[edge]:.2f} nats, accuracy lost {100 * loss:+.1f} points")
    print(f"{name:8} rank correlation of entropy and loss {spearmanr(*edges[name]).statistic:+.2f}\n")
figure = plot_points(
    {"VarDARTS: entropy of the choice, nats": edges["VarDARTS"][0]}, {"accuracy lost": edges["VarDARTS"][1]}
)

# %% [markdown]
# VarDARTS' weights were trained under samples of its own posterior, ever closer to one primitive an edge: no change
# moves the accuracy by more than a test image or two of 360, whether the posterior is sure of an edge or not, so that
# entropy has nothing to order here. DARTS' weights were trained in a mixture; as one structure they are another
# network, in which some second-best primitives do better than the best, and others far worse. What sampling structures
# buys is weights that serve its choices alike; which edges matter the entropy does not tell. (One search of each, one
# seed.)
#
# ## How curved the loss is in the structure
# Theorem 2 of the VarDARTS talk in the form that holds on the simplex: E G(Γ) ≈ G(E Γ) + ½ tr(∇²G Cov Γ) for a loss G
# of validation images, weights at their means. Then the trace of ∇²G along the simplex, where each search ended. It is
# smaller where a search averaged over structures, as one expects if that flattens the loss; but DARTS ends further
# inside the simplex, and how much of the difference is of the place this does not tell.


# %%
def loss_of(model, guide):
    weights = {site: value[0] for site, value in mean_draw(guide).items() if site not in model.choices}

    def loss(structure):
        with evaluation_mode(model), poutine.block():
            outputs = poutine.condition(model, data={**weights, **structure})(*data.valid)
        return torch.nn.functional.cross_entropy(outputs, data.valid[1])

    return loss


drawn = {site: value for site, value in draw(guide, num_samples=200).items() if site in model.choices}
found = compare_expectations(loss_of(model, guide), drawn, rademacher(32, seed=0))
print({name: round(value, 4) for name, value in found.items()})
for name, pair, at in (("VarDARTS", (model, guide), probabilities), ("DARTS", (point_model, point), mixture)):
    along = {s: (torch.eye(t.shape[1]) - 1 / t.shape[1]).expand(len(t), -1, -1) for s, t in at.items()}
    print(f"{name:8} tr ∇²G along the simplex {float(hessian_trace(loss_of(*pair), at, along)):.3f}")

# %% [markdown]
# ## Derive, retrain, attack
# Both cells, twice as wide, on all known data. DARTS' network is a point, VarDARTS' keeps a posterior of its weights.


# %%
def retrain(structure, make):
    torch.manual_seed(0)
    large = cell_spaces.darts(1, 10, channels=16, cells=2, nodes=2, primitives=names, stem_channels=16)
    weights = priors.normal(priors.fan_in())
    model = Model(derive(large, structure), num_data=len(data.known[1]), weights=weights, complexity=0.003)
    guide = make(model)
    svi.fit(model, guide, data.known, epochs=30, batch_size=64, optimizer=adam(0.01), scheduler=one_cycle(0.01))
    return model, guide


final, final_guide = retrain(probabilities, mean_field)
point_final, point_final_guide = retrain(choice_probabilities(point), guides.PointWeights)
curves = {
    "VarDARTS, posterior": robustness_curves(final, draw(final_guide, num_samples=10), *data.test),
    "VarDARTS, its mean": robustness_curves(final, mean_draw(final_guide), *data.test),
    "DARTS": robustness_curves(point_final, mean_draw(point_final_guide), *data.test),
}
for name, curve in curves.items():
    for part, levels in curve.items():
        print(f"{name:20} {part:14}", {level: round(value, 3) for level, value in levels.items()})

# %% [markdown]
# ## A file that runs without this package
# The posterior predictive, weights, structure and statistics baked in, as a program of `torch.export`.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "predictive.pt2"
    draws = draw(final_guide, num_samples=10)
    export(final, draws, x[:2], path)
    reloaded = torch.export.load(path).module()
    with torch.no_grad():
        difference = (reloaded(x) - predict(final, draws, x)).abs().max()
    print(f"{path.stat().st_size / 2**20:.1f} MiB, largest difference of a probability {float(difference):.1e}")

# %% [markdown]
# ## A search that pays for milliseconds
# Each primitive at each shape is measured on this machine; FBNet's loss weighs the likelihood by α log(latency)^β. α
# makes that weight 1 at the mean of all structures; β is 10, where FBNet has 0.6, so that the effect is plain.
# Such a table predicts the latency of a batch of 64 through what was derived; beside it, that network measured whole:
# medians of nine rounds, each of a new table and both networks, since a machine is not equally busy at all times.

# %%
latency = measure(space, x[:64])
uniform = {site: torch.full(choices.shape, 1 / choices.shape[1]) for site, choices in space.choices().items()}
price = cost_factors.multiplicative(latency, alpha=float(latency(uniform).log() ** -10), beta=10)
_, paying = search(structures.gumbel_softmax(), mean_field, price, **annealed)
chosen = {
    name: {site: torch.eye(table.shape[1])[table.argmax(-1)] for site, table in found.items()}
    for name, found in {"VarDARTS": probabilities, "with FBNet's loss": choice_probabilities(paying)}.items()
}
rounds = [
    [(float(table(one)), total_cost(derive(space, one), x[:64])) for one in chosen.values()]
    for table in (measure(space, x[:64]) for _ in range(9))
]
for name, pairs in zip(chosen, zip(*rounds, strict=True), strict=True):
    predicted, measured = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"{name:18} predicted {predicted:.0f} µs, measured {measured:.0f} µs")

# %% [markdown]
# ## A Pareto front from one training
# What a structure costs may enter the model: `additive` makes structures with many multiply-accumulates improbable, by
# a factor inside λ's scale. With λ a site, one hypernetwork q(w, Γ | λ) has a posterior for every trade-off. Here the
# choice is the width of two layers; cost and accuracy are of the most probable structure, weights at their means.

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
x, y = data.valid
front = Model(
    layers,
    num_data=len(data.train[1]),
    weights=priors.normal(priors.fan_in()),
    structure=structures.gumbel_softmax(0.5),
    complexity=priors.log_uniform(0.001, 1.0),
    cost=cost_factors.additive(table, strength=0.1),
)
torch.manual_seed(0)
hypernet = hypernets.Spline(guides.MeanField(front, 0.02))
options = {"epochs": 100, "batch_size": 64, "optimizer": adam(0.02), "scheduler": one_cycle(0.02)}
several = {"particles": 4, "vectorize_particles": True, "stratified": True, "local_reparameterization": True}
svi.fit(front, hypernet, data.train, **options, **several)

spent, accuracies = {}, {}
for complexity in torch.logspace(-3, 0, 9).tolist():
    fixed = Model(
        layers,
        num_data=len(data.train[1]),
        weights=priors.normal(priors.fan_in()),
        structure=structures.gumbel_softmax(0.5),
        complexity=complexity,
    )
    at = hypernet.fixed(complexity, fixed)
    one = mean_draw(at)
    spent[complexity] = float(table({site: one[site][0] for site in fixed.choices}))
    accuracies[complexity] = float((predict(fixed, one, x).argmax(-1) == y).double().mean())
    print(f"λ = {complexity:.4f}: {spent[complexity]:6.0f} multiply-accumulates, "
          f"validation accuracy {accuracies[complexity]:.3f}")  # fmt: skip
figure = plot_points({"multiply-accumulates": list(spent.values())}, {"validation accuracy": list(accuracies.values())})

# %% [markdown]
# ## FashionMNIST, every method
# 60 000 images, half of them for the weights of a search and half for structure; each search sees about 120 000 images
# (with repetition), what it finds is retrained, wider, for six epochs and tested once (`make compare ROOT=DIR` wrote
# the numbers). VarDARTS' network keeps a posterior of its weights, and its edges become rarer in training: *mean* is
# the network at the means of the weights, *posterior* averages over draws of them, both with all edges present.
# `vardarts_point` is what VarDARTS found, retrained as the others are, `darts_posterior` what DARTS found, retrained
# as VarDARTS' is: together they tell what the search did from what the retraining did.

# %%
short = json.loads(Path("compare_short.json").read_text())
print(tables(short["methods"]))
figure = plot_robustness(short["methods"])

# %% [markdown]
# Retrained like all others, VarDARTS' cells have the highest mean accuracy, above DARTS' by less than their sd over
# seeds, and the most multiply-accumulates; that they have the fewest skips and pools is one primitive in three seeds.
# What makes a network robust to deleted edges is the retraining with a posterior and rarer edges (which of the two,
# these rows do not tell), whichever cells it is given; noise of the input costs all networks alike, and under the
# attack all fail. In six epochs that retraining costs a point of accuracy, and calibration.
#
# The cells of the first seed, with the probabilities of their edges' primitives: VarDARTS',

# %%
searched = sizes_of(cell_spaces)["short"].searched(1, 10)


def found(method, seed=0):
    return {site: torch.tensor(table) for site, table in short["rows"][method][seed]["structure"].items()}


figure = plot_architecture(searched, found("vardarts"))

# %% [markdown]
# and DARTS':

# %%
figure = plot_architecture(searched, found("darts"))

# %% [markdown]
# ## FashionMNIST, with more time
# NAS-Bench-201's cells of three vertices, one in each of three stages, with 8 channels in the first stage while they
# are searched (240 000 images) and 16 when they are retrained (24 epochs). *plain* is a network of four convolutions
# without a search, trained for as long as VarDARTS searches and retrains.

# %%
long = json.loads(Path("compare_long.json").read_text())
print(tables(long["methods"]))

# %% [markdown]
# VarDARTS is ahead of random search and of a network without a search by more than the sd over seeds. It found the cell
# of three 3 × 3 convolutions in two seeds, random search in one; whichever found it, that cell is the most accurate.
