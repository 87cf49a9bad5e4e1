"""Augmentation: each example its own, exactly what was drawn; in a fit on training batches and nothing else."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_nas import Space
from pyro_nas.augmentation import augmented, compose, cutout, mirror, shift
from pyro_nas.files import state_of
from pyro_nas.graph.primitives import dense, flatten
from pyro_nas.inference import adam, bilevel, svi
from pyro_nas.models import Model, guides

SPACE = Space({(0, 1): {"flatten": flatten()}, (1, 2): {"tanh": dense(64, 2, "tanh"), "linear": dense(64, 2)}})


def numbered(batch, channels=2, height=6, width=5):
    """Images whose values name example, channel, row and column, all above 0."""
    return torch.arange(1.0, 1 + batch * channels * height * width).view(batch, channels, height, width)


def moves(x, shifted, pixels, fill=-1.0):
    """The (Δrow, Δcolumn) of each example that explains it exactly, from a loop; AssertionError where none does."""
    found, (height, width) = [], x.shape[2:]
    for image, moved in zip(x, shifted, strict=True):
        framed = torch.full((x.shape[1], height + 2 * pixels, width + 2 * pixels), fill, dtype=x.dtype)
        framed[:, pixels : pixels + height, pixels : pixels + width] = image
        explained = [
            (pixels - row, pixels - column)
            for row in range(2 * pixels + 1)
            for column in range(2 * pixels + 1)
            if torch.equal(framed[:, row : row + height, column : column + width], moved)
        ]
        assert len(explained) == 1
        found += explained
    return found


def are_uniform_and_independent(found, pixels):
    """Whether moves cover all offsets about equally often, and neighbours in a batch differ as often as they should."""
    cells = (2 * pixels + 1) ** 2
    counts = [found.count((r, c)) for r in range(-pixels, pixels + 1) for c in range(-pixels, pixels + 1)]
    expected = len(found) / cells
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    same = sum(a == b for a, b in itertools.pairwise(found)) / (len(found) - 1)
    return chi_square < cells + 5 * (2 * cells) ** 0.5 and abs(same - 1 / cells) < 5 / (cells * len(found)) ** 0.5


def test_shift_moves_each_image_by_itself_and_fills_what_comes_in():
    x = numbered(300)
    found = moves(x, shift(1, fill=-3.0)(x), 1, fill=-3.0)
    assert are_uniform_and_independent(found, 1)
    assert are_uniform_and_independent(moves(x, shift(2)(x), 2), 2)
    padded = nn.functional.pad(x, [1] * 4, value=-1.0)
    row, column = torch.randint(3, (2,)).tolist()
    wrong = padded[:, :, row : row + 6, column : column + 5]  # a crop, but one for all
    assert not are_uniform_and_independent(moves(x, wrong, 1), 1)


def test_mirror_swaps_left_and_right_of_a_share_of_the_images():
    x = numbered(400)
    assert torch.equal(mirror(1.0)(x), x.flip(-1))
    assert torch.equal(mirror(0.0)(x), x)
    result = mirror(0.3)(x)
    swapped = (result == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(result[~swapped], x[~swapped])
    assert 0.3 * 400 - 5 * 9.2 < int(swapped.sum()) < 0.3 * 400 + 5 * 9.2


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_fills_a_square_around_a_uniform_centre(size):
    x = numbered(4000, channels=2)
    result = cutout(size, fill=-2.0)(x)
    cut = result != x
    assert (result[cut] == -2.0).all()
    assert torch.equal(cut[:, 0], cut[:, 1])
    centres = [(row, column) for row in range(6) for column in range(5)]
    near = range(-(size // 2), size - size // 2)
    squares = torch.tensor(
        [[[i - row in near and j - column in near for j in range(5)] for i in range(6)] for row, column in centres]
    )
    assert torch.equal(cut[:, 0].unique(dim=0), squares.unique(dim=0))
    expected = squares.float().mean(0)
    assert ((cut[:, 0].float().mean(0) - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt()).all()


def test_composition_applies_the_first_part_first():
    x = numbered(3)
    assert torch.equal(compose(lambda x: 2 * x, lambda x: x + 1)(x), 2 * x + 1)
    torch.manual_seed(5)
    together = compose(shift(1), mirror(), cutout(2))(x)
    torch.manual_seed(5)
    assert torch.equal(cutout(2)(mirror()(shift(1)(x))), together)


@pytest.mark.parametrize("make", [shift, cutout, lambda size: mirror(0.5), lambda size: compose(shift(1), cutout(2))])
def test_shape_type_format_and_data_are_kept(make):
    formats = (torch.contiguous_format, torch.channels_last)
    for channels, dtype, memory_format in itertools.product((1, 3), (torch.float32, torch.float64), formats):
        x = torch.randn(9, channels, 7, 6, dtype=dtype).contiguous(memory_format=memory_format)
        before = x.clone()
        result = make(2)(x)
        assert torch.equal(x, before)
        assert (result.shape, result.dtype, result.stride()) == (x.shape, x.dtype, x.stride())


def images(first, count):
    """Images of zeros but for one corner, their number."""
    x = torch.zeros(count, 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(first, first + count)
    return x, torch.arange(count) % 2


class Log(nn.Module):
    """A model that notes which images it sees and whether they carry the mark."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = Model(SPACE, num_data=12), []

    def forward(self, x, y=None):
        self.seen.append((x[:, 0, 0, 0].tolist(), (x[:, 0, 0, 1] == 1).tolist()))
        return self.model(x, y)


def mark(x):
    """An augmentation that can be seen."""
    x = x.clone()
    x[:, 0, 0, 1] = 1
    return x


def unlike_the_rule(seen):
    """What was seen that is training data without the mark, or validation data (from 100 on) with it."""
    pairs = (pair for numbers, marks in seen for pair in zip(numbers, marks, strict=True))
    return [number for number, marked in pairs if marked != (number < 100)]


@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_a_fit_augments_training_batches_and_nothing_else(procedure):
    train, valid = images(0, 12), images(100, 8)

    def seen(valid, **options):
        log = Log()
        guide = guides.MeanField(log.model)
        procedure(log, guide, train, valid, epochs=2, batch_size=4, **options)
        return log.seen[2:]  # without the check before the first step, and the collection of parameters

    calls = seen(valid, augmentation=mark)
    assert unlike_the_rule(calls) == []
    trained = [number for numbers, _ in calls for number in numbers if number < 100]
    assert sorted(trained) == sorted(2 * list(range(12)))
    assert unlike_the_rule(seen((mark(valid[0]), valid[1]), augmentation=mark))  # validation data that were augmented
    assert unlike_the_rule(seen(valid))  # training data that were not


def test_the_augmentation_is_called_once_a_step_and_once_before_the_first():
    calls = []

    def note(x):
        calls.append(x[:, 0, 0, 0].tolist())
        return x.mul_(0).add_(1)  # in place, which must not reach the data

    for source in (images(0, 12), DataLoader(TensorDataset(*images(0, 12)), 4)):
        calls.clear()
        model = Model(SPACE, num_data=12)
        svi.fit(model, guides.MeanField(model), source, images(100, 8), epochs=2, batch_size=4, augmentation=note)
        assert calls[0] == [0.0, 1.0, 2.0, 3.0]
        assert sorted(itertools.chain(*calls[1:])) == sorted(2 * list(range(12)))


def fit(augmentation, procedure=svi.fit, **options):
    torch.manual_seed(0)
    model = Model(SPACE, num_data=12)
    guide = guides.MeanField(model)
    x, y = images(0, 12)
    settings = {"epochs": 4, "batch_size": 4, "optimizer": adam(0.02), "augmentation": augmentation, **options}
    history = procedure(model, guide, (x / 12, y), (x / 12, y), **settings)
    return history.records, copy.deepcopy(state_of(model, guide))


def same(left, right):
    return all(torch.equal(value, right[1][name]) for name, value in left[1].items())


@pytest.mark.parametrize("procedure", [svi.fit, bilevel.fit])
def test_a_stopped_fit_continues_bit_for_bit(tmp_path, procedure):
    part = compose(shift(1), mirror(), cutout(3))
    whole = fit(part, procedure)
    before = torch.get_rng_state()
    stop = {"checkpoint": tmp_path, "callbacks": [lambda record: record["epoch"] == 1]}
    assert not same(fit(part, procedure, **stop), whole)
    torch.randn(3)
    continued = fit(part, procedure, checkpoint=tmp_path, resume=True)
    assert continued[0] == whole[0]
    assert same(continued, whole)
    fit(part, procedure)
    assert not same(fit(part, procedure, seed=1), whole)
    assert not same(fit(None, procedure), whole)
    assert same(fit(lambda x: x, procedure), fit(None, procedure))
    torch.manual_seed(0)
    Model(SPACE, num_data=12)
    assert torch.equal(torch.get_rng_state(), before)


X = torch.zeros(4, 1, 8, 8)
BAD = {
    "pixels": (lambda: shift(0), ValueError, r"pixels: .*at least 1, got 0"),
    "pixels of a side": (lambda: shift(8)(X), ValueError, r"pixels: .*less than a side.*\(8, 8\), got 8"),
    "fill": (lambda: shift(1, float("nan")), ValueError, "fill: .*nan"),
    "probability": (lambda: mirror(1.5), ValueError, "probability: .*1.5"),
    "size": (lambda: cutout(1.5), ValueError, "size: .*1.5"),
    "size of a side": (lambda: cutout(9)(X), ValueError, "size: .*got 9"),
    "parts": (lambda: compose(shift(1), 3), TypeError, "parts: .*3"),
    "not images": (lambda: mirror()(X[0]), ValueError, r"augmentation: .*images.*\(1, 8, 8\)"),
    "not real": (lambda: shift(1)(X.byte()), ValueError, "uint8"),
    "option": (lambda: fit(0.5), TypeError, "augmentation: .*0.5"),
    "fit to no images": (lambda: augmented(cutout(2), torch.zeros(3, 2)), ValueError, r"augmentation: .*\(3, 2\)"),
    "several inputs": (lambda: augmented(mirror(), (X, X)), TypeError, "augmentation: .*a tuple of 2.*Dataset"),
    "another shape": (lambda: augmented(lambda x: x[..., 1:], X), ValueError, r"augmentation: .*\(4, 1, 8, 7\)"),
    "another type": (lambda: augmented(lambda x: x.double(), X), ValueError, "augmentation: .*float64"),
    "nothing": (lambda: augmented(lambda x: None, X), TypeError, "augmentation: .*None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_bad_input_is_seen_before_the_first_step():
    two = Space({(0, 2): {"a": dense(3, 2)}, (1, 2): {"a": dense(3, 2)}}, inputs=(0, 1))
    vectors, y = torch.randn(12, 3), torch.arange(12) % 2
    for space, x, part, error in (
        (two, (vectors, vectors), shift(1), TypeError),
        (Space({(0, 1): {"a": dense(3, 2)}}), vectors, shift(1), ValueError),
        (SPACE, images(0, 12)[0], lambda x: x.flatten(1), ValueError),
    ):
        guide = guides.MeanField(Model(space, num_data=12))
        before = guide.loc["weights"].clone()
        with pytest.raises(error, match="augmentation: expected"):
            svi.fit(guide.model, guide, (x, y), epochs=1, augmentation=part)
        assert torch.equal(guide.loc["weights"], before)


def test_what_comes_in_from_outside_and_what_is_cut_out_is_background_unless_told():
    x = torch.full((16, 1, 6, 6), 0.5)
    for make, size in ((shift, 2), (cutout, 3)):
        assert set(make(size)(x).unique().tolist()) == {-1.0, 0.5}
        assert set(make(size, 0.25)(x).unique().tolist()) == {0.25, 0.5}
