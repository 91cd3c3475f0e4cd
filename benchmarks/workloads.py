"""The workloads by name, and one of them measured on this machine."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import flowkit
from benchmarks.measure import Contract, measure

__all__ = ["WORKLOADS", "run"]

WORKLOADS = ("mix_logistic", "spline", "autoregressive", "glow", "flowpp", "growth")
PEERS = {"zuko": "zuko", "nflows": "nflows", "normflows": "normflows", "FrEIA": "FrEIA", "pyro-ppl": "Pyro"}


def run(workload: str, contract: Contract, chosen: str = "") -> dict[str, Any]:
    """Measure the cells of a workload that have `chosen` in their name, in this process."""
    torch.set_num_threads(contract.threads)
    torch._dynamo.config.recompile_limit = 100  # every contestant and size is a graph of its own
    module = importlib.import_module(f"benchmarks.{workload}")
    cells = []
    for cell in module.cells(contract):
        if chosen not in cell.name:
            continue
        cells.append(measure(cell, contract))
        print(f"  {workload}: {cell.name}", file=sys.stderr, flush=True)
    return {"workload": workload, "title": module.TITLE, "machine": machine(contract), "cells": cells}


def machine(contract: Contract) -> dict[str, Any]:
    """Date, versions, class of machine, threads."""
    versions = {"flowkit": flowkit.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    for package, name in PEERS.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "threads": contract.threads,
        "versions": versions,
    }


def processor() -> str:
    """What the system calls its processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
