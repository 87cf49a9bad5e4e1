"""Batches: a source of data, checked and cut into batches on a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from pyro_nas import checks
from pyro_nas.data import Inputs, Pair, Source, check_pair
from pyro_nas.random_state import forked, generators

__all__ = ["Batches", "EvenParts"]


class EvenParts(Sampler[list[int]]):
    """The indices of ``size`` data in random order, cut into parts whose sizes differ by at most one."""

    def __init__(self, size: int, batch_size: int):
        self.size, self.count = size, -(-size // batch_size)

    def __len__(self) -> int:
        """Return the number of parts."""
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the parts of one epoch."""
        return (part.tolist() for part in torch.randperm(self.size).tensor_split(self.count))


class Batches:
    """Batches of a source, on a device: of tensors and Datasets even ones at random, of a DataLoader its own.

    ``size`` is the number of data there are, ``drawn`` that of an epoch, which a loader's sampler may choose, and
    ``smallest`` the size of the smallest batch, None where only a loader knows. ``check_y``, where it is set, looks at
    the y of each batch of a loader, which are not seen before.

    Raises ValueError for a batch size below 1, data or loaders that are empty or of unknown length, and what
    ``check_pair`` raises for tensors; batches that are no pairs (x, y) raise TypeError.
    """

    def __init__(self, name: str, source: Source, batch_size: int, device: torch.device):
        self.name, self.device = name, device
        self.batch_size = checks.integer("batch_size", batch_size, low=1)
        self.loader: DataLoader[Any] | None = None
        self.check_y: Callable[[torch.Tensor], object] | None = None
        self.least = 1
        self._first: Pair | None = None
        if isinstance(source, (DataLoader, Dataset)):
            self.loader = _loader(name, source, batch_size)
            self.size, self.drawn, self.smallest = _sizes(self.loader)
        else:
            x, y = check_pair(name, source)
            self.x, self.y = _move(x, device), y.to(device)
            self.size = self.drawn = len(y)
            self.smallest = self.size // len(self)

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self.loader) if self.loader is not None else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Pair]:
        """Yield the batches of an epoch."""
        if self.loader is not None:
            return map(self._checked, self.loader)
        indices = torch.randperm(self.size, device=self.device).tensor_split(len(self))
        return ((_take(self.x, index), self.y[index]) for index in indices)

    def after(self, taken: int) -> Iterator[Pair]:
        """Yield the batches of an epoch but its first ``taken``, which a loader of a Dataset by index does not load."""
        loader = self.loader
        if loader is None or not taken or loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return itertools.islice(self, taken, None)
        rest: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=list(itertools.islice(loader.batch_sampler, taken, None)),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=loader.generator,
        )
        return map(self._checked, rest)

    def weight(self, y: torch.Tensor) -> float:
        """Return the weight n / (N/K) of a batch of n among the K of an epoch's N data: their mean is 1.

        An estimate on a batch takes it for a sample of all data. Weighted so, those of an epoch have as their mean
        what all its data give, whatever decides how large a batch is and what is in it.
        """
        return len(y) * len(self) / self.drawn

    def require_two(self) -> None:
        """Refuse batches of one datum: now where one comes, else, where only the loader knows, when it comes."""
        self.least = 2
        if self.smallest is not None and self.smallest < self.least:
            self._refuse_one()

    def _refuse_one(self) -> None:
        raise ValueError(
            f"{self.name}: expected two data in a batch or more, of which batch normalisation takes the variance, got "
            "a batch of one. Pass drop_last=True to the DataLoader, or another batch size."
        )

    def first(self) -> Pair:
        """Return a first batch, loaded once, without touching the random state; errors as ``check_pair``."""
        if self._first is None:
            self._first = self._load_first()
        return self._first

    def _load_first(self) -> Pair:
        if self.loader is None:
            return _take(self.x, slice(self.batch_size)), self.y[: self.batch_size]
        before = {name: generator.get_state() for name, generator in self.generators().items()}
        with forked():
            batch = next(iter(self.loader))
        for name, generator in self.generators().items():
            generator.set_state(before[name])
        x, y = _pair(self.name, batch)
        x, y = check_pair(f"a batch of {self.name}", (tuple(x) if isinstance(x, list) else x, y))
        return _move(x, self.device), y.to(self.device)

    def _checked(self, batch: object) -> Pair:
        x, y = _pair(self.name, batch)
        if len(y) < self.least:
            self._refuse_one()
        if self.check_y is not None:
            self.check_y(y)
        return _move(x, self.device), y.to(self.device)

    def generators(self) -> dict[str, torch.Generator]:
        """Return the random generators that the loader, its samplers or its dataset have of their own, by place."""
        parts = {name: getattr(self.loader, name, None) for name in ("batch_sampler", "dataset", "sampler")}
        parts |= {"loader": self.loader, "batches": getattr(parts["batch_sampler"], "sampler", None)}
        return generators({f"{self.name}.{part}": owner for part, owner in parts.items()})

    def everything(self) -> Pair | None:
        """Return all data where they are tensors."""
        return None if self.loader is not None else (self.x, self.y)


def _loader(name: str, source: DataLoader[Any] | Dataset[Any], batch_size: int) -> DataLoader[Any]:
    """Return a loader with a length, of a Dataset one of even batches at random."""
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    try:
        size = len(dataset)
        if isinstance(source, DataLoader):
            loader = source
        elif isinstance(source, IterableDataset):
            loader = DataLoader(source, batch_size)
        else:
            loader = DataLoader(source, batch_sampler=EvenParts(size, batch_size))
        count = len(loader)
    except TypeError as error:
        raise ValueError(
            f"{name}: expected data of known length, since the likelihood is scaled to all of them, got "
            f"{checks.describe(dataset)}, {error}. Give the dataset, and a sampler of your own, a __len__."
        ) from error
    if not size or not count:
        raise ValueError(f"{name}: expected data in batches, got {size} data in {count} batches. Is drop_last on?")
    return loader


def _sizes(loader: DataLoader[Any]) -> tuple[int, int, int | None]:
    """Return how many data there are, how many an epoch draws, and the size of the smallest batch, where known."""
    total = len(loader.dataset)  # type: ignore[arg-type]
    batches = loader.batch_sampler
    if isinstance(batches, EvenParts):
        return total, total, total // len(batches)
    if loader.batch_size is None or type(batches) is not BatchSampler:
        return total, total, None
    if loader.drop_last:
        return total, len(loader) * loader.batch_size, loader.batch_size
    drawn = total if isinstance(loader.dataset, IterableDataset) else len(loader.sampler)  # type: ignore[arg-type]
    return total, drawn, drawn % loader.batch_size or loader.batch_size


def _pair(name: str, batch: object) -> tuple[Any, torch.Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
        return batch[0], batch[1]
    got = checks.describe(batch)
    if isinstance(batch, (tuple, list)):
        got = f"a {type(batch).__name__} of {[type(part).__name__ for part in batch]}"
    elif isinstance(batch, Mapping):
        got = f"a {type(batch).__name__} of {list(batch)}"
    raise TypeError(
        f"{name}: expected batches that are pairs (x, y) of tensors, got {got}. "
        "Give the loader a collate_fn, or the dataset a __getitem__, that returns such pairs."
    )


def _move(x: Inputs | list[torch.Tensor], device: torch.device) -> Inputs:
    return x.to(device) if isinstance(x, torch.Tensor) else tuple(part.to(device) for part in x)


def _take(x: Inputs, index: torch.Tensor | slice) -> Inputs:
    return x[index] if isinstance(x, torch.Tensor) else tuple(part[index] for part in x)
