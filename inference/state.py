"""The state of a fit: which parameters it has, and everything that a checkpoint holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_nas.evidence.currencies import PyroCallable, SampleMessage, Sites
from pyro_nas.evidence.sites import is_structure, local_parameters, sample_sites
from pyro_nas.inference.stepper import Stepper
from pyro_nas.random_state import forked

__all__ = ["FitState", "check_held", "kept_buffers", "named_parameters", "split_parameters"]


def named_parameters(model: PyroCallable, guide: PyroCallable, args: tuple[object, ...]) -> dict[str, torch.Tensor]:
    """Return all parameters to optimise: those of modules, and what plain callables declare by ``pyro.param``.

    {"model.NAME" or "guide.NAME": tensor}, each a leaf of its own shape.
    """
    named: dict[str, torch.Tensor] = {}
    for prefix, part in (("model", model), ("guide", guide)):
        with torch.no_grad(), local_parameters(part):
            nodes = poutine.trace(part).get_trace(*args).nodes
        if isinstance(part, nn.Module):
            named.update({f"{prefix}.{name}": p for name, p in part.named_parameters() if p.requires_grad})
        known = {id(value) for value in named.values()}
        for name, site in nodes.items():
            if site["type"] == "param" and site["value"] is not None:
                leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
                if leaf.requires_grad and leaf.is_leaf and id(leaf) not in known:
                    named[f"{prefix}.{name}"] = leaf
    return named


def check_held(model: PyroCallable, args: tuple[object, ...]) -> None:
    """Raise ValueError where a procedure that moves latent sites alone would hold parameters that a fit learns."""
    with forked(), poutine.block():
        held = list(named_parameters(model, lambda *_: None, args))
    if held:
        raise ValueError(
            f"model: expected no parameters without a prior, which would be held where they are, got {held}. Learn "
            "them by svi.fit and freeze them, model.requires_grad_(False), or give them none to learn: learn=False."
        )


def split_parameters(
    guide: PyroCallable, args: tuple[object, ...], named: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (weight parameters, structure parameters): a structure parameter is one that a structure site depends on.

    Raises ValueError where the guide has no parameters of structure or of weights, or some that serve both.
    """
    reached = _reached(sample_sites(guide, args), named, structure=True)
    with forked(), _DetachedStructure():  # weights may depend on Γ, and so on all that Γ depends on
        shared = reached & _reached(sample_sites(guide, args), named, structure=False)
    only_weights = set(named) - reached
    if not reached:
        raise ValueError(
            "guide: expected structure sites with parameters, got none. A space without choices needs svi."
        )
    if shared:
        raise ValueError(
            f"guide: expected parameters of its own for the structure, got {sorted(shared)}, which weights share. "
            "Use svi.fit for such a guide, or join guides of both by pyro.infer.autoguide.AutoGuideList."
        )
    if not only_weights:
        raise ValueError(
            "guide: expected parameters of the weights beside those of the structure, got none. Use svi.fit."
        )
    weights, structure = ({n: p for n, p in named.items() if n in kept} for kept in (only_weights, reached))
    return weights, structure  # in the order of named, by which optimisers number what they keep of each


class _DetachedStructure(Messenger):
    """Pass draws of structure on without their gradients."""

    def _pyro_post_sample(self, msg: SampleMessage) -> None:
        if _is_structure(msg["name"]):
            msg["value"] = msg["value"].detach()


def _is_structure(name: str) -> bool:
    return is_structure(name.removesuffix("_unconstrained"))


def _reached(sites: Sites, named: Mapping[str, torch.Tensor], *, structure: bool) -> set[str]:
    """Return the parameters that the draws of structure, or of all else, depend on."""
    outputs = []
    for name, site in sites.items():
        if _is_structure(name) is structure:
            outputs.append(site["value"])
            if not site["fn"].has_rsample:
                outputs.append(site["fn"].log_prob(site["value"].detach()))
    totals = [output.sum() for output in outputs if output.requires_grad]
    if not totals:
        return set()
    gradients = torch.autograd.grad(torch.stack(totals).sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


class FitState:
    """All that changes during a fit, as tensors and JSON: parameters, buffers, optimisers, schedules, random state."""

    def __init__(
        self,
        model: PyroCallable,
        guide: PyroCallable,
        named: Mapping[str, torch.Tensor],
        steppers: Mapping[str, Stepper],
        generators: Mapping[str, torch.Generator],
    ):
        self.steppers, self.generators = steppers, generators
        self.live = {name: value.data for name, value in named.items()}
        for prefix, part in (("model", model), ("guide", guide)):
            if isinstance(part, nn.Module):
                self.live.update({f"{prefix}.{name}": b for name, b in kept_buffers(part)})
        for stepper_name, stepper in steppers.items():
            self.live.update(
                {f"evidence.{stepper_name}.{n}": b for n, b in stepper.evidence.named_own_buffers().items()}
            )

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of parameters and buffers, {name: tensor}, each of its shape."""
        return {name: value.clone() for name, value in self.live.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set parameters and buffers; raise ValueError where names or shapes differ."""
        mine = {name: value.shape for name, value in self.live.items()}
        theirs = {name: value.shape for name, value in tensors.items()}
        if mine != theirs:
            different = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"checkpoint: expected the tensors of this model and guide, got others at {different[:5]}. "
                "Resume with the model and guide that were fitted."
            )
        for name, value in self.live.items():
            value.copy_(tensors[name])

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return everything as tensors, {name: tensor}, each of its shape and not copied, and JSON values."""
        tensors = {f"state.{name}": value for name, value in self.live.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        tensors.update({f"random.loader.{name}": g.get_state() for name, g in self.generators.items()})
        if torch.cuda.is_initialized():
            tensors.update({f"random.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
        position: dict[str, Any] = {}
        for name, stepper in self.steppers.items():
            state = stepper.optimizer.state_dict()
            slots: dict[str, dict[str, Any]] = {}
            for index, values in state["state"].items():
                for key, value in values.items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"optimizer.{name}.{index}.{key}"] = value
                    else:
                        slots.setdefault(str(index), {})[key] = value
            schedule = None if stepper.scheduler is None else _pairs(stepper.scheduler.state_dict())
            position[name] = {"groups": state["param_groups"], "slots": slots, "scheduler": schedule}
        return tensors, position

    def load(self, tensors: Mapping[str, torch.Tensor], position: Mapping[str, Any]) -> None:
        """Set everything from what ``dump`` returned, {name: tensor} and JSON values; errors as ``restore``."""
        self.restore(_under("state.", tensors))
        for name, stepper in self.steppers.items():
            saved = position[name]
            slots = {int(index): dict(values) for index, values in saved["slots"].items()}
            for key, value in _under(f"optimizer.{name}.", tensors).items():
                index, _, slot = key.partition(".")
                slots.setdefault(int(index), {})[slot] = value
            stepper.optimizer.load_state_dict({"state": slots, "param_groups": saved["groups"]})
            if stepper.scheduler is not None:
                stepper.scheduler.load_state_dict(_mapping(saved["scheduler"]))
        torch.set_rng_state(tensors["random.cpu"])
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"random.loader.{name}"])
        for key, value in _under("random.cuda.", tensors).items():
            torch.cuda.set_rng_state(value, int(key))


def _pairs(value: Any) -> Any:
    """Return nested mappings as lists of pairs, which keep keys that are not text through JSON."""
    if isinstance(value, Mapping):
        return {"pairs": [[key, _pairs(item)] for key, item in value.items()]}
    return [_pairs(item) for item in value] if isinstance(value, (list, tuple)) else value


def _mapping(value: Any) -> Any:
    """Return what ``_pairs`` was given; counters, which MultiStepLR has, count as mappings."""
    if isinstance(value, dict):
        return Counter({key: _mapping(item) for key, item in value["pairs"]})
    return [_mapping(item) for item in value] if isinstance(value, list) else value


def kept_buffers(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield (name, buffer), each of its shape, of a module's state, without those that its arguments determine."""
    names = set(module.state_dict(keep_vars=True))
    return ((name, buffer) for name, buffer in module.named_buffers() if name in names)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
