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
# # Every complexity from one training
#
# The generalised evidence 𝔏(λ) = E_q log p(y | x, w, Γ) − λ KL(q ‖ p) has a posterior of its own for every complexity
# λ. A *hypernetwork* is a guide q(w, Γ | λ): λ is a site of the model, and one training gives them all.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine

from pyro_nas import Space, accuracy, choice_probabilities, edge_entropies, evaluate
from pyro_nas.data import load
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, one_cycle, svi
from pyro_nas.models import Model, guides, hypernets, priors, structures
from pyro_nas.reading.posterior import mean_draw
from pyro_nas.reading.pruning import moments, pruning_curve, relative_density
from pyro_nas.studies.complexity import report
from pyro_nas.studies.plots import plot_pruning

# %% [markdown]
# ## A model in which λ has a prior
# Both hidden layers choose their activation; the prior's favourite is tanh.

# %%
data = load("digits")
first, second = ({name: dense(size, 32, name) for name in ("tanh", "relu", "identity")} for size in (64, 32))
space = Space({(0, 1): {"flatten": flatten()}, (1, 2): first, (2, 3): second, (3, 4): {"readout": dense(32, 10)}})
PRIOR = [0.4, 0.3, 0.3]


def build(complexity):
    structure, weights = structures.gumbel_softmax(0.5, PRIOR), priors.normal(priors.fan_in(0.7))
    return Model(space, num_data=len(data.known[1]), weights=weights, structure=structure, complexity=complexity)


# %% [markdown]
# ## One training
# The spline hypernetwork makes every parameter of a mean-field guide a function of log λ. Eight values of λ go through
# the network at once; `emphasis` balances evidences that differ by orders of magnitude.

# %%
options = {"epochs": 120, "batch_size": 64, "optimizer": adam(0.02), "scheduler": one_cycle(0.02)}
options["local_reparameterization"] = True
several = {"particles": 8, "vectorize_particles": True, "stratified": True}
torch.manual_seed(0)
hypernet = hypernets.Spline(guides.MeanField(build(priors.log_interval(0.1, 100.0, ends=1.0))))
svi.fit(
    hypernet.model, hypernet, data.known, **options, **several, emphasis=lambda complexity: (1 + complexity / 3).rsqrt()
)

# %% [markdown]
# ## 𝔏(λ), its terms, and accuracy
# A line for the hypernetwork, dots for guides trained at one λ alone. At the optimum 𝔏 is convex and falls with slope
# −KL; the hypernetwork misses it in the dip near λ = 3, where the weights return to the prior at once. At λ = 1
# direct training ends in the prior, a poor optimum that the hypernetwork avoids.

# %%
UNITS = {"evidence": "nats", "log_likelihood": "nats", "kl_weights": "nats", "kl_structure": "nats", "accuracy": "%"}


def plot_over_complexity(panels):
    """Draw {(title, unit): (lines, dots)} over λ, both {label: {λ: value}}, in one colour a label."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False, layout="constrained")
    for axis, ((title, unit), (lines, dots)) in zip(axes[0], panels.items(), strict=True):
        colours = {label: f"C{index}" for index, label in enumerate({**lines, **dots})}
        for marks, style in ((lines, "-"), (dots, "o")):
            for label, values in marks.items():
                repeated = style == "o" and label in lines
                axis.plot(*zip(*values.items(), strict=True), style, color=colours[label],
                          label=None if repeated else label)  # fmt: skip
        axis.set(xscale="log", xlabel="complexity λ", title=title, ylabel=unit)
        axis.legend(frameon=False, fontsize=8)
    return figure


def read(model, guide):
    terms = evaluate(model, guide, data.known, draws=16)
    return {**terms, "accuracy": 100 * accuracy(model, mean_draw(guide), *data.test)}


grid = [float(f"{10 ** (k / 4 - 1):.3g}") for k in range(13)]
pairs = {complexity: hypernet.at(complexity) for complexity in grid}
results = {complexity: read(*pair) for complexity, pair in pairs.items()}
direct = {}
for complexity in (0.1, 1.0, 100.0):
    fit = svi.fit(model := build(complexity), guides.MeanField(model), data.known, **options)
    direct[complexity] = read(model, fit.posterior)
figure = plot_over_complexity(
    {
        (term.replace("_", " "), unit): (
            {"hypernetwork": {complexity: values[term] for complexity, values in results.items()}},
            {"direct": {complexity: values[term] for complexity, values in direct.items()}},
        )
        for term, unit in UNITS.items()
    }
)

# %% [markdown]
# ## How q(Γ | λ) moves
# At small λ the data choose: identity on both edges. Once the weights have returned to the prior, the entropy is near
# its largest, log 3 = 1.10 nats. That is not yet the structure's prior, 0.4, 0.3, 0.3: networks with weights of the
# prior also differ in what they predict. For those the optimum over hard structures is
# q(Γ) ∝ p(Γ) exp(E log p(y | x, w, Γ) / λ) with the expectation over p(w), the dots. Identity, which lets outputs grow,
# costs nats, most on the second edge, and gets its prior's share only where λ is much larger than that cost.

# %%
edges = ("1→2", "2→3")


def expected_log_likelihood(structure):
    """Return the mean of log p(y | x, w, Γ) over 1000 draws of p(w), in nats, all data; the same draws for every Γ."""
    torch.manual_seed(0)
    network, (x, y), means = poutine.condition(build(1.0), data=structure), data.known, []
    for _ in range(4):
        with torch.no_grad(), pyro.plate("particles", 250, dim=-2):
            outputs = network(x)  # (particle, image, class)
        means.append(outputs.log_softmax(-1)[:, torch.arange(len(y)), y].sum(-1).mean())
    return torch.stack(means).mean()


every = list(all_structures(space))
vertices = torch.stack([structure["structure"] for structure in every])  # (structure, edge, choice)
expected = torch.stack([expected_log_likelihood(structure) for structure in every])
log_prior = (vertices @ torch.tensor(PRIOR)).log().sum(-1)
tables = {complexity: choice_probabilities(guide)["structure"] for complexity, (_, guide) in pairs.items()}
optima = {
    complexity: torch.einsum("s,sek->ek", (log_prior + expected / complexity).softmax(0), vertices)
    for complexity in grid
    if complexity > 15
}
panels = {
    (f"P(choice) on edge {edge}", "probability"): tuple(
        {name: {c: float(table[place, k]) for c, table in part.items()} for k, name in enumerate(first)}
        for part in (tables, optima)
    )
    for place, edge in enumerate(edges)
}
panels["structural entropy", "nats"] = tuple(
    {
        edge: {c: float(edge_entropies(space, {"structure": table})["structure"][place]) for c, table in part.items()}
        for place, edge in enumerate(edges)
    }
    for part in (tables, optima)
)
figure = plot_over_complexity(panels)
print(f"E log p(y | x, w, Γ) over p(w): {expected.max() - expected.min():.0f} nats between the best and the worst Γ")
for complexity in (17.8, 100.0):
    for name, part in {"hypernetwork": tables, "optimum": optima}.items():
        print(f"λ = {complexity:<5g} {name:12}", *(part[complexity].numpy().round(2)))
print(f"{'prior':24}", PRIOR, PRIOR)

# %% [markdown]
# The hypernetwork is near these optima on the first edge; on the second it is nearer to the prior than they are (its γ
# are relaxed, mixtures of activations, and not at vertices), and at λ = 18 it has more of relu than of tanh. So at
# large λ: near the prior, with less of identity, and not the prior itself.

# %% [markdown]
# ## Networks at any λ from one guide, pruned
# Weights go in the order of their relative density at zero, exp(−μ²/2σ²), without training again.


# %%
def curve(complexity):
    model, guide = hypernet.at(complexity)
    levels = pruning_curve(model, mean_draw(guide), relative_density(*moments(guide, model.packing)), *data.test)
    return [{"mean": level, "sd": 0.0} for level in levels]


figure = plot_pruning({"digits": {complexity: curve(complexity) for complexity in (0.1, 0.316, 1.0, 1.78)}})

# %% [markdown]
# The hypernetwork is a Pyro guide like any other: condition it on λ. `at` makes a plain model and guide of it, here
# trained on for 20 epochs at λ = 0.5. Both evidences, in nats, are of the same noise.

# %%
model, guide = hypernet.at(0.5)
conditioned = poutine.block(poutine.condition(hypernet, data={"complexity": torch.tensor(0.5)}), hide=["complexity"])
more = {**options, "epochs": 20, "optimizer": adam(3e-3), "scheduler": one_cycle(3e-3)}
svi.fit(model, guide, data.known, **more)
for name, posterior in {"conditioned": conditioned, "tuned": guide}.items():
    torch.manual_seed(0)
    print(f"{name:12}", round(evaluate(model, posterior, data.known, draws=64)["evidence"], 1))

# %% [markdown]
# ## On MNIST
# 784-50-10 network, N(0, 0.1²) weights (`make complexity ROOT=DIR` wrote the numbers). The six panels of the paper's
# figure 1, by its own protocol, five runs:


# %%
paper, best, published = (
    json.loads(Path(f"complexity_{name}.json").read_text())["rows"] for name in ("paper", "best", "published")
)


def pruning(rows):
    return plot_pruning(
        {name: {c: row[str(c)]["pruning"] for c in (0.1, 1.0, 10.0, 100.0)} for name, row in rows.items()}
    )


figure = pruning(paper)

# %% [markdown]
# And its tables, published numbers in brackets. Gaps above a tenth: *direct, 1 epoch*, 𝔏 at λ = 1 and 100. After one
# epoch 𝔏 is still what the start makes of it (at λ = 100 the start, σ = e⁻³ and means drawn from the prior, has
# λ KL = 3.3 million nats), and the paper does not say where means start. *linear* at λ = 100, accuracy: the end of the
# input's range, where single runs differ by 0.04 (sd). *direct* at λ = 1, stability: single runs differ by 0.14 there.

# %%
print(report.tables(paper, published=published))

# %% [markdown]
# And the spline hypernetwork beside the best direct training we have, eight runs:

# %%
figure = pruning(best)
for name, row in best.items():
    for complexity in ("0.1", "1.0", "10.0", "100.0"):
        entry = row[complexity]
        text = "  ".join(f"{metric} {entry[metric]['mean']:.4g}" for metric in ("evidence", "accuracy", "stability"))
        print(f"{name:8} λ = {float(complexity):<5g} {text}")
