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
# # Structure as a latent variable
#
# A family of models is a graph whose edges carry primitives; a structure γ weighs them. This notebook goes through the
# lecture on structure selection: priors of γ, a posterior that moves with prior and likelihood, several distinct
# structures, and four families whose structure is worth knowing: branches, arrows, formulas, widths.

# %%
import itertools

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_nas import Space, choice_probabilities, draw, evaluate, predict
from pyro_nas.graph.enumeration import all_structures
from pyro_nas.graph.families.bayesian_network import arrows, bayesian_network
from pyro_nas.graph.families.branches import branches, branches_data
from pyro_nas.graph.families.polynomials import features, polynomials
from pyro_nas.graph.families.superposition import superposition
from pyro_nas.inference import adam, distinct, one_cycle, sampling, svi
from pyro_nas.models import Model, buffet, cost_factors, guides, likelihoods, priors, structures
from pyro_nas.models.every_structure import EveryStructure
from pyro_nas.reading.conjugate import LinearRegression
from pyro_nas.reading.importance import structure_probabilities, weigh
from pyro_nas.reading.prior_plots import CORNERS, plot_cube, plot_simplex
from pyro_nas.reading.statistical_complexity import complexities

# %% [markdown]
# ## Priors of γ
# Towards temperature 0 a law goes to the vertices, where one primitive is chosen; towards infinity to the centre, where
# all are mixed. Gumbel-Softmax near 1 is nearly flat, as is Dirichlet.

# %%
TEMPERATURES = (0.2, 0.995, 5.0)
third = torch.full((3,), 1 / 3)


def law(family, temperature):
    prior = family(temperature)
    return prior.distribution(prior.parameters(third, temperature), temperature)


families = {"Gumbel-Softmax": structures.gumbel_softmax, "Dirichlet": structures.dirichlet}
figure = plot_simplex(
    {f"{name}\ntemperature {t:g}": law(family, t) for name, family in families.items() for t in TEMPERATURES}
)

# %% [markdown]
# Where any number of primitives may be on, γ lives in the cube: the relaxed Bernoulli law.

# %%
torch.manual_seed(0)
figure = plot_cube({f"temperature {t:g}": law(structures.relaxed_bernoulli, t).sample((1500,)) for t in TEMPERATURES})

# %% [markdown]
# ## A toy: three branches
# f = γ₀ w₀ + γ₁ tanh(w₁x₀ + b₁) + γ₂ tanh(w₂ᵀx + b₂), x ∈ R¹¹, 50 data of tanh x₀ with noise: "simple", in the middle,
# is true. λ weighs the prior against the likelihood, down the rows; the temperature of γ grows to the right.
# Draws of q(γ) from five restarts, a colour each.

# %%
x, y = branches_data()
fixed_noise = likelihoods.gaussian(0.5, learn=False)
RESTARTS = 5


def toy(complexity, temperature, seed):
    torch.manual_seed(seed)
    model = Model(
        branches(), num_data=len(y), structure=structures.gumbel_softmax(temperature), likelihood=fixed_noise,
        complexity=complexity,
    )  # fmt: skip
    options = {"epochs": 200, "batch_size": 50, "optimizer": adam(0.05), "structure_per_example": True}
    return svi.fit(model, guides.MeanField(model), (x, y), **options).posterior


grid = {(c, t): [toy(c, t, seed) for seed in range(RESTARTS)] for c in (0.03, 0.17, 1.0) for t in (0.3, 3.0, 30.0)}
draws = {
    cell: [draw(posterior, num_samples=200)["structure"][:, 0] for posterior in restarts]
    for cell, restarts in grid.items()
}

# %%
figure, axes = plt.subplots(3, 3, figsize=(9, 8.4), layout="constrained")
for axis, ((complexity, temperature), gammas) in zip(axes.flat, draws.items(), strict=True):
    axis.plot(*CORNERS[[0, 1, 2, 0]].T, color="black", lw=1)
    for gamma in gammas:
        axis.scatter(*(gamma.numpy() @ CORNERS).T, s=9, alpha=0.5, lw=0, zorder=3)
    axis.set(title=f"λ = {complexity:g}, temperature {temperature:g}", aspect="equal")
    axis.axis("off")
    for corner, name, side in zip(CORNERS, ("constant", "simple", "complex"), ("top", "top", "bottom"), strict=True):
        axis.annotate(name, corner, ha="center", va=side, fontsize=8)

# %% [markdown]
# Mean γ over restarts, with their standard deviation. A strong prior (λ = 1) takes mass from the complex branch; a
# strong likelihood (λ = 0.03) takes it from the constant, and restarts disagree, for the complex branch can overfit;
# heat moves everything to the centre. At a low temperature each restart ends at a vertex, not always the same.

# %%
print("    λ  temperature   constant       simple         complex")
for (complexity, temperature), gammas in draws.items():
    means = torch.stack([gamma.mean(0) for gamma in gammas])
    cells = "  ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(means.mean(0), means.std(0), strict=True))
    print(f"{complexity:5g}  {temperature:11g}  {cells}")

# %% [markdown]
# Complexities of one of those posteriors: statistical ones, in nats, and those of the network derived from it.

# %%
posterior = grid[1.0, 0.3][0]
for name, value in complexities(branches(), posterior, posterior.model.packing, x).items():
    print(f"{name:40} {value:.3f}")

# %% [markdown]
# ## Distinct structures, one after another
# Each fit is repelled by the structures that earlier ones found, λ_struct = [0, 0, 0], [λ₁, 0, 0], [λ₁, λ₂, 0]; what
# comes back is sorted by the evidence at each structure, without the repulsion.


# %%
def build(repulsion):
    torch.manual_seed(0)
    model = Model(
        branches(), num_data=len(y), structure=structures.gumbel_softmax(0.5), likelihood=likelihoods.gaussian(0.5),
        cost=cost_factors.additive(repulsion),
    )  # fmt: skip
    return model, guides.MeanField(model)


def fit(model, guide):
    svi.fit(model, guide, (x, y), epochs=100, batch_size=50, optimizer=adam(0.1), structure_per_example=True)


for result in distinct.search(branches(), build, fit, (x, y), count=3):
    branch = ("constant", "simple", "complex")[int(result.structure["structure"].argmax())]
    print(f"{branch:10} {result.evidence:.1f} nats")

# %% [markdown]
# ## The exact posterior over structures, and what approximates it
# Two edges choose a column of x each. x₀ + x₂ and x₁ + x₃ are equal, so that the edges are coupled. The exact posterior
# is by closed-form evidence. NUTS with Γ summed out finds it, and importance sampling does where the guide gives w its
# posterior for every Γ; a guide is any Pyro program, here one by hand. Fitted guides whose q(Γ) factorises over edges
# have no coupling and are far off, and a relaxed γ mixes the columns besides.


# %%
class Column(torch.nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x[:, self.index, None]


pick = [{f"x{i}": lambda i=i: Column(i) for i in pair} for pair in ((0, 1), (2, 3))]
scale = {"weight": lambda: torch.nn.Linear(1, 1, bias=False)}
space = Space({(0, 1): pick[0], (0, 2): pick[1], (1, 3): scale, (2, 3): scale})
s, t, away, noise = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
coupled = torch.stack([s, s + 0.4 * away, t, t - 0.4 * away], 1), (s + t + 0.5 * noise)[:, None]


def model_with(prior):
    return Model(space, num_data=20, structure=prior, likelihood=fixed_noise)


def named(pairs):
    return {"".join(str(int(k)) for k in structure["structure"].argmax(-1)): p for structure, p in pairs}


def regression_of(structure):
    chosen = structure["structure"].argmax(-1) + torch.tensor([0, 2])
    return LinearRegression(coupled[0][:, chosen], coupled[1][:, 0], 0.5)


def by_hand(x, y):
    edges = pyro.sample("structure", dist.OneHotCategorical(torch.ones(2, 2)).to_event(1))
    posterior = regression_of({"structure": edges}).posterior
    wider = (1.3**2 * posterior.covariance_matrix).float()
    pyro.sample("weights", dist.MultivariateNormal(posterior.mean.float(), wider))


every = list(all_structures(space))
logs = torch.tensor([regression_of(structure).log_evidence for structure in every])
tables = {"enumeration": named(zip(every, logs.softmax(0).tolist(), strict=True))}
discrete = model_with(structures.categorical())
tables["NUTS"] = named(sampling.nuts(discrete, coupled, draws=400, warmup=100, chains=2).structures)
tables["importance sampling"] = named(structure_probabilities(weigh(discrete, by_hand, coupled, draws=8000)))


def factorised(guide):
    table = choice_probabilities(guide)["structure"]
    return named((structure, float((structure["structure"] * table).sum(-1).prod())) for structure in every)


torch.manual_seed(0)
guide = guides.StructureConditioned(discrete, rank=4, initial_scale=0.3)
svi.fit(discrete, guide, coupled, epochs=400, batch_size=20, optimizer=adam(0.05), enumerate_discrete=True)
tables["q(w | Γ) q(Γ)"] = factorised(guide)
relaxed = model_with(structures.gumbel_softmax(0.5))
guide = guides.MeanField(relaxed)
svi.fit(relaxed, guide, coupled, epochs=300, batch_size=20, optimizer=adam(0.05))
tables["q(w) q(γ), relaxed"] = factorised(guide)
for method, table in tables.items():
    error = max(abs(table.get(key, 0.0) - p) for key, p in tables["enumeration"].items())
    cells = "  ".join(f"p({key}) = {table.get(key, 0.0):.3f}" for key in tables["enumeration"])
    print(f"{method:20} {cells}   largest error {error:.3f}")

# %% [markdown]
# ## Polynomials: the degree as structure
# One edge chooses the degree. Weights may depend on it, q(w | Γ), and Γ is summed out exactly.

# %%
generator = torch.Generator().manual_seed(3)
u = 2 * torch.rand(40, 1, generator=generator) - 1
v = features(u, 2) @ torch.tensor([[0.3], [-0.5], [0.07]]) + 0.3 * torch.randn(40, 1, generator=generator)
degrees = Model(
    polynomials([1, 2]), num_data=40, weights=priors.normal(1.0), structure=structures.categorical(),
    likelihood=likelihoods.gaussian(0.3, learn=False),
)  # fmt: skip
guide = guides.StructureConditioned(degrees, rank=2, initial_scale=0.1)
options = {"optimizer": adam(0.05, betas=(0.9, 0.99)), "scheduler": one_cycle(0.1, pct_start=0.1)}
svi.fit(degrees, guide, (u, v), epochs=800, batch_size=40, enumerate_discrete=True, **options)
logs = [LinearRegression(features(u.double(), d), v[:, 0], 0.3).log_evidence for d in (1, 2)]
print("q(degree 1, 2)    ", [round(p, 3) for p in choice_probabilities(guide)["structure"][0].tolist()])
print("p(degree 1, 2 | D)", [round(p, 3) for p in torch.tensor(logs).softmax(0).tolist()])

# %% [markdown]
# ## A Bayesian network whose parents are structure
# Five nodes in a known order, every arrow on or off: structure in the cube, 500 rows of data. The exact probabilities
# are by enumeration of parent sets, one node at a time. The most probable network is right in both; a relaxed q(γ)
# gives arrows that are not there more than they have.

# %%
planted = {(0, 1): 0.8, (0, 2): -0.6, (1, 3): 0.7, (2, 3): 0.5, (3, 4): -0.8}
weights = torch.zeros(5, 5)
for arrow, value in planted.items():
    weights[arrow] = value
rows = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) @ torch.linalg.inv(torch.eye(5) - weights)

torch.manual_seed(0)
model = Model(
    bayesian_network(5), num_data=500, weights=priors.normal(1.0), structure=structures.relaxed_bernoulli(0.5),
    likelihood=likelihoods.gaussian(1.0, learn=False),
)  # fmt: skip
guide = guides.StructureConditioned(model, rank=10, initial_scale=0.3)
schedule = {"optimizer": adam(0.05), "scheduler": one_cycle(0.05, pct_start=0.1)}
svi.fit(model, guide, (rows, rows), epochs=1200, batch_size=500, **schedule)
probabilities = arrows(choice_probabilities(guide)["structure"])

exact = torch.zeros(5, 5)
for child in range(1, 5):
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=child)))
    logs = [LinearRegression(rows[:, :child] * chosen, rows[:, child], 1.0).log_evidence for chosen in sets]
    exact[:child, child] = torch.tensor(logs).softmax(0) @ sets

panels = {"planted": (weights != 0).float(), "exact P(arrow | data)": exact, "q(arrow)": probabilities}
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharey=True)
for axis, (title, table) in zip(axes, panels.items(), strict=True):
    axis.imshow(table, vmin=0, vmax=1, cmap="Blues")
    for parent, child in itertools.combinations(range(5), 2):
        value = float(table[parent, child])
        axis.text(child, parent, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axis.set(title=title, xlabel="child", ylabel="parent")

# %% [markdown]
# ## Symbolic regression: a tree that chooses its functions
# Two leaves f(wx + b), joined by a sum or a product, from 50 formulas. Every one is fitted from several starts in one
# batched computation; the evidence says which is meant. The planted one is sin 2x + x²/2, noise 0.05.

# %%
generator = torch.Generator().manual_seed(0)
a = 6 * torch.rand(60, 1, generator=generator) - 3
b = torch.sin(2 * a) + 0.5 * a**2 + 0.05 * torch.randn(60, 1, generator=generator)
formulas = superposition()
torch.manual_seed(0)
model = Model(
    formulas, num_data=60, weights=priors.normal(2.0), structure=structures.dirichlet(),
    likelihood=likelihoods.gaussian(0.05, learn=False),
)  # fmt: skip
guide = EveryStructure(model, list(all_structures(formulas)) * 16, initial_scale=0.01)
for steps, rate in ((200, 0.1), (300, 0.03)):
    several = {"particles": len(guide.structures), "vectorize_particles": True}
    svi.fit(
        model, guide, (a, b), epochs=steps, batch_size=60, **several, optimizer=adam(rate), scheduler=one_cycle(rate)
    )
    scores = [evaluate(model, guide.member(k), (a, b), 32)["evidence"] for k in range(len(guide.structures))]
    guide = guide.kept(sorted(range(len(scores)), key=lambda k: -scores[k])[:16])
for k, score in enumerate(sorted(scores, reverse=True)[:5]):
    chosen = guide.structures[k]
    leaves = [
        tuple(superposition().choices()["structure.5"].primitives[0])[int(g.argmax())] for g in chosen["structure.5"]
    ]
    print(f"{score:9.1f} nats  {('sum', 'product')[int(chosen['structure.2'].argmax())]} of {' and '.join(leaves)}")

line = torch.linspace(-4, 4, 200)[:, None]
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.plot(a, b, "k.", label="data")
axis.plot(line, predict(model, draw(guide.member(0), num_samples=50), line), label="most probable formula")
axis.plot(line, torch.sin(2 * line) + 0.5 * line**2, "k:", label="planted")
axis.set(xlabel="x", ylabel="y")
_ = axis.legend(frameon=False)

# %% [markdown]
# ## Width, depth and sparsity: the cascading Indian buffet
# A prior over whole networks: α connections a unit, and the larger β the less they are shared. Drawn structures, units
# of a layer in a line, and the mean widths against E K = α Σ β / (β + k − 1).

# %%
torch.manual_seed(0)
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for axis, (alpha, beta) in zip(axes, ((1.0, 1.0), (2.0, 0.5), (1.0, 5.0)), strict=True):
    layers = []
    while len(layers) < 4:  # those that end before are not worth a picture
        layers = buffet.sample(6, alpha, beta, maximal_depth=10_000)[:4]
    for depth, matrix in enumerate(layers):
        for unit, other in matrix.nonzero().tolist():
            across = [k - (size - 1) / 2 for k, size in zip((unit, other), matrix.shape, strict=True)]
            axis.plot(across, [depth, depth + 1], "o-", color="C0", lw=0.8, ms=4)
    axis.set(title=f"α = {alpha:g}, β = {beta:g}, first layers", yticks=range(5), ylabel="layer")
    axis.set_xticks([])

for customers in (2, 6, 20):
    buffets = buffet.IndianBuffet(customers, 1.3, 2.0)
    widths = torch.tensor([buffets.sample().shape[1] for _ in range(2000)], dtype=torch.double)
    error = widths.std() / len(widths) ** 0.5
    print(f"{customers:3} units: mean width {widths.mean():.2f} ± {error:.2f}, formula {buffets.expected_dishes:.2f}")

# %% [markdown]
# Inference on a toy: data of a network of two hidden units, a network of at most ten with a truncated buffet. The best
# of three restarts by its evidence.

# %%
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(300, 4, generator=generator)
planted = torch.tensor([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5], [0.0, 1.5]])
hidden = torch.tanh(inputs @ planted + torch.tensor([0.5, -0.5]))
targets = hidden @ torch.tensor([[1.5], [-1.5]]) + 0.2 * torch.randn(300, 1, generator=generator)
restarts = []
for seed in range(3):
    torch.manual_seed(seed)
    likelihood = likelihoods.gaussian(0.2, learn=False)
    model = buffet.BuffetNetwork(4, 10, 1, num_data=300, alpha=0.5, likelihood=likelihood)
    options = {"optimizer": adam(0.1), "scheduler": one_cycle(0.1), "structure_per_example": True}
    fit = svi.fit(model, buffet.BuffetGuide(model), (inputs, targets), epochs=300, batch_size=30, **options)
    restarts.append((evaluate(model, fit.posterior, (inputs, targets), draws=100)["evidence"], fit.posterior))
evidence, posterior = max(restarts, key=lambda restart: restart[0])
table = choice_probabilities(posterior)["structure"]
used = [k for k in range(10) if table[:, k].max() > 0.5]
print("evidence of the restarts", ", ".join(f"{value:.0f}" for value, _ in restarts), "nats")
print(f"units in use {len(used)} of 10, planted 2; expected units {buffet.expected_units(table):.2f}")
weights = model.packing.unpack(posterior.loc.detach())["hidden"]
panels = {"P(connection)": (table, 0, "Blues"), "mean of its weight": (weights, -1.5, "RdBu_r")}
figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained")
for axis, (title, (values, low, colours)) in zip(axes, panels.items(), strict=True):
    image = axis.imshow(values, vmin=low, vmax=1.0 if low == 0 else -low, cmap=colours)
    axis.set(xlabel="unit", ylabel="input", title=title)
    figure.colorbar(image, ax=axis)

# %% [markdown]
# Two units have a connection more probable than not, those that were planted: the weights of each are ± 1.5 on its own
# pair of inputs. Two things keep the left picture from being as plain as the right one. A connection that a unit in
# use does not need may stay on: with a weight near 0 it does as little as one that is off. And the next unit keeps
# some probability of a connection, up to 0.2 of each, so that the expected number of units lies above 2. Switching a
# unit off takes long: of ten starts of 60 epochs seven end with 2.2 to 3.4 expected units, one of them half in use,
# and three have lost a unit that was needed, which costs their evidence 1500 nats. So: many epochs, several restarts,
# and the evidence to choose by.
