"""The handwritten digits of scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["digits"]


def digits() -> tuple[Tensor, Tensor]:
    """The 8x8 handwritten digits that scikit-learn ships: 1,438 to train on and 359 held out, every fifth image.

    Returns:
        Training and held-out images, each (n, 1, 8, 8), int64 from 0 to 16.

    Raises:
        ImportError: without scikit-learn, naming the extra that brings it.

    Reference:
        Alpaydin, Kaynak, "Optical recognition of handwritten digits", 1998, UCI repository (CC BY 4.0).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits: scikit-learn ships this data; in a clone: pip install '.[demo]'") from error
    images = torch.from_numpy(load_digits().images).long().unsqueeze(1)
    held_out = torch.arange(len(images)) % 5 == 4
    return images[~held_out], images[held_out]
