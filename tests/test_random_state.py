"""Random state: that of a fit is its own, and a second thread is refused before it draws."""

import threading

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pyro_nas.inference import cross_validation, laplace_approximation, sampling, svi
from pyro_nas.models import Model, guides
from pyro_nas.random_state import check_thread, generators, seeded
from pyro_nas.reading.importance import weigh


def test_the_state_starts_at_the_seed_and_is_left_as_it_was():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.randn(3), expected)
        with seeded(7):
            assert torch.equal(torch.randn(3), expected)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="seed: expected an integer of at least 0"), seeded(-1):
        pass


def refusal(call):
    """What a call in another thread raises, as text."""
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_second_thread_is_refused_with_advice_and_the_first_keeps_its_numbers(small_space, small_data):
    def pair():
        torch.manual_seed(0)
        model = Model(small_space, num_data=40)
        return model, guides.MeanField(model)

    model, guide = pair()
    svi.fit(model, guide, small_data, epochs=3)
    expected = guide.loc["weights"].detach().clone()
    other_model, other_guide = pair()
    calls = {
        "fit": lambda: svi.fit(other_model, other_guide, small_data, epochs=1),
        "build": lambda: Model(small_space, num_data=40),
        "weigh": lambda: weigh(other_model, other_guide, small_data, draws=2),
        "sample": lambda: sampling.nuts(other_model, small_data, draws=4, warmup=1, chains=1),
        "laplace": lambda: laplace_approximation.fit(other_model, small_data),
        "cross": lambda: cross_validation.cross_validate(lambda train: None, small_data),
        "guide": lambda: check_thread(),
    }
    refused = {}

    def tried(record):
        refused.update({name: refusal(call) for name, call in calls.items()})

    model, guide = pair()
    svi.fit(model, guide, small_data, epochs=3, callbacks=[tried])
    assert torch.equal(guide.loc["weights"], expected)
    for name, text in refused.items():
        assert text is not None, name
        assert text.startswith("RuntimeError: threads: expected no fit in another thread of this process"), name
        assert "Run them in processes, such as those of joblib.Parallel" in text
    assert refusal(lambda: svi.fit(other_model, other_guide, small_data, epochs=1)) is None


def test_generators_are_found_once_where_they_are():
    dataset = TensorDataset(torch.arange(8.0))
    one, two = torch.Generator(), torch.Generator()
    loader = DataLoader(dataset, 2, shuffle=True, generator=one)
    assert generators({"loader": loader, "sampler": loader.sampler, "none": None}) == {"loader.generator": one}
    batches = BatchSampler(RandomSampler(dataset, generator=two), 2, drop_last=False)
    assert generators({"batches": batches.sampler, "loader": DataLoader(dataset, batch_sampler=batches)}) == {
        "batches.generator": two}  # fmt: skip
