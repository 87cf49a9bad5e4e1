"""Command line: ``pyro-nas search``, ``compare``, ``rank``, ``complexity``, ``evidence``; alone knows the rooms."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import nn

from pyro_nas import checks, inference, models
from pyro_nas.data import Batches, Labelled, Split, load
from pyro_nas.evidence import evaluate
from pyro_nas.files import state_of
from pyro_nas.graph.derivation import derive
from pyro_nas.graph.families import zoo
from pyro_nas.graph.space import Space
from pyro_nas.graph.space_files import read_space, to_dict
from pyro_nas.inference import NonFiniteLoss, adam, bilevel, delayed, one_cycle, schedules, svi
from pyro_nas.inference.options import Options
from pyro_nas.models import Model, guides, priors, structures
from pyro_nas.reading import plots
from pyro_nas.reading.arviz_export import to_arviz
from pyro_nas.reading.metrics import classification_metrics
from pyro_nas.reading.posterior import draw, predict
from pyro_nas.reading.structure_posterior import by_edge, choice_probabilities, edge_entropies, probable_structures
from pyro_nas.studies.compare.command import comparison
from pyro_nas.studies.complexity.command import study
from pyro_nas.studies.evidence.command import evidence_study
from pyro_nas.studies.rank import ranking
from pyro_nas.studies.run_folder import RunFolder

INITIAL_SCALE = 0.02
GUIDES: dict[str, Callable[[Model], guides.Guide]] = {
    "mean_field": lambda model: guides.MeanField(model, INITIAL_SCALE),
    "low_rank": lambda model: guides.LowRankNormal(model, initial_scale=INITIAL_SCALE),
    "point_mass": guides.PointMass,
    "point_weights": guides.PointWeights,
    "structure_conditioned": lambda model: guides.StructureConditioned(model, initial_scale=INITIAL_SCALE),
}
WEIGHTS: dict[str, Callable[[float], priors.WeightPrior]] = {
    "normal": lambda gain: priors.normal(priors.fan_in(gain)),
    "laplace": lambda gain: priors.laplace(priors.fan_in(gain / 2**0.5)),
    "relevance_determination": lambda gain: priors.relevance_determination(priors.fan_in(gain)),
}
STRUCTURES: dict[str, Callable[[], structures.StructurePrior]] = {
    "gumbel_softmax": structures.gumbel_softmax,
    "straight_through": structures.straight_through,
    "dirichlet": structures.dirichlet,
    "categorical": structures.categorical,
    "relaxed_bernoulli": structures.relaxed_bernoulli,
    "bernoulli": structures.bernoulli,
}


def search(
    data: str = "digits",
    root: str | None = None,
    space: str = "auto",
    guide: str = "mean_field",
    weights: str = "normal",
    structure: str = "gumbel_softmax",
    prior_gain: float = 1.0,
    complexity: float = 0.001,
    epochs: int | None = None,
    retrain_epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 0.02,
    structure_lr: float = 0.1,
    draws: int = 30,
    seed: int = 0,
    device: str = "cpu",
    out: str = "runs/search",
    resume: bool = False,
) -> None:
    """Search an architecture, show its posterior, derive, retrain, test once, and write the run folder.

    The search is bilevel variational inference: weights on the training part, structure on the validation part. The
    derived network is retrained on both. Fits checkpoint after every epoch.

    Args:
        data: "digits", "mnist", "fashion-mnist", or an .npz file with arrays x and y (class indices).
        root: folder of the torchvision sets, downloaded there where absent.
        space: "cells" (images), "layers" (any data), "auto" for one of the two, or a JSON file of a space.
        guide: "mean_field", "low_rank", "point_mass", "point_weights" or "structure_conditioned".
        weights: weight prior, "normal", "laplace" or "relevance_determination".
        structure: structure prior, "gumbel_softmax", "straight_through", "dirichlet", "categorical", and for spaces on
            the cube "relaxed_bernoulli" or "bernoulli".
        prior_gain: prior standard deviation of a weight times the square root of its fan-in.
        complexity: λ, the weight of the divergence from the prior.
        epochs: epochs of the search; by default 60, for large sets fewer: 100 000 / data of an epoch, at least 3.
        retrain_epochs: epochs of the derived network, by the same rule.
        batch_size: data a step.
        lr: highest learning rate of the weights, in a one-cycle schedule.
        structure_lr: learning rate of the structure.
        draws: posterior draws that predictions average.
        seed: seed of all that is random but the split of the data.
        device: "cpu", "cuda", …
        out: run folder, new or empty.
        resume: continue the run in that folder.
    """
    config = {name: value for name, value in locals().items() if name not in ("out", "resume")}
    checks.seed(seed)
    checks.integer("draws", draws, low=1)
    place = checks.device("device", device)
    make_guide = GUIDES[checks.one_of("guide", guide, GUIDES)]
    structure_prior = STRUCTURES[checks.one_of("structure", structure, STRUCTURES)]()
    make_weights = WEIGHTS[checks.one_of("weights", weights, WEIGHTS)]
    weight_prior = make_weights(checks.number("prior_gain", prior_gain, low=0, open_low=True))
    common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": sys.stderr.isatty()}
    common["local_reparameterization"] = guide in ("mean_field", "structure_conditioned")
    if structure_prior.temperature is not None and structure != "dirichlet":
        anneal = {"temperature": schedules.geometric(1.0, 0.1)}
    else:
        anneal = {}
    for given in (epochs, retrain_epochs):
        Options.of({**common, "epochs": 1 if given is None else given})
    optimizer, scheduler, structure_optimizer = adam(lr), one_cycle(lr), adam(structure_lr)
    split = load(data, root)
    family = _space(space, split)

    torch.manual_seed(seed)
    model = Model(
        family, num_data=len(split.train[1]), weights=weight_prior, structure=structure_prior, complexity=complexity
    )
    if not model.choices:
        raise ValueError("space: expected a space with open choices to search, got one without.")
    model.to(place).check(split.train[0].to(place), split.train[1].to(place))
    found = make_guide(model).to(place)
    folder = RunFolder(out, {**config, "data_digest": split.digest()}, resume)
    seconds = {}

    start = time.perf_counter()
    history = bilevel.fit(
        model, found, split.train, split.valid, epochs=_epochs(epochs, split.train),
        optimizer=optimizer, scheduler=scheduler,
        structure_optimizer=structure_optimizer, structure_scheduler=delayed(),
        checkpoint=folder.path / "search", resume=resume, **common, **anneal,
    )  # fmt: skip
    seconds["search"] = time.perf_counter() - start
    probabilities = {site: table.cpu() for site, table in choice_probabilities(found).items()}
    _print_structure(family, probabilities)
    architecture = derive(family, probabilities)

    start = time.perf_counter()
    torch.manual_seed(seed)
    known = split.known
    final = Model(architecture, num_data=len(known[1]), weights=weight_prior, complexity=complexity).to(place)
    final_guide = make_guide(final).to(place)
    svi.fit(
        final, final_guide, known, epochs=_epochs(retrain_epochs, known), optimizer=optimizer, scheduler=scheduler,
        checkpoint=folder.path / "retrain", resume=resume, **common,
    )  # fmt: skip
    seconds["retrain"] = time.perf_counter() - start

    start = time.perf_counter()
    torch.manual_seed(seed)
    posterior = draw(found, num_samples=1000 if model.packing.size < 100_000 else 100)
    structure_draws = {site: posterior[site].cpu() for site in model.choices}
    terms = evaluate(model, found, Batches("train", split.train, 1024, place), draws=8)
    final_terms = evaluate(final, final_guide, Batches("train", known, 1024, place), draws=8)
    summary: dict[str, Any] = {
        "data": data,
        "seed": seed,
        "test": {
            "posterior_predictive": _test(model, found, split.test, draws, place),
            "derived": _test(final, final_guide, split.test, draws, place),
        },
        "probabilities": by_edge(family, probabilities),
        "entropy": by_edge(family, edge_entropies(family, probabilities)),
        "evidence": {"search": terms, "derived": final_terms},
        "parameters": {
            "search": sum(p.numel() for p in model.network.parameters()),
            "derived": sum(p.numel() for p in final.network.parameters()),
        },
        "probable_structures": [
            {
                "probability": p,
                "choices": {e: [n for n, on in row.items() if on] for e, row in by_edge(family, one).items()},
            }
            for one, p in probable_structures(family, probabilities)
        ],
    }
    seconds["test"] = time.perf_counter() - start
    folder.write_json("architecture.json", to_dict(architecture))
    folder.write_tensors("weights.safetensors", state_of(final, final_guide))
    folder.write_with("posterior.nc", lambda path: to_arviz(structure_draws, family).to_netcdf(str(path)))
    folder.write_with("architecture.png", partial(plots.save, plots.plot_architecture(family, probabilities)))
    folder.write_with("structure.png", partial(plots.save, plots.plot_structure(history, family)))
    folder.write_with("history.png", partial(plots.save, plots.plot_history(history)))
    folder.write_json("history.json", history)
    folder.write_json(
        "summary.json", {**summary, "seconds": {name: round(value, 2) for name, value in seconds.items()}}
    )
    for name, result in summary["test"].items():
        accuracy, error = result["accuracy"], result["calibration_error"]
        print(f"{name.replace('_', ' ')}: test accuracy {accuracy:.4f}, calibration error {error:.4f}")
    print(f"run folder: {folder.path}")


def _epochs(given: int | None, data: Labelled) -> int:
    return given if given is not None else max(3, min(60, 100_000 // len(data[1])))


def _space(name: str, split: Split) -> Space:
    x = split.train[0]
    if name.endswith(".json"):
        return read_space(name)
    checks.one_of("space", name, ["auto", "cells", "layers", "FILE.json"])
    if name == "cells" and x.dim() != 4:
        raise ValueError(f"space: expected 'layers' for data of shape {tuple(x.shape)}, got 'cells', for images.")
    if x.dim() == 4 and name != "layers":
        return zoo.cells(x.shape[1], split.classes, stem_stride=2 if x.shape[-1] > 16 else 1)
    return zoo.layers(x[0].numel(), split.classes)


def _test(model: Model, guide: nn.Module, test: Labelled, draws: int, place: torch.device) -> dict[str, float]:
    """Return the metrics of the posterior predictive on the test part."""
    x, y = test
    return classification_metrics(predict(model, draw(guide, num_samples=draws), x.to(place)).cpu(), y)


def _print_structure(space: Space, probabilities: dict[str, torch.Tensor]) -> None:
    entropies = by_edge(space, edge_entropies(space, probabilities))
    print("edge → probability of each primitive, entropy in nats")
    for edge, table in by_edge(space, probabilities).items():
        row = "  ".join(f"{name} {value:.3f}" for name, value in table.items())
        print(f"  {edge:<24}{row}  entropy {entropies[edge]:.3f}")


def main(args: list[str] | None = None) -> int:
    """Run the command line; return 2 after an error of the user's.

    Numbers below 1e-38 count as 0: point weights that only the prior pulls at get there, and with them a CPU is several
    times slower. (Threads inherit the mode where they start, hence here.)
    """
    torch.set_flush_denormal(True)
    try:
        commands: dict[str, Any] = {
            "search": search,
            "compare": comparison(models, inference),
            "rank": ranking(models, inference),
            "complexity": study(models, inference),
            "evidence": evidence_study(models, inference),
        }
        auto_cli(commands, args=args, as_positional=False)
    except (ValueError, TypeError, OSError, NonFiniteLoss) as error:
        print(f"pyro-nas: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
