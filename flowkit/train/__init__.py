"""Data to train and to score on."""

from flowkit.train.data import digits

__all__ = ["digits"]
