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
# # Choosing a model by its evidence
#
# log p(D | h) = log ∫ p(D | w) p(w | h) dw scores a model with all its weights integrated out. This notebook goes
# through the lecture on evidence: several ways to it beside the exact value, where cross-validation says otherwise,
# hyperparameters by maximum evidence, and what the ways are worth for a neural network.

# %%
import json
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro import poutine
from sklearn.datasets import load_diabetes

from pyro_nas import Space, draw, evaluate
from pyro_nas.__main__ import main
from pyro_nas.graph.families.polynomials import features, polynomials
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.inference import adam, cross_validation, empirical_bayes, kronecker, one_cycle, svi, tempering, trajectory
from pyro_nas.models import Model, guides, likelihoods
from pyro_nas.models.learned_priors import learned_normal
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.reading.importance import weigh
from pyro_nas.reading.posterior import each_draw
from pyro_nas.studies.evidence.examples import logistic_regression
from pyro_nas.studies.plots import plot_evidence

warnings.filterwarnings("ignore", message="`torch.jit.script`")  # of laplace-torch

# %% [markdown]
# ## Polynomials, degree 0 to 8
# Forty data of a polynomial of degree 3 with noise 0.3. The command prints five ways to log p(D) beside the exact
# value, the posterior over degrees, and cross-validation. Leave-one-out by importance weights is not to be trusted
# where Pareto's k̂ is above 0.7, crosses in the picture: there cross-validation, which refits, is the one to read.
#
# In the middle each method stands by how far it is from the exact value, with its standard error: within ± 1 nat the
# axis is linear, beyond it logarithmic. Laplace is exact here, since the posterior is normal. The higher the degree,
# the more the weights depend on each other: what takes them as independent, Laplace's diagonal and the ELBO of mean
# field, falls behind by 1.4 nats at degree 8; importance weights win more than half of that back. The bound along the
# path of SGD is much looser, by 2 nats at degree 3 and 23 at degree 8. All choose degree 3, but a bound whose gap grows
# with the degree is surer of it than the exact posterior.


# %%
def study(example, *flags):
    with tempfile.TemporaryDirectory() as folder:
        main(["evidence", "--example", example, "--out", f"{folder}/run", *flags])
        return json.loads(Path(folder, "run", "summary.json").read_text())


summary = study("polynomials")

# %%
figure = plot_evidence(summary["models"], summary["posterior"])

# %% [markdown]
# ## Why a bound may be far below: a rough approximation
# The posterior of a line far from the origin is a narrow ridge. The nearest law of independent weights, in
# KL(q ‖ p), has its centre and the ridge's width, not its length; the ELBO falls short by ½[Σ log A_jj − log det A].

# %%
generator = torch.Generator().manual_seed(0)
far = 1 + torch.rand(20, 1, generator=generator)
regression = LinearRegression(
    features(far, 1, "power"), (far + 0.3 * torch.randn(20, 1, generator=generator))[:, 0], 0.3
)
axes_of = [m + 3.5 * s * torch.linspace(-1, 1, 200, dtype=torch.double)
           for m, s in zip(regression.posterior.mean, regression.posterior.stddev, strict=True)]  # fmt: skip
weights = torch.cartesian_prod(*axes_of)
exact = regression.posterior.log_prob(weights).exp()
rough = regression.mean_field.log_prob(weights).sum(-1).exp()
figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
for values, colour in ((exact, "C0"), (rough, "C1")):
    axis.contour(*axes_of, values.view(200, 200).T, levels=[float(values.max()) * k for k in (0.1, 0.5)], colors=colour)
axis.set(xlabel="intercept", ylabel="slope", title="posterior, and best independent weights")
print(f"log p(D) {regression.log_evidence:.2f} nats, best ELBO of independent weights", end=" ")
print(f"{regression.mean_field_evidence:.2f}")

# %% [markdown]
# ## Where cross-validation and evidence disagree
# The evidence is Σ log p(y_i | y_1 … y_{i−1}): it predicts the first data from the prior alone, so that under a prior
# of scale τ each weight costs about log τ. In 10-fold cross-validation every datum is predicted from nine tenths of
# the others, where the prior is forgotten. With τ = 1 both choose degree 3; with τ = 30 the evidence turns to 1.

# %%
generator = torch.Generator().manual_seed(3)
x = 2 * torch.rand(40, 1, generator=generator) - 1
planted = torch.tensor([[0.3], [-0.5], [0.0], [0.2]])
y = features(x, 3) @ planted + 0.3 * torch.randn(40, 1, generator=generator)


def exact_of(data, degree, scale):
    return LinearRegression(features(data[0].double(), degree), data[1][:, 0], 0.3, scale)


def cross_validated(degree, scale):
    def fit(train):
        regression = exact_of(train, degree, scale)

        def density(x, y):
            law = regression.predictive(features(x.double(), degree))
            return torch.distributions.Normal(law.mean, law.stddev).log_prob(y[:, 0].double())

        return density

    return cross_validation.cross_validate(fit, (x, y), folds=10).total.value


scores = {
    scale: {
        "log evidence": [exact_of((x, y), degree, scale).log_evidence for degree in range(9)],
        "10-fold cross-validation": [cross_validated(degree, scale) for degree in range(9)],
    }
    for scale in (1.0, 30.0)
}
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for panel, (scale, lines) in zip(panels, scores.items(), strict=True):
    for (label, values), style in zip(lines.items(), ("o-", "s--"), strict=True):
        best = max(range(9), key=lambda k, values=values: values[k])
        panel.plot(values, style, ms=4, label=f"{label}: degree {best}")
    panel.set(xlabel="degree", title=f"prior scale τ = {scale:g}", ylim=(-60, 0))
    panel.legend(frameon=False)
_ = panels[0].set_ylabel("nats")

# %% [markdown]
# ## Two levels: hyperparameters by maximum evidence
# First level: q(w) given the prior scales h. Second: h at the maximum of the evidence given q(w). One scale for all
# weights of a polynomial of degree 8, or one a weight (relevance determination): most of those that are not needed get
# small, and the evidence is higher for it.

# %%
OPTIONS = {"batch_size": 40, "optimizer": adam(0.05, betas=(0.9, 0.99)), "local_reparameterization": True}


def two_level(space, data, per, noise=0.3, epochs=600):
    torch.manual_seed(0)
    likelihood = likelihoods.gaussian(noise, learn=False)
    model = Model(space, num_data=len(data[1]), weights=learned_normal(1.0, per=per), likelihood=likelihood)
    guide, scheduler = guides.MeanField(model, initial_scale=0.1), one_cycle(0.05, pct_start=0.1)
    return empirical_bayes.fit(model, guide, data, epochs=epochs, scheduler=scheduler, **OPTIONS).model.weights.scales()


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
print("degree 8, exact log p(D | h): τ = 1       ", f"{exact_of((x, y), 8, 1.0).log_evidence:.2f} nats")
for per, style in (("all", "o-"), ("weight", "s-")):
    scales = next(iter(two_level(polynomials([8]), (x, y), per).values()))[0]
    axis.semilogy(scales, style, label=f"one scale for {per}" if per == "all" else "one scale a weight")
    print(
        f"                              per {per:10}", f"{exact_of((x, y), 8, scales.double()).log_evidence:.2f} nats"
    )
axis.set(xlabel="degree of the term", ylabel="learned prior scale")
_ = axis.legend(frameon=False)

# %% [markdown]
# One scale a primitive: data of a straight line, and a model that adds a linear primitive and a network of tanh units.

# %%
line = -0.8 * x + 0.3 * torch.randn(40, 1, generator=generator)
both = Space({
    (0, 1): {"linear": dense(1, 1)}, (0, 2): {"tanh": dense(1, 5, "tanh")}, (2, 3): {"readout": dense(5, 1)},
    (1, 3): {"skip": skip()},
})  # fmt: skip
scales = two_level(both, (x, line), "primitive")
print({name: round(float(scale.flatten()[0]), 4) for name, scale in scales.items() if "weight" in name})

# %% [markdown]
# ## Logistic regression
# The exact value is by quadrature. Bounds stay below it within their errors, and Laplace, not exact any more, is within
# a tenth of a nat. Below the table, for one of the models, thermodynamic integration over NUTS.

# %%
summary = study("logistic")

# %%
problem = logistic_regression(size=40, scale=1.0, seed=0).problems["intercept, x1"]
tempered = tempering.evidence(problem.model(), problem.data, powers=12, draws=120, warmup=40, chains=2)
exact = summary["models"]["intercept, x1"]["exact"]
print(f"NUTS at 13 powers of the likelihood {tempered.value:.2f} ± {tempered.standard_error:.2f}, exact {exact:.2f}")

# %% [markdown]
# ## The path of SGD, and where to stop
# Ten starts from the prior descend the negative log-likelihood; each step changes the entropy by log |det(I − βH)|. The
# bound 𝔏_t = E log p(D, w_t) + S_t rises while the fit pays and falls while entropy is spent. Sklearn's diabetes data,
# 40 to train on, a tanh network of 10 units: the peak is near the best held-out likelihood, without holding data out.

# %%
STEPS = 1000
whole = [torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True)]
order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(0))
parts = [(part[order[:40]], part[order[40:]]) for part in (whole[0], whole[1][:, None])]
(x_train, x_held), (y_train, y_held) = [
    [(p - train.mean(0)) / train.std(0) for p in (train, held)] for train, held in parts
]
network = Space({(0, 1): {"tanh": dense(10, 10, "tanh")}, (1, 2): {"readout": dense(10, 1)}})
torch.manual_seed(0)
model = Model(network, num_data=40, likelihood=likelihoods.gaussian(0.5, learn=False))
path = trajectory.fit(
    model, (x_train, y_train), (x_held, y_held), steps=STEPS, learning_rate=0.02, starts=10, every=max(1, STEPS // 100)
)
step = [record["step"] for record in path.records]
peak = max(path.records, key=lambda record: record["evidence"])
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for name, label in (("evidence", "bound"), ("log_likelihood", "train"), ("valid_log_likelihood", "held out")):
    axis.plot(step, [record[name] / 40 for record in path.records], label=label)
axis.axvline(peak["step"], color="black", ls=":", label="peak of the bound")
axis.set(xlabel="step", ylabel="nats a datum", ylim=(-4, 0))
held = [record["valid_log_likelihood"] / 40 for record in path.records]
print(
    f"held out: {peak['valid_log_likelihood'] / 40:.2f} nats a datum at the peak, {max(held):.2f} at best, "
    f"{held[0]:.2f} first, {held[-1]:.2f} last"
)
_ = axis.legend(frameon=False)

# %% [markdown]
# ## A neural network: what each posterior knows
# A 1-10-1 tanh network, 40 points of a sine with a gap. The gold standard is NUTS with the readout integrated out, four
# chains of 1000 draws (stored beside its test). Mean field has one spread for all x: too narrow in the gap, too wide
# where the data are. Draws of Laplace's normal spread far more than the posterior, also where the data are: the network
# is not linear in its weights over so wide a range.

# %%
gold = {
    k: torch.tensor(v) for k, v in json.loads(Path("../tests/inference/gold_neural_network.json").read_text()).items()
}
generator = torch.Generator().manual_seed(0)
a = torch.linspace(1, 3, 20)
a = torch.cat([-a.flip(0), a])[:, None]
sine = a, torch.sin(1.5 * a) + 0.1 * torch.randn(40, 1, generator=generator)
small = Space({(0, 1): {"hidden": dense(1, 10, "tanh")}, (1, 2): {"readout": dense(10, 1)}})
narrow = likelihoods.gaussian(0.1, learn=False)
restarts = []
for seed in range(3):
    torch.manual_seed(seed)
    model = Model(small, num_data=40, likelihood=narrow)
    fit = svi.fit(
        model, guides.MeanField(model), sine, epochs=1500, batch_size=40, local_reparameterization=True,
        optimizer=adam(0.02), scheduler=one_cycle(0.03, pct_start=0.1), seed=seed,
    )  # fmt: skip
    restarts.append((evaluate(model, fit.posterior, sine, draws=200)["evidence"], fit.posterior))
restarts.sort(key=lambda restart: -restart[0])
bound = (weighted := weigh(model, restarts[0][1], sine, draws=3000)).bound(100)
kron = kronecker.fit(model, sine)
print("ELBO, three restarts     ", ", ".join(f"{value:.1f}" for value, _ in restarts))
print(f"importance-weighted bound {bound.value:.1f} ± {bound.standard_error:.1f}, Pareto k̂ {weighted.pareto_k:.2f}")
print(f"Laplace, Kronecker        {kron.evidence:.1f}, of one mode among 2¹⁰ · 10! equal ones")

# %%
grid, away = gold["x"][:, None], gold["x"].abs()
places = {"in the gap": away < 0.8, "where the data are": (away > 1) & (away < 3)}
figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
posteriors = {"mean field": restarts[0][1], "Laplace": kron.posterior}
for panel, (title, posterior) in zip(panels, posteriors.items(), strict=True):
    networks = each_draw(draw(posterior, num_samples=500))
    f = torch.stack([poutine.condition(model, data=network)(grid)[:, 0] for network in networks]).detach()
    for label, mean, sd, colour in (("NUTS", gold["mean"], gold["sd"], "C0"), (title, f.mean(0), f.std(0), "C1")):
        panel.plot(gold["x"], mean, color=colour, label=label)
        panel.fill_between(gold["x"], mean - 2 * sd, mean + 2 * sd, color=colour, alpha=0.3)
    panel.plot(*sine, "k.", ms=3)
    panel.set(ylim=(-3, 3), xlabel="x", ylabel="f(x), mean ± 2 sd")
    panel.legend(frameon=False, loc="upper right")
    for place, part in places.items():
        print(f"{title}: sd {float((f.std(0) / gold['sd'])[part].mean()):.2f} times that of NUTS {place}")
