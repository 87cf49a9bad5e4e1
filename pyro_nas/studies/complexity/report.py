"""Report of the complexity study: the paper's tables 1 to 3, its figure 1, and how a hypernetwork reacts to λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine

from pyro_nas.evidence import Evidence, evaluate
from pyro_nas.evidence.effects import LocalReparameterization
from pyro_nas.evidence.sites import COMPLEXITY
from pyro_nas.studies.complexity.rows import COMPLEXITIES, Row, Setting
from pyro_nas.studies.tables import spread

PASSES = 8  # one leaves a noise of a hundredth in the slopes
GRID = tuple(float(f"{10 ** (-1 + step / 4):.4g}") for step in range(13))
Runs = Sequence[Mapping[str, Any]]

PUBLISHED: dict[str, dict[str, Any]] = {
    name: {
        "updates": updates,
        "mean_accuracy": dict(zip(COMPLEXITIES, accuracy, strict=True)),
        "stability": dict(zip(COMPLEXITIES, stability, strict=True)),
        "evidence": dict(zip(COMPLEXITIES, evidence, strict=True)),
    }
    for name, updates, accuracy, stability, evidence in (
        ("direct", 7458976000, (0.877, 0.902, 0.867, 0.730), (2.21, 1.48, 1.19, 1.17),
         (-9035, -24338, -56679, -128929)),
        ("direct, 1 epoch", 298359040, (0.817, 0.820, 0.835, 0.789), (1.52, 1.54, 1.47, 1.36),
         (-32789, -51833, -186125, -696241)),
        ("low rank", 4165376600, (0.877, 0.877, 0.875, 0.831), (1.21, 1.20, 1.18, 1.13),
         (-24566, -30950, -56721, -166657)),
        ("low rank + 1 epoch", 4239966360, (0.903, 0.902, 0.889, 0.839), (1.20, 1.20, 1.19, 1.16),
         (-19995, -27221, -55508, -132758)),
        ("linear", 3729488000, (0.901, 0.900, 0.892, 0.539), (1.21, 1.21, 1.21, 1.22),
         (-24604, -28190, -58147, -177139)),
        ("linear + 1 epoch", 3804077760, (0.901, 0.915, 0.895, 0.806), (1.28, 1.29, 1.26, 1.29),
         (-20776, -26263, -57949, -134341)),
    )
}  # fmt: skip
"""Tables 1 to 3 of the hypernetwork paper, MNIST, five runs."""


def reaction(setting: Setting, row: Row) -> dict[str, Any]:
    """Return, at 13 values of λ, the terms of 𝔏 under the hypernetwork and d𝔏/dλ, means of eight passes."""
    assert row.hypernet is not None
    result: dict[str, Any] = {}
    for complexity in GRID:
        model = setting.model(complexity)
        torch.manual_seed(setting.seed)
        with LocalReparameterization():
            terms = evaluate(model, row.hypernet.fixed(complexity, model), setting.batches(), PASSES)
        result[str(complexity)] = {**terms, "slope": slope(setting, row.hypernet, complexity)}
    return result


def slope(setting: Setting, hypernet: Any, complexity: float) -> float:
    """Return d𝔏/dλ of a hypernetwork at one λ, the derivative of reparameterised draws: its posterior moves too."""
    at = torch.tensor(complexity, device=setting.device, requires_grad=True)
    torch.manual_seed(setting.seed)
    evidence, total = Evidence(hypernet.model, hypernet), torch.zeros_like(at)
    with poutine.condition(data={COMPLEXITY: at}), LocalReparameterization():
        for x, y in setting.batches() * PASSES:
            total += torch.autograd.grad(evidence(x, y).evidence, at)[0] * (len(y) / len(setting.train[1]))
    return float(total) / PASSES


def slope_ratios(reacted: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return d𝔏/dλ ÷ −KL at each λ of a reaction: 1 where q maximises 𝔏(λ), by the envelope theorem."""
    return {name: -terms["slope"] / (terms["kl_weights"] + terms["kl_structure"]) for name, terms in reacted.items()}


def summarise(runs: Runs, rows: Sequence[str]) -> dict[str, Any]:
    """Return mean and standard deviation over runs of every number of every row."""
    summary: dict[str, Any] = {}
    for name in rows:
        entries = [run[name] for run in runs]
        summary[name] = {"updates": entries[0]["updates"], "seconds": spread([entry["seconds"] for entry in entries])}
        for complexity, first in entries[0]["complexities"].items():
            found = [entry["complexities"][complexity] for entry in entries]
            summary[name][complexity] = {
                metric: [spread(level) for level in zip(*(one[metric] for one in found), strict=True)]
                if isinstance(value, list) else spread([one[metric] for one in found])
                for metric, value in first.items()
            }  # fmt: skip
    return summary


def largest_gap(summary: Mapping[str, Any], name: str, other: str = "direct") -> dict[str, float]:
    """Return the largest distance, over pruning levels, between the mean pruning curves of two rows at each λ."""
    return {
        complexity: max(
            abs(mine["mean"] - theirs["mean"])
            for mine, theirs in zip(entry["pruning"], summary[other][complexity]["pruning"], strict=True)
        )
        for complexity, entry in summary[name].items() if complexity not in ("updates", "seconds")
    }  # fmt: skip


TABLES = {
    "mean_accuracy": ("Table 1. Accuracy, mean over pruning levels 0, 10, …, 90 %", "{:.3f}"),
    "stability": ("Table 2. Stability S = accuracy / accuracy after pruning 90 %", "{:.2f}"),
    "evidence": ("Table 3. Generalised evidence 𝔏(λ) of the training data, nats", "{:.0f}"),
    "accuracy": ("Accuracy, unpruned", "{:.3f}"),
}


def tables(summary: Mapping[str, Any], published: bool) -> str:
    """Return the tables as Markdown, mean ± sd over runs; published numbers in brackets."""
    lines = []
    for metric, (title, form) in TABLES.items():
        header = [f"λ = {complexity:g}" for complexity in COMPLEXITIES]
        if metric == "mean_accuracy":
            header.append("updates")
        lines += [f"### {title}", "", "| row | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
        for name, entry in summary.items():
            cells = []
            for complexity in COMPLEXITIES:
                found = entry[str(complexity)][metric]
                cell = f"{form.format(found['mean'])} ± {form.format(found['sd'])}"
                if published and metric in PUBLISHED[name]:
                    cell += f" [{form.format(PUBLISHED[name][metric][complexity])}]"
                cells.append(cell)
            if metric == "mean_accuracy":
                cells.append(f"{entry['updates']}" + (f" [{PUBLISHED[name]['updates']}]" if published else ""))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
