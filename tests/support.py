"""What several tests share."""

import json
import subprocess
import sys

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


def trained(flow, x, context=None, steps=30, rate=3e-3):
    """Initialize on x, take a few steps of Adam, and give the mean log_prob before and after, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    fk.initialize(flow, x, context, generator=generator)
    noise = {"generator": generator}

    def mean():
        with torch.no_grad():
            return flow.eval().log_prob(x, context, **noise).mean().item()

    # Running averages of batch norm follow the batch before they are asked.
    for _ in range(30):
        flow.train().log_prob(x, context, **noise)
    before = mean()
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-flow.train().log_prob(x, context, **noise).mean()).backward()
        optimizer.step()
    return before, mean()


def written_out(transform, x, context=None):
    """All latents of a chain that factors out, side by side, and the log-density of what it factored out.

    So the latents are a bijection of x, whose Jacobian autograd can tell.
    """
    if isinstance(transform, fk.Slice):
        kept, rest = x.tensor_split([transform.keep], dim=transform.dim)
        given = () if transform.base.context_ndim is None else (kept,)
        return kept, [rest.flatten()], transform.base.log_prob(rest, *given)
    if not isinstance(transform, fk.Chain) or not any(isinstance(part, fk.Slice) for part in transform.modules()):
        return transform(x, context)[0], [], 0.0
    latents, density = [], 0.0
    for part in transform:
        x, more, log_prob = written_out(part, x, context)
        latents, density = latents + more, density + log_prob
    return x, latents, density


def log_prob_by_jacobian(parts, base, x, context=None):
    """The log-density of one x under a chain and a base, from autograd's Jacobian of all latents."""

    def latents(x):
        z, factored, _ = written_out(parts, x, context)
        return torch.cat([*factored, z.flatten()])

    jacobian = torch.autograd.functional.jacobian(latents, x).flatten(1)
    z, _, density = written_out(parts, x, context)
    return base.log_prob(z) + density + torch.linalg.slogdet(jacobian).logabsdet


def after_dequantizer(flow):
    """The density over real numbers behind a model's first part."""
    parts = {name: part for name, part in flow.transform.named_children() if name != "dequantize"}
    return fk.Flow(fk.Chain(**parts), flow.base, context_ndim=flow.context_ndim)


PROBE = """
import json, sys, warnings
import torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "validate_args": torch.distributions.Distribution._validate_args,
        "random state": torch.random.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "print options": repr(vars(torch._tensor_str.PRINT_OPTS)),
        "warning filters": repr(warnings.filters),
        "recursion limit": sys.getrecursionlimit(),
    }

torch.manual_seed(0)
before, modules = state(), set(sys.modules)
import MODULE
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "torch": sorted(name for name in set(sys.modules) - modules if name.startswith("torch.")),
}))
"""


def changed_by_importing(module):
    """What importing a module in a fresh process changes, and which other modules come along; None if it is absent."""
    done = subprocess.run([sys.executable, "-c", PROBE.replace("MODULE", module)], capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
