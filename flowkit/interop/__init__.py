"""To and from `torch.distributions`, into Pyro, out by `torch.export`, and weights of zuko and nflows."""

from flowkit.interop.export import export_from_latent, export_log_prob, export_sample
from flowkit.interop.from_torch import from_torch_distribution, from_torch_transform
from flowkit.interop.nflows import from_nflows
from flowkit.interop.pyro import as_pyro_distribution
from flowkit.interop.to_torch import as_torch_distribution, as_torch_transform
from flowkit.interop.zuko import from_zuko

__all__ = [
    "as_pyro_distribution",
    "as_torch_distribution",
    "as_torch_transform",
    "export_from_latent",
    "export_log_prob",
    "export_sample",
    "from_nflows",
    "from_torch_distribution",
    "from_torch_transform",
    "from_zuko",
]
