"""Images to train and to score on, as integers; nothing is ever downloaded, and nothing is unpickled freely."""

from flowkit.train.data.images import DataError, Images, Split, every_nth
from flowkit.train.data.readers import SOURCES, WANTED, arrays, cifar10, folder, idx, mnist, name_of, read
from flowkit.train.data.scikit import digits
from flowkit.train.data.shuffling import Order, order

__all__ = [
    "DataError",
    "Images",
    "Order",
    "SOURCES",
    "Split",
    "WANTED",
    "arrays",
    "cifar10",
    "digits",
    "every_nth",
    "folder",
    "idx",
    "mnist",
    "name_of",
    "order",
    "read",
]
