"""Images that stay where they are, in arrays or on the disk, until a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from flowkit.distribution import Distribution

__all__ = ["DataError", "Images", "Split", "as_dataset", "check_bits", "collate", "every_nth", "fetch", "inputs"]

Layout = Literal["auto", "first", "last", "none"]


class DataError(ValueError):
    """A data file is missing, damaged, or not what it is taken for."""


class Images(Dataset[Tensor]):
    """Images of integers in one or more arrays, which may be memory-mapped; a batch is (n, C, H, W).

    Args:
        parts: arrays of integers, (n, H, W), (n, H, W, C) or (n, C, H, W), all of one image shape.
        channels: where they stand: "last", "first", "none" for (n, H, W), or "auto": wherever 1 or 3 is.
        bits: how many bits of 8 to keep, the upper ones; 8 keeps all.
        name: for error messages.

    Attributes:
        shape: (C, H, W).
        levels: images hold integers from 0 to levels - 1; 2^bits.

    Raises:
        DataError: if the arrays are no images, or unlike one another, or it is not clear where the channels are.

    >>> images = Images([np.zeros((5, 8, 8, 3), np.uint8), np.ones((2, 8, 8, 3), np.uint8)])
    >>> len(images), images.shape, images.__getitems__([0, 6])[:, 0, 0, 0].tolist()
    (7, (3, 8, 8), [0, 1])
    """

    def __init__(
        self, parts: Sequence[np.ndarray], *, channels: Layout = "auto", bits: int = 8, name: str = "Images"
    ) -> None:
        for part in parts:
            if not part.ndim:
                raise DataError(f"{name}: {part.dtype} of shape (), wanted integers of shape (n, H, W) or more")
        if not parts or not sum(len(part) for part in parts):
            raise DataError(f"{name}: there are no images")
        check_bits(bits, name)
        first = parts[0].shape[1:]
        for part in parts:
            if part.dtype.kind not in "ui" or part.shape[1:] != first:
                raise DataError(f"{name}: {part.dtype} of shape {part.shape}, wanted integers of shape (n, *{first})")
        self.name, self.parts, self.bits, self.levels = name, list(parts), bits, 2**bits
        self.channels = _layout(first, channels, name)
        self.shape = _channels_first(first, self.channels)
        self._ends = np.cumsum([len(part) for part in parts])
        for part in parts:
            if part.dtype != np.uint8 and (part.min() < 0 or part.max() > 255):
                raise DataError(f"{name}: values from {part.min()} to {part.max()}, wanted integers from 0 to 255")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """A batch at once: what `DataLoader` asks for."""
        wanted = np.asarray(indices)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.name}: index {wanted.max()}, but there are {len(self)} images")
        owner = np.searchsorted(self._ends, wanted, side="right")
        batch = np.empty((len(wanted), *self.parts[0].shape[1:]), np.uint8)
        for number in np.unique(owner):
            mine = owner == number
            begin = self._ends[number] - len(self.parts[number])
            batch[mine] = self.parts[number][wanted[mine] - begin]
        images = torch.from_numpy(batch >> (8 - self.bits) if self.bits < 8 else batch)
        if self.channels == "last":
            return images.movedim(-1, 1)
        return images if self.channels == "first" else images.unsqueeze(1)


@dataclass(frozen=True)
class Split:
    """Images to train on, and images held out; None if the data has none apart.

    Attributes:
        train: to train on.
        held_out: to score on.
        levels: images hold integers from 0 to levels - 1.
    """

    train: Dataset[Any]
    held_out: Dataset[Any] | None
    levels: int = 256


def every_nth(split: Split, n: int) -> Split:
    """Hold every nth training image out instead: to choose settings on, while the test images stay unseen.

    Raises:
        DataError: for n below 2, or no whole number.

    >>> from flowkit.train.data import digits
    >>> train, test = digits()
    >>> chosen = every_nth(Split(as_dataset(train), as_dataset(test), levels=17), 6)
    >>> len(chosen.train), len(chosen.held_out)
    (1199, 239)
    """
    if not _is_whole(n) or n < 2:
        wanted = "wanted a whole number, at least 2"
        raise DataError(f"hold_out is {n!r}, {wanted}: every nth training image is held out")
    count = len(split.train)  # type: ignore[arg-type]
    kept = [index for index in range(count) if index % n != n - 1]
    return Split(Subset(split.train, kept), Subset(split.train, list(range(n - 1, count, n))), split.levels)


class _Tensors(Dataset[Tensor]):
    """The rows of a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        return self.values[index]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self.values[torch.as_tensor(indices)]


def as_dataset(images: Tensor | Dataset[Any], name: str = "images") -> Dataset[Any]:
    """A tensor as a dataset of its rows; a dataset as it is.

    Raises:
        TypeError: for what has no length: the order of images is drawn beforehand.
        DataError: if there are no images in it.
    """
    if isinstance(images, Tensor):
        if not images.ndim:
            raise DataError(f"{name} is a tensor of one number, wanted one of images, (n, *shape)")
        images = _Tensors(images)
    elif not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise TypeError(f"{name} is a {type(images).__name__}, wanted a tensor or a dataset with a length")
    if not len(images):
        raise DataError(f"{name}: there are no images")
    return images


def collate(items: Any) -> Any:
    """A batch of what a dataset gives: images, or tuples of an image and its context."""
    if isinstance(items, Tensor):
        return items
    if isinstance(items[0], tuple | list):
        return tuple(torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*items, strict=True))
    return torch.stack([torch.as_tensor(item) for item in items])


def fetch(images: Dataset[Any], indices: list[int]) -> Any:
    """A batch of a dataset, at once if it can give one."""
    many = getattr(images, "__getitems__", None)
    return collate(many(indices) if many is not None else [images[index] for index in indices])


def inputs(items: Any, flow: Distribution, device: torch.device) -> list[Tensor]:
    """What `flow.log_prob` takes of a batch: x, or x and context, on the device.

    Raises:
        ValueError: if the flow is conditional and the items are no pairs.
    """
    values = list(items) if isinstance(items, tuple) else [items]
    wanted = 1 if flow.context_ndim is None else 2
    if len(values) < wanted:
        raise ValueError("the flow is conditional, but the images come without a context; wanted pairs")
    return [value.to(device, non_blocking=True) for value in values[:wanted]]


def check_bits(bits: int, name: str) -> None:
    """Refuse a number of bits to keep that is none; `name` is whose it is.

    Raises:
        DataError: for what is no whole number from 1 to 8.
    """
    if not _is_whole(bits) or not 1 <= bits <= 8:
        raise DataError(f"{name}: bits is {bits!r}, wanted a whole number from 1 to 8")


def _is_whole(value: object) -> bool:
    # A bool counts as an integer for Python, and 5.0 is equal to one: both are slips in a config.
    return isinstance(value, Integral) and not isinstance(value, bool)


def _layout(shape: tuple[int, ...], channels: Layout, name: str) -> Layout:
    if channels not in ("auto", "first", "last", "none"):
        raise DataError(f"{name}: channels is {channels!r}, wanted auto, first, last or none")
    if len(shape) != (2 if channels == "none" else 3) and (channels != "auto" or len(shape) not in (2, 3)):
        raise DataError(f"{name}: images of shape {shape}, wanted (H, W), (H, W, C) or (C, H, W)")
    if channels != "auto":
        return channels
    if len(shape) == 2:
        return "none"
    last, first = shape[-1] in (1, 3), shape[0] in (1, 3)
    if last == first:
        raise DataError(f"{name}: images of shape {shape}; say where the channels are: channels = 'first' or 'last'")
    return "last" if last else "first"


def _channels_first(shape: tuple[int, ...], channels: Layout) -> tuple[int, int, int]:
    if channels == "none":
        return (1, shape[0], shape[1])
    return (shape[2], shape[0], shape[1]) if channels == "last" else (shape[0], shape[1], shape[2])
