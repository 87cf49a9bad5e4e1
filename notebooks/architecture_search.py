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

import matplotlib.pyplot as plt
import torch
from pyro import poutine
from scipy.stats import spearmanr

from pyro_nas import Space, accuracy, choice_probabilities, derive, draw, edge_entropies, predict
from pyro_nas.data import load
from pyro_nas.graph.costs import measure, total_cost
from pyro_nas.graph.families import cell_spaces
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, bilevel, one_cycle, schedules, svi
from pyro_nas.models import Model, cost_factors, guides, hypernets, priors, structures
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.curvature import compare_expectations, hessian_trace, rademacher
from pyro_nas.reading.export import export
from pyro_nas.reading.plots import plot_architecture
from pyro_nas.reading.posterior import evaluation_mode, mean_draw
from pyro_nas.reading.robustness import robustness_curves
from pyro_nas.reading.structure_posterior import number_by_edge
from pyro_nas.studies.compare.report import tables
from pyro_nas.studies.compare.sizes import SIZES
from pyro_nas.studies.plots import plot_robustness

data = load("digits", valid_fraction=0.5)
names = ("max pool", "average pool", "skip", "convolution 1", "convolution 3", "single separable 3")
space = cell_spaces.darts(1, 10, channels=8, cells=2, nodes=2, primitives=names, stem_channels=8)

# %% [markdown]
# ## Search
# Weights see one half of the training data, structure the other; the structure is held still for the first 30 % of the
# steps. VarDARTS has Normal weights and Gumbel-Softmax structure, whose temperature falls from 1 to 0.2; DARTS has
# points for both: weights under the same normal prior, structure under a constant density.


# %%
def search(prior, make, cost=None, **schedule):
    torch.manual_seed(0)
    model = Model(space, num_data=len(data.train[1]), structure=prior, complexity=0.003, cost=cost)
    options = {"epochs": 40, "batch_size": 64, "optimizer": adam(0.01), "scheduler": one_cycle(0.01)}
    options |= {"structure_optimizer": adam(0.05), "measure_validation": False}
    return bilevel.fit(model, make(model), data.train, data.valid, **options, **schedule)


def mean_field(model):
    return guides.MeanField(model, 0.02)


annealed = {"temperature": schedules.geometric(1.0, 0.2)}
vardarts = search(structures.gumbel_softmax(), mean_field, **annealed)
darts = search(structures.dirichlet(), guides.PointMass)
probabilities = choice_probabilities(vardarts.posterior)
figure = plot_architecture(space, probabilities)

# %% [markdown]
# ## What each choice is worth
# For every edge: the entropy of its choice, and what test images (which chose nothing) lose in log-likelihood when its
# best primitive gives way to the second best, all else as derived, with the searched weights. DARTS has no posterior;
# its mixture weights are read here as if they were probabilities. (Batch normalisation takes its statistics anew for
# each structure. Accuracy would not do as a measure: of 360 images most swaps change the class of one or none.)

# %%
x, y = data.test


def losses(fit, probabilities):
    """Return the log-likelihood as derived, and mean and standard error of what each swap loses, nats an image."""
    best = {site: torch.eye(table.shape[1])[table.argmax(-1)] for site, table in probabilities.items()}
    weights = {site: value for site, value in mean_draw(fit.posterior).items() if site not in fit.model.choices}

    def log_likelihood(structure):
        draws = {**weights, **{site: table[None] for site, table in structure.items()}}
        with recalibrated(fit.model, draws, data.train):
            return predict(fit.model, draws, x).clamp_min(1e-12).log().gather(1, y[:, None])[:, 0]

    derived, means, errors = log_likelihood(best), {}, {}
    for site, table in probabilities.items():
        seconds = torch.eye(table.shape[1])[table.topk(2).indices[:, 1]]
        edges = torch.arange(len(table))[:, None]
        swapped = [{**best, site: torch.where(edges == edge, seconds, best[site])} for edge in range(len(table))]
        lost = torch.stack([derived - log_likelihood(structure) for structure in swapped])  # (edge, image)
        means[site], errors[site] = lost.mean(-1), lost.std(-1) / len(y) ** 0.5
    return derived.mean(), means, errors


mixture = {site: mean_draw(darts.posterior)[site][0] for site in darts.model.choices}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axis, (name, (fit, table)) in zip(
    axes, {"VarDARTS": (vardarts, probabilities), "DARTS": (darts, mixture)}.items(), strict=True
):
    derived, *parts = losses(fit, table)
    entropies, lost, errors = (number_by_edge(space, part) for part in (edge_entropies(space, table), *parts))
    print(f"{name:8} as derived: log-likelihood {derived:.2f} nats an image")
    for edge, entropy in entropies.items():
        print(
            f"{name:8} {edge:24} entropy {entropy:.2f} nats, log-likelihood lost {lost[edge]:+.3f} ± {errors[edge]:.3f}"
        )
    order = spearmanr([*entropies.values()], [*lost.values()])
    print(f"{name:8} rank correlation of entropy and loss {order.statistic:+.2f}, p-value {order.pvalue:.3f}\n")
    axis.errorbar([*entropies.values()], [*lost.values()], [*errors.values()], fmt="o", capsize=2)
    axis.axhline(0, color="black", lw=0.8)
    axis.set(title=name, xlabel="entropy of the choice, nats", ylabel="log-likelihood lost, nats an image")

# %% [markdown]
# VarDARTS' weights were trained under samples of its own posterior: no swap costs more than a few hundredths of a nat
# an image. The swaps beyond two standard errors are on edges that it is sure of; above an entropy of 0.9 nats
# none costs more than its standard error. The rank correlation sums that up, for ten edges and one seed: with seed 1 it
# was −0.5, p-value 0.16. DARTS' weights were trained in a mixture; as one structure they are another network, far less
# likely, in which a swap costs ten times as much, or gains as much. The mixture's weights do not order these losses:
# the correlation has no sign that seeds agree on (−0.3 with seed 1).
#
# ## How curved the loss is in the structure
# Theorem 2 of the VarDARTS talk in the form that holds on the simplex: E G(Γ) ≈ G(E Γ) + ½ tr(∇²G Cov Γ) for a loss G
# of validation images, weights at their means. Then the trace of ∇²G along the simplex, where each search ended. It is
# smaller where a search averaged over structures, as one expects if that flattens the loss; but DARTS ends further
# inside the simplex, and how much of the difference is of the place this does not tell.


# %%
def loss_of(fit):
    weights = {site: value[0] for site, value in mean_draw(fit.posterior).items() if site not in fit.model.choices}

    def loss(structure):
        with evaluation_mode(fit.model), poutine.block():
            outputs = poutine.condition(fit.model, data={**weights, **structure})(*data.valid)
        return torch.nn.functional.cross_entropy(outputs, data.valid[1])

    return loss


sampled = draw(vardarts.posterior, num_samples=200)
sampled = {site: value for site, value in sampled.items() if site in vardarts.model.choices}
expectations = compare_expectations(loss_of(vardarts), sampled, rademacher(32, seed=0))
print({name: round(value, 4) for name, value in expectations.items()}, "nats an image")
for name, fit, at in (("VarDARTS", vardarts, probabilities), ("DARTS", darts, mixture)):
    along = {s: (torch.eye(t.shape[1]) - 1 / t.shape[1]).expand(len(t), -1, -1) for s, t in at.items()}
    print(f"{name:8} tr ∇²G along the simplex {float(hessian_trace(loss_of(fit), at, along)):.3f} nats an image")

# %% [markdown]
# ## Derive, retrain, attack
# Both cells, twice as wide, on all known data. DARTS' network is a point, VarDARTS' keeps a posterior of its weights.
# The picture is of VarDARTS' cells, in the colours of the search.


# %%
def retrain(structure, make):
    torch.manual_seed(0)
    large = cell_spaces.darts(1, 10, channels=16, cells=2, nodes=2, primitives=names, stem_channels=16)
    model = Model(derive(large, structure), num_data=len(data.known[1]), complexity=0.003)
    options = {"epochs": 30, "batch_size": 64, "optimizer": adam(0.01), "scheduler": one_cycle(0.01)}
    return svi.fit(model, make(model), data.known, **options)


final = retrain(probabilities, mean_field)
point = retrain(choice_probabilities(darts.posterior), guides.PointWeights)
figure = plot_architecture(final.model.space, searched=space)
curves = {
    "VarDARTS, posterior": robustness_curves(final.model, draw(final.posterior, num_samples=10), *data.test),
    "VarDARTS, its mean": robustness_curves(final.model, mean_draw(final.posterior), *data.test),
    "DARTS": robustness_curves(point.model, mean_draw(point.posterior), *data.test),
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
    draws = draw(final.posterior, num_samples=10)
    export(final.model, draws, x[:2], path)
    reloaded = torch.export.load(path).module()
    with torch.no_grad():
        difference = (reloaded(x) - predict(final.model, draws, x)).abs().max()
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
paying = choice_probabilities(search(structures.gumbel_softmax(), mean_field, price, **annealed).posterior)
chosen = {
    name: {site: torch.eye(table.shape[1])[table.argmax(-1)] for site, table in posterior.items()}
    for name, posterior in {"VarDARTS": probabilities, "with FBNet's loss": paying}.items()
}
rounds = [
    [(float(table(structure)), total_cost(derive(space, structure), x[:64])) for structure in chosen.values()]
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
front = Model(
    layers,
    num_data=len(data.train[1]),
    structure=structures.gumbel_softmax(0.5),
    complexity=priors.log_uniform(0.001, 1.0),
    cost=cost_factors.additive(table, strength=0.1),
)
torch.manual_seed(0)
hypernet = hypernets.Spline(guides.MeanField(front, 0.02))
options = {"epochs": 100, "batch_size": 64, "optimizer": adam(0.02), "scheduler": one_cycle(0.02)}
several = {"particles": 4, "vectorize_particles": True, "stratified": True, "local_reparameterization": True}
svi.fit(front, hypernet, data.train, **options, **several)

spent, shares = [], []
for complexity in torch.logspace(-3, 0, 9).tolist():
    fixed, posterior = hypernet.at(complexity)
    probable = mean_draw(posterior)
    spent.append(float(table({site: probable[site][0] for site in fixed.choices})))
    shares.append(100 * accuracy(fixed, probable, *data.valid))
    print(f"λ = {complexity:.4f}: {spent[-1]:6.0f} multiply-accumulates, validation accuracy {shares[-1]:.1f} %")
figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
axis.plot(spent, shares, "o")
axis.set(xlabel="multiply-accumulates an image", ylabel="validation accuracy, %")
_ = axis.set_xscale("log")

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
searched = SIZES["short"].searched(1, 10)


def stored(method, seed=0):
    return {site: torch.tensor(table) for site, table in short["rows"][method][seed]["structure"].items()}


figure = plot_architecture(searched, stored("vardarts"))

# %% [markdown]
# and DARTS':

# %%
figure = plot_architecture(searched, stored("darts"))

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
