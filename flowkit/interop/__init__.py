"""To and from `torch.distributions`."""

from flowkit.interop.from_torch import from_torch_distribution, from_torch_transform
from flowkit.interop.to_torch import as_torch_distribution, as_torch_transform

__all__ = ["as_torch_distribution", "as_torch_transform", "from_torch_distribution", "from_torch_transform"]
