"""Exported programs against ``posterior.predict``, for spaces, likelihoods and numbers of draws and of data."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyro_nas import Space, derive
from pyro_nas.graph.families import zoo
from pyro_nas.graph.primitives import dense, skip
from pyro_nas.models import Model, guides, likelihoods, priors, structures
from pyro_nas.reading.batch_normalization import recalibrated
from pyro_nas.reading.export import export, load
from pyro_nas.reading.posterior import draw, mean_draw, predict


def cells(structure=None):
    """A convolutional network with statistics of batch normalisation that are not the first ones."""
    model = Model(zoo.cells(1, 3, channels=4), num_data=10, structure=structure)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    return model


def several_inputs():
    """A space with two inputs, a cell of them, a product, a mean, and a concatenation."""
    cell = Space({(0, 2): {"a": dense(3, 3), "b": skip()}, (1, 2): {"a": dense(3, 3), "b": skip()}}, {2: "product"},
                 inputs=(0, 1), name="cell")  # fmt: skip
    plain = {edge: {"a": dense(3, 3)} for edge in [(0, 2), (1, 2), (0, 3), (2, 3), (1, 4)]}
    edges = {**plain, (3, 4): {"a": skip(), "b": dense(3, 3, "tanh")}, (4, 5): {"readout": dense(6, 2)}}
    return Space(edges, {2: cell, 3: "mean", 4: "concatenation"}, inputs=(0, 1))


def on_the_cube(small_space):
    edges = {edge: {**ops, "b": next(iter(ops.values()))} if len(ops) == 1 else ops
             for edge, ops in small_space.edges.items()}  # fmt: skip
    return replace(small_space, edges=edges, restriction="cube")


def agree(program, model, draws, x):
    """Whether a program predicts what the model does, for batches of 1, 7 and 64."""
    parts = x if isinstance(x, tuple) else (x,)
    for size in (1, 7, 64):
        rows = tuple(part[:size] for part in parts)
        expected = predict(model, draws, rows if isinstance(x, tuple) else rows[0])
        if not torch.allclose(program(*rows), expected, atol=1e-6):
            return False
    return True


CASES = {
    "layers": lambda s: (Model(zoo.layers(3, 4, width=5, depth=2), num_data=10), torch.randn(64, 3)),
    "cells, one path": lambda s: (cells(structures.categorical()), torch.randn(64, 1, 8, 8)),
    "cells, all paths": lambda s: (cells(), torch.randn(64, 1, 8, 8)),
    "cube": lambda s: (
        Model(on_the_cube(s), num_data=10, structure=structures.bernoulli(), likelihood=likelihoods.gaussian()),
        torch.randn(64, 3),
    ),
    "several inputs": lambda s: (Model(several_inputs(), num_data=10), (torch.randn(64, 3), torch.randn(64, 3))),
    "more sites": lambda s: (
        Model(s, num_data=10, weights=priors.relevance_determination(), complexity=priors.log_uniform(0.1, 10)),
        torch.randn(64, 3),
    ),
    "double": lambda s: (Model(s, num_data=10).double(), torch.randn(64, 3, dtype=torch.double)),
    "point estimates": lambda s: (
        Model(s, num_data=10, point_estimates=["*"], likelihood=likelihoods.bernoulli()),
        torch.randn(64, 3),
    ),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_program_predicts_what_the_model_does(small_space, tmp_path, name, count):
    model, x = CASES[name](small_space)
    draws = draw(guides.MeanField(model), num_samples=count)
    state = torch.get_rng_state()
    export(model, draws, x, tmp_path / "model.pt2")
    assert torch.equal(state, torch.get_rng_state())
    program = load(tmp_path / "model.pt2")
    assert agree(program, model, draws, x)
    assert not agree(program, model, {site: values * 1.01 for site, values in draws.items()}, x)  # the check can fail


def test_every_sum_of_the_cube_may_be_empty(small_space, tmp_path):
    model = Model(on_the_cube(small_space), num_data=10, structure=structures.bernoulli())
    one = mean_draw(guides.MeanField(model))
    x = torch.randn(64, 3)
    for number, gamma in enumerate((torch.zeros(1, 4, 2), torch.tensor([[[0.0, 0], [0, 1], [0, 0], [1, 1]]]))):
        export(model, {**one, "structure": gamma}, x, tmp_path / f"{number}.pt2")
        assert agree(load(tmp_path / f"{number}.pt2"), model, {**one, "structure": gamma}, x)


def test_evaluation_mode_is_baked_in_and_the_model_left_as_it_was(tmp_path, monkeypatch):
    model = cells(structures.categorical()).train()
    one = draw(guides.MeanField(model), num_samples=1)
    x = torch.randn(64, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, one, x, tmp_path / "model.pt2")
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    program = load(tmp_path / "model.pt2")
    assert agree(program, model, one, x)
    with recalibrated(model, one, (x, torch.zeros(64))):
        assert not agree(program, model, one, x)  # statistics are the file's own
        export(model, one, x, tmp_path / "recalibrated.pt2")
        assert agree(load(tmp_path / "recalibrated.pt2"), model, one, x)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "eval", lambda self: self)
        export(model, one, x, tmp_path / "training.pt2")
    assert not agree(load(tmp_path / "training.pt2"), model, one, x)


def test_a_program_has_what_runs_and_nothing_else(tmp_path):
    model = cells(structures.categorical())
    one = draw(guides.MeanField(model), num_samples=1)
    x = torch.full((5, 1, 8, 8), 1234.5)
    export(model, one, x, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    derived = Model(derive(model.space, one), num_data=10).network
    assert sum(v.numel() for v in program.state_dict.values()) == sum(v.numel() for v in derived.state_dict().values())
    ran = []
    for part in derived.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda *_: ran.append(1))
    derived(x)
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == len(ran) > 0
    (stored,), _ = program.example_inputs
    assert not stored.any()  # no data of the user's
    assert not any(value.requires_grad for value in program.state_dict.values())


def test_a_program_runs_without_pyro_and_without_this_package(small_space, tmp_path):
    model = Model(small_space, num_data=10)
    draws = draw(guides.MeanField(model), num_samples=2)
    export(model, draws, torch.zeros(1, 3), tmp_path / "model.pt2")
    code = (
        "import sys, torch; program = torch.export.load('model.pt2').module(); x = torch.arange(21.).view(7, 3) / 21; "
        "assert not {'pyro', 'pyro_nas'} & set(sys.modules); print(program(x).tolist())"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = predict(model, draws, torch.arange(21.0).view(7, 3) / 21)
    assert torch.allclose(torch.tensor(json.loads(run.stdout)), expected, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_an_existing_file_stays(small_space, tmp_path):
    model = Model(small_space, num_data=10)
    (tmp_path / "model.pt2").write_text("precious")
    with pytest.raises(FileExistsError, match=r"path: .*model.pt2.*Remove it"):
        export(model, draw(guides.MeanField(model), num_samples=1), torch.zeros(1, 3), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "precious"


def test_bad_input(small_space, tmp_path):
    model = Model(small_space, num_data=10)
    draws, x, path = draw(guides.MeanField(model), num_samples=2), torch.zeros(4, 3), tmp_path / "model.pt2"
    weights = {"weights": draws["weights"]}
    for arguments, error, message in (
        ((model, draws, x, tmp_path / "model.bin"), ValueError, r"path: .*\.pt2, got"),
        ((small_space, draws, x, path), TypeError, "model: .*Space"),
        ((model, weights, x, path), ValueError, r"draws: .*missing \['structure'\]"),
        ((model, {"structure": draws["structure"]}, x, path), ValueError, r"draws: .*missing \['weights'\]"),
        ((model, {**draws, "weights": draws["weights"][:1]}, x, path), ValueError, "draws: .*one number of draws"),
        ((model, draws, torch.zeros(4, 5), path), ValueError, r"x: .*\(4, 5\)"),
        ((model, draws, (x, x), path), TypeError, "x: .*1 inputs"),
        ((model, draws, x.numpy(), path), TypeError, "x: (?s:.*)ndarray"),
    ):
        with pytest.raises(error, match=message):
            export(*arguments)
        assert not list(tmp_path.iterdir())
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"path: .*model.pt2.*Export the model again"):
        load(path)
