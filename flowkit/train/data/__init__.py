"""Images to train and to score on, as integers; nothing is ever downloaded, and nothing is unpickled freely."""

from flowkit.train.data.digits import digits
from flowkit.train.data.images import DataError, Images, Split, every_nth
from flowkit.train.data.order import Order, order
from flowkit.train.data.readers import SOURCES, arrays, cifar10, folder, idx, mnist, read

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
