"""What a network, a server and a disk can do wrong: a file comes whole and right, or not at all. The server is real."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import flowkit
from flowkit.zoo import WeightsError
from flowkit.zoo import fetch as fetch_module
from flowkit.zoo.fetch import fetch
from flowkit.zoo.files import Piece
from tests.zoo.server import serving

NAME = "flowpp-test.safetensors"
CONTENT = np.random.default_rng(0).bytes(300_000)
PIECE = Piece.of(NAME, CONTENT)


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """No proxy between the test and its server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serving() as server:
        server.files[NAME] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "some" / NAME


def bring(server, target, **options):
    fetch(PIECE, getattr(server, "url", server), target, **{"pause": 0.001, "timeout": 5.0, **options})


def refused(server, target, match, **options):
    """It fails with this reason, names the address, and leaves nothing under the final name."""
    with pytest.raises(WeightsError, match=match) as error:
        bring(server, target, **options)
    assert str(error.value).startswith(f"{NAME}: {getattr(server, 'url', server)}/{NAME}: ")
    assert not target.exists()
    return str(error.value)


def test_a_file_is_fetched_once(server, target):
    bring(server, target)
    bring(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [(f"/{NAME}", None)]
    assert not target.with_name(f"{NAME}.part").exists()


def test_progress_is_shown_on_a_terminal_and_not_needed(server, target, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bring(server, target)
    assert NAME in capsys.readouterr().err
    target.unlink()
    monkeypatch.setitem(sys.modules, "tqdm", None)  # not installed
    bring(server, target)
    assert target.read_bytes() == CONTENT and capsys.readouterr().err == ""


def test_a_server_that_does_not_announce_the_length(server, target):
    server.always = lambda handler, content: handler.serve(content, announce="nothing")
    bring(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("announce", [None, "nothing"])
def test_breaking_off_goes_on_where_it_was(server, target, announce):
    server.behaviours = [lambda handler, content: handler.serve(content, stop=100_000, announce=announce)] * 2
    bring(server, target)
    assert target.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_call_goes_on_where_an_earlier_one_ended(server, target):
    server.always = lambda handler, content: handler.serve(content, stop=120_000 if not handler.headers["Range"] else 0)
    refused(server, target, "broke off after 120000 of 300000 bytes; 2 attempts in a row", attempts=2)
    assert target.with_name(f"{NAME}.part").read_bytes() == CONTENT[:120_000]
    server.always = None
    server.requests.clear()
    bring(server, target)
    assert target.read_bytes() == CONTENT and server.requests == [(f"/{NAME}", "bytes=120000-")]


def test_a_server_without_ranges_begins_anew(server, target):
    server.behaviours = [lambda handler, content: handler.serve(content, stop=100_000)]
    server.always = lambda handler, content: handler.serve(content, ranges=False)
    bring(server, target)
    assert target.read_bytes() == CONTENT and len(server.requests) == 2


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server, target):
    server.always = lambda handler, content: handler.serve(content, ranges=False, stop=100_000)
    refused(server, target, "broke off after 100000 of 300000 bytes; 3 attempts in a row", attempts=3)
    assert len(server.requests) == 4  # the first one did bring something


def test_a_server_that_grants_another_range_is_not_believed(server, target):
    def other_range(handler, content):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    server.behaviours = [lambda handler, content: handler.serve(content, stop=100_000), other_range]
    bring(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("announce", [len(CONTENT) + 7, len(CONTENT) - 7])
def test_a_lie_about_the_length_is_refused(server, target, announce):
    server.always = lambda handler, content: handler.serve(content, announce=announce)
    refused(server, target, f"announces {announce} bytes, wanted 300000: this is another file")
    assert len(server.requests) == 1


def test_more_bytes_than_the_file_has_are_not_taken(server, target):
    server.always = lambda handler, content: handler.serve(content * 20, announce="nothing")
    refused(server, target, "sends more than the 300000 bytes of the file")
    assert target.with_name(f"{NAME}.part").stat().st_size <= len(CONTENT)


def test_wrong_bytes_are_refused(server, target):
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    server.files[NAME] = wrong
    refused(server, target, "the file has SHA-256 .*, wanted .* Does FLOWKIT_WEIGHTS name the address")
    assert not target.with_name(f"{NAME}.part").exists()
    server.files[NAME] = CONTENT
    bring(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("spoilt", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
def test_a_spoilt_beginning_is_thrown_away(server, target, spoilt):
    part = target.with_name(f"{NAME}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(spoilt)
    bring(server, target)
    assert target.read_bytes() == CONTENT and not part.exists()


def test_a_file_that_is_shorter_than_what_we_have(server, target):
    part = target.with_name(f"{NAME}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    server.files[NAME] = CONTENT[:500]  # answers 416 to a request from 1000 on
    refused(server, target, "announces 500 bytes, wanted 300000")


def test_a_damaged_file_in_place_is_replaced(server, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:-1])
    bring(server, target)
    assert target.read_bytes() == CONTENT


def test_not_found_is_final(server, target):
    server.files.clear()
    refused(server, target, "HTTP 404 Not Found. Does FLOWKIT_WEIGHTS name the address")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server, target, status):
    server.behaviours = [lambda handler, content: handler.send_error(status)] * 3
    bring(server, target)
    assert target.read_bytes() == CONTENT and len(server.requests) == 4


def test_a_server_that_stays_broken_is_given_up(server, target):
    server.always = lambda handler, content: handler.send_error(500)
    message = refused(server, target, "HTTP 500 Internal Server Error; 3 attempts", attempts=3)
    assert "Try again later" in message and len(server.requests) == 3


def test_silence_is_a_fault(server, target):
    def silent(handler, content):
        handler.serve(content, stop=50_000, announce=len(content))
        handler.wfile.flush()
        time.sleep(1.5)

    server.behaviours = [silent, lambda handler, content: time.sleep(1.5)]
    start = time.monotonic()
    bring(server, target, timeout=0.3)
    assert target.read_bytes() == CONTENT and time.monotonic() - start < 5
    assert [wanted for _, wanted in server.requests] == [None, "bytes=50000-", "bytes=50000-"]


def test_a_server_that_never_answers(server, target):
    server.always = lambda handler, content: time.sleep(1.0)
    refused(server, target, r"(no byte|no answer) within 0\.1 s; 2 attempts", timeout=0.1, attempts=2)


def test_a_slow_server_is_waited_for(server, target):
    server.always = lambda handler, content: handler.serve(content, pause=0.03)  # longer in all than the timeout
    bring(server, target, timeout=0.4)
    assert target.read_bytes() == CONTENT and len(server.requests) == 1


def trickling(handler, content):
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    trickle(handler, content)


def trickle(handler, content):
    for i in range(300):
        handler.wfile.write(content[i : i + 1])
        time.sleep(0.02)


def trickling_headers(handler, content):
    """Without an end, so without a body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    trickle(handler, b"x" * 300)


@pytest.mark.parametrize("behaviour", [trickling, trickling_headers])
def test_a_server_that_trickles_is_given_up(server, target, behaviour):
    """Never silent, and never done."""
    server.always = behaviour
    start = time.monotonic()
    refused(server, target, r"only \d+ bytes in 0\.2 s; 2 attempts in a row brought .*hardly", timeout=0.2, attempts=2)
    assert time.monotonic() - start < 4 and len(server.requests) == 2


def test_a_few_bytes_for_each_attempt_are_not_enough(server, target):
    def few(handler, content):
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        handler.serve(content, stop=10, announce=len(content) - start)

    server.always = few
    refused(server, target, "3 attempts in a row brought nothing more, or hardly anything", attempts=3)
    assert len(server.requests) == 3


def test_after_trickling_it_goes_on_where_it_was(server, target):
    server.behaviours = [trickling]
    bring(server, target, timeout=0.2)
    assert target.read_bytes() == CONTENT
    assert int(server.requests[1][1].removeprefix("bytes=").removesuffix("-")) > 0


def test_redirects_are_followed_and_ranges_with_them(server, target):
    with serving() as other:
        other.files[f"elsewhere/{NAME}"] = CONTENT
        other.behaviours = [lambda handler, content: handler.serve(content, stop=100_000)]

        def redirect(handler, content):
            handler.send_response(302)
            handler.send_header("Location", f"{other.url}/elsewhere/{NAME}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.always = redirect
        bring(server, target)
        assert target.read_bytes() == CONTENT
        assert other.requests == [(f"/elsewhere/{NAME}", None), (f"/elsewhere/{NAME}", "bytes=100000-")]


@pytest.mark.parametrize("location", ["/again", "file:///etc/hostname"])
def test_redirects_in_a_circle_or_to_a_file_are_refused(server, target, location):
    def redirect(handler, content):
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.always = redirect
    refused(server, target, "HTTP 302")


def test_nobody_listens(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        refused(address, target, "cannot be reached .*refused.*; 2 attempts", attempts=2)


def test_what_is_no_http(target):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            for _ in range(2):
                connection, _ = listening.accept()
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-hello\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        refused(f"http://127.0.0.1:{listening.getsockname()[1]}", target, "2 attempts", attempts=2)


def test_an_address_that_is_none(target):
    refused("http://127.0.0.1:port", target, "is no address")


# ------------------------------------------------------------------------------------------------------- folders


def test_a_folder_serves_too(tmp_path, target):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(CONTENT)
    bring(str(tmp_path / "mirror"), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (CONTENT[:9], "9 bytes with SHA-256")]
)
def test_a_folder_without_the_file_or_with_another(tmp_path, target, content, reason):
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        bring(str(tmp_path), target)
    assert not target.exists()


# ------------------------------------------------------------------------------------------------- several at once

FETCHING = """
import sys
from pathlib import Path
from flowkit.zoo.fetch import fetch
from flowkit.zoo.files import Piece

url, target, file, size, sha256 = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
fetch(Piece(file, int(size), sha256), url, Path(target), timeout=20.0)
"""


def start_fetching(server, target):
    environment = {**os.environ, "PYTHONPATH": str(Path(flowkit.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", FETCHING, server.url, target, PIECE.file, str(PIECE.size), PIECE.sha256],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    return process


def go(process):
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_fetch_one_file_once(server, target):
    server.always = lambda handler, content: handler.serve(content, pause=0.02)
    both = [start_fetching(server, target) for _ in range(2)]
    for process in both:
        go(process)
    for process in both:
        assert process.wait(60) == 0, process.stderr.read()
    assert target.read_bytes() == CONTENT and len(server.requests) == 1


def test_a_killed_process_leaves_what_came_and_no_lock(server, target):
    reached = threading.Event()

    def hang(handler, content):
        handler.serve(content, stop=64_000, announce=len(content))
        handler.wfile.flush()
        reached.set()
        time.sleep(3)

    server.behaviours = [hang]
    process = start_fetching(server, target)
    go(process)
    assert reached.wait(60)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not target.exists()
    bring(server, target, lock_timeout=5)
    assert target.read_bytes() == CONTENT


def test_a_lock_that_is_held_too_long_is_named(server, target):
    from filelock import FileLock

    target.parent.mkdir(parents=True)
    with FileLock(f"{target}.lock"), pytest.raises(WeightsError, match=r"another process has held .*\.lock for 0 s"):
        bring(server, target, lock_timeout=0.05)
    assert server.requests == []


# ------------------------------------------------------------------------------------------------------- the disk


@contextmanager
def unprivileged():
    """For the root user permissions mean nothing: be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of folders are of POSIX")
@pytest.mark.parametrize("place", [NAME, f"deeper/{NAME}"])
def test_a_folder_that_cannot_be_written(server, place):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        reason = "cannot be kept in .*Permission denied. Set FLOWKIT_HOME to a folder"
        with unprivileged(), pytest.raises(WeightsError, match=reason):
            bring(server, Path(folder) / place)
        os.chmod(folder, 0o755)
    assert server.requests == []


def test_a_cache_that_is_a_file(server, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(WeightsError, match=r"cannot be kept in .*cache.*Set FLOWKIT_HOME"):
        bring(server, tmp_path / "cache" / "weights" / NAME)


class FullDisk:
    """A file that takes some bytes, then reports a full disk, as the system does."""

    def __init__(self, room, path, mode):
        self.file, self.left = open(path, mode), room  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: max(self.left, 0)])
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, size=-1):
        return self.file.read(size)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


def test_a_full_disk_is_named_and_what_came_is_kept(server, target, monkeypatch):
    monkeypatch.setattr(fetch_module, "open", lambda path, mode: FullDisk(100_000, path, mode), raising=False)
    with pytest.raises(WeightsError, match="No space left on device. Make room, or set FLOWKIT_HOME .*part keeps"):
        bring(server, target)
    assert not target.exists()
    assert target.with_name(f"{NAME}.part").read_bytes() == CONTENT[:100_000]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    bring(server, target)
    assert target.read_bytes() == CONTENT and server.requests[-1][1] == "bytes=100000-"


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are of POSIX")
def test_a_file_larger_than_the_system_allows(server, target):
    """The system itself refuses the write, half-way."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flowkit.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", LIMITED + FETCHING, server.url, target, PIECE.file, str(PIECE.size), PIECE.sha256],
        input="\n", capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert "WeightsError" in run.stderr and "File too large. Make room" in run.stderr, run.stderr
    assert not target.exists() and target.with_name(f"{NAME}.part").stat().st_size == 100_000
