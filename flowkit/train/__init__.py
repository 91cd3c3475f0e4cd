"""Data to train and to score on, and evaluation."""

from flowkit.train.data import digits
from flowkit.train.evaluation import Comparison, Evaluation, compare, evaluate

__all__ = ["Comparison", "Evaluation", "compare", "digits", "evaluate"]
