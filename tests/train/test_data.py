"""Readers: every format, whole and damaged; the order of images."""

import datetime
import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from flowkit.train.data import (
    DataError,
    Images,
    Order,
    arrays,
    cifar10,
    digits,
    every_nth,
    folder,
    idx,
    mnist,
    order,
    read,
)
from flowkit.train.data.images import as_dataset

NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------------- CIFAR-10

CIFAR = {name: pixels(4, 3072, seed=number) for number, name in enumerate(NAMES)}


def python_files():
    """As the authors' Python 2 wrote them: protocol 2, keys and labels as bytes."""
    return {
        name: pickle.dumps({b"batch_label": b"x", b"labels": [0, 1, 2, 3], b"data": data, b"filenames": [b"a"]}, 2)
        for name, data in CIFAR.items()
    }


def binary_files():
    return {
        f"{name}.bin": np.concatenate([np.arange(4, dtype=np.uint8)[:, None], data], axis=1).tobytes()
        for name, data in CIFAR.items()
    }


def archive(path, inside, files):
    with tarfile.open(path, "w:gz") as made:
        for name, content in {"batches.meta": b"?", "readme.html": b"?", **files}.items():
            entry = tarfile.TarInfo(f"{inside}/{name}")
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return path


def extracted(path, files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


PLACES = {
    "python archive": lambda at: archive(at / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files()),
    "binary archive": lambda at: archive(at / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files()),
    "python folder": lambda at: extracted(at / "cifar-10-batches-py", python_files()),
    "binary folder": lambda at: extracted(at / "cifar-10-batches-bin", binary_files()),
    "folder around": lambda at: extracted(at / "data" / "cifar-10-batches-bin", binary_files()).parent,
}


@pytest.mark.parametrize("place", PLACES)
def test_cifar10_is_the_same_from_everywhere(tmp_path, place):
    split = cifar10(PLACES[place](tmp_path))
    assert (len(split.train), len(split.held_out), split.levels) == (20, 4, 256)
    whole = np.concatenate([CIFAR[name] for name in NAMES[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(split.train.__getitems__(range(20)).numpy(), whole)
    assert np.array_equal(split.held_out[3].numpy(), CIFAR["test_batch"][3].reshape(3, 32, 32))
    assert isinstance(split.train.parts[0], np.memmap) is (place in ("binary folder", "folder around"))


@pytest.mark.parametrize("place", PLACES)
def test_damaged_cifar10_is_refused_with_the_file_named(tmp_path, place):
    made = PLACES[place](tmp_path)
    victim = made if made.is_file() else next(made.rglob("data_batch_3*"))
    content = victim.read_bytes()
    for kept in (len(content) // 2, len(content) - 1):
        victim.write_bytes(content[:kept])
        with pytest.raises(DataError, match=victim.name.removesuffix(".bin")):
            cifar10(made)
    victim.unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing|no such file"):
        cifar10(made)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb",))


@pytest.mark.parametrize("place", ["python archive", "python folder"])
def test_a_pickle_that_asks_for_more_is_refused_and_not_executed(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CIFAR, "data_batch_2", Bomb())
    with pytest.raises(DataError, match=r"data_batch_2: cannot be read .* it asks for (posix|nt).mkdir"):
        cifar10(PLACES[place](tmp_path))
    assert not (tmp_path / "bomb").exists()


def test_what_is_no_cifar10_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is it CIFAR-10"):
        cifar10(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="a.tar.gz: is no whole tar archive"):
        cifar10(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match="data_batch_1 is not in the archive"):
        cifar10(archive(tmp_path / "b.tar.gz", "x", {}))
    files = binary_files()
    files["data_batch_1.bin"] = b"\x0b" + files["data_batch_1.bin"][1:]
    with pytest.raises(DataError, match="a label is 11, wanted 0 to 9"):
        cifar10(extracted(tmp_path / "c", files))


# --------------------------------------------------------------------------------------------------------------- IDX


def idx_bytes(values):
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_mnist_files(tmp_path, zipped, mark):
    train, test = pixels(5, 28, 28), pixels(3, 28, 28, seed=1)
    for name, values in (("train", train), ("t10k", test)):
        file = tmp_path / f"{name}-images{mark}idx3-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))
    split = mnist(tmp_path)
    assert np.array_equal(split.train.__getitems__(range(5)).numpy(), train[:, None])
    assert np.array_equal(split.held_out.__getitems__(range(3)).numpy(), test[:, None])
    assert isinstance(split.train.parts[0], np.memmap) is not zipped


def test_idx_of_labels(tmp_path):
    (tmp_path / "labels").write_bytes(idx_bytes(np.arange(7, dtype=np.uint8)))
    assert idx(tmp_path / "labels").tolist() == list(range(7))


GOOD = idx_bytes(pixels(2, 4, 4))
DAMAGED_IDX = {
    "cut short": (GOOD[:-1], "47 bytes, wanted 48"),
    "too long": (GOOD + b"x", "49 bytes, wanted 48"),
    "half a header": (GOOD[:9], "less than its header"),
    "empty": (b"", "no IDX file"),
    "floats": (b"\0\0\x0d" + GOOD[3:], "no IDX file of unsigned bytes: it begins with 00 00 0d 03"),
    "a huge shape": (b"\0\0\x08\x03" + b"\xff" * 12, "wanted 79228162458924105385300197391"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", DAMAGED_IDX)
def test_damaged_idx_is_refused(tmp_path, kind, zipped):
    content, reason = DAMAGED_IDX[kind]
    file = tmp_path / ("a.gz" if zipped else "a")
    file.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=reason):
        idx(file)


def test_damaged_gzip_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(GOOD)[:-9])
    with pytest.raises(DataError, match=r"a\.gz: cannot be read"):
        idx(tmp_path / "a.gz")
    with pytest.raises(DataError, match="nowhere: no such file"):
        idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing"):
        mnist(tmp_path)


# ------------------------------------------------------------------------------------------------------------- NumPy


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    x, y = pixels(6, 8, 8, 3), pixels(2, 8, 8, 3, seed=1)
    save(tmp_path / "a.npz", x_train=x, x_test=y, y_train=np.arange(6))
    split = arrays(tmp_path / "a.npz")
    assert np.array_equal(split.train.__getitems__([5, 0]).numpy(), x[[5, 0]].transpose(0, 3, 1, 2))
    assert np.array_equal(split.held_out[1].numpy(), y[1].transpose(2, 0, 1))
    assert isinstance(split.train.parts[0], np.memmap) is (save is np.savez)


def test_fortran_order_in_npz(tmp_path):
    x = np.asfortranarray(pixels(6, 8, 8))
    np.savez(tmp_path / "a.npz", x_train=x)
    split = arrays(tmp_path / "a.npz")
    assert np.array_equal(split.train[4][0].numpy(), x[4])
    assert split.held_out is None


def test_npy_alone_and_in_a_folder(tmp_path):
    x = pixels(6, 3, 8, 8)
    np.save(tmp_path / "x_train.npy", x)
    for path in (tmp_path, tmp_path / "x_train.npy"):
        split = arrays(path)
        assert isinstance(split.train.parts[0], np.memmap)
        assert np.array_equal(split.train.__getitems__(range(6)).numpy(), x)
        assert split.held_out is None


def test_damaged_and_foreign_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(2, 4, 4))
    with pytest.raises(DataError, match=r"no array 'x_train'.* \(there are images\)"):
        arrays(tmp_path / "a.npz")
    assert len(arrays(tmp_path / "a.npz", train="images").train) == 2
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.npz: is no whole \.npz file"):
        arrays(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", pixels(2, 4, 4))
    (tmp_path / "c.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"c\.npy: is no whole \.npy file"):
        arrays(tmp_path / "c.npy")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", x_train=np.array([{}, {}], dtype=object))
        with pytest.raises(DataError, match=r"d\.npz: .*[Oo]bject"):
            arrays(tmp_path / "d.npz")
    np.save(tmp_path / "e.npy", np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match=r"e\.npy: float64 .* wanted integers"):
        arrays(tmp_path / "e.npy")
    np.save(tmp_path / "f.npy", np.full((2, 4, 4), 300))
    with pytest.raises(DataError, match="values from 300 to 300, wanted integers from 0 to 255"):
        arrays(tmp_path / "f.npy")


def test_a_name_that_is_given_must_be_there(tmp_path):
    """Left out in silence, the images held out go unscored."""
    train, test = pixels(6, 8, 8), pixels(2, 8, 8, seed=1)
    np.savez(tmp_path / "a.npz", x_train=train, x_test=test)
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "x_train.npy", train)
    np.save(tmp_path / "npy" / "x_test.npy", test)
    for path in (tmp_path / "a.npz", tmp_path / "npy"):
        for argument in ("train", "held_out"):
            known = r"\(there are (x_train, x_test|x_test, x_train)\); `flowkit train` takes data\." + argument
            with pytest.raises(DataError, match=rf"no array 'x_tset' {known}=NAME"):
                read("arrays", path, **{argument: "x_tset"})
        with pytest.raises(DataError, match=r"data.train and data.held_out are both 'x_test'"):
            read("arrays", path, train="x_test", held_out="x_test")
        split = read("arrays", path, train="x_test")
        assert len(split.train) == 2 and split.held_out is None
    alone = tmp_path / "npy" / "x_train.npy"
    assert len(read("arrays", alone, train="x_train").train) == 6
    with pytest.raises(DataError, match=r"x_train\.npy: no array 'x' \(there are x_train\)"):
        read("arrays", alone, train="x")
    with pytest.raises(DataError, match=r"x_train\.npy: no array 'x_test' \(there are x_train\).*data\.held_out"):
        read("arrays", alone, held_out="x_test")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read("arrays", tmp_path / "nowhere")


def test_what_a_file_holds_says_its_kind(tmp_path):
    train, test = pixels(6, 8, 8), pixels(2, 8, 8, seed=1)
    np.savez(tmp_path / "a.npz", x_train=train, x_test=test)
    content = (tmp_path / "a.npz").read_bytes()
    for name in ("b.npy", "b.NPZ", "b"):
        (tmp_path / name).write_bytes(content)
        for reader in (arrays, mnist):
            split = reader(tmp_path / name)
            assert (len(split.train), len(split.held_out)) == (6, 2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x_train.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"folder/x_train\.npy: is an \.npz by its content"):
        arrays(tmp_path / "folder")
    np.save(tmp_path / "c.npy", train)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    assert len(arrays(tmp_path / "c.npz").train) == 6


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None])
def test_one_number_is_no_array_of_images(tmp_path, save):
    path = tmp_path / ("a.npy" if save is None else "a.npz")
    if save is None:
        np.save(path, np.uint8(3))
    else:
        save(path, x_train=np.uint8(3))
    with pytest.raises(DataError, match=rf"{path.name}.*: uint8 of shape \(\), wanted integers of shape \(n, H, W\)"):
        arrays(path)


# ----------------------------------------------------------------------------------------------------------- folders


def test_folders_of_images(tmp_path):
    x = pixels(3, 6, 4, 3)
    for number, name in enumerate(["train/b.png", "train/deep/c.png", "test/a.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[number]).save(tmp_path / name)
    (tmp_path / "train" / "notes.txt").write_text("no image")
    split = folder(tmp_path)
    assert (len(split.train), len(split.held_out)) == (2, 1)
    assert np.array_equal(split.train[1].numpy(), x[1].transpose(2, 0, 1))
    assert np.array_equal(split.held_out[0].numpy(), x[2].transpose(2, 0, 1))
    assert np.array_equal(folder(tmp_path, bits=5).train[0].numpy(), x[0].transpose(2, 0, 1) // 8)
    assert len(folder(tmp_path / "train").train) == 2


def test_a_folder_is_read_by_its_own_names(tmp_path):
    """Not by those of arrays, which would leave the held-out images among those to train on."""
    for name, count in (("train", 3), ("test", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name / f"{number}.png")
    split = read("folder", tmp_path)
    assert (len(split.train), len(split.held_out)) == (3, 2)
    split = read("folder", tmp_path, train="test", held_out="train")
    assert (len(split.train), len(split.held_out)) == (2, 3)


def test_folders_with_faults(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image files there"):
        folder(tmp_path)
    Image.fromarray(pixels(6, 4)).save(tmp_path / "a.png")
    Image.fromarray(pixels(6, 5)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: \(1, 6, 5\), wanted \(1, 6, 4\) as a\.png has"):
        folder(tmp_path)
    Image.fromarray(pixels(6, 4, 3)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: \(3, 6, 4\), wanted \(1, 6, 4\) as a\.png has"):
        folder(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    with pytest.raises(DataError, match=r"b\.png: is no image that can be read"):
        folder(tmp_path)
    with pytest.raises(DataError, match=r"folder: bits is 9, wanted a whole number from 1 to 8"):
        folder(tmp_path, bits=9)


def test_of_all_images_but_the_first_the_headers_are_read(tmp_path):
    Image.fromarray(pixels(60, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    split = folder(tmp_path)
    assert split.train[0].shape == (1, 60, 40)
    with pytest.raises(DataError, match=r"b\.png: is no image that can be read"):
        split.train[1]
    Image.fromarray(pixels(60, 41)).save(tmp_path / "b.png")  # another since
    with pytest.raises(DataError, match=r"b\.png: \(1, 60, 41\), wanted \(1, 60, 40\) as a\.png has"):
        split.train[1]


def folders(path, **counts):
    for number, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(pixels(8, 8, seed=100 * number + index)).save(path / name / f"{index}.png")
    return path


def test_folders_held_out_are_not_trained_on_under_other_names(tmp_path):
    pic = folders(tmp_path / "pic", training=5, test=2)
    with pytest.raises(
        DataError, match=r"no folder 'train' \(there are test, training\), and 'test' is not trained on"
    ):
        read("folder", pic)
    for given, missing in [
        (
            {"train": "traning", "held_out": "test"},
            r"no folder 'traning' \(there are test, training\).*data\.train=NAME",
        ),
        (
            {"train": "training", "held_out": "tset"},
            r"no folder 'tset' \(there are test, training\).*data\.held_out=NAME",
        ),
        ({"held_out": "test"}, r"no folder 'train' \(there are test, training\)"),
        ({"train": ".", "held_out": "test"}, r"share files"),
        ({"train": "test", "held_out": "test"}, r"are both 'test'"),
    ]:
        with pytest.raises(DataError, match=missing):
            read("folder", pic, **given)
    for given in ({"train": "training", "held_out": "test"}, {"train": "training"}):
        split = read("folder", pic, **given)
        assert (len(split.train), len(split.held_out)) == (5, 2)
    split = read("folder", pic, train="test")
    assert len(split.train) == 2 and split.held_out is None
    for name in ("Test", "val", "held_out"):
        with pytest.raises(DataError, match=f"'{name}' is not trained on"):
            read("folder", folders(tmp_path / f"beside {name}", images=3, **{name: 1}))
    assert len(read("folder", folders(tmp_path / "classes", cat=3, dog=2)).train) == 5
    with pytest.raises(DataError, match=r"n19 and 5 more\)"):
        read("folder", folders(tmp_path / "many", **{f"n{number:02}": 0 for number in range(25)}), train="n")
    with pytest.raises(DataError, match=r"test: no image files there"):
        read("folder", folders(tmp_path / "empty", train=3, test=0))


def png16(path, values):
    """A PNG of 16-bit colours, which pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


DEEP = {
    "grey.png": (lambda at: Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(at), r"mode I;16"),
    "grey.tif": (lambda at: Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(at), r"mode I;16"),
    "int.tif": (lambda at: Image.fromarray(np.full((8, 8), 70000, np.int32)).save(at), r"mode I,"),
    "float.tif": (lambda at: Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(at), r"mode F,"),
    "colour.png": (lambda at: png16(at, np.full((8, 8, 3), 40000)), r"mode RGB, RGB;16B in the file,"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("first", [True, False])
def test_images_of_more_than_8_bits_are_refused(tmp_path, name, first):
    """They came out cut off at 255, or as zeros."""
    save, found = DEEP[name]
    save(tmp_path / name)
    Image.fromarray(pixels(8, 8)).save(tmp_path / ("z.png" if first else "a.png"))
    with pytest.raises(DataError, match=rf"{name}: {found}.* wanted 8 bits a channel, as L and RGB have"):
        folder(tmp_path)


def test_images_of_8_bits_or_fewer_keep_their_values(tmp_path):
    colours = pixels(8, 8, 3)
    for name, image in {
        "RGB.png": Image.fromarray(colours),
        "RGBA.png": Image.fromarray(colours).convert("RGBA"),
        "RGB.tif": Image.fromarray(colours),
        "RGB.bmp": Image.fromarray(colours),
        "P.png": Image.fromarray(colours // 86 * 86).quantize(256),
    }.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / name)
        assert image.mode == name.partition(".")[0]
        wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(folder(tmp_path / name).train[0].numpy(), wanted)
    (tmp_path / "grey").mkdir()
    for mode in ("1", "L", "LA"):
        Image.fromarray(colours[..., 0]).convert(mode).save(tmp_path / "grey" / f"{mode}.png")
    split = folder(tmp_path / "grey")
    assert split.train.shape == (1, 8, 8)
    assert all(np.array_equal(split.train[index][0].numpy(), colours[..., 0]) for index in (1, 2))
    assert set(split.train[0].unique().tolist()) == {0, 255}


def test_a_header_that_tells_of_a_huge_image_is_damage(tmp_path):
    Image.fromarray(pixels(8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 1 << 20, 1 << 20)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.png: is no image that can be read"):
        folder(tmp_path)


# ------------------------------------------------------------------------------------------------------------ images


def test_bits():
    x = pixels(10, 8, 8)
    images = Images([x], bits=5)
    assert images.levels == 32
    assert np.array_equal(images.__getitems__(range(10))[:, 0].numpy(), x >> 3)
    for bits in (9, 0, 5.0, "5", True):
        with pytest.raises(DataError, match=f"bits is {bits!r}, wanted a whole number from 1 to 8"):
            Images([x], bits=bits)
    assert Images([x], bits=np.int64(5)).levels == 32


def test_where_channels_stand_must_be_clear():
    assert Images([pixels(2, 8, 8, 1)]).shape == (1, 8, 8)
    assert Images([pixels(2, 3, 8, 8)]).shape == (3, 8, 8)
    for shape in [(2, 3, 8, 3), (2, 4, 8, 8)]:
        with pytest.raises(DataError, match="say where the channels are"):
            Images([pixels(*shape)])
    assert Images([pixels(2, 3, 8, 3)], channels="first").shape == (3, 8, 3)
    assert Images([pixels(2, 8, 8, 4)], channels="last").shape == (4, 8, 8)
    with pytest.raises(DataError, match=r"images of shape \(8, 8, 3\)"):
        Images([pixels(2, 8, 8, 3)], channels="none")


def test_parts_and_indices():
    one, two = pixels(3, 4, 4), pixels(5, 4, 4, seed=1)
    images = Images([one, two])
    wanted = np.concatenate([one, two])
    mixed = [7, 0, 2, 3, 3]
    assert np.array_equal(images.__getitems__(mixed)[:, 0].numpy(), wanted[mixed])
    for index in (8, -1):
        with pytest.raises(IndexError):
            images[index]
    with pytest.raises(DataError, match="wanted integers of shape"):
        Images([one, pixels(2, 5, 4)])
    with pytest.raises(DataError, match="there are no images"):
        Images([one[:0]])
    with pytest.raises(DataError, match="there are no images"):
        Images([])


class Empty(torch.utils.data.Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


@pytest.mark.parametrize("empty", [torch.zeros(0, 1, 8, 8, dtype=torch.long), Empty()])
def test_nothing_is_no_data(empty):
    with pytest.raises(DataError, match="^images: there are no images"):
        as_dataset(empty)
    with pytest.raises(DataError, match="^held_out: there are no images"):
        as_dataset(empty, "held_out")
    with pytest.raises(DataError, match="images is a tensor of one number"):
        as_dataset(torch.tensor(3))


def test_images_held_out_have_the_size_of_those_to_train_on(tmp_path):
    """Found at the first score, it costs the run."""
    np.savez(tmp_path / "a.npz", x_train=pixels(4, 8, 8), x_test=pixels(2, 10, 10))
    wanted = r"a\.npz, x_test: images of \(1, 10, 10\), wanted \(1, 8, 8\) as a\.npz, x_train has"
    for source in ("arrays", "mnist"):
        with pytest.raises(DataError, match=wanted):
            read(source, tmp_path / "a.npz")
    for name, values in (("train", pixels(4, 8, 8)), ("t10k", pixels(2, 8, 9))):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=r"t10k-\S+: images of \(1, 8, 9\), wanted \(1, 8, 8\) as \S+train-"):
        read("mnist", tmp_path)
    folders(tmp_path / "pic", train=2, test=0)
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "pic" / "test" / "a.png")
    with pytest.raises(DataError, match=r"test: images of \(3, 8, 8\), wanted \(1, 8, 8\) as \S+train has"):
        read("folder", tmp_path / "pic")


def test_the_test_images_stay_unseen():
    train, _ = digits()
    split = read("digits", hold_out=6)
    keep = torch.arange(len(train)) % 6 != 5
    together = torch.stack([split.train[i] for i in range(len(split.train))])
    held_out = torch.stack([split.held_out[i] for i in range(len(split.held_out))])
    assert torch.equal(together, train[keep])
    assert torch.equal(held_out, train[~keep])
    for n in (1, 2.5, 6.0, "abc", True):
        with pytest.raises(DataError, match=f"hold_out is {n!r}, wanted a whole number, at least 2"):
            every_nth(split, n)
        with pytest.raises(DataError, match=f"hold_out is {n!r}, wanted a whole number, at least 2"):
            read("digits", hold_out=n)


def test_sources():
    with pytest.raises(DataError, match="data source is 'svhn', wanted one of digits, cifar10"):
        read("svhn")
    with pytest.raises(DataError, match="cifar10: path is missing, and nothing is downloaded. Wanted cifar-10-python"):
        read("cifar10")
    with pytest.raises(DataError, match="no path, no bits"):
        read("digits", bits=5)


def test_sources_of_one_split_take_no_names(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=pixels(4, 8, 8), x_test=pixels(2, 8, 8))
    for source, path in (("digits", None), ("mnist", tmp_path / "a.npz"), ("cifar10", tmp_path)):
        for argument in ("train", "held_out"):
            with pytest.raises(
                DataError, match=f"{source}: {argument} is 'foo', but this source has a split of its own"
            ):
                read(source, path, **{argument: "foo"})
    for source in ("digits", "mnist", "folder"):
        with pytest.raises(DataError, match=f"{source}: channels is 'last', but this source knows"):
            read(source, tmp_path, channels="last")


@pytest.mark.parametrize("source", ["cifar10", "mnist", "arrays", "folder"])
def test_values_of_the_wrong_kind_are_named(tmp_path, source):
    """As TOML reads them from the command line: 2024 is a number, and 2024-01-01 a date."""
    for path, told in [(2024, r"2024 \(int\)"), (datetime.date(2024, 1, 1), r"2024-01-01 \(date\)"), ("", "''")]:
        with pytest.raises(DataError, match=rf"data\.path is {told}, wanted a text; .* as data\.path=\./2024"):
            read(source, path)
    for bits in (5.0, "5", True, 9):
        with pytest.raises(DataError, match=f"{source}: bits is {bits!r}, wanted a whole number from 1 to 8"):
            read(source, tmp_path, bits=bits)
    for name in (5, "", ["x"]):
        if source in ("arrays", "folder"):
            with pytest.raises(DataError, match=f"data.train is {re.escape(repr(name))}, wanted a name as text"):
                read(source, tmp_path, train=name)


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.savez(tmp_path / "a.npz", x_train=pixels(4, 8, 8))
    assert len(read("arrays", "~/a.npz").train) == len(read("mnist", "~/a.npz").train) == 4
    assert len(read("folder", folders(tmp_path / "pic", train=2) and "~/pic").train) == 2
    extracted(tmp_path / "cifar", binary_files())
    assert len(read("cifar10", "~/cifar").train) == 20
    (tmp_path / "labels").write_bytes(GOOD)
    assert len(idx("~/labels")) == 2
    with pytest.raises(DataError, match="no such home folder"):
        read("arrays", "~nobody-of-this-name/a.npz")


# ------------------------------------------------------------------------------------------------------------- order


def test_every_pass_is_a_permutation_and_no_two_are_alike():
    passes = order(7, 0, 70, seed=3).split(7)
    assert all(torch.equal(one.sort().values, torch.arange(7)) for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) == 10
    assert not torch.equal(order(50, 0, 50, seed=0), order(50, 0, 50, seed=1))
    assert not torch.equal(order(50, 0, 50, seed=1), order(50, 50, 50, seed=0))


@pytest.mark.parametrize("start", [0, 5, 14, 1000])
def test_it_can_begin_anywhere(start):
    assert torch.equal(order(7, start, 40, seed=0), order(7, 0, 1100, seed=0)[start : start + 40])


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (3, 2), (1, 6)])
def test_processes_and_parts_share_every_batch(world, parts):
    every = [iter(Order(31, batch=12, seed=0, start=24, rank=rank, world=world, parts=parts)) for rank in range(world)]
    for step in range(2, 8):
        seen = [index for one in every for _ in range(parts) for index in next(one)]
        assert seen == order(31, 12 * step, 12, seed=0).tolist()


def test_a_loader_takes_it(tmp_path):
    x = pixels(31, 4, 4)
    from flowkit.train.data.images import collate

    loader = iter(DataLoader(Images([x]), batch_sampler=Order(31, batch=12, seed=0), collate_fn=collate))
    assert np.array_equal(next(loader)[:, 0].numpy(), x[order(31, 0, 12, seed=0)])


# --------------------------------------------------------------------------------------------------- the real files

REAL = os.environ.get("FLOWKIT_DATA")


@pytest.mark.data
@pytest.mark.parametrize(
    ("names", "reader", "count", "mean"),
    [
        (["cifar-10-python.tar.gz", "cifar-10-batches-py"], cifar10, 50_000, 120.7076),
        (["cifar-10-binary.tar.gz", "cifar-10-batches-bin"], cifar10, 50_000, 120.7076),
        (["mnist", "MNIST/raw", "mnist.npz"], mnist, 60_000, 33.3184),
    ],
)
def test_the_real_files(names, reader, count, mean):
    if REAL is None:
        pytest.skip("FLOWKIT_DATA names no folder with the real files")
    path = next((Path(REAL) / name for name in names if (Path(REAL) / name).exists()), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} in FLOWKIT_DATA")
    split = reader(path)
    assert (len(split.train), len(split.held_out)) == (count, 10_000)
    parts = torch.arange(count).split(5000)
    found = sum(split.train.__getitems__(part.tolist()).double().mean().item() for part in parts) / len(parts)
    assert found == pytest.approx(mean, abs=1e-3)
