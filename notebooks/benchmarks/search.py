"""Speed and memory of a search step on a DARTS cell with seven primitives (make bench). Appends a line to
notebooks/bench_search.jsonl.

All variants take turns in one process; medians of the same run are compared as ratios. Peak memory is that of a process
of its own, beyond what it holds with the network built. A step is one of the weights or of the structure, which cost
the same: a forward and a backward pass through the supernet.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch
from record import append
from torch import nn
from torch.nn import functional

from pyro_nas.graph.families import cell_spaces
from pyro_nas.inference import adam
from pyro_nas.inference.options import Options
from pyro_nas.inference.stepper import Stepper
from pyro_nas.models import Model, guides, structures

CHANNELS, CELLS, NODES, BATCH, SIDE = 16, 3, 2, 64, 28
STEPS, WARM = 20, 3


def space():
    return cell_spaces.darts(1, 10, CHANNELS, CELLS, NODES)


def searching(structure, guide):
    """A step of ours in all parameters of a guide."""
    model = Model(space(), num_data=60_000, structure=structure, complexity=0.01)
    pair = guide(model)
    parts = {"model": model, "guide": pair}
    named = {f"{key}.{n}": p for key, part in parts.items() for n, p in part.named_parameters() if p.requires_grad}
    options = Options()
    model.train()
    stepper = Stepper(options.evidence(model, pair), named, 60_000, 1, adam(0.01), None, options)
    return lambda x, y: stepper(0, x, y).summary()


class Mixed(nn.Module):
    """DARTS' mixed operation as its authors write it: every primitive, weighted, summed."""

    def __init__(self, c, stride):
        super().__init__()

        def separable(kernel, dilation, repeats):
            layers = []
            for repeat in range(repeats):
                s = stride if repeat == 0 else 1
                padding = dilation * (kernel - 1) // 2
                layers += [
                    nn.ReLU(),
                    nn.Conv2d(c, c, kernel, s, padding, dilation, groups=c, bias=False),
                    nn.Conv2d(c, c, 1, bias=False),
                    nn.BatchNorm2d(c),
                ]
            return nn.Sequential(*layers)

        self.ops = nn.ModuleList(
            [
                nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, affine=False)),
                nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)),
                nn.Identity() if stride == 1 else Reduce(c, c),
                separable(3, 1, 2),
                separable(5, 1, 2),
                separable(3, 2, 1),
                separable(5, 2, 1),
            ]
        )

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class Reduce(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = functional.relu(x)
        return self.bn(torch.cat([self.even(x), self.odd(functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:])], 1))


def match(inputs, outputs):
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class Cell(nn.Module):
    def __init__(self, older, newer, c, reduction, halved):
        super().__init__()
        self.older = Reduce(older, c) if halved else match(older, c)
        self.newer = match(newer, c)
        self.ops = nn.ModuleList(
            Mixed(c, 2 if reduction and j < 2 else 1) for node in range(NODES) for j in range(node + 2)
        )

    def forward(self, older, newer, weights):
        states = [self.older(older), self.newer(newer)]
        offset = 0
        for _ in range(NODES):
            edges = range(offset, offset + len(states))
            states.append(sum(self.ops[e](h, weights[e]) for e, h in zip(edges, states, strict=True)))
            offset += len(states) - 1
        return torch.cat(states[2:], 1)


class ByHand(nn.Module):
    """The same network in plain torch, channels last as ours."""

    def __init__(self):
        super().__init__()
        width, c = 3 * CHANNELS, CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells, self.kinds = nn.ModuleList(), []
        older, newer, halved = width, width, False
        for index in range(CELLS):
            reduction = index > 0 and index in (CELLS // 3, 2 * CELLS // 3)
            c *= 2 if reduction else 1
            self.cells.append(Cell(older, newer, c, reduction, halved))
            self.kinds.append(int(reduction))
            older, newer, halved = newer, NODES * c, reduction
        self.head = nn.Linear(newer, 10)
        edges = sum(range(2, NODES + 2))
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(edges, 7)) for _ in range(2))

    def forward(self, x):
        older = newer = self.stem(x.to(memory_format=torch.channels_last))
        for cell, kind in zip(self.cells, self.kinds, strict=True):
            older, newer = newer, cell(older, newer, self.alphas[kind].softmax(-1))
        return self.head(newer.mean((2, 3)))


def by_hand():
    network = ByHand()
    optimizer = torch.optim.Adam(network.parameters(), 0.01, fused=True)

    def step(x, y):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


VARIANTS = {
    "by hand": by_hand,
    "deterministic": lambda: searching(structures.dirichlet(), guides.PointMass),
    "VarDARTS": lambda: searching(structures.gumbel_softmax(), guides.MeanField),
    "hard sample": lambda: searching(structures.straight_through(), guides.PointWeights),
}


def batch():
    return torch.rand(BATCH, 1, SIDE, SIDE) * 2 - 1, torch.randint(10, (BATCH,))


def medians():
    """Milliseconds of each step, the variants taking turns."""
    steps = {name: make() for name, make in VARIANTS.items()}
    data, times = batch(), {name: [] for name in steps}
    for index in range(STEPS + WARM):
        for name, step in steps.items():
            start = time.perf_counter()
            step(*data)
            if index >= WARM:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak(name):
    """MiB that steps of a variant need beyond what the process holds before; run in a process of its own."""
    step, data = VARIANTS[name](), batch()
    before = highest()
    for _ in range(5):
        step(*data)
    return highest() - before


def highest():
    """MiB that the process has held at most. (Linux' ru_maxrss counts the parent's, from before exec.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main():
    """Measure, print and store."""
    torch.manual_seed(0)
    ours = sum(p.numel() for p in Model(space(), num_data=1).network.parameters())
    assert ours == sum(p.numel() for p in ByHand().parameters()) - sum(a.numel() for a in ByHand().alphas)
    milliseconds = medians()
    memory = {name: float(subprocess.check_output([sys.executable, __file__, name])) for name in VARIANTS}
    base = milliseconds["deterministic"]
    result = {
        "command": "make bench",
        "network": f"{CELLS} DARTS cells, {NODES} nodes, {CHANNELS} channels, batch {BATCH}, {SIDE} × {SIDE}, K = 7",
        "milliseconds": {name: round(value, 1) for name, value in milliseconds.items()},
        "peak_mib": {name: round(value, 1) for name, value in memory.items()},
        "VarDARTS/deterministic": round(milliseconds["VarDARTS"] / base, 3),
        "hard sample/deterministic": round(milliseconds["hard sample"] / base, 3),
        "deterministic/by hand": round(base / milliseconds["by hand"], 3),
        "peak hard sample/deterministic": round(memory["hard sample"] / memory["deterministic"], 3),
    }
    print(json.dumps(result, indent=1))
    append("bench_search", result)


if __name__ == "__main__":
    with pyro.validation_enabled(False):
        if len(sys.argv) > 1:
            print(peak(sys.argv[1]))
        else:
            main()
