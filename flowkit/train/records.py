"""What a run tells: JSON lines, CSV, TensorBoard if asked, a progress bar, pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from flowkit.files import write_whole

__all__ = ["COLUMNS", "Records", "read_log"]

COLUMNS = (
    "step",
    "loss",
    "bits_per_dim",
    "gradient_norm",
    "rate",
    "skipped",
    "images_per_second",
    "seconds",
    "held_out_bits_per_dim",
    "held_out_standard_error",
)


def read_log(path: str | Path, until: int | None = None) -> list[dict[str, Any]]:
    """The rows of a `log.jsonl`, to step `until` included; a line that a kill cut off, or that is no row, ends it.

    >>> read_log(Path("nowhere.jsonl"))
    []
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        if until is None or row["step"] <= until:
            rows.append(row)
    return rows


class Records:
    """The records of one run, in its folder; or the progress bar alone, without a folder.

    Resumed at a step, it forgets what was written of later steps: they come again.

    Args:
        out: the folder; None for none.
        start: the step that the run begins or goes on from.
        last: the last row before it, as a checkpoint has it; the file may have lost it.
        steps: the step it ends at.
        tensorboard: whether to write events for TensorBoard too.
        progress: whether to show a bar.
        writes: whether this process is the one that writes.

    Raises:
        ImportError: if what was asked for is not installed, naming the extra.
    """

    def __init__(
        self,
        out: Path | None,
        *,
        start: int,
        last: dict[str, Any] | None,
        steps: int,
        tensorboard: bool,
        progress: bool,
        writes: bool,
    ) -> None:
        self.out = out if writes else None
        self.events: Any = None
        self.bar: Any = None
        if self.out is not None:
            rows = read_log(self.out / "log.jsonl", until=start)
            if last is not None and not any(row["step"] == last["step"] for row in rows):
                rows.append(last)
            write_whole(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
            write_whole(self.out / "log.csv", (_csv_line(COLUMNS) + "".join(map(_csv_row, rows))).encode())
            if tensorboard:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError as error:
                    raise ImportError("tensorboard is asked for and not installed: pip install tensorboard") from error
                self.events = SummaryWriter(self.out / "tensorboard", purge_step=start + 1)
        if progress and writes:
            try:
                from tqdm import tqdm
            except ImportError as error:
                raise ImportError("the progress bar needs tqdm; in a clone: pip install '.[train]'") from error
            self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)

    def step(self, bits: float, images_per_second: float) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"{bits:.3f} bits/dim, {images_per_second:.0f} images/s", refresh=False)
            self.bar.update()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            self.bar.write(text)

    def row(self, row: dict[str, Any]) -> None:
        """Write one row; keys are among `COLUMNS`."""
        if self.out is None:
            return
        for name, line in (("log.jsonl", json.dumps(row) + "\n"), ("log.csv", _csv_row(row))):
            with (self.out / name).open("a") as file:
                file.write(line)
        if self.events is not None:
            for name, value in row.items():
                if name != "step":
                    self.events.add_scalar(name, value, row["step"])
            self.events.flush()

    def samples(self, images: Tensor, levels: int, step: int) -> None:
        """A grid of samples, as a picture."""
        if self.out is not None:
            from matplotlib.figure import Figure

            from flowkit.plots import image_grid

            figure = Figure(figsize=(5, 5), layout="constrained")
            image_grid(images, levels=levels, title=f"step {step}", ax=figure.add_subplot())
            _save(figure, self.out / f"samples-{step:09d}.png")

    def curves(self) -> None:
        """Bits/dim against steps, as a picture."""
        if self.out is not None and (rows := read_log(self.out / "log.jsonl")):
            from matplotlib.figure import Figure

            from flowkit.plots import training_curves

            figure = Figure(figsize=(7, 4.5), layout="constrained")
            training_curves({self.out.name: rows}, ax=figure.add_subplot())
            _save(figure, self.out / "curves.png")

    def close(self) -> None:
        """Leave the bar, and close the files."""
        if self.bar is not None:
            self.bar.close()
        if self.events is not None:
            self.events.close()


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def _csv_row(row: dict[str, Any]) -> str:
    return _csv_line([row.get(name, "") for name in COLUMNS])


def _csv_line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
