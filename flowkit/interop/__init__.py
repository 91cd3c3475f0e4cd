"""To and from `torch.distributions`, into Pyro, and out by `torch.export`."""

from flowkit.interop.export import export_from_latent, export_log_prob, export_sample
from flowkit.interop.from_torch import from_torch_distribution, from_torch_transform
from flowkit.interop.pyro import as_pyro_distribution
from flowkit.interop.to_torch import as_torch_distribution, as_torch_transform

__all__ = [
    "as_pyro_distribution",
    "as_torch_distribution",
    "as_torch_transform",
    "export_from_latent",
    "export_log_prob",
    "export_sample",
    "from_torch_distribution",
    "from_torch_transform",
]
