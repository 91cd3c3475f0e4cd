"""Readers of the usual formats: CIFAR-10, IDX, NumPy, folders of images."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowkit.train.data.images import DataError, Images, Layout, Split, as_dataset, check_bits, every_nth
from flowkit.train.data.scikit import digits

__all__ = ["SOURCES", "WANTED", "arrays", "cifar10", "folder", "idx", "mnist", "name_of", "read"]

SOURCES = ("digits", "cifar10", "mnist", "arrays", "folder")

# What a path must name, and an example of one.
WANTED = {
    "cifar10": (
        "cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder that one was extracted to",
        "cifar-10-python.tar.gz",
    ),
    "mnist": (
        "an .npz with the arrays x_train and x_test, or a folder with the IDX files train-images-idx3-ubyte and "
        "t10k-images-idx3-ubyte, gzipped or not",
        "mnist.npz",
    ),
    "arrays": (
        "an .npz with the arrays x_train and x_test, a folder with x_train.npy and x_test.npy, or one .npy",
        "images.npz",
    ),
    "folder": ("a folder of image files, with folders train and test inside, or with none held out", "images"),
}


def read(
    source: str,
    path: str | Path | None = None,
    *,
    bits: int = 8,
    channels: Layout = "auto",
    train: str | None = None,
    held_out: str | None = None,
    hold_out: int | None = None,
) -> Split:
    """What a config names: images to train on and images held out.

    Args:
        source: "digits", "cifar10", "mnist", "arrays" or "folder".
        path: the file or folder; every source but "digits" needs one. `~` is the home folder.
        bits: how many bits of 8 to keep.
        channels: of arrays alone: "first", "last", "none", or "auto" to look.
        train: of arrays, the name of the array, "x_train" if not given; of a folder, the folder inside it, "train".
            Other sources have a split of their own and take no names.
        held_out: the same for what is held out, "x_test" and "test"; it may be missing if it is not given.
        hold_out: hold every nth training image out instead, to choose settings on.

    Raises:
        DataError: for an unknown source, a missing path, a value of the wrong kind, a name that is not there, images
            held out of another size than those to train on, or whatever is wrong with the files.

    >>> split = read("digits")
    >>> len(split.train), len(split.held_out), split.levels
    (1438, 359, 17)
    """
    if source not in SOURCES:
        raise DataError(f"data source is {source!r}, wanted one of {', '.join(SOURCES)}")
    check_bits(bits, source)
    for name, given in (("train", train), ("held_out", held_out)):
        if given is not None and source not in ("arrays", "folder"):
            raise DataError(
                f"{source}: {name} is {given!r}, but this source has a split of its own and takes no names; "
                "arrays and folder do"
            )
    if channels != "auto" and source != "arrays":
        raise DataError(f"{source}: channels is {channels!r}, but this source knows where they stand; arrays take it")
    if source == "digits":
        if bits != 8 or path is not None:
            raise DataError("digits: these images have 17 levels and come with scikit-learn; no path, no bits")
        train_images, test_images = digits()
        split = Split(as_dataset(train_images), as_dataset(test_images), levels=17)
    elif path is None:
        what, example = WANTED[source]
        raise DataError(f"{source}: path is missing, and nothing is downloaded. Wanted {what}; path={example!r}, say")
    elif source == "cifar10":
        split = cifar10(path, bits=bits)
    elif source == "mnist":
        split = mnist(path, bits=bits)
    elif source == "arrays":
        split = arrays(path, train=train, held_out=held_out, channels=channels, bits=bits)
    else:
        split = folder(path, train=train, held_out=held_out, bits=bits)
    return split if hold_out is None else every_nth(split, hold_out)


def name_of(source: str, path: str | Path | None = None, bits: int = 8) -> str:
    """What a card calls the data of `read`: the source where that is one data set, else the file or folder.

    >>> name_of("mnist", "files/mnist.npz"), name_of("arrays", "files/imagenet32/"), name_of("folder", "celeba", bits=5)
    ('mnist', 'imagenet32', 'celeba, 5 bits')
    """
    name = source if path is None or source in ("digits", "cifar10", "mnist") else Path(path).resolve().stem
    return name if bits == 8 else f"{name}, {bits} bits"


def _path(path: str | Path) -> Path:
    """A path as given, its `~` expanded."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        kind = "" if isinstance(path, str) else f" ({type(path).__name__})"
        raise DataError(
            f"data.path is {str(path) or repr(path)}{kind}, wanted a text; a name that reads as a number or a date "
            "goes behind ./, as data.path=./2024"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise DataError(f"{path}: no such home folder: {error}") from None


def _check_names(train: str | None, held_out: str | None) -> None:
    for name, given in (("train", train), ("held_out", held_out)):
        if given is not None and (not isinstance(given, str) or not given):
            raise DataError(f"data.{name} is {given!r}, wanted a name as text")
    if train is not None and train == held_out:
        raise DataError(f"data.train and data.held_out are both {train!r}, wanted images that are not trained on")


def _missing(path: Path, kind: str, argument: str, name: str, there: list[str]) -> DataError:
    return DataError(f"{path}: no {kind} {name!r} ({_listed(there)}); `flowkit train` takes data.{argument}=NAME")


def _listed(there: list[str]) -> str:
    """A folder for each class makes a thousand: the first ones show what kind of names they are."""
    more = f" and {len(there) - 20} more" if len(there) > 20 else ""
    return f"there are {', '.join(there[:20]) or 'none'}{more}"


def _split(train: Images | _Folder, held_out: Images | _Folder | None, bits: int) -> Split:
    # Seen here, before the first step: images held out are scored for the first time long after it.
    if held_out is not None and held_out.shape != train.shape:
        raise DataError(
            f"{held_out.name}: images of {held_out.shape}, wanted {train.shape} as {train.name} has; "
            "images are not resized here"
        )
    return Split(train, held_out, levels=2**bits)


# ---------------------------------------------------------------------------------------------------------- CIFAR-10


def cifar10(path: str | Path, *, bits: int = 8) -> Split:
    """CIFAR-10 from its python or binary version, extracted or not.

    Extracted binary files are memory-mapped; the others are read into memory, 184 MB. The python version is a pickle,
    of which only arrays, texts, lists and dicts are read: anything else in it is refused, and nothing is executed.

    Args:
        path: `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, a folder that one was extracted to, or the folder
            around it.
        bits: how many bits of 8 to keep.

    Returns:
        Images (3, 32, 32): those of `data_batch_1` to `data_batch_5`, and those of `test_batch`.

    Raises:
        DataError: for missing or damaged files, named.

    Reference:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    path = _path(path)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    if path.is_dir():
        inner = [path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"]
        found = next((place for place in inner for end in ("", ".bin") if (place / f"{names[0]}{end}").is_file()), None)
        if found is None:
            raise DataError(f"{path}: no data_batch_1 or data_batch_1.bin there; is it CIFAR-10?")
        parts = [_cifar_file(found, name) for name in names]
    elif path.is_file():
        parts = _cifar_archive(path, names)
    else:
        raise DataError(f"{path}: no such file or folder")
    sizes = {name: len(part) for name, part in zip(names, parts, strict=True)}
    odd = next((name for name in names if sizes[name] != max(sizes.values())), None)
    if odd is not None:
        raise DataError(f"{path}: {odd} has {sizes[odd]} images, others {max(sizes.values())}: it is cut short")
    images = [part.reshape(-1, 3, 32, 32) for part in parts]
    options: dict[str, Any] = {"channels": "first", "bits": bits}
    return Split(
        Images(images[:5], name=f"{path.name}, data_batch_1 to 5", **options),
        Images(images[5:], name=f"{path.name}, test_batch", **options),
        levels=2**bits,
    )


def _cifar_file(place: Path, name: str) -> np.ndarray:
    binary, pickled = place / f"{name}.bin", place / name
    if binary.is_file():
        return _cifar_binary(np.memmap(binary, dtype=np.uint8, mode="r") if binary.stat().st_size else b"", binary)
    if pickled.is_file():
        return _cifar_pickle(pickled.read_bytes(), pickled)
    raise DataError(f"{place}: {name} is missing")


def _cifar_archive(path: Path, names: list[str]) -> list[np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with _damage(path, "is no whole tar archive"), tarfile.open(path) as archive:
        for member in archive:
            base = member.name.rsplit("/", 1)[-1]
            name = base.removesuffix(".bin")
            if name in names and member.isfile():
                file = archive.extractfile(member)
                content = file.read() if file is not None else b""
                reader = _cifar_binary if base.endswith(".bin") else _cifar_pickle
                found[name] = reader(content, f"{path}, {member.name}")
        while archive.fileobj is not None and archive.fileobj.read(1 << 20):
            pass  # to the end, where gzip has the checksum of it all
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path}: {missing[0]} is not in the archive; is it CIFAR-10?")
    return [found[name] for name in names]


def _cifar_binary(content: Any, source: object) -> np.ndarray:
    """Records of a label and 3072 bytes."""
    values = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
    if not len(values) or len(values) % 3073:
        raise DataError(f"{source}: {len(values)} bytes, wanted records of 3073: it is cut short, or no CIFAR-10")
    records = values.reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise DataError(f"{source}: a label is {records[:, 0].max()}, wanted 0 to 9: it is damaged, or no CIFAR-10")
    return records[:, 1:]


class _Unpickler(pickle.Unpickler):
    """Reads arrays, and refuses whatever else a pickle can ask for."""

    ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        # numpy moved the place that old pickles name, and warns of it.
        return super().find_class(module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module, name)


def _cifar_pickle(content: bytes, source: object) -> np.ndarray:
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{source}: cannot be read as a CIFAR-10 batch: {error}") from None
    data = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{source}: no array of bytes (n, 3072) under 'data'; is it CIFAR-10?")
    return data


# --------------------------------------------------------------------------------------------------------------- IDX


def idx(path: str | Path) -> np.ndarray:
    """The array in one IDX file, such as `train-images-idx3-ubyte`; memory-mapped unless it ends in `.gz`.

    Args:
        path: the file.

    Returns:
        Unsigned bytes, of the shape in its header.

    Raises:
        DataError: if it is none, cut short, or not of unsigned bytes.

    Reference:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998.
    """
    path = _path(path)
    zipped = path.suffix == ".gz"
    with _damage(path, "cannot be read"), gzip.open(path) if zipped else path.open("rb") as file:
        content: Any = file.read() if zipped else file.read(4 + 4 * 255)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 8 or not content[3]:
        raise DataError(f"{path}: no IDX file of unsigned bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path}: {len(content)} bytes, which is less than its header: it is cut short")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    size = len(content) if zipped else path.stat().st_size
    if size != start + int(np.prod(shape, dtype=object)):
        raise DataError(f"{path}: {size} bytes, wanted {start + int(np.prod(shape, dtype=object))} for {shape}")
    if zipped or not all(shape):
        return (
            np.frombuffer(content, np.uint8, offset=start).reshape(shape) if all(shape) else np.empty(shape, np.uint8)
        )
    return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)


def mnist(path: str | Path, *, bits: int = 8) -> Split:
    """MNIST and what is packed like it: a folder with four IDX files, gzipped or not, or an `.npz`.

    Args:
        path: a folder with `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, or a dot for the second hyphen,
            with `.gz` or without; or an `.npz` with `x_train` and `x_test`.
        bits: how many bits of 8 to keep.

    Returns:
        Images (1, 28, 28) of MNIST; whatever size the files have.

    Raises:
        DataError: for missing or damaged files, named.
    """
    path = _path(path)
    if not path.is_dir() and _is_npz(path):
        return arrays(path, bits=bits)
    if not path.is_dir():
        raise DataError(f"{path}: wanted a folder with IDX files, or an .npz")
    found = {}
    for part in ("train", "t10k"):
        names = [f"{part}-images{mark}idx3-ubyte{end}" for mark in "-." for end in ("", ".gz")]
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise DataError(f"{path}: {names[0]} is missing")
        found[part] = Images([idx(file)], channels="none", bits=bits, name=str(file))
    return _split(found["train"], found["t10k"], bits)


# ------------------------------------------------------------------------------------------------------------- NumPy


def arrays(
    path: str | Path,
    *,
    train: str | None = None,
    held_out: str | None = None,
    channels: Layout = "auto",
    bits: int = 8,
) -> Split:
    """Images in `.npy` or `.npz` files.

    `.npy` files, and members of an `.npz` that `numpy.savez` wrote without compression, are memory-mapped.

    Args:
        path: an `.npz`; or an `.npy` with images to train on; or a folder of `.npy` files named as what follows. What a
            file begins with says which of them it is, whatever its name.
        train: name of the images to train on; "x_train" if not given, and of one `.npy` whatever its name is.
        held_out: name of the images held out; if not given, "x_test", or none where that is not there.
        channels: where they stand: "first", "last", "none", or "auto" to look.
        bits: how many bits of 8 to keep.

    Raises:
        DataError: for missing names, with those there are, for damaged files, for arrays of objects, and for images
            held out of another size.
    """
    path = _path(path)
    _check_names(train, held_out)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        there = list(files)
    elif _is_npz(path):
        files, there = {}, _npz_names(path)
    else:
        files = {path.stem: path}
        there = list(files)
        train = path.stem if train is None else train
    train = "x_train" if train is None else train
    # The name that nobody gave may be missing, and is not meant where another was given for it.
    default = "x_test" if "x_test" in there and train != "x_test" else None
    made: dict[str, Images] = {}
    for argument, name in (("train", train), ("held_out", default if held_out is None else held_out)):
        if name is not None and name not in there:
            raise _missing(path, "array", argument, name, there)
        if name is not None:
            array = _npy(files[name]) if files else _npz(path, name)
            label = path.name if files.get(name) == path else f"{path.name}, {name}"
            made[argument] = Images([array], channels=channels, bits=bits, name=label)
    return _split(made["train"], made.get("held_out"), bits)


def _is_npz(path: Path) -> bool:
    """Whether a file is an `.npz`: by what it begins with, and by its name if that says nothing."""
    start = b""
    if path.is_file():
        with _damage(path, "cannot be read"), path.open("rb") as file:
            start = file.read(6)
    if start == np.lib.format.MAGIC_PREFIX:
        return False
    return start[:2] == b"PK" or path.suffix.lower() == ".npz"


def _npy(path: Path) -> np.ndarray:
    with _damage(path, "is no whole .npy file"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is an .npz by its content, wanted one array; give the file itself as the path")
    return array


def _npz_names(path: Path) -> list[str]:
    with _damage(path, "is no whole .npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _npz(path: Path, name: str) -> np.ndarray:
    with _damage(path, "is no whole .npz file"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type == zipfile.ZIP_STORED:
            return _stored(path, entry)
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _stored(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """A member that is not compressed, mapped where it lies."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"no member at {entry.header_offset}")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(name_length + extra_length, os.SEEK_CUR)
        begin, version = file.tell(), np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        size = file.tell() - begin + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size != entry.file_size:
            raise ValueError(f"{entry.filename} has {entry.file_size} bytes, wanted {size}")
        order: Any = "F" if fortran else "C"
        if not all(shape):
            return np.empty(shape, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)


# ----------------------------------------------------------------------------------------------------------- folders


# Modes of 8 bits or fewer. Of the others the upper values would be cut off, or the fractions.
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")

# What folders of images held out are called, in lower case: never to be trained on because no other was named.
_KEPT_APART = ("test", "tests", "testing", "val", "valid", "validation", "eval", "held_out", "held-out", "heldout")


class _Folder(Dataset[Tensor]):
    """Image files, decoded when asked for."""

    def __init__(self, place: Path, files: list[Path], bits: int) -> None:
        self.name, self.files, self.bits = str(place), files, bits
        self.shape = tuple(_decode(files[0], bits).shape)
        # A header takes some microseconds; found in the middle of a run, an odd file takes the run.
        for file in files[1:]:
            with _opened(file) as image:
                self._check(file, _shape(image))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = _decode(self.files[index], self.bits)
        self._check(self.files[index], tuple(image.shape))
        return image

    def _check(self, file: Path, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise DataError(
                f"{file}: {shape}, wanted {self.shape} as {self.files[0].name} has; images are not resized here"
            )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file of 8 bits, of which the header alone is read yet."""
    from PIL import Image

    with _damage(path, "is no image that can be read", Image.DecompressionBombError), Image.open(path) as image:
        # Colours of 16 bits have the mode of 8 and are cut down to it: only the layout in the file tells.
        layouts = [str(tile[-1]) for tile in image.tile]
        deep = next((layout for layout in layouts if re.search(r";16[BLN]", layout)), None)
        if image.mode not in (*_GREY, *_COLOUR) or deep is not None:
            found = f"mode {image.mode}" if deep is None else f"mode {image.mode}, {deep} in the file"
            raise DataError(
                f"{path}: {found}, wanted 8 bits a channel, as L and RGB have; scale it to 0..255 and save it as that"
            )
        yield image


def _shape(image: Any) -> tuple[int, ...]:
    return (1 if image.mode in _GREY else 3, image.height, image.width)


def _decode(path: Path, bits: int) -> Tensor:
    with _opened(path) as image:
        pixels = np.array(image.convert("L" if image.mode in _GREY else "RGB"))
    return torch.from_numpy(pixels >> (8 - bits)).reshape(*pixels.shape[:2], -1).movedim(-1, 0)


def folder(path: str | Path, *, train: str | None = None, held_out: str | None = None, bits: int = 8) -> Split:
    """Image files in a folder and the folders below it, in the order of their names; decoded when they are needed.

    All headers are read at once, so that a file of another size is found before training.

    Args:
        path: a folder with a folder of each of the two names below; or one with image files alone, all to train on.
        train: the folder of images to train on; "train" if not given, or the whole where that is not there.
        held_out: the folder of images held out; if not given, "test", or none where that is not there.
        bits: how many bits of 8 to keep.

    Returns:
        Images (3, H, W), or (1, H, W) if they are grey; all of one size.

    Raises:
        DataError: for folders without images, for names that are not there, with those that are, for a folder such as
            "test" beside none to train on, for files that cannot be decoded or have more than 8 bits, and for images of
            unlike sizes, named.
        ImportError: without pillow, naming the extra.
    """
    path = _path(path)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("folder: pillow is missing; in a clone: pip install '.[train]'") from error
    check_bits(bits, "folder")
    _check_names(train, held_out)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    known = set(Image.registered_extensions())

    def files(place: Path) -> list[Path]:
        found = sorted(file for file in place.rglob("*") if file.suffix.lower() in known and file.is_file())
        if not found:
            raise DataError(f"{place}: no image files there")
        return found

    inside = sorted(place.name for place in path.iterdir() if place.is_dir())
    if train is None and held_out is None and not (path / "train").is_dir():
        found = files(path)
        tops = {file.relative_to(path).parts[0] for file in found}
        apart = next((name for name in inside if name in tops and name.lower() in _KEPT_APART), None)
        if apart is not None:
            raise DataError(
                f"{path}: no folder 'train' ({_listed(inside)}), and {apart!r} is not trained on; `flowkit train` "
                "takes data.train=NAME data.held_out=NAME"
            )
        return _split(_Folder(path, found, bits), None, bits)
    train = "train" if train is None else train
    # The name that nobody gave may be missing, and is not meant where another was given for it.
    default = "test" if (path / "test").is_dir() and train != "test" else None
    made: dict[str, _Folder] = {}
    for argument, name in (("train", train), ("held_out", default if held_out is None else held_out)):
        if name is not None and not (path / name).is_dir():
            raise _missing(path, "folder", argument, name, inside)
        if name is not None:
            made[argument] = _Folder(path / name, files(path / name), bits)
    if "held_out" in made and set(made["train"].files) & set(made["held_out"].files):
        raise DataError(f"{path}: {made['held_out'].name} and {made['train'].name} share files, wanted folders apart")
    return _split(made["train"], made.get("held_out"), bits)


# ------------------------------------------------------------------------------------------------------------ damage


@contextmanager
def _damage(path: Path, what: str, *more: type[BaseException]) -> Iterator[None]:
    """Whatever a decoder says of a damaged file, as one kind of error that names the file."""
    damage: tuple[type[BaseException], ...] = (
        OSError, EOFError, ValueError, SyntaxError, RuntimeError, struct.error,
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, *more,
    )  # fmt: skip
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except damage as error:
        raise DataError(f"{path}: {what}: {error}") from None
