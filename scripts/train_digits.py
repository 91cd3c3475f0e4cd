"""Trains the digits Flow++ that flowkit ships, on a CPU, and writes its weights and its card.

    pip install -c constraints.txt '.[train]'
    python scripts/train_digits.py                 # the run of the shipped card
    python scripts/train_digits.py --validate      # hold part of the training set back, to choose settings on

The held-out digits are looked at once, at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

import flowkit as fk
from flowkit.train import digits, evaluate
from flowkit.zoo.flowpp import configuration


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak of the learning rate")
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=128, help="importance samples of the final score")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("flowkit/zoo/weights"))
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other sizes than the config's")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    sizes = configuration("digits", **{k: json.loads(v) for k, v in (s.split("=") for s in options.set)})
    train, held_out = digits()
    if options.validate:
        keep = torch.arange(len(train)) % 6 != 5
        train, held_out = train[keep], train[~keep]

    flow = fk.zoo.flowpp(config="digits", **{k: json.loads(v) for k, v in (s.split("=") for s in options.set)})
    fk.initialize(flow, train[torch.randperm(len(train))[:512]])
    averaged = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.rate)

    def rate(step: int) -> float:
        """Linear warm-up, then constant for half of the steps, then linear to 0."""
        return min((step + 1) / options.warmup, 1.0, 2 * (1 - step / options.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start, bar = time.time(), trange(options.steps)
    for step in bar:
        x = train[torch.randint(len(train), (options.batch,))]
        loss = -flow(x).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(flow)
        if step % 100 == 0:
            bar.set_postfix(train=f"{_bits(loss, x):.3f}")
        if options.validate and step % 1000 == 999:
            print(f"\n{evaluate(averaged.module, held_out, data_name='digits', split=f'validation, step {step + 1}')}")
    minutes = (time.time() - start) / 60

    flow = averaged.module.eval()
    result = evaluate(
        flow,
        held_out,
        data_name="digits",
        split="validation" if options.validate else "held-out",
        draws=options.draws,
        uniform=True,
        model="flowpp-digits",
        steps=options.steps,
        ema=options.ema,
        progress=True,
    )
    print(f"{result}\n{minutes:.1f} minutes")
    if not options.validate:
        training = {
            "data": "scikit-learn load_digits: 8x8 handwritten digits, integers 0..16 (UCI, CC BY 4.0)",
            "split": "every fifth image held out: 1438 to train on, 359 held out",
            "data_sha256": hashlib.sha256(torch.cat(digits()).to(torch.uint8).numpy().tobytes()).hexdigest(),
            "steps": options.steps,
            "batch": options.batch,
            "seed": options.seed,
            "ema": options.ema,
            "peak_learning_rate": options.rate,
            "minutes": round(minutes, 1),
            "flowkit": fk.__version__,
            "torch": torch.__version__,
        }
        card = options.out / "flowpp-digits.json"
        fk.zoo.save(flow, card, model="flowpp", config=asdict(sizes), training=training, evaluation=asdict(result))


def _bits(loss: Tensor, x: Tensor) -> float:
    return loss.item() / (x[0].numel() * torch.tensor(2.0).log().item())


if __name__ == "__main__":
    main()
