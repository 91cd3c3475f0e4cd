"""What several tests share."""

import torch

import flowkit as fk


class FixedBase(fk.Distribution):
    """A standard normal whose draw is given."""

    def __init__(self, eps):
        super().__init__()
        self.normal = fk.Normal(eps.shape[1:]).to(eps.dtype)
        self.event_shape = self.normal.event_shape
        self.eps = eps

    def log_prob(self, x, context=None, *, generator=None):
        return self.normal.log_prob(x)

    def rsample(self, sample_shape=(), context=None, *, generator=None):
        return self.eps


def at_identity(module):
    """Set the layers that learn to the identity: 1x1 convolutions, and conditioners that give parameters of 0."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, fk.Conv1x1):
                part.weight.copy_(torch.eye(part.weight.shape[-1]).expand_as(part.weight))
            if isinstance(part, fk.nets.GatedConvAttention):
                part.exit.weight.zero_()
    return module


def perturb(module, scale=0.05, seed=0):
    """Move every parameter a little, so that no layer is at its start, often the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module
