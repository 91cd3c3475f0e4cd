"""Weights as files: safetensors in pieces, each with its size and SHA-256. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

__all__ = ["PIECE_BYTES", "Piece", "WeightsError", "fill", "pack", "parse", "state_sha256"]

PIECE_BYTES = 16 * 2**20


class WeightsError(ValueError):
    """A weights file or a card is damaged, foreign, cannot be had, or does not fit the model."""


@dataclass(frozen=True)
class Piece:
    """One file of some weights: what it is called, how long it is, and the SHA-256 of its content."""

    file: str
    size: int
    sha256: str

    @staticmethod
    def of(file: str, content: bytes) -> Piece:
        """The piece that has this content."""
        return Piece(file, len(content), hashlib.sha256(content).hexdigest())

    def fault(self, content: bytes) -> str:
        """What is wrong with `content`, in words; empty if it is this piece's."""
        came = Piece.of(self.file, content)
        if came == self:
            return ""
        return f"{came.size} bytes with SHA-256 {came.sha256}, wanted {self.size} bytes with {self.sha256}"


def parse(content: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: if it is none, or cut short.
    """
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{source}: not a whole safetensors file ({error})") from None


def pack(
    tensors: Mapping[str, Tensor], name: str, *, dtype: torch.dtype | None = None, piece_bytes: int = PIECE_BYTES
) -> dict[Piece, bytes]:
    """Tensors as safetensors files of at most `piece_bytes` each, in the order of the keys.

    One file is called `name.safetensors`; several are `name-00001-of-00003.safetensors` and so on.

    Args:
        tensors: a state dict.
        name: of the files.
        dtype: what floating tensors are stored in; as they are if not given.
        piece_bytes: the most that a file may have.

    Raises:
        WeightsError: for a value that is not finite, as it is or in `dtype`, or one tensor larger than a piece.
    """
    groups: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        stored = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        _check_finite(stored, key, name)
        if groups[-1] and _length({**groups[-1], key: stored}) > piece_bytes:
            groups.append({})
        groups[-1][key] = stored
        if len(groups[-1]) == 1 and _length(groups[-1]) > piece_bytes:
            raise WeightsError(f"{name}: {key} alone takes {_length(groups[-1])} bytes, more than {piece_bytes}")
    contents = [save_safetensors(group) for group in groups]
    of = len(contents)
    names = [f"{name}-{i:05d}-of-{of:05d}" for i in range(1, of + 1)] if of > 1 else [name]
    files = [f"{stem}.safetensors" for stem in names]
    return {Piece.of(file, content): content for file, content in zip(files, contents, strict=True)}


def _length(tensors: dict[str, Tensor]) -> int:
    """At least the bytes of a safetensors file: 8 of length, a header of about 100 a tensor, the values."""
    values = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return 16 + sum(160 + len(key) for key in tensors) + values


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, dtype: str | None = None) -> None:
    """Copy `tensors` into `module`; every key, shape and dtype must fit, every value be finite.

    Args:
        module: floating tensors are cast to its own dtype.
        tensors: as many as its state dict has.
        source: what an error calls them.
        dtype: what the floating ones are stored in, "bfloat16" for example; that of the module if not given.

    Raises:
        WeightsError: naming the keys that are missing or too many, or the tensor whose shape, dtype or values differ.
    """
    wanted = module.state_dict()
    for what, keys in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise WeightsError(f"{source} {what} {min(keys)}{more}")
    for key, value in wanted.items():
        came = tensors[key]
        if came.shape != value.shape:
            raise WeightsError(f"{source}: {key} is {tuple(came.shape)}, wanted {tuple(value.shape)}")
        stored = value.dtype if dtype is None or not value.is_floating_point() else dtype
        if str(came.dtype).removeprefix("torch.") != str(stored).removeprefix("torch."):
            raise WeightsError(f"{source}: {key} is {came.dtype}, wanted {stored}")
        _check_finite(came, key, source)
    with torch.no_grad():
        module.load_state_dict({key: tensors[key].to(value.dtype) for key, value in wanted.items()})


def _check_finite(tensor: Tensor, key: str, source: str) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise WeightsError(f"{source}: {key} has {count} of {tensor.numel()} values that are NaN or infinite")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over keys, dtypes, shapes and values of a state dict, whatever files it came from."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
