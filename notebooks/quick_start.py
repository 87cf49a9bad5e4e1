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

from pyro_nas import Space, by_edge, choice_probabilities, derive, draw, edge_entropies, predict, to_arviz
from pyro_nas.data import load
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, bilevel, delayed, svi
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
def search(make_guide=guides.MeanField, weights=None, structure=None, seed=0):
    torch.manual_seed(seed)
    weights = weights or priors.normal(priors.fan_in())
    model = Model(space, num_data=len(data.train[1]), weights=weights, structure=structure, complexity=0.1)
    guide = make_guide(model)
    options = {"structure_optimizer": adam(0.03), "structure_scheduler": delayed(), "local_reparameterization": True}
    history = bilevel.fit(model, guide, data.train, data.valid, epochs=40, batch_size=64, seed=seed, **options)
    return model, guide, history


model, guide, history = search()

# %% [markdown]
# ## The posterior
# Probabilities of each choice, and the structural entropy per edge in nats (0 … log 3 = 1.10).

# %%
probabilities = choice_probabilities(guide)
figures = plot_history(history), plot_structure(history, space), plot_architecture(space, probabilities)
by_edge(space, probabilities), by_edge(space, edge_entropies(space, probabilities))

# %% [markdown]
# ## Swap the prior, swap the guide
# Any weight prior, any structure prior, any Pyro callable as a guide. Accuracy is on the validation part; rows are the
# probabilities of tanh, relu and identity on the two edges.

# %%
searches = {"mean field": (model, guide, history)}
searches["ARD weights"] = search(weights=priors.relevance_determination(priors.fan_in()))
searches["Dirichlet structure"] = search(structure=structures.dirichlet(1.0))
searches["q(w | Γ) q(Γ)"] = search(guides.StructureConditioned)
for name, (other, its_guide, _) in searches.items():
    accuracy = (predict(other, draw(its_guide), data.valid[0]).argmax(-1) == data.valid[1]).float().mean()
    print(f"{name:20} accuracy {accuracy:.3f}", *choice_probabilities(its_guide)["structure"].numpy().round(2))

# %% [markdown]
# ## Diagnostics by ArviZ
# Independent restarts go on the chain axis: r-hat then says whether restarts agree about the structure.

# %%
posterior = to_arviz([draw(search(seed=seed)[1], num_samples=200) for seed in range(3)], space)
az.plot_forest(posterior, combined=False)
az.summary(posterior, round_to=3)

# %% [markdown]
# ## Derive and retrain
# The most probable structure is a space with nothing left to choose; the same model and guide fit it.

# %%
final = Model(derive(space, probabilities), num_data=len(data.known[1]), complexity=0.01)
final_guide = guides.MeanField(final)
svi.fit(final, final_guide, data.known, epochs=60, batch_size=64, local_reparameterization=True)
accuracy = (predict(final, draw(final_guide), data.test[0]).argmax(-1) == data.test[1]).float().mean()
print(f"test accuracy {accuracy:.3f}")
