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
# # Quick start: an architecture posterior in a minute
#
# A network family is a graph whose edges carry alternative primitives. Here both hidden layers of a small network for
# scikit-learn's digits choose their activation.

# %%
import arviz as az
import torch

from pyro_nas import Space, accuracy, choice_probabilities, derive, draw, edge_entropies, to_arviz
from pyro_nas.data import load
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, bilevel, one_cycle, svi
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.reading.plots import plot_architecture, plot_history, plot_structure

# %% [markdown]
# ## A space
# Every edge maps names to factories of plain `torch.nn.Module`s.

# %%
data = load("digits")
first, second = ({name: dense(size, 48, name) for name in ("tanh", "relu", "identity")} for size in (64, 48))
space = Space({(0, 1): {"flatten": flatten()}, (1, 2): first, (2, 3): second, (3, 4): {"readout": dense(48, 10)}})

# %% [markdown]
# ## A model, a guide, a fit
# Weights *and* structure are latent variables of one Pyro model. `bilevel.fit` lets the weights see the training part
# and the structure the validation part. λ = 0.1 weighs the divergence from the prior.


# %%
def search(make_guide=guides.MeanField, epochs=40, seed=0, **priors_of):
    torch.manual_seed(seed)
    model = Model(space, num_data=len(data.train[1]), complexity=0.1, **priors_of)
    options = {"epochs": epochs, "batch_size": 64, "seed": seed, "structure_optimizer": adam(0.03)}
    return bilevel.fit(model, make_guide(model), data.train, data.valid, **options, local_reparameterization=True)


fit = search()

# %% [markdown]
# ## The posterior
# Probabilities of each choice, and the structural entropy per edge in nats (0 … log 3 = 1.10).

# %%
probabilities = choice_probabilities(fit.posterior)
figures = plot_history(fit.records), plot_structure(fit.records, space), plot_architecture(space, probabilities)
probabilities, edge_entropies(space, probabilities)

# %% [markdown]
# ## Swap the prior, swap the guide
# Any weight prior, any structure prior, any Pyro callable as a guide. Beside E log p(y | x, w, Γ) of the validation
# part, scaled to the training part's size, stand the probabilities of tanh, relu and identity on the two edges. Each
# line is a single run: how far to trust it comes next.


# %%
def report(name, fit):
    table = choice_probabilities(fit.posterior)["structure"].numpy().round(2)
    print(f"{name:20} validation log-likelihood {fit.records[-1]['valid_log_likelihood']:.0f} nats", *table)


report("mean field", fit)
report("ARD weights", search(weights=priors.relevance_determination(priors.fan_in())))
report("Dirichlet structure", search(structure=structures.dirichlet(1.0)))
report("q(w | Γ) q(Γ)", search(guides.StructureConditioned))

# %% [markdown]
# ## Diagnostics by ArviZ: one run is not enough
# Independent restarts go on the chain axis. r-hat is 1 where they agree. From 1.1 on the probabilities of one run tell
# of its seed as much as of the data, however sure of itself it is.

# %%
for epochs in (40, 120):
    restarts = [search(epochs=epochs, seed=seed) for seed in range(3)]
    posterior = to_arviz([draw(restart.posterior, num_samples=200) for restart in restarts], space)
    r_hat = az.summary(posterior, round_to=3)["r_hat"].max()
    print(f"{epochs} epochs: largest r_hat {r_hat:.2f},", "do not trust one run" if r_hat > 1.1 else "restarts agree")
    for seed, restart in enumerate(restarts):
        report(f"  restart {seed}", restart)
    az.plot_forest(posterior, combined=False)

# %% [markdown]
# After 40 epochs the restarts disagree, and two of them are nearly sure of different choices on the first edge: no
# single one of these posteriors is to be trusted. Trained three times as long, all prefer relu on both edges; the
# r-hat that is left is of how near to that vertex they stand. Nor is agreement of three a proof. With seeds 3 to 5 one
# of three restarts of 120 epochs ends at identity on the second edge, and with 200 epochs seed 1 ends at tanh: local
# optima, both with the lowest validation log-likelihood of their three. Hence the recipe: train until r-hat does not
# fall any more, restart several times, average over the restarts, and where they differ let validation data decide.
#
# ## Derive and retrain
# The most probable structure under the average of the longer restarts is a space with nothing left to choose; the same
# model and guide fit it.

# %%
average = torch.stack([choice_probabilities(restart.posterior)["structure"] for restart in restarts]).mean(0)
final = Model(derive(space, {"structure": average}), num_data=len(data.known[1]), complexity=0.01)
fit = svi.fit(final, guides.MeanField(final), data.known, epochs=60, batch_size=64, scheduler=one_cycle(0.01))
print(f"test accuracy {accuracy(final, fit.posterior, *data.test):.3f}")
