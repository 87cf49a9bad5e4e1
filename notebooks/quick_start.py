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
# # Quick start: an architecture posterior in one minute
#
# A network family is a graph whose edges carry alternative primitives. Here the first layer on scikit-learn's digits
# chooses its activation, the second layer chooses whether to be there at all.

# %%
import arviz as az
import torch

from pyro_nas import Space, by_edge, choice_probabilities, derive, draw, edge_entropies, predict, to_arviz
from pyro_nas.data import load
from pyro_nas.inference import adam, bilevel, delayed, one_cycle, svi
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.plots import plot_architecture, plot_history, plot_structure
from pyro_nas.primitives import dense, flatten, skip

# %% [markdown]
# ## A space
# Every edge maps names to factories of plain `torch.nn.Module`s.

# %%
data = load("digits")
space = Space(
    {
        (0, 1): {"flatten": flatten()},
        (1, 2): {"tanh": dense(64, 48, "tanh"), "relu": dense(64, 48, "relu"), "linear": dense(64, 48)},
        (2, 3): {"tanh": dense(48, 48, "tanh"), "relu": dense(48, 48, "relu"), "skip": skip()},
        (3, 4): {"readout": dense(48, 10)},
    }
)

# %% [markdown]
# ## A model, a guide, a fit
# Weights *and* structure are latent variables of one Pyro model. `bilevel.fit` lets the weights see the training part
# and the structure the validation part. λ = 0.1 weighs the divergence from the prior.


# %%
def search(make_guide=guides.MeanField, weights=None, structure=None, seed=0):
    torch.manual_seed(seed)
    weights = weights or priors.normal(priors.fan_in())
    model = Model(space, num_data=len(data.train[1]), weights=weights, structure=structure, complexity=0.1)
    guide = make_guide(model)
    steps = {"optimizer": adam(0.01), "scheduler": one_cycle(0.01)}
    late = {"structure_optimizer": adam(0.03), "structure_scheduler": delayed()}
    history = bilevel.fit(model, guide, data.train, data.valid, epochs=40, batch_size=64, seed=seed, **steps, **late)
    return model, guide, history


model, guide, history = search()
plot_history(history)
# %% [markdown]
# ## The posterior
# Probabilities of each choice and the structural entropy per edge, in nats (0 … log 3 = 1.10).

# %%
probabilities = choice_probabilities(guide)
by_edge(space, probabilities), by_edge(space, edge_entropies(space, probabilities))

# %%
plot_structure(history, space)
plot_architecture(space, probabilities)
# %% [markdown]
# ## Swap the prior, swap the guide
# Any weight prior, any structure prior, any Pyro callable as a guide.

# %%
searches = {
    "mean field": (model, guide, history),
    "ARD weights": search(weights=priors.relevance_determination(priors.fan_in())),
    "Dirichlet structure": search(structure=structures.dirichlet(1.0)),
    "low rank": search(guides.LowRank),
    "q(w | Γ)": search(guides.StructureConditioned),
}
x, y = data.valid
for name, (other, its_guide, _) in searches.items():
    accuracy = (predict(other, draw(its_guide, num_samples=20), x).argmax(-1) == y).float().mean()
    first, second = (table.argmax(-1).tolist() for table in choice_probabilities(its_guide)["structure"])
    print(f"{name:20} valid accuracy {accuracy:.3f}, choices {first, second}")

# %% [markdown]
# ## Diagnostics by ArviZ
# Independent restarts go on the chain axis: r-hat then says whether restarts agree about the structure.

# %%
restarts = [draw(search(seed=seed)[1], num_samples=200) for seed in range(3)]
posterior = to_arviz(restarts, space)
az.plot_forest(posterior, combined=False)
az.summary(posterior, round_to=3)

# %% [markdown]
# ## Derive and retrain
# The most probable structure is a space with nothing left to choose; the same model and guide fit it.

# %%
best = derive(space, probabilities)
final = Model(best, num_data=len(data.known[1]), weights=priors.normal(priors.fan_in()), complexity=0.01)
final_guide = guides.MeanField(final)
svi.fit(final, final_guide, data.known, epochs=60, batch_size=64, optimizer=adam(0.01), scheduler=one_cycle(0.01))
x, y = data.test
print("test accuracy", (predict(final, draw(final_guide), x).argmax(-1) == y).float().mean().item())
