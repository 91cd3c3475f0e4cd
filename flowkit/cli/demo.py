"""`flowkit demo`: a pretrained model at work."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

__all__ = ["DESCRIPTION", "HELP", "NAME", "arguments", "run"]


NAME = "demo"
HELP = "score and draw digits with a pretrained Flow++"
DESCRIPTION = """\
Loads a small pretrained Flow++, scores held-out handwritten digits in bits/dim, and draws 64 samples beside 64 real
digits into a picture. Needs the extra `demo`; no network."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, default=Path("flowkit-demo.png"), help="the picture (%(default)s)")
    parser.add_argument("--draws", type=int, default=8, help="importance samples per digit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and samples (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Score held-out digits, draw samples, write a picture.

    Raises:
        ValueError: for fewer than one draw.
        ImportError: without matplotlib, scikit-learn or tqdm, naming the extra.
        OSError: if the picture cannot be written.
    """
    start = time.monotonic()
    if options.draws < 1:
        raise ValueError(f"--draws is {options.draws}, wanted at least 1")
    # Only this command needs them, and they are slow to import.
    import torch

    from flowkit import metrics, zoo
    from flowkit.plots import image_grid
    from flowkit.train import digits

    try:
        import matplotlib.pyplot as plt
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"demo: {error.name} is missing; in a clone: pip install '.[demo]'") from error
    plt.switch_backend("agg")

    card = zoo.card("flowpp", "digits")
    flow = zoo.flowpp(pretrained="digits")
    _, held_out = digits()
    print(f"Flow++, {card['parameters']:,} parameters, trained on {card['data']}")
    generator = torch.Generator().manual_seed(options.seed)
    bits = []
    with torch.no_grad():
        for part in tqdm(held_out.split(64), desc="scoring held-out digits"):
            bits.append(metrics.bits_per_dim(flow, part, draws=options.draws, generator=generator))
        samples = flow.sample((64,), generator=generator)
    scores = torch.cat(bits)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.25), layout="constrained")
    image_grid(held_out[:64], levels=17, title="64 held-out digits", ax=left)
    image_grid(samples, levels=17, title="64 samples of the pretrained Flow++", ax=right)
    figure.savefig(options.out, dpi=120)
    plt.close(figure)
    standard_error = scores.std() / len(scores) ** 0.5
    draws = f"{options.draws} importance sample" + ("s" if options.draws > 1 else "")
    score = f"{scores.mean():.3f} ± {standard_error:.3f} bits/dim"
    print(f"{score} on {len(scores)} held-out digits: an upper bound, with {draws} each")
    print(f"(the card says {card['bits_per_dim']:.3f}, with {card['importance_samples']}; no model at all takes 4.087)")
    print(f"{options.out}: 64 samples beside 64 real digits; {time.monotonic() - start:.0f} s in all")
