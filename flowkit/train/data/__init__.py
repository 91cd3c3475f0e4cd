"""Images to train and to score on, as integers; nothing is ever downloaded, and nothing is unpickled freely."""

from flowkit.train.data.images import DataError, Images, Split, every_nth
from flowkit.train.data.readers import SOURCES, arrays, cifar10, folder, idx, mnist, read
from flowkit.train.data.scikit import digits
from flowkit.train.data.shuffling import Order, order

__all__ = [
    "DataError",
    "Images",
    "Order",
    "SOURCES",
    "Split",
    "arrays",
    "cifar10",
    "digits",
    "every_nth",
    "folder",
    "idx",
    "mnist",
    "order",
    "read",
]
