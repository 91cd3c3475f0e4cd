"""The processes of one run: who is who, what they agree on, and how a flow is spread over them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowkit.distribution import Distribution
from flowkit.transform import Transform

__all__ = ["Processes", "processes", "shard"]

# What users call on a sharded flow beside the flow itself.
ENTRANCES = ("log_prob", "sample", "rsample", "sample_and_log_prob", "to_latent", "from_latent")


class Processes:
    """One process among those of a run. All of them call the same methods in the same order.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
        device: where this one computes.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self._wrapped: list[nn.parallel.DistributedDataParallel] = []

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Everybody's `value`, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64 and in the order of ranks: the same bits everywhere."""
        return torch.tensor(self.gather(list(values)), dtype=torch.float64).sum(0).tolist()

    def wait(self) -> None:
        """Return when all have come here."""
        self.gather(None)

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.world > 1:
            with torch.no_grad():
                for value in [*module.parameters(), *module.buffers()]:
                    sent = value.detach().contiguous()
                    dist.broadcast(sent, src=0)
                    value.copy_(sent)

    def wrap(self, flow: Distribution, how: Literal["ddp", "fsdp"], example: Sequence[Tensor]) -> nn.Module:
        """The module to call in training: `flow` itself in a single process.

        Call what comes back, `model(x)`: `flow.log_prob(x)` of a flow under DDP does not synchronize gradients, and
        says nothing about it.

        Args:
            flow: initialized, the same on every process.
            how: DDP, or FSDP2.
            example: a small batch to call it on, x or x and context.

        Raises:
            ValueError: for FSDP in a process that no launcher started.
        """
        if how == "fsdp":
            if not dist.is_initialized():
                raise ValueError(
                    "parallel is 'fsdp', which wants a launcher: torchrun --nproc-per-node N -m flowkit ..."
                )
            return shard(flow)
        if self.world == 1:
            return flow
        self._wrapped.append(
            nn.parallel.DistributedDataParallel(
                flow,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # Flow++ has position embeddings that attention-free nets never read; DDP must know to look for them.
                find_unused_parameters=_has_unread_parameters(flow, example),
            )
        )
        return self._wrapped[-1]

    def release(self) -> None:
        """Part wrapped modules from the process group, before it is left; they are of no use afterwards.

        Whoever lets go of the group last joins its threads, and one of them may want the interpreter's lock. Python's
        own reference gives the lock away while it waits; that of a DDP module, freed later, would wait for ever.
        """
        for module in self._wrapped:
            del module.reducer, module.logger
        self._wrapped.clear()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the run that `torchrun` started, or be its only process; leave it at the end.

    Args:
        device: "auto" for a GPU where there is one, or a device of torch.

    Raises:
        ValueError: for a device that is none, or that is not there.

    >>> with processes("cpu") as ours:
    ...     ours.rank, ours.world, ours.total([0.5, 2.0])
    (0, 1, [0.5, 2.0])
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    # Each process looks at its own GPU alone: a tensor of every process on the first one would fill that.
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind
    where = usable("device", device, own)
    if kind == "cuda":
        torch.cuda.set_device(where)
    started = "WORLD_SIZE" in os.environ and "RANK" in os.environ and not dist.is_initialized()
    if started:
        # What lies on the CPU goes by gloo beside nccl too: counts, flags, random states.
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")
    joined = dist.is_initialized()
    ours = Processes(dist.get_rank() if joined else 0, dist.get_world_size() if joined else 1, where)
    try:
        yield ours
    finally:
        ours.release()
        if started:
            dist.destroy_process_group()


def usable(name: str, given: str, device: str | None = None) -> torch.device:
    """A device, if tensors can be made there.

    Args:
        name: of the argument that gave it, for the error.
        given: what it gave.
        device: what that stands for here, if it is something else.

    Raises:
        ValueError: if they cannot, with what torch says.

    >>> usable("--device", "gpu")
    Traceback (most recent call last):
        ...
    ValueError: --device is 'gpu': Expected one of cpu, cuda, ...
    """
    try:
        where = torch.device(given if device is None else device)
        torch.zeros((), device=where).item()  # a meta tensor can be made, and holds nothing
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} is {given!r}: {str(error).splitlines()[0]}") from None
    return where


def shard(flow: Distribution) -> Distribution:
    """Spread the parameters of `flow` over the processes, in place, by FSDP2.

    Every net is one unit and the rest another. Nets are always entered by a call, in both directions of a transform;
    a transform is not, so it cannot be a unit. After it, `log_prob`, `sample` and their kin work as before.

    Args:
        flow: initialized already; the same on every process.

    Returns:
        The same flow.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for net in nets(flow):
        fully_shard(net)
    fully_shard(flow)
    for name in ENTRANCES:
        if hasattr(flow, name):
            register_fsdp_forward_method(flow, name)
    return flow


def nets(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of `module` with parameters that are no transforms and no distributions."""
    for child in module.children():
        if isinstance(child, Transform | Distribution | nn.ModuleList | nn.ModuleDict):
            yield from nets(child)
        elif any(True for _ in child.parameters()):
            yield child


def whole(value: Any) -> Tensor:
    """A sharded tensor put together; any other as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def unsynchronized(model: nn.Module, yes: bool) -> Any:
    """A context in which gradients are only summed up here, not over processes: all but the last of a step's parts."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync() if yes else nullcontext()
    synchronize: Any = getattr(model, "set_requires_gradient_sync", None)
    if synchronize is not None:
        synchronize(not yes)
    return nullcontext()


def _has_unread_parameters(flow: Distribution, example: Sequence[Tensor]) -> bool:
    """Whether some parameter takes no part in `log_prob`."""
    wanted = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    devices = [example[0].device] if example[0].is_cuda else []
    with torch.random.fork_rng(devices):
        gradients = torch.autograd.grad(flow(*example).sum(), wanted, allow_unused=True)
    return any(gradient is None for gradient in gradients)
