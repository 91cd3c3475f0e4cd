"""Times the logit of a mixture CDF and its inverse: what flowkit runs in eager mode beside its plain log-space form.

    python benchmarks/mix_logistic.py --threads 1

Prints a Markdown table of medians over interleaved runs, with the error against float64 beside them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flowkit.functional import logistic

# Log-scales: normal with this deviation, or uniform between two ends.
REGIMES = {
    "init": (0.3, None),
    "wide": (-7.0, 3.0),
    "sharpish": (-7.0, -3.0),
    "sharp": (-7.0, -7.0),
    "broad": (1.0, 3.0),
}
SHAPE, COMPONENTS = (16, 6, 16, 16), 32


def inputs(regime: str) -> list[Tensor]:
    """x, logits, means and log-scales, with the components where a convolution puts them: before height and width."""
    generator = torch.Generator().manual_seed(0)
    low, high = REGIMES[regime]
    shape = (*SHAPE[:2], COMPONENTS, *SHAPE[2:])
    logits, means, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    log_scales = low * noise if high is None else torch.rand(shape, generator=generator) * (high - low) + low
    return [torch.randn(SHAPE, generator=generator), *(t.movedim(2, -1) for t in (logits, means, log_scales))]


def train(function: Callable[..., tuple[Tensor, Tensor]], arguments: list[Tensor]) -> None:
    """Forward and backward."""
    leaves = [t.detach().requires_grad_() for t in arguments]
    y, log_slope = function(*leaves)
    (y.sum() + log_slope.sum()).backward()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    forward, inverse = logistic.logit_mix_logistic_cdf, logistic.logit_mix_logistic_cdf_inverse
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), CPU ms, x {SHAPE}, "
          f"K = {COMPONENTS}, float32; medians of {options.repeats}\n")  # fmt: skip
    measured = ("forward", "forward + backward", "inverse")
    columns = ["regime", *(c for name in measured for c in (name, "in log space")), "error of y", "residual of x in y"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for regime in REGIMES:
        arguments = inputs(regime)
        y = forward(*arguments)[0]
        back = [y, *arguments[1:]]
        runs: list[Callable[[], object]] = [
            lambda a=arguments: forward(*a),
            lambda a=arguments: logistic._log_space(*a),
            lambda a=arguments: train(forward, a),
            lambda a=arguments: train(logistic._log_space, a),
            lambda b=back: inverse(*b),
            lambda b=back: logistic._solve(*b),
        ]
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(options.repeats):
            for run, taken in zip(runs, times, strict=True):
                start = time.process_time()
                run()
                taken.append(1000 * (time.process_time() - start))
        exact = forward(*(t.double() for t in arguments))[0]
        error = ((y - exact).abs() / exact.abs().clamp(min=1)).max()
        x = inverse(*back)[0]
        again = forward(x.double(), *(t.double() for t in arguments[1:]))
        residual = ((again[0] - y).abs() / (1 + y.abs() + x.abs() * again[1].exp())).max()
        cells = [f"{statistics.median(taken):.1f}" for taken in times] + [f"{error:.1e}", f"{residual:.1e}"]
        print(f"| {regime} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
