"""Checkpoints that a kill at any moment leaves whole: written aside, flushed to the disk, renamed into place.

A checkpoint is a folder. `manifest.json` names its files with sizes and SHA-256, and what it is a checkpoint of.
Tensors are safetensors, or the shards of `torch.distributed.checkpoint` in a run under FSDP; the rest is
`training.pt`, which is read with `weights_only=True`. Nothing is ever unpickled freely.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from flowkit.files import folder_to_disk
from flowkit.train.parallel import Processes
from flowkit.zoo.files import WeightsError, fill

__all__ = [
    "CheckpointError",
    "Found",
    "newest",
    "random_state",
    "save",
    "set_random_state",
    "tidy",
]

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is damaged, foreign, or could not be written."""


# ---------------------------------------------------------------------------------------------------------- writing


class _Hashed:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.size += len(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, write: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file down to the disk; its size and hash."""
    with path.open("wb") as file:
        hashed = _Hashed(file)
        write(hashed)
        file.flush()
        os.fsync(file.fileno())
    return {"size": hashed.size, "sha256": hashed.hash.hexdigest()}


def save(
    folder: Path,
    step: int,
    flow: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    facts: Mapping[str, Any],
    ours: Processes,
    *,
    keep: int = 2,
    score: float | None = None,
) -> Path:
    """Write the checkpoint of `step`, then delete all but the last `keep` and the best. Every process calls it.

    Args:
        folder: of the checkpoints of one run; made if missing.
        step: how many steps are done.
        flow: the model, sharded or whole.
        averaged: its moving average.
        optimizer: of the model's parameters.
        state: what else the run goes on from: numbers, texts, tensors, lists and dicts of them. The random states of
            all processes are added.
        facts: what it is a checkpoint of, in JSON.
        keep: how many to keep.
        score: held-out bits/dim, always with as many draws; the checkpoint with the lowest is kept besides.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if it cannot be written, say on a full disk, on every process; earlier checkpoints are whole.
    """
    final = folder / f"step-{step:09d}"
    partial, replaced = final.with_suffix(".partial"), final.with_suffix(".replaced")
    state = {**state, "random": ours.gather(random_state(ours.device))}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in flow.parameters())
    if not sharded:
        state["optimizer"] = optimizer.state_dict()
    with _together(ours, f"{final.name} was not written"):
        if ours.first:
            folder.mkdir(parents=True, exist_ok=True)
            tidy(folder)
            partial.mkdir()
    files: dict[str, Any] = {}
    try:
        with _together(ours, f"{final.name} was not written"):
            if sharded:
                files |= _write_shards(partial, flow, averaged, optimizer, ours)
            if ours.first:
                files["training.pt"] = _write(partial / "training.pt", lambda file: torch.save(state, file))
                for name, module in () if sharded else (("model", flow), ("ema", averaged)):
                    path = partial / f"{name}.safetensors"
                    files[path.name] = _write_tensors(path, module.state_dict())
        every = ours.gather(files)
        with _together(ours, f"{final.name} was not written"):
            if ours.first:
                manifest = {
                    "format": FORMAT,
                    "step": step,
                    "bits_per_dim": score,
                    "sharded": sharded,
                    "processes": ours.world,
                    "of": dict(facts),
                    "files": {name: fact for found in every for name, fact in found.items()},
                }
                text = json.dumps(manifest, indent=1, default=str).encode()
                _write(partial / "manifest.json", lambda file: file.write(text))
                folder_to_disk(partial)
                if final.exists():  # a damaged one, which the run has passed again
                    os.rename(final, replaced)
                os.rename(partial, final)
                folder_to_disk(folder)
                shutil.rmtree(replaced, ignore_errors=True)
                _prune(folder, final.name, keep)
    except CheckpointError:
        if ours.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _write_tensors(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    # Layouts of memory and sharing of it are no facts of a model: every tensor stands for itself.
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in values.items()}
    content = save_safetensors(tensors)
    return _write(path, lambda file: file.write(content))


class _together:
    """If one process fails within, all of them raise, with its reason: nobody waits for one that is gone."""

    def __init__(self, ours: Processes, what: str) -> None:
        self.ours, self.what = ours, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, OSError | RuntimeError | ValueError):
            return
        reasons = self.ours.gather(None if error is None else (str(error) or type(error).__name__))
        for reason in reasons:
            if reason is not None:
                raise CheckpointError(f"{self.what}: {reason}") from error


def tidy(folder: Path) -> bool:
    """Remove what a kill left half done; whether there are checkpoints."""
    for path in folder.glob("step-*.replaced"):
        final = path.with_suffix("")
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, final)
    for path in folder.glob("step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    return bool(_folders(folder))


def _prune(folder: Path, newest: str, keep: int) -> None:
    # Later ones than the newest are damaged and were passed over; they must not count in place of good ones.
    checkpoints = [path for path in _folders(folder) if path.name <= newest]
    scores: dict[Path, Any] = {path: _manifest(path).get("bits_per_dim") for path in checkpoints}
    best = min((path for path in checkpoints if scores[path] is not None), key=lambda p: scores[p], default=None)
    for path in checkpoints[keep:]:
        if path != best:
            # Away under a name that nobody reads, so that a kill leaves no half of one.
            gone = path.with_suffix(".partial")
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix == "" and path.is_dir()), reverse=True)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are whole."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """How many steps were done."""
        return int(self.manifest["step"])

    def average(self, flow: nn.Module) -> None:
        """Put the averaged weights into `flow`, which is not sharded, whatever the run was.

        Raises:
            CheckpointError: if they are those of another model.
        """
        if self.manifest["sharded"]:
            _fill_from_shards({f"ema.{key}": value for key, value in flow.state_dict().items()}, self.path / "shards")
        else:
            tensors = load_safetensors((self.path / "ema.safetensors").read_bytes())
            _load_whole(flow, tensors, f"{self.path.name}/ema")

    def restore(
        self, flow: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, ours: Processes
    ) -> dict[str, Any]:
        """Put everything back where it was; what `save` got as `state`.

        Raises:
            CheckpointError: if it is one of another model or optimizer, naming what does not fit.
        """
        try:
            state = torch.load(self.path / "training.pt", weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.path.name}: training.pt cannot be read: {_first_line(error)}") from None
        if self.manifest["sharded"]:
            _read_shards(self.path / "shards", flow, averaged, optimizer)
        else:
            for name, module in (("model", flow), ("ema", averaged)):
                tensors = load_safetensors((self.path / f"{name}.safetensors").read_bytes())
                _load_whole(module, tensors, f"{self.path.name}/{name}")
            _load_optimizer(flow, optimizer, state.pop("optimizer"), self.path.name)
        every = state.pop("random")
        if len(every) == ours.world:
            set_random_state(every[ours.rank], ours.device)
        return state


def newest(folder: Path, refused: Callable[[str], None]) -> Iterator[Found]:
    """The whole checkpoints in `folder`, newest first. `refused` is told why one is passed over.

    >>> list(newest(Path("nowhere"), print))
    []
    """
    for path in _folders(folder):
        try:
            yield Found(path, _verified(path))
        except CheckpointError as error:
            refused(str(error))


def _verified(path: Path) -> dict[str, Any]:
    """The manifest, after every file was held to it.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    manifest = _manifest(path)
    if not manifest:
        raise CheckpointError(f"{path.name}: no manifest.json that can be read; this is no checkpoint, or half of one")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path.name}: format {manifest.get('format')!r}, wanted {FORMAT}")
    lacks = [key for key in ("step", "sharded", "processes", "of", "files") if key not in manifest]
    files = manifest.get("files")
    if not lacks and isinstance(files, dict):
        needed = ["training.pt"] + ([] if manifest["sharded"] else ["model.safetensors", "ema.safetensors"])
        lacks = [name for name in needed if not {"size", "sha256"} <= set(files.get(name) or {})]
    if lacks or not isinstance(files, dict):
        raise CheckpointError(f"{path.name}: manifest.json lacks {', '.join(lacks) or 'files'}; this is no checkpoint")
    for name, fact in files.items():
        try:
            size, digest = (path / name).stat().st_size, _digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{path.name}: {name} cannot be read: {error.strerror}") from None
        if size != fact["size"]:
            raise CheckpointError(f"{path.name}: {name} has {size} bytes, wanted {fact['size']}: it is cut short")
        if digest != fact["sha256"]:
            raise CheckpointError(f"{path.name}: {name} does not have the SHA-256 of its manifest: it is damaged")
    return manifest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_whole(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Into a module that may be sharded."""
    try:
        if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            set_model_state_dict(module, dict(tensors), options=StateDictOptions(full_state_dict=True))
        else:
            fill(module, tensors, source)
    except (WeightsError, RuntimeError) as error:
        raise CheckpointError(f"{_first_line(error)}; it is damaged, or a checkpoint of another model") from None


def _load_optimizer(flow: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], source: str) -> None:
    if any(hasattr(parameter, "full_tensor") for parameter in flow.parameters()):
        raise CheckpointError(
            f"{source}: written by a run that was not sharded, which cannot go on under FSDP; parallel = 'ddp' can"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        wrong = index >= len(parameters) or any(
            isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape
            for value in entry.values()
        )
        if wrong:
            raise CheckpointError(f"{source}: the optimizer's state of parameter {index} does not fit this model")
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{source}: the optimizer's state does not fit: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# -------------------------------------------------------------------------------------------------------- shards


def _shards_of(flow: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a sharded run by one name; all of them tensors, so that none needs unpickling."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    found: dict[str, Any] = {f"model.{key}": value for key, value in get_model_state_dict(flow).items()}
    found |= {f"ema.{key}": value for key, value in get_model_state_dict(averaged).items()}
    states: Any = get_optimizer_state_dict(flow, optimizer)["state"]
    for name, entry in states.items():
        found |= {f"optimizer.{name}.{key}": value for key, value in entry.items() if isinstance(value, Tensor)}
    return found


def _write_shards(
    partial: Path, flow: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, ours: Processes
) -> dict[str, Any]:
    """Write the shards, each process its own; size and hash of those of this process."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    tensors: dict[str, Any] = dict(_shards_of(flow, averaged, optimizer))
    try:
        save_shards(tensors, storage_writer=FileSystemWriter(partial / "shards", sync_files=True))
    except CheckpointException as error:  # which is no Exception
        raise OSError("; ".join(str(reason) for reason, _ in error.failures.values())) from None
    mine = sorted((partial / "shards").glob(f"__{ours.rank}_*"))
    if ours.first:
        mine.append(partial / "shards" / ".metadata")
        folder_to_disk(partial / "shards")
    return {f"shards/{path.name}": {"size": path.stat().st_size, "sha256": _digest(path)} for path in mine}


class _Unpickler(pickle.Unpickler):
    """Reads the table of contents that torch.distributed.checkpoint pickles, and refuses everything else."""

    MODULES = ("torch.distributed.checkpoint.metadata",)
    NAMES = frozenset({
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
        ("collections", "OrderedDict"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or module in self.MODULES or (module, name) in self.NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of contents")


def _read_shards(path: Path, flow: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    present = _fill_from_shards(_shards_of(flow, averaged, optimizer), path, all_of_them=True)
    everything: Any = get_optimizer_state_dict(flow, optimizer)
    for name, entry in everything["state"].items():
        entry.update({key: present.get(f"optimizer.{name}.{key}", value) for key, value in entry.items()})
    set_optimizer_state_dict(flow, optimizer, everything)


def _fill_from_shards(wanted: dict[str, Tensor], path: Path, *, all_of_them: bool = False) -> dict[str, Any]:
    """Read into the tensors `wanted`, in place; those that were there.

    Raises:
        CheckpointError: if the shards lack one, have another shape, or, with `all_of_them`, hold others beside.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with (path / ".metadata").open("rb") as file:
                metadata = _Unpickler(file).load()
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    reader = Reader(path)
    try:
        entries = reader.read_metadata().state_dict_metadata
    except (pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise CheckpointError(f"{path.parent.name}: shards/.metadata cannot be read: {_first_line(error)}") from None
    if any(not isinstance(entry, TensorStorageMetadata) for entry in entries.values()):
        raise CheckpointError(f"{path.parent.name}: shards hold something that is no tensor")
    # A parameter that no gradient has reached has no state there, and needs none here.
    missing = [key for key in wanted if key not in entries and not key.startswith("optimizer.")]
    unknown = [key for key in entries if key not in wanted] if all_of_them else []
    if missing or unknown:
        which = f"lack {missing[0]}" if missing else f"have unknown {unknown[0]}"
        raise CheckpointError(f"{path.parent.name}: the shards {which}; it is a checkpoint of another model")
    for key, value in wanted.items():
        if key in entries and entries[key].size != value.shape:
            raise CheckpointError(
                f"{path.parent.name}: {key} is {tuple(entries[key].size)}, wanted {tuple(value.shape)}; "
                "it is a checkpoint of another model"
            )
    present: dict[str, Any] = {key: value for key, value in wanted.items() if key in entries}
    try:
        with warnings.catch_warnings():
            # One process may well read what several wrote.
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            load_shards(present, storage_reader=reader)
    except CheckpointException as error:
        reasons = "; ".join(str(reason) for reason, _ in error.failures.values())
        raise CheckpointError(f"{path.parent.name}: the shards cannot be read: {reasons}") from None
    return present


# ------------------------------------------------------------------------------------------------- random states


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that a loss may draw from on this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
