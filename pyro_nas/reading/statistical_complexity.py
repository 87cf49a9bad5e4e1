"""Complexities of a posterior: statistical ones, in nats, and operational ones, of the network that is derived from it.

Parametric: min over h of KL(q(w) ‖ p(w | h)). Structural: the entropy of the choice, from 0 to log K an edge; and
beside it the differential entropy of the relaxed variable γ, which has no such bounds. Operational: parameters,
vertices, edges and floating-point operations (evidence and structure-selection lectures, criteria of quality).
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta

from pyro_nas import checks
from pyro_nas.data import Inputs
from pyro_nas.evidence.currencies import Law, PyroCallable
from pyro_nas.evidence.packing import Packing
from pyro_nas.evidence.sites import is_structure, sample_sites, unjoined
from pyro_nas.graph.costs import total_cost
from pyro_nas.graph.derivation import derive, gives_zero
from pyro_nas.graph.space import Space, Structure
from pyro_nas.random_state import forked
from pyro_nas.reading.pruning import moments, parametric_complexity
from pyro_nas.reading.structure_posterior import choice_probabilities, edge_entropies

__all__ = ["complexities", "differential_entropy", "operational_complexity"]


def differential_entropy(guide: PyroCallable, *args: object, num_samples: int = 1000) -> dict[str, tuple[float, float]]:
    """Return −E log q(γ) of each relaxed structure site in nats, {site: (estimate, standard error)}.

    The mean over so many draws, summed over edges; densities are on the first K − 1 coordinates of the simplex, or on
    the cube, and are taken in log space where the law can: γ itself rounds to 0 and 1 at low temperatures. It falls to
    −∞ with the temperature. The random state is left as it was.

    Raises ValueError for a guide whose structure has no density, such as a categorical one or a point.
    """
    checks.integer("num_samples", num_samples, low=2)
    result = {}
    with torch.no_grad(), forked():
        for name, law in _structure_laws(guide, args).items():
            if not _is_relaxed(law):
                raise ValueError(
                    f"guide: expected a relaxed law at {name!r}, got {type(law).__name__}, which has no density. "
                    "The entropy of a choice is pyro_nas.edge_entropies."
                )
            values = -_log_density(law, torch.Size((num_samples,))).double().flatten(1).sum(1)  # (draw,)
            result[name] = float(values.mean()), float(values.std() / num_samples**0.5)
    return result


def _structure_laws(guide: PyroCallable, args: tuple[object, ...]) -> dict[str, Law]:
    """Return the law of each structure site, per edge."""
    laws = {name: site["fn"] for name, site in sample_sites(guide, args).items() if is_structure(name)}
    return {name: unjoined(law) for name, law in laws.items()}


def _is_relaxed(law: Law) -> bool:
    return not (isinstance(law, Delta) or law.support is None or law.support.is_discrete)


def _log_density(law: Law, shape: torch.Size) -> torch.Tensor:
    """Return log-densities at as many draws."""
    if hasattr(law, "rsample_log"):
        density: torch.Tensor = law.log_prob_of_log(law.rsample_log(shape))
    elif hasattr(law, "rsample_logit"):
        density = law.log_prob_of_logit(law.rsample_logit(shape))
    else:
        density = law.log_prob(law.sample(shape))
    return density


def operational_complexity(space: Space, structure: Structure, x: Inputs) -> dict[str, float]:
    """Return parameters, vertices, edges and floating-point operations per datum of the network a structure stands for.

    ``structure`` is what ``derive`` takes: one structure, choice probabilities, or draws. Vertices and edges are those
    of the whole graph, cells unfolded at each of their positions; an edge that ``gives_zero`` is none. ``x``: inputs,
    (batch, …).

    Raises ValueError as ``derive``, and where the network cannot run on x.
    """
    derived = derive(space, structure)
    vertices, edges = _size(derived)
    return {
        "parameters": total_cost(derived, x, "parameters"),
        "vertices": vertices,
        "edges": edges,
        "floating_point_operations": 2 * total_cost(derived, x, "multiply_accumulates"),
    }


def _size(space: Space) -> tuple[int, int]:
    """Return vertices and edges of a derived space with its cells unfolded."""
    primitives = {edge: next(iter(named.items())) for edge, named in space.edges.items()}
    kept = {edge: factory for edge, (name, factory) in primitives.items() if not gives_zero(name, factory)}
    vertices, edges = len({vertex for edge in kept for vertex in edge}), len(kept)
    for factory in kept.values():
        if isinstance(factory, Space):  # in place of its edge, between the same two vertices
            inner, joins = _size(factory)
            vertices, edges = vertices + inner - 2, edges + joins - 1
    for cell in space.aggregations.values():
        if isinstance(cell, Space):  # its output is the vertex itself
            inner, joins = _size(cell)
            vertices, edges = vertices + inner - 1, edges + joins
    return vertices, edges


def complexities(
    space: Space, guide: PyroCallable, packing: Packing, x: Inputs, num_samples: int = 1000
) -> dict[str, float]:
    """Return every complexity of a posterior by name: entropies summed over edges, the network the most probable one.

    "parametric" and "entropy_of_choice" in nats; where the structure is relaxed, "differential_entropy" and its
    "differential_entropy_standard_error"; and those of ``operational_complexity``. ``packing`` is the model's.

    Raises ValueError where the guide has no moments of the weights, as ``pruning.moments`` says.
    """
    probabilities = choice_probabilities(guide, x, num_samples=num_samples)
    entropies = edge_entropies(space, probabilities)
    table = {
        "parametric": parametric_complexity(*moments(guide, packing, x)),
        "entropy_of_choice": float(sum(value.sum() for value in entropies.values())),
    }
    with forked():
        laws = _structure_laws(guide, (x,)).values()
    if laws and all(map(_is_relaxed, laws)):
        relaxed = differential_entropy(guide, x, num_samples=num_samples).values()
        table["differential_entropy"] = sum(value for value, _ in relaxed)
        table["differential_entropy_standard_error"] = sum(error**2 for _, error in relaxed) ** 0.5
    return table | operational_complexity(space, probabilities, x)
