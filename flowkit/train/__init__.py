"""Training: one loop to read and copy, checkpoints that survive a kill, readers of data, published recipes."""

from flowkit.train import data, schedules
from flowkit.train.checkpoints import CheckpointError
from flowkit.train.data import digits
from flowkit.train.loop import Settings, Trained, fit, held_out_bits
from flowkit.train.parallel import Processes, processes, shard
from flowkit.train.records import read_log

__all__ = [
    "CheckpointError",
    "Processes",
    "Settings",
    "Trained",
    "data",
    "digits",
    "fit",
    "held_out_bits",
    "processes",
    "read_log",
    "schedules",
    "shard",
]
