"""Speed and memory of a mean-field step, beside the same step in plain torch and in plain Pyro (make bench).

All variants take turns in one process, step by step; medians of the same run are compared as ratios. Appends a
line to notebooks/bench.jsonl.
"""

import gc
import json
import resource
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from record import append
from torch import nn
from torch.nn import functional

from pyro_nas import Evidence, Space
from pyro_nas.graph.primitives import dense
from pyro_nas.inference import adam
from pyro_nas.inference.options import Options
from pyro_nas.inference.stepper import Stepper
from pyro_nas.models import Model, guides, hypernets, priors

TWO, TWENTY = [784, 100, 10], [784] + [100] * 19 + [10]
STEPS, WARM, PRIOR, NUM_DATA, LR = 400, 40, 0.1, 60_000, 1e-3


def space(sizes):
    last = len(sizes) - 2
    return Space(
        {
            (i, i + 1): {"dense": dense(sizes[i], sizes[i + 1], "identity" if i == last else "relu")}
            for i in range(last + 1)
        }
    )


def ours(sizes, local):
    model = Model(space(sizes), num_data=NUM_DATA, weights=priors.normal(PRIOR))
    guide = guides.MeanField(model)
    named = {f"guide.{name}": value for name, value in guide.named_parameters()}
    stepper = Stepper(
        Evidence(model, guide), named, NUM_DATA, 1, adam(LR), None, Options(local_reparameterization=local)
    )
    return lambda x, y: stepper(0, x, y).summary(), poutine.trace(guide)


class ByHand(nn.Module):
    """Reparameterised weights layer by layer and the closed-form divergence, as one writes it in torch."""

    def __init__(self, sizes, local):
        super().__init__()
        self.local, self.loc, self.log_scale = local, nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            for parameter in nn.Linear(inputs, outputs).parameters():
                self.loc.append(nn.Parameter(parameter.detach().clone()))
                self.log_scale.append(nn.Parameter(torch.full_like(parameter, -3.0)))

    def forward(self, x):
        divergence, layers = 0.0, len(self.loc) // 2
        for layer in range(layers):
            (w, b), (sw, sb) = (
                self.loc[2 * layer : 2 * layer + 2],
                (p.exp() for p in self.log_scale[2 * layer : 2 * layer + 2]),
            )
            if self.local:
                mean = functional.linear(x, w, b)
                variance = functional.linear(x * x, sw * sw, sb * sb)
                out = mean + (variance + 1e-12).sqrt() * torch.randn_like(mean)
            else:
                out = functional.linear(x, w + sw * torch.randn_like(w), b + sb * torch.randn_like(b))
            for m, s, r in ((w, sw, self.log_scale[2 * layer]), (b, sb, self.log_scale[2 * layer + 1])):
                divergence = divergence + (0.5 * (s * s + m * m) / PRIOR**2 - r).sum()
            x = functional.relu(out) if layer < layers - 1 else out
        return x, divergence


def by_hand(sizes, local):
    net = ByHand(sizes, local)
    optimizer = torch.optim.Adam(net.parameters(), LR, fused=True)

    def step(x, y):
        optimizer.zero_grad()
        outputs, divergence = net(x)
        loss = functional.cross_entropy(outputs, y) + divergence / NUM_DATA
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def autonormal(sizes):
    """Pyro's AutoNormal over PyroModule layers: a site for every weight and bias."""
    layers = []
    for inputs, outputs in pairwise(sizes):
        layer = PyroModule[nn.Linear](inputs, outputs)
        layer.weight = PyroSample(dist.Normal(0.0, PRIOR).expand([outputs, inputs]).to_event(2))
        layer.bias = PyroSample(dist.Normal(0.0, PRIOR).expand([outputs]).to_event(1))
        layers += [layer, nn.ReLU()]

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.layers = PyroModule[nn.Sequential](*layers[:-1])

        def forward(self, x, y=None):
            logits = self.layers(x)
            with pyro.plate("data", len(x)), poutine.scale(scale=NUM_DATA / len(x)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    net = Net()
    guide = AutoNormal(net, init_scale=0.05)
    with pyro.settings.context(module_local_params=False):
        svi = SVI(net, guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())

    def step(x, y):
        with pyro.settings.context(module_local_params=False):
            return svi.step(x, y)

    return step


def hypernet(form, local, particles, dealt=False):
    """A step of a hypernetwork over λ, 784-50-10, with this many values of λ, each on all data or on its share."""
    model = Model(
        space([784, 50, 10]),
        num_data=NUM_DATA,
        weights=priors.normal(PRIOR),
        complexity=priors.log_uniform(0.1, 100.0),
    )
    guide = form(guides.MeanField(model))
    several = {"particles": particles, "vectorize_particles": particles > 1, "dealt": dealt}
    options = Options(local_reparameterization=local, **several)
    named = {f"guide.{name}": value for name, value in guide.named_parameters()}
    stepper = Stepper(options.evidence(model, guide), named, NUM_DATA, 1, adam(LR), None, options)
    return lambda x, y: stepper(0, x, y).summary()


def over_complexity():
    """Rows: a step with five values of λ beside a step with one."""
    rows = []
    for form in (hypernets.Linear, hypernets.Spline):
        for local in (False, True):
            for batch in (64, 256):
                steps = {str(count): hypernet(form, local, count) for count in (1, 5)}
                milliseconds = medians({**steps, "5, dealt": hypernet(form, local, 5, dealt=True)}, batch)
                rows.append(
                    {
                        "hypernetwork": form.__name__,
                        "local_reparameterization": local,
                        "batch": batch,
                        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
                        "five/one": round(milliseconds["5"] / milliseconds["1"], 3),
                        "five, dealt/one": round(milliseconds["5, dealt"] / milliseconds["1"], 3),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def medians(steps, batch):
    """Milliseconds of each step, the variants taking turns."""
    x, y = torch.rand(batch, 784) * 2 - 1, torch.randint(10, (batch,))
    times = {name: [] for name in steps}
    with pyro.validation_enabled(False):
        for index in range(STEPS + WARM):
            for name, step in steps.items():
                start = time.perf_counter()
                step(x, y)
                if index >= WARM:
                    times[name].append(1000 * (time.perf_counter() - start))
    pyro.clear_param_store()
    return {name: statistics.median(values) for name, values in times.items()}


def resident():
    """MiB of resident memory now."""
    gc.collect()
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def growth():
    """MiB by which resident memory grows between steps 1 000 and 10 000."""
    step, _ = ours(TWO, False)
    x, y = torch.rand(64, 784), torch.randint(10, (64,))
    with pyro.validation_enabled(False):
        for index in range(10_000):
            if index == 1000:
                before = resident()
            step(x, y)
    return resident() - before


def main():
    """Measure, print and store."""
    torch.manual_seed(0)
    rows = []
    for sizes in (TWO, TWENTY):
        for local in (False, True):
            for batch in (64, 256):
                steps = {"ours": ours(sizes, local)[0], "by hand": by_hand(sizes, local)}
                if sizes is TWO:
                    steps["AutoNormal"] = autonormal(sizes)
                milliseconds = medians(steps, batch)
                rows.append(
                    {
                        "layers": len(sizes) - 1,
                        "local_reparameterization": local,
                        "batch": batch,
                        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
                        "ours/by hand": round(milliseconds["ours"] / milliseconds["by hand"], 3),
                        **(
                            {"ours/AutoNormal": round(milliseconds["ours"] / milliseconds["AutoNormal"], 3)}
                            if len(milliseconds) > 2
                            else {}
                        ),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    sites = {str(len(sizes) - 1): len(ours(sizes, False)[1].get_trace().stochastic_nodes) for sizes in (TWO, TWENTY)}
    result = {
        "command": "make bench",
        "steps": STEPS,
        "rows": rows,
        "complexity": over_complexity(),
        "pyro_sites_by_layers": sites,
        "memory_growth_mib_steps_1000_to_10000": round(growth(), 2),
    }
    print(json.dumps({name: result[name] for name in list(result)[-2:]}))
    append("bench", result)


if __name__ == "__main__":
    main()
