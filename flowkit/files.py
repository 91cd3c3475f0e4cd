"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["folder_to_disk", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path`: whoever reads finds the old content or the new, whole, even after a power cut.

    Raises:
        OSError: if it cannot be written; the old file is as it was.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    folder_to_disk(path.parent)


def folder_to_disk(path: Path) -> None:
    """A rename is on the disk when its folder is. Windows has no such call and needs none."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
