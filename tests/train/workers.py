"""Processes of their own for tests of training: they can be killed, and joined by gloo.

They come from a fork server that has torch loaded, so each starts in a fraction of a second.
"""

import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import torch

import flowkit as fk
from flowkit.train import Settings, fit

LEVELS = 8


def step(size=6):
    """A norm and a coupling, which exchange the halves."""
    half = size // 2
    net = fk.nets.MLP((half,), (half, 2), hidden=(16,))
    return fk.Chain(
        norm=fk.ActNorm((size,)), couple=fk.AffineCoupling(net, dim=-1, log_scale_bound=1.0), flip=fk.Flip(-1)
    )


def noisy_flow(seed=0, dropout=0.2):
    """Of integers 0..7, with noise from the dequantizer and from dropout."""
    torch.manual_seed(seed)
    flow = fk.Flow(
        fk.Chain(noise=fk.UniformDequantizer(LEVELS), logit=fk.Logit(0.05), one=step(), two=step()), fk.Normal((6,))
    )
    for part in (flow.transform.one, flow.transform.two):
        part.couple.conditioner.layers.insert(2, torch.nn.Dropout(dropout))
    return flow


def exact_flow(seed=0):
    """Of real vectors, without any noise."""
    torch.manual_seed(seed)
    return fk.Flow(fk.Chain(one=step(), two=step(), three=step()), fk.Normal((6,)))


def integers(count=200):
    return torch.randint(LEVELS, (count, 6), generator=torch.Generator().manual_seed(5))


def vectors(count=200):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(5))
    return x.cumsum(-1).sin() + 0.3 * x


def settings(**changed):
    return Settings(**{"steps": 30, "batch": 16, "rate": 1e-2, "warmup": 5, "log_every": 1, "save_every": 2, **changed})


def train(make, out, *, seed=0, given=None, **changed):
    """Train one of the flows above; the process ends with status 1 if it fails, and says why in `error`."""
    torch.set_num_threads(1)
    data = integers() if make is noisy_flow else vectors()
    options = {"progress": False, "out": out, "held_out": data[:37], "levels": LEVELS, **(given or {})}
    return fit(make(seed), data, settings(**changed), **options)


def _run(target, arguments, environment, report):
    os.environ.update(environment)
    try:
        target(*arguments)
    except BaseException:
        Path(report).write_text(traceback.format_exc())
        os._exit(1)


def start(target, *arguments, report, **environment):
    """Begin `target(*arguments)` in a process of its own; a traceback goes to the file `report`."""
    context = multiprocessing.get_context("forkserver")
    # The compiler too: the first step of an optimizer imports it, which takes seconds.
    context.set_forkserver_preload(["tests.train.workers", "torch._dynamo"])
    process = context.Process(target=_run, args=(target, arguments, environment, str(report)))
    process.start()
    return process


def run(target, *arguments, folder):
    """The same, to its end, which must be a good one."""
    together(target, *arguments, folder=folder, world=0)


def together(target, *arguments, folder, world=2):
    """`target(*arguments)` in `world` processes that are joined as `torchrun` joins them; 0 for one alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    ours = []
    for rank in range(max(world, 1)):
        joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
        report = folder / f"error-{rank}.txt"
        ours.append((start(target, *arguments, report=report, **(joined if world else {})), report))
    for process, report in ours:
        process.join(120)
        assert process.exitcode == 0, report.read_text() if report.exists() else f"exit status {process.exitcode}"
