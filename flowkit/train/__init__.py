"""Training: a loop to read and copy, checkpoints that survive a kill, readers of data, recipes; and evaluation."""

from flowkit.train import data, schedules, toy
from flowkit.train.checkpoints import CheckpointError
from flowkit.train.data import digits
from flowkit.train.evaluation import Comparison, Evaluation, compare, evaluate
from flowkit.train.loop import Settings, Trained, fit
from flowkit.train.parallel import Processes, processes, shard
from flowkit.train.records import read_log

__all__ = [
    "CheckpointError",
    "Comparison",
    "Evaluation",
    "Processes",
    "Settings",
    "Trained",
    "compare",
    "data",
    "digits",
    "evaluate",
    "fit",
    "processes",
    "read_log",
    "schedules",
    "shard",
    "toy",
]
