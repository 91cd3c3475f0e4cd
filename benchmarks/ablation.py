"""Trains Flow++ with one of its parts taken out at a time: the ablation of the paper, at a size for a CPU.

    python -m benchmarks.ablation --data cifar-10-python.tar.gz            # prints the table
    python -m benchmarks.ablation --data cifar-10-python.tar.gz --write    # and puts it and curves into the docs
    python -m benchmarks.ablation --data cifar-10-python.tar.gz --quick    # a few steps, to see that it runs

All variants see the same crops in the same order, have as many parameters as widths allow, and take the same steps
from the same seeds. Runs are kept in a folder: one that was stopped goes on, one that has ended is not run again.

Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, section 4.2, https://arxiv.org/abs/1902.00275.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowkit as fk
from benchmarks import fitting
from benchmarks.page import DOCS, table, write_between_marks
from flowkit import plots
from flowkit.train import Settings, evaluate, fit, read_log
from flowkit.train.data import cifar10

CROP = 16
COMMON: dict[str, Any] = {
    "shape": (3, CROP, CROP),
    "blocks": 1,
    "components": 8,
    "heads": 2,
    "dropout": 0.0,
    "layout": (("columns", 2), ("squeeze", 1), ("channels", 2), ("columns", 2)),
    "dequant_blocks": 1,
    "dequant_couplings": 2,
    "context_filters": 8,
    "context_blocks": 2,
}
# The widths make the counts of parameters as equal as they can be.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"filters": 24, "dequant_filters": 16},
    "uniform dequantization": {"filters": 26, "variational": False},
    "affine couplings": {"filters": 42, "dequant_filters": 22, "components": 0},
    "no attention": {"filters": 24, "dequant_filters": 16, "attention": "maxout", "dequant_attention": "maxout"},
}
BATCH, RATE = 32, 2e-3


def crops(path: Path) -> tuple[Tensor, Tensor]:
    """The middle of every image of CIFAR-10: (N, 3, 16, 16), training and test."""
    split = cifar10(path)
    start = (32 - CROP) // 2
    cut = slice(start, start + CROP)

    def middle(images: Any) -> Tensor:
        return torch.stack([images[i][:, cut, cut] for i in range(len(images))])

    return middle(split.train), middle(split.held_out)


def run(task: tuple[str, int], data: Path, steps: int, draws: int, folder: Path) -> dict[str, Any]:
    """One variant from one seed: its parameters, log and the evaluations of the test crops."""
    torch.set_num_threads(1)
    variant, seed = task
    out = folder / f"{variant.replace(' ', '-')}-{seed}"
    result = out / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    train, test = torch.load(data, weights_only=True)
    torch.manual_seed(seed)
    flow = fk.zoo.flowpp(**(COMMON | VARIANTS[variant]))
    settings = Settings(
        steps=steps,
        batch=BATCH,
        rate=RATE,
        warmup=min(100, steps // 2),
        schedule="linear",
        hold=steps // 2,
        ema_warmup=True,
        init_batch=256,
        seed=seed,
        log_every=max(1, steps // 100),
        save_every=200,
        keep=1,
        device="cpu",
    )
    trained = fit(flow, train, settings, out=out, progress=False)
    data_name = f"CIFAR-10, middle {CROP} x {CROP}"
    score = evaluate(trained.flow, test, data_name=data_name, split="test", draws=draws, batch=500, model=variant)
    made = {"evaluation": asdict(score), "minutes": trained.seconds / 60, "log": read_log(out / "log.jsonl")}
    result.write_text(json.dumps(made))
    return made


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10, as `flowkit train` takes it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put table and curves into the docs")
    parser.add_argument("--quick", action="store_true", help="4 steps, 2 seeds, 64 crops")
    options = parser.parse_args()
    steps, seeds, few = (4, range(2), 64) if options.quick else (options.steps, range(options.seeds), None)

    options.out.mkdir(parents=True, exist_ok=True)
    data = options.out / "crops.pt"
    torch.save([part[:few].clone() for part in crops(options.data)], data)
    tasks = [(variant, seed) for seed, variant in itertools.product(seeds, VARIANTS)]
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        arguments = map(itertools.repeat, (data, steps, options.draws, options.out))
        runs = dict(zip(tasks, pool.map(run, tasks, *arguments), strict=True))

    def row(variant: str) -> tuple[str, ...]:
        cards = [runs[variant, seed]["evaluation"] for seed in seeds]
        single = [card["bits_per_dim_single"] for card in cards]
        against = [runs["full", seed]["evaluation"]["bits_per_dim_single"] for seed in seeds]
        return (
            variant,
            f"{cards[0]['parameters']:,}",
            fitting.mean_and_error(single),
            "" if variant == "full" else fitting.mean_and_error([a - b for a, b in zip(single, against, strict=True)]),
            fitting.mean_and_error([card["bits_per_dim"] for card in cards]),
            f"{sum(runs[variant, seed]['minutes'] for seed in seeds) / len(seeds):.1f}",
        )

    columns = ["variant", "parameters", "bits/dim", "more than full", f"bits/dim, {options.draws} draws", "minutes"]
    made = table(columns, map(row, VARIANTS))
    print(made)
    if options.write:
        write_between_marks(DOCS / "ablation.md", "ablation", made)
        axes = plots.training_curves({variant: runs[variant, 0]["log"] for variant in VARIANTS})
        axes.figure.savefig(DOCS / "assets" / "ablation.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
