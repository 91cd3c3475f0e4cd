"""Trained weights: their names and cards, where their files are, and how they are had.

A card is a small JSON file, and all cards are in the package. The files that a card lists are looked for in the
package, in the `weights` folder of a source checkout, and in the cache; from elsewhere they are fetched into the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import Tensor, nn

from flowkit.files import write_whole
from flowkit.flow import Flow
from flowkit.initialization import mark_initialized
from flowkit.zoo.fetch import fetch
from flowkit.zoo.files import PIECE_BYTES, Piece, WeightsError, fill, pack, parse

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = [
    "Available",
    "available",
    "cache_folder",
    "card",
    "fetch_weights",
    "offline",
    "read",
    "restore",
    "save",
    "source",
    "tuples",
]


class Available(NamedTuple):
    """What `available` says of some weights.

    Attributes:
        bits_per_dim: on held-out data, as its card says; None if it was not measured.
        size: bytes of all files.
        where: "package", "checkout", "cache", or "remote" if they are still to be fetched.
    """

    bits_per_dim: float | None
    size: int
    where: str


def available() -> dict[str, Available]:
    """The names of all trained weights, with their bits/dim on held-out data and where they are.

    Raises:
        WeightsError: if a card is damaged.

    >>> weights = available()["flowpp-digits"]
    >>> weights.where, weights.size < 4_000_000
    ('package', True)
    """
    return {
        name: Available((found["evaluation"] or {}).get("bits_per_dim"), found["size"], where(found))
        for name, found in ((name, card(name)) for name in names())
    }


def names() -> list[str]:
    """The names of all cards in the package."""
    files = (file.name for file in _folder().iterdir())
    return sorted(file.removesuffix(".json") for file in files if file.endswith(".json"))


def card(name: str | Path) -> dict[str, Any]:
    """What is known of trained weights: config, files and hashes, how they were trained, how they score.

    Args:
        name: one of `available`; or the path of a card, `*.json`, that `save` wrote.

    Returns:
        "model", "config", "parameters", "dtype" (what floating tensors are stored in), "size" and "sha256" of all files
        one after another, "files" with the same of each, "training", and "evaluation", which
        `flowkit.train.Evaluation` reads.

    Raises:
        ValueError: for an unknown name, with those there are.
        WeightsError: if the card is damaged.

    >>> found = card("flowpp-digits")
    >>> found["model"], found["parameters"], found["evaluation"]["images"]
    ('flowpp', 496928, 359)
    """
    path = _path(name)
    if path is not None:
        file: Traversable = path
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such card")
    else:
        if name not in names():
            raise ValueError(f"weights are named {name!r}, wanted one of {', '.join(names()) or '(there are none)'}")
        file = _folder() / f"{name}.json"
    return _checked(file.read_bytes(), str(name))


def _path(name: str | Path) -> Path | None:
    """`name` as the path of a card; None if it is a name."""
    return Path(name) if isinstance(name, Path) or name.endswith(".json") else None


def _checked(content: bytes, source: str) -> dict[str, Any]:
    """A card whose fields are there and of their kinds.

    Raises:
        WeightsError: naming what is wrong with it.
    """
    try:
        found = json.loads(content)
    except ValueError as error:  # of the text, or of the JSON
        raise WeightsError(f"{source}: its card is damaged: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{source}: its card is damaged: it holds a {type(found).__name__}, wanted an object")
    kinds: dict[str, type | tuple[type, ...]] = {
        "model": str,
        "config": dict,
        "parameters": int,
        "dtype": str,
        "size": int,
        "sha256": str,
        "files": list,
        "training": dict,
        "evaluation": (dict, type(None)),
    }
    for key, kind in kinds.items():
        if key not in found:
            raise WeightsError(f"{source}: its card is damaged: {key} is missing")
        if not isinstance(found[key], kind):
            raise WeightsError(f"{source}: its card is damaged: {key} is a {type(found[key]).__name__}")
    if not isinstance(getattr(torch, found["dtype"], None), torch.dtype):
        raise WeightsError(f"{source}: its card is damaged: dtype is {found['dtype']!r}")
    if found["evaluation"] is not None and not isinstance(found["evaluation"].get("bits_per_dim"), int | float):
        raise WeightsError(f"{source}: its card is damaged: evaluation has no bits_per_dim")
    for entry in found["files"]:
        try:
            piece = Piece(**entry)
        except TypeError:
            raise WeightsError(f"{source}: its card is damaged: files has {entry!r}") from None
        if not str(piece.file).endswith(".safetensors") or set(piece.file) & set("/\\:"):
            raise WeightsError(f"{source}: its card is damaged: {piece.file!r} is no name of a safetensors file")
    if not found["files"]:
        raise WeightsError(f"{source}: its card is damaged: files is empty")
    return found


def save(
    module: nn.Module,
    path: str | Path,
    *,
    model: str,
    config: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> dict[str, Any]:
    """Write the weights of `module` as safetensors, and a card beside them that `card` and `load` read.

    Every file is whole or not there; the card comes last.

    Args:
        module: its state dict is written.
        path: of the card, `folder/flowpp-mine.json`; the weights go beside it under the same name.
        model: the function of `flowkit.zoo` that makes it, "flowpp".
        config: the sizes that this function takes.
        training: how it was trained: data, steps, seed.
        evaluation: how it scores, `dataclasses.asdict` of a `flowkit.train.Evaluation`.
        dtype: what floating tensors are stored in, torch.bfloat16 for half the size; as they are if not given.
        piece_bytes: the most that one file may have.

    Returns:
        The card.

    Raises:
        ValueError: if the path does not end in .json.
        WeightsError: for values that are not finite, or floating tensors of several dtypes.
        OSError: if the files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"save: path is {path}, wanted the path of a card, *.json")
    state = module.state_dict()
    stored = {dtype or tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(stored) > 1:
        raise WeightsError(f"{path}: the weights are of several dtypes, {', '.join(sorted(map(str, stored)))}")
    contents = pack(state, path.stem, dtype=dtype, piece_bytes=piece_bytes)
    whole = b"".join(contents.values())
    found = {
        "model": model,
        "config": dict(config),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "dtype": str(next(iter(stored), torch.float32)).removeprefix("torch."),
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
        "files": [vars(piece) for piece in contents],
        "training": dict(training or {}),
        "evaluation": None if evaluation is None else dict(evaluation),
    }
    text = (json.dumps(found, indent=2, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    for piece, content in contents.items():
        write_whole(path.parent / piece.file, content)
    write_whole(path, text)
    return found


def read(name: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of trained weights, fetched if need be, after every hash was checked.

    Raises:
        ValueError: for an unknown name.
        WeightsError: if the card is damaged, or the files cannot be had or are not those that the card describes.
    """
    found, path = card(name), _path(name)
    digest, tensors = hashlib.sha256(), {}
    for piece in _pieces(found):
        content = _content(piece) if path is None else _own(piece, path.parent / piece.file)
        digest.update(content)
        for key, tensor in parse(content, piece.file).items():
            if key in tensors:
                raise WeightsError(f"{name}: {key} is in {piece.file} and in another file")
            tensors[key] = tensor
    if digest.hexdigest() != found["sha256"]:
        raise WeightsError(
            f"{name}: its files have SHA-256 {digest.hexdigest()} one after another, wanted {found['sha256']}"
        )
    return found, tensors


def restore(build: Callable[..., Flow], found: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Flow:
    """The flow that `build` makes of the config of a card, with these weights, in eval mode.

    Raises:
        WeightsError: if one does not fit the other.
    """
    try:
        flow = build(**{key: tuples(value) for key, value in found["config"].items()})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name}: the config of its card is damaged: {error}") from None
    fill(flow, tensors, name, dtype=found["dtype"])
    mark_initialized(flow)
    return flow.eval()


def tuples(value: Any) -> Any:
    """JSON has only lists; sizes are tuples."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def fetch_weights(name: str) -> None:
    """Bring the files of trained weights here, for work without a network: nothing happens if they are here.

    Raises:
        ValueError: for an unknown name.
        WeightsError: as for `read`.

    >>> fetch_weights("flowpp-digits")
    """
    read(name)


def where(found: Mapping[str, Any]) -> str:
    """Where the files of a card are; the farthest place, if there are several."""
    order = ["package", "checkout", "cache", "remote"]
    return max((_find(piece)[0] for piece in _pieces(found)), key=order.index)


def _pieces(found: Mapping[str, Any]) -> list[Piece]:
    return [Piece(**entry) for entry in found["files"]]


def _places(piece: Piece) -> Iterator[tuple[str, Traversable]]:
    """Where a file may be, the nearest first."""
    yield "package", _folder() / piece.file
    checkout = _checkout()
    if checkout is not None:
        yield "checkout", checkout / piece.file
    yield "cache", _cached(piece)


def _find(piece: Piece) -> tuple[str, Traversable | None]:
    for place, file in _places(piece):
        if file.is_file():
            return place, file
    return "remote", None


def _content(piece: Piece) -> bytes:
    """The content of a file, from the nearest place, or fetched; its hash is right."""
    place, file = _find(piece)
    if file is not None and place != "cache":
        return _own(piece, file)
    cached = _cached(piece)
    if file is not None:
        content = cached.read_bytes()
        if not piece.fault(content):
            return content
    # Not there, or damaged: the good one takes its place.
    state = "is damaged" if file is not None else "is not there"
    origin = source()
    if origin is None:
        raise WeightsError(
            f"{piece.file}: {cached} {state}, and no place to fetch it from is known. Set FLOWKIT_WEIGHTS to the "
            "address or folder that has this release's weights; a clone of the repository has them in `weights`"
        )
    if offline() and origin.startswith(("http://", "https://")):
        raise WeightsError(
            f"{piece.file}: {cached} {state}, and FLOWKIT_OFFLINE forbids fetching it from {origin}. Unset it once, or "
            "copy the file there from another machine"
        )
    fetch(piece, origin, cached)
    return _own(piece, cached)


def _own(piece: Piece, file: Traversable) -> bytes:
    """The content of a file that is nobody's to mend.

    Raises:
        WeightsError: if it is missing or damaged.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{piece.file}: the card is there, but not the weights beside it, {file}") from None
    if fault := piece.fault(content):
        raise WeightsError(f"{piece.file}: {fault}: {file} is damaged or not this release's")
    return content


def _folder() -> Traversable:
    """The weights in the package."""
    return resources.files("flowkit.zoo") / "weights"


def _checkout() -> Path | None:
    """The weights of the repository, if this is a checkout and not an installed package."""
    root = Path(__file__).parents[2]
    return root / "weights" if (root / "pyproject.toml").is_file() else None


def _cached(piece: Piece) -> Path:
    # By hash, so that two releases can share a cache.
    return cache_folder() / "weights" / piece.sha256[:16] / piece.file


def cache_folder() -> Path:
    """Where fetched files are kept: FLOWKIT_HOME, or by the custom of the platform.

    That is `~/.cache/flowkit` (below XDG_CACHE_HOME, if it is set), `~/Library/Caches/flowkit` on macOS,
    `%LOCALAPPDATA%\\flowkit` on Windows.
    """
    if home := os.environ.get("FLOWKIT_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "flowkit"


def source() -> str | None:
    """Where files are fetched from: FLOWKIT_WEIGHTS, an address (http://, https://) or a folder; None if not set.

    Raises:
        WeightsError: for an address of another kind, or one with a password.
    """
    given = os.environ.get("FLOWKIT_WEIGHTS")
    if not given:
        return None
    parts = urlsplit(given)
    if parts.scheme in ("http", "https") and parts.netloc:
        if "@" in parts.netloc:  # and none of it in the message
            raise WeightsError("FLOWKIT_WEIGHTS holds a user or a password, which would not be sent; wanted none")
        return f"{parts.scheme}{given[len(parts.scheme) :]}"  # HTTP:// is http://
    if parts.scheme == "file":
        return url2pathname(parts.path)
    if "://" in given:
        raise WeightsError(f"FLOWKIT_WEIGHTS is {given!r}, wanted http://, https:// or a folder")
    return str(Path(given).expanduser().absolute())


def offline() -> bool:
    """Whether FLOWKIT_OFFLINE forbids the network; a folder as FLOWKIT_WEIGHTS is none.

    Raises:
        WeightsError: if it says neither yes nor no.
    """
    given = os.environ.get("FLOWKIT_OFFLINE", "").strip().lower()
    if given in ("1", "true", "yes", "on"):
        return True
    if given in ("", "0", "false", "no", "off"):
        return False
    raise WeightsError(f"FLOWKIT_OFFLINE is {given!r}, wanted 1 or 0")
