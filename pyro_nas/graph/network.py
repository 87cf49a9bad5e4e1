"""Network: the deterministic function of a space, its inputs, a structure, and its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call

from pyro_nas.checks import describe
from pyro_nas.graph.space import AGGREGATIONS, Edge, Factory, Space, Structure

__all__ = ["Network", "running"]


class Network(nn.Module):
    """f(x; w, Γ) of a space: every primitive at every position, built once, with its own parameters.

    Called as ``network(*inputs, structure=structure)``, where ``structure`` maps each site of ``space.choices()``
    to γ of shape (edge, choice), or (batch, edge, choice) where each example has its own. A primitive whose weight
    is exactly 0 is not run, unless ``skip_zeros`` is off: under ``torch.vmap``, which has no values to look at, it
    must be.

    Raises TypeError for a factory that builds no module, ValueError for primitives of an edge of one name as modules.
    """

    def __init__(self, space: Space):
        super().__init__()
        self.space = space
        self.edges = nn.ModuleDict()
        self._primitives: dict[Edge, tuple[nn.Module, ...]] = {}
        for edge, primitives in space.edges.items():
            built = {name: _build(f"edges[{edge}][{name!r}]", factory) for name, factory in primitives.items()}
            self._primitives[edge] = tuple(built.values())
            escaped = {_escape(name): module for name, module in built.items()}
            if len(escaped) < len(built):
                raise ValueError(f"edges[{edge}]: expected primitives with distinct names, got {list(built)}.")
            self.edges[_key(edge)] = nn.ModuleDict(escaped)
        self.aggregations = nn.ModuleDict(
            {
                str(vertex): _build(f"aggregations[{vertex}]", factory)
                for vertex, factory in space.aggregations.items()
                if not isinstance(factory, str)
            }
        )
        self._parents = {v: space.parents(v) for v in space.vertices if v not in space.inputs}
        self._output = space.output
        self._rows = {
            edge: (choices.site, row) for choices in space.own_choices() for row, edge in enumerate(choices.edges)
        }
        self._sites = list(dict.fromkeys(site for site, _ in self._rows.values()))

    def forward(
        self, *inputs: torch.Tensor, structure: Structure | None = None, skip_zeros: bool = True
    ) -> torch.Tensor:
        """Return f(x; w, Γ), (batch, …), of inputs (batch, …).

        Raises ValueError for another number of inputs, a structure without a site, and outputs of different shapes on
        one edge or at one vertex.
        """
        structure = {} if structure is None else structure
        if len(inputs) != len(self.space.inputs):
            raise ValueError(f"inputs: expected {len(self.space.inputs)} tensors, got {len(inputs)}.")
        missing = [site for site in self._sites if site not in structure]
        if missing:
            raise ValueError(f"structure: expected a value for the sites {missing}, got {list(structure)}.")
        hard = {site: _used(structure[site]).tolist() for site in self._sites} if skip_zeros else {}
        call = _Call(structure, skip_zeros, hard)
        laid_out = map(_channels_last, inputs) if skip_zeros else inputs  # torch.vmap has no memory formats
        values = dict(zip(self.space.inputs, laid_out, strict=True))
        for vertex, parents in self._parents.items():
            arrived = [self._edge((parent, vertex), values[parent], call) for parent in parents]
            incoming = [value for value in arrived if value is not None]
            if not incoming:  # an empty sum is zero, and its shape is that of a primitive's output
                edge = (parents[0], vertex)
                incoming = [call.run(self._primitives[edge][0], (values[parents[0]],)) * 0]
            values[vertex] = self._aggregate(vertex, parents, incoming, call)
        return values[self._output]

    def copied(self) -> Network:
        """Return a copy, whose modules are its own: a factory may give a module that others use too.

        Raises ValueError where a module cannot be copied.
        """
        try:
            return copy.deepcopy(self)
        except RuntimeError as error:  # torch copies no tensor with a history
            raise ValueError(f"space: expected modules that can be copied, got {error}") from error

    def with_weights(
        self,
        weights: Mapping[str, torch.Tensor],
        inputs: torch.Tensor | tuple[torch.Tensor, ...],
        structure: Structure,
        *,
        skip_zeros: bool = True,
    ) -> torch.Tensor:
        """Return f(x; w, Γ) with weights {name of a parameter: tensor} in its place, which stays what it is.

        One weight serves all modules that share it, and a module at all its places. (``torch.func.functional_call``
        can tie weights too, but swaps those of one module once for each of its names, and back in the wrong order.)
        """
        placed = {place: weight for name, weight in weights.items() for place in self._places.get(name, (name,))}
        arguments = {"structure": structure, "skip_zeros": skip_zeros}
        outputs: torch.Tensor = functional_call(self, placed, inputs, arguments, tie_weights=False)
        return outputs

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """The names of each parameter, {the first: all of them}, where a module has one name, its first."""
        places: dict[nn.Parameter, list[str]] = {}
        for prefix, part in self.named_modules():  # each module once
            for name, parameter in part.named_parameters(prefix, recurse=False, remove_duplicate=False):
                places.setdefault(parameter, []).append(name)
        return {names[0]: names for names in places.values()}

    def keeps_statistics(self) -> bool:
        """Whether a module counts what it has seen, as batch normalisation does."""
        kinds = (part for part in self.modules() if isinstance(part, nn.modules.batchnorm._NormBase))
        return any(part.track_running_stats for part in kinds)

    def _edge(self, edge: Edge, x: torch.Tensor, call: _Call) -> torch.Tensor | None:
        """Return ⟨γ, g(x)⟩ of one edge, None for a zero that a sum may leave out."""
        modules = self._primitives[edge]
        if edge not in self._rows:
            return call.run(modules[0], (x,))
        site, row = self._rows[edge]
        weights = call.hard[site][row] if call.skip_zeros else [1.0] * len(modules)
        running = [k for k, weight in enumerate(weights) if weight != 0.0]
        if not running and self.space.aggregations.get(edge[1], "sum") == "sum":
            return None
        running = running or [0]  # all weights are zero, and the vertex needs the shape
        outputs = [call.run(modules[k], (x,)) for k in running]
        if len({output.shape for output in outputs}) > 1:
            names = list(self.space.edges[edge])
            shapes = {names[k]: tuple(output.shape) for k, output in zip(running, outputs, strict=True)}
            raise ValueError(
                f"edges[{edge}]: expected primitives with outputs of one shape, got {shapes}. "
                "Give the primitives the same number of features and the same stride."
            )
        gamma = call.structure[site][..., row, :]
        parts = [output * _against(gamma[..., k], output) for k, output in zip(running, outputs, strict=True)]
        return AGGREGATIONS["sum"](parts)

    def _aggregate(self, vertex: int, parents: list[int], incoming: list[torch.Tensor], call: _Call) -> torch.Tensor:
        if str(vertex) in self.aggregations:
            return call.run(self.aggregations[str(vertex)], tuple(incoming))
        name = self.space.aggregations.get(vertex, "sum")
        shapes = [tuple(value.shape) for value in incoming]
        if name != "concatenation" and len(set(shapes)) > 1:
            raise ValueError(
                f"aggregations[{vertex}]: expected values of one shape to take the {name} of, "
                f"got {shapes} from the parents {parents}. Match the features or use 'concatenation'."
            )
        assert isinstance(name, str)
        if name == "concatenation" and call.skip_zeros:
            for value in incoming:
                if value.requires_grad:  # its gradient would be a slice, for which batch normalisation is slow
                    value.register_hook(_channels_last)
        return AGGREGATIONS[name](incoming)


@dataclass(frozen=True)
class _Call:
    """A structure, and its values where zeros are skipped."""

    structure: Structure
    skip_zeros: bool
    hard: Mapping[str, list[list[float]]]

    def run(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Run a module; a nested network with the same structure."""
        if isinstance(module, Network):
            outputs: torch.Tensor = module(*inputs, structure=self.structure, skip_zeros=self.skip_zeros)
        else:
            outputs = module(*inputs)
        return outputs


@contextmanager
def running(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """Turn what torch raises where a network cannot run on its inputs into a ValueError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        shapes = [tuple(part.shape) for part in inputs]
        own = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
        other = [part.dtype for part in inputs if part.dtype != own]
        remedy = f" Its weights are {own}, x is {other[0]}: call x.to({own})." if other else ""
        shape, reason = shapes[0] if len(shapes) == 1 else shapes, str(error).splitlines()[0]  # Pyro adds its sites
        raise ValueError(f"x: the network cannot run on inputs of shape {shape}: {reason}{remedy}") from error


def _used(gamma: torch.Tensor) -> torch.Tensor:
    """Return γ, (edge, choice), or where examples have their own, what is 0 only where all of theirs are."""
    return gamma.detach() if gamma.dim() == 2 else gamma.detach().abs().amax(0)


def _against(weight: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return one weight, or (batch,) of them, so that it multiplies outputs (batch, …)."""
    return weight if weight.dim() == 0 else weight.view(-1, *[1] * (output.dim() - 1))


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return images in the memory format in which convolution and pooling are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _build(where: str, factory: Factory) -> nn.Module:
    try:
        module = Network(factory) if isinstance(factory, Space) else factory()
    except (RuntimeError, MemoryError) as error:  # such as more memory than there is
        raise ValueError(f"{where}: expected a module that can be built, got {error} Is a size too large?") from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"{where}: expected a factory of torch.nn.Module, got one of {describe(module)}.")
    return module


def _key(edge: Edge) -> str:
    return f"{edge[0]}-{edge[1]}"


_RESERVED = nn.ModuleDict()


def _escape(name: str) -> str:
    """Return a name that a module may have: without dots, and unlike the methods of ModuleDict."""
    return name.replace(".", "/") + ("_" if hasattr(_RESERVED, name) else "")
