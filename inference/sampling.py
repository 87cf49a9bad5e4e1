"""Sampling: the posterior of small models by NUTS, the gold standard.

Pyro's NUTS runs on log p(D, w) with all discrete sites summed out, so that discrete structures need no relaxation;
they are then drawn from p(Γ | w, D).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch.distributions import biject_to

from pyro_nas import checks
from pyro_nas.data import Pair, check_pair
from pyro_nas.evidence.currencies import PyroCallable
from pyro_nas.evidence.estimator import MAX_ENUMERATED
from pyro_nas.evidence.sites import Substitute, log_prob_of, sample_sites, support_rows
from pyro_nas.inference.state import check_held
from pyro_nas.printing import Printed, Table
from pyro_nas.random_state import seeded
from pyro_nas.reading.arviz_export import r_hat
from pyro_nas.reading.importance import check_unscaled
from pyro_nas.reading.posterior import each_draw, evaluation_mode

__all__ = ["Chains", "Target", "nuts", "run_chain", "sampling_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Chains(Printed):
    """Draws of the posterior, {site: (draw, …)} a chain: a list that ``to_arviz`` takes.

    ``divergences`` counts each chain's divergent transitions after the warm-up. ``values`` are those of the discrete
    sites together, and ``probabilities`` p(value | w, D) at each draw, (chain, draw, value).
    """

    chains: list[dict[str, torch.Tensor]]
    divergences: list[int]
    values: list[dict[str, torch.Tensor]]
    probabilities: torch.Tensor

    def table(self) -> Table:
        """Return a row a site: its shape, and the largest r-hat of its elements."""
        draws = len(next(iter(self.chains[0].values())))
        rows = [(n, str(tuple(r.shape)), f"largest r-hat {r.max():.3f}") for n, r in self.r_hat.items()]
        rows += [(n, str(tuple(value.shape)), "discrete") for n, value in self.values[0].items()]
        return Table(f"{len(self.chains)} chains of {draws} draws, divergences {self.divergences}", rows)

    @property
    def draws(self) -> dict[str, torch.Tensor]:
        """The draws of all chains, {site: (draw, …)}."""
        return {site: torch.cat([chain[site] for chain in self.chains]) for site in self.chains[0]}

    @property
    def structures(self) -> list[tuple[dict[str, torch.Tensor], float]]:
        """The values of the discrete sites with their posterior probabilities, best first: the mean of p(Γ | w, D)."""
        means = self.probabilities.mean((0, 1)).tolist()
        return sorted(zip(self.values, means, strict=True), key=lambda entry: -entry[1])

    @property
    def r_hat(self) -> dict[str, torch.Tensor]:
        """Rank-normalised split r-hat of the continuous sites, 1 where chains agree (Vehtari et al. 2021)."""
        table = {}
        for site in self.chains[0].keys() - self.values[0].keys():
            stacked = torch.stack([chain[site] for chain in self.chains])  # (chain, draw, …)
            columns = stacked.double().flatten(2).unbind(-1) if stacked.dim() > 2 else [stacked.double()]
            table[site] = torch.tensor([r_hat(column) for column in columns]).view(stacked.shape[2:])
        return table


def nuts(
    model: PyroCallable, data: Pair, *, draws: int = 1000, warmup: int = 500, chains: int = 4, seed: int = 0
) -> Chains:
    """Draw from the posterior p(w, Γ | D) by the No-U-Turn sampler; discrete sites are summed out, then drawn.

    ``model`` is any Pyro callable, called as (x, y) with ``data``, which are all data there are. Chains start at draws
    of the prior. Steps cost one run of the model for each value that
    its discrete sites have together. Chains pass between structures through the weights alone: look at r-hat.

    Raises ValueError where λ is not 1, for sites neither continuous nor enumerable, and for parameters without a prior
    that are not frozen. Hoffman and Gelman 2014.
    """
    with sampling_of(model, data, draws, warmup, chains, seed) as target:
        runs = [run_chain(target, 1.0, target.prior_draws(1), draws, warmup) for _ in range(chains)]
        sites = [target.constrain(run) for run, _ in runs]
        tables = [torch.stack([target.conditional(1.0, draw)[0] for draw in each_draw(chain)]) for chain in sites]
        for chain, table in zip(sites, tables, strict=True):
            index = table.multinomial(1).squeeze(1)
            chain |= {name: torch.stack([value[name] for value in target.values])[index] for name in target.values[0]}
    return Chains(sites, [divergences for _, divergences in runs], target.values, torch.stack(tables))


class Target:
    """log p(D, w) of a model at unconstrained w, in nats, discrete sites summed out, the likelihood to a power.

    Raises ValueError where a site has a scale (λ is not 1, or num_data not the number of data), no site is continuous,
    or discrete ones have no finite support or too many values together.
    """

    def __init__(self, model: PyroCallable, data: Pair):
        self.model, self.data = model, data
        sites = sample_sites(model, data)
        check_unscaled(sites.items())
        latent = {name: site for name, site in sites.items() if not site["is_observed"]}
        supports = {name: rows for name, site in latent.items() if (rows := support_rows(site["fn"])) is not None}
        if latent.keys() == supports.keys():
            raise ValueError(f"model: expected a continuous site to sample, got {list(latent)}. Enumerate them.")
        count = math.prod(len(single) ** rows for single, rows in supports.values())
        if count > MAX_ENUMERATED:
            raise ValueError(
                f"model: expected discrete sites of at most {MAX_ENUMERATED} values together, got {count} of "
                f"{list(supports)}. Sum them out by hand, or relax them, as structures.gumbel_softmax does."
            )
        products = [itertools.product(single, repeat=rows) for single, rows in supports.values()]
        self.values = [
            {name: torch.stack(rows).view_as(latent[name]["value"]) for name, rows in zip(supports, value, strict=True)}
            for value in itertools.product(*products)
        ]
        laws = {name: site["fn"] for name, site in latent.items() if name not in supports}
        try:
            self.bijections = {name: biject_to(law.support) for name, law in laws.items()}
        except NotImplementedError:
            raise ValueError(
                f"model: expected continuous sites, or discrete ones of finite support, got {laws}. "
                "For hard structures use structures.categorical."
            ) from None

    def prior_draws(self, count: int, *, everywhere: bool = False) -> dict[str, torch.Tensor]:
        """Return unconstrained draws of the prior where the log-density is finite, {site: (draw, …)}.

        With ``everywhere`` a draw where it is not raises: without those, draws are of another prior. Raises ValueError,
        too, where 100 ``count`` draws give too few.
        """
        draws: list[dict[str, torch.Tensor]] = []
        for _ in range(100 * count):
            sites = sample_sites(self.model, self.data)
            values = {name: bijection.inv(sites[name]["value"].detach()) for name, bijection in self.bijections.items()}
            finite = all(bool(value.isfinite().all()) for value in values.values())
            finite = finite and bool(self.potential(1.0, values).isfinite())
            if everywhere and not finite:
                raise ValueError(
                    f"model: expected a likelihood above 0 all over the prior, got a draw without: {values}. "
                    "Give the prior the support of the likelihood."
                )
            draws += [values] if finite else []
            if len(draws) == count:
                return {name: torch.stack([draw[name] for draw in draws]) for name in self.bijections}
        raise ValueError(f"model: expected finite log-densities at draws of the prior, got {len(draws)} of {count}.")

    def constrain(self, unconstrained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the values of sites at unconstrained ones."""
        return {name: self.bijections[name](value) for name, value in unconstrained.items()}

    def log_joints(self, continuous: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p(w, v) and log p(D | w, v) for each value v of the discrete sites, (value,) each."""
        rows = []
        for value in self.values:
            with Substitute({**continuous, **value}):
                sites = sample_sites(self.model, self.data).values()
            for observed in (False, True):
                terms = [log_prob_of(site, torch.sum) for site in sites if site["is_observed"] == observed]
                rows.append(sum(terms, torch.zeros(())))
        return torch.stack(rows[::2]), torch.stack(rows[1::2])

    @torch.no_grad()
    def conditional(self, power: float, continuous: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return p(v | w, D) of each value v, the likelihood to a power, and log p(D | w, v), (value,) each."""
        prior, likelihood = (term.double() for term in self.log_joints(continuous))
        return (prior + power * likelihood).softmax(0), likelihood

    def potential(self, power: float, unconstrained: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return −log of the density at unconstrained values."""
        continuous = self.constrain(unconstrained)
        jacobians = [self.bijections[n].log_abs_det_jacobian(z, continuous[n]).sum() for n, z in unconstrained.items()]
        prior, likelihood = self.log_joints(continuous)
        density: torch.Tensor = (prior + power * likelihood).logsumexp(0) + sum(jacobians)
        return -density


@contextmanager
def sampling_of(model: PyroCallable, data: Pair, draws: int, warmup: int, chains: int, seed: int) -> Iterator[Target]:
    """Check arguments; within the context the model is in evaluation mode, and the random state starts at the seed.

    Raises TypeError for a model that cannot be called, ValueError for numbers out of range, and what ``check_pair``,
    ``check_held`` and ``Target`` raise.
    """
    checks.is_callable("model", model, "a Pyro model")
    checks.integer("draws", draws, low=4, remedy="r-hat and standard errors need as many.")
    checks.integer("warmup", warmup, low=1)
    checks.integer("chains", chains, low=1)
    x, y = check_pair("data", data)
    if hasattr(model, "check"):
        model.check(x, y)
    with evaluation_mode(model), seeded(seed), pyro.validation_enabled(False):  # a trial step may leave the support
        check_held(model, (x, y))
        yield Target(model, (x, y))


def run_chain(
    target: Target, power: float, before: dict[str, torch.Tensor], draws: int, warmup: int
) -> tuple[dict[str, torch.Tensor], int]:
    """Return unconstrained draws of one chain, {site: (draw, …)}, and its number of divergent transitions.

    It starts at the last draw ``before``. Several give the scale of each element, which else the warm-up learns.
    """
    known = all(len(z) > 1 for z in before.values())
    scale = {name: z.std(0) + 1e-6 if known else torch.ones_like(z[0]) for name, z in before.items()}
    start = {name: z[-1] / scale[name] for name, z in before.items()}

    def potential(scaled: dict[str, torch.Tensor]) -> torch.Tensor:
        return target.potential(power, {name: scale[name] * z for name, z in scaled.items()})

    kernel = NUTS(potential_fn=potential, adapt_mass_matrix=not known)
    sampler = MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params=start, disable_progbar=True)
    sampler.run()
    divergences = sampler.diagnostics()["divergences"]["chain 0"]
    return {name: scale[name] * z for name, z in sampler.get_samples().items()}, len(divergences)
