"""Brings one weights file into its place: whole and right, or not at all."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import logging
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flowkit.progress import progress_bar
from flowkit.zoo.files import Piece, WeightsError

__all__ = ["fetch"]

# Answers that may be other ones a moment later; every other status from 400 on is final.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

# Bytes a second below which a line is as good as dead.
SLOWEST = 1024

log = logging.getLogger(__name__)


class Broken(Exception):
    """What a further attempt may mend: the line, a server that is busy; `restart` if not from where we are."""

    def __init__(self, cause: str, restart: bool = False) -> None:
        super().__init__(cause)
        self.restart = restart


class Refused(Exception):
    """What no further attempt mends: no such file, another file."""


def fetch(
    piece: Piece,
    source: str,
    target: Path,
    *,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 0.5,
    lock_timeout: float = 3600.0,
) -> None:
    """Bring `piece` from `source` to `target`; a good file that is there already stays.

    What arrives is kept as `target.part` and renamed when its length and SHA-256 are right, so `target` is never
    partial. A download that broke off goes on where it was, in this call or in a later one, if the server grants
    byte ranges. A lock lets one process at a time do this; the others wait and find the file.

    Args:
        piece: the file's name below `source`, its size and its SHA-256.
        source: an address, http:// or https://, or a folder.
        target: where it goes; folders are made.
        timeout: seconds without a byte, or with less than 1 KiB a second, after which an attempt has failed.
        attempts: how many may fail in a row without bringing the file further by what `timeout` should bring.
        pause: seconds before the second attempt, doubled for each further one.
        lock_timeout: seconds to wait for another process.

    Raises:
        WeightsError: naming the address, the cause and the cure.
    """
    # Torch requires it, but only who fetches needs it.
    from filelock import FileLock, Timeout

    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=lock_timeout):
            if not (target.is_file() and _sha256(target) == piece.sha256):
                if source.startswith(("http://", "https://")):
                    _download(piece, f"{source.rstrip('/')}/{quote(piece.file)}", part, timeout, attempts, pause)
                else:
                    _copy(piece, Path(source) / piece.file, part)
                os.replace(part, target)
    except Timeout:
        raise WeightsError(
            f"{piece.file}: another process has held {target}.lock for {lock_timeout:.0f} s; "
            "wait for it, or end it, and try again"
        ) from None
    except OSError as error:
        raise WeightsError(f"{piece.file}: cannot be kept in {target.parent}: {_cure(error, part)}") from error


def _cure(error: OSError, part: Path) -> str:
    """Cause and cure of what went wrong with the folder of the cache."""
    cause = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{cause}. Make room, or set FLOWKIT_HOME to a folder with more; {part.name} keeps what has come"
    return f"{cause}. Set FLOWKIT_HOME to a folder that can be written"


def _copy(piece: Piece, path: Path, part: Path) -> None:
    """From a folder.

    Raises:
        WeightsError: if it cannot be read, or is another file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{piece.file}: {path}: {error.strerror or error}. Does FLOWKIT_WEIGHTS name the folder with the weights "
            "of this release?"
        ) from error
    if fault := piece.fault(content):
        raise WeightsError(f"{piece.file}: {path} has {fault}: it is damaged or not this release's")
    with open(part, "wb") as out:
        out.write(content)
        _to_disk(out)


def _download(piece: Piece, url: str, part: Path, timeout: float, attempts: int, pause: float) -> None:
    """From a server, in as many attempts as it takes, as long as one in `attempts` brings the file further.

    Raises:
        WeightsError: if the server has no such file or another one, or the attempts are used up.
        OSError: if the part cannot be written.
    """
    furthest, failed, wrong = _length(part), 0, 0
    with progress_bar(piece.size, piece.file, shown=None, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            try:
                if _length(part) != piece.size:
                    _receive(piece, url, part, timeout, bar)
                if (came := _sha256(part)) == piece.sha256:
                    return
                part.unlink()
                wrong += 1
                # The first time it may be an older part, or the line; from nothing to the end, it is the file.
                if wrong == 2:
                    raise Refused(f"the file has SHA-256 {came}, wanted {piece.sha256}")
                furthest = 0
            except Refused as error:
                raise WeightsError(
                    f"{piece.file}: {url}: {error}. Does FLOWKIT_WEIGHTS name the address of this release's weights?"
                ) from error
            except Broken as error:
                if error.restart:
                    part.unlink(missing_ok=True)
                length = _length(part)
                # A server that gives a few bytes to each attempt must not keep us for ever.
                if length > furthest and length - furthest >= min(SLOWEST * timeout, piece.size - furthest):
                    failed, furthest = 0, length
                else:
                    failed += 1
                if failed >= attempts:
                    raise WeightsError(
                        f"{piece.file}: {url}: {error}; {attempts} attempts in a row brought nothing more, or "
                        "hardly anything. "
                        "Try again later: what has come is kept. Or set FLOWKIT_WEIGHTS to another address or folder"
                    ) from error
                log.info("%s: %s; trying again", url, error)
                time.sleep(min(pause * 2**failed, 10.0))


def _receive(piece: Piece, url: str, part: Path, timeout: float, bar: Any) -> None:
    """One request, going on from what `part` has; it is as long as it should be when this returns.

    Raises:
        Broken, Refused: what is wrong with the answer.
        OSError: if the part cannot be written.
    """
    have = _length(part)
    if have > piece.size:
        part.unlink()
        have = 0
    headers = {"User-Agent": "flowkit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _network(timeout):
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    with answer:
        if answer.status == 206:
            granted = str(answer.headers.get("Content-Range", ""))
            if not granted.startswith(f"bytes {have}-"):
                raise Broken(f"asked for bytes from {have} on, the answer is for {granted!r}", restart=True)
        elif answer.status == 200:
            have = 0  # no ranges here: from the start
        else:
            raise Refused(f"HTTP {answer.status} {answer.reason}")
        if (announced := answer.headers.get("Content-Length")) is not None and announced != str(piece.size - have):
            raise Refused(f"announces {announced} bytes, wanted {piece.size - have}: this is another file")
        bar.n = have
        with open(part, "ab" if have else "wb") as out:
            while True:
                with _network(timeout):
                    chunk = answer.read1(1 << 16)
                if not chunk:
                    break
                have += len(chunk)
                if have > piece.size:
                    raise Refused(f"sends more than the {piece.size} bytes of the file")
                out.write(chunk)
                bar.update(len(chunk))
            _to_disk(out)
    if have < piece.size:
        raise Broken(f"broke off after {have} of {piece.size} bytes")


@contextmanager
def _network(timeout: float) -> Iterator[None]:
    """What goes wrong on the line, as Broken or Refused; disk errors are not raised in here."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {error.reason}"
        if error.code == 416:  # what we have is no start of the file there
            raise Broken(status, restart=True) from error
        raise (Broken if error.code in PASSING else Refused)(status) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"its certificate is not valid ({error.reason.verify_message})") from error
        if isinstance(error.reason, TimeoutError):
            raise Broken(f"no answer within {timeout:g} s") from error
        raise Broken(f"cannot be reached ({error.reason})") from error
    except TooSlow as error:
        raise Broken(str(error)) from error
    except TimeoutError as error:
        raise Broken(f"no byte within {timeout:g} s") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise Refused(f"is no address ({error})") from error
    except (http.client.HTTPException, OSError) as error:
        raise Broken(f"broke off ({error or type(error).__name__})") from error


class TooSlow(TimeoutError):
    """Bytes come, but so few that waiting for them has no end."""


class _Paced(io.RawIOBase):
    """What comes from a socket, held to `SLOWEST` over every stretch of `timeout` seconds."""

    def __init__(self, sock: socket.socket) -> None:
        self._raw, self._timeout = sock.makefile("rb", buffering=0), sock.gettimeout()
        self._since, self._came = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        size = self._raw.readinto(buffer)
        self._came += size or 0
        now = time.monotonic()
        if size and self._timeout is not None and now - self._since > self._timeout:
            if self._came < SLOWEST * self._timeout:
                raise TooSlow(f"only {self._came} bytes in {self._timeout:g} s")
            self._since, self._came = now, 0
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """Status, headers, body and the marks of its pieces are all read at a pace."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Paced(sock))


class _HttpConnection(http.client.HTTPConnection):
    response_class = _Answer


class _HttpsConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS with redirects and the proxies of the environment; unlike urlopen's, no file:, ftp: or data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _to_disk(file: Any) -> None:
    """So that a rename that outlives a crash renames what was written."""
    file.flush()
    os.fsync(file.fileno())
