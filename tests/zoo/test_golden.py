"""Flow++ and its data-dependent initialization against the authors' own graph, run in float64.

The files in tests/golden are of reduced sizes and hold, channels-last, in nats, one number per image where it is one:
  var:NAME                   every variable, in float16, which is exact; or variables_in, the file that has them
  x, eps (or u)              images, and the draw given to the dequantizer (or its uniform noise itself)
  v, dequant_term            the dequantized image on [0, levels], and -log q(u | x)
  z, main_logdet             latent and log-det of the main flow, from v
  total_logprob              dequant_term + main_logdet + log N(z)
  grad_names, grad_norm      norm of the gradient of -mean(total_logprob) by each variable that has one
  inv_z, inv_v, inv_logdet   given latents, and the inverse of the main flow
  floor_*                    some weights replaced so that the floors of log-scales and gains bind, and what comes then
Files named *_init have the variables before an initialization on x with dropout off, and, of those that it changes,
  factor:NAME                what it multiplies each output channel of a kernel with
  after:NAME                 the new value of any other variable
"""

import math
from copy import deepcopy
from functools import cache, cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.zoo import flowpp, flowpp_from_reference
from tests.support import FixedBase

FOLDER = Path(__file__).parents[1] / "golden"
SMALL = {
    "shape": (3, 16, 16),
    "filters": 8,
    "blocks": 2,
    "components": 2,
    "dequant_blocks": 1,
    "context_filters": 8,
    "context_blocks": 2,
}
SMALL64 = SMALL | {"filters": 4, "heads": 2, "dequant_blocks": 2}
# The config of each file, and the sizes at which the authors' graph was built.
FILES = {
    "flowpp_cifar10_small": ("cifar10", {"filters": 16, "blocks": 2, "components": 4}),
    "flowpp_nodequant_small": ("cifar10-uniform", SMALL),
    "flowpp_nomixlog_small": ("cifar10-affine", SMALL | {"components": 0}),
    "flowpp_noattn_small": ("cifar10-noattention", SMALL),
    "flowpp_imagenet32_small": ("imagenet32", SMALL),
    "flowpp_imagenet64_small": ("imagenet64", SMALL64),
    "flowpp_celeba64_5bit_small": ("celeba64-5bit", SMALL64),
    "flowpp_cifar10_init": ("cifar10", SMALL),
    "flowpp_imagenet32_init": ("imagenet32", SMALL | {"blocks": 1, "components": 1}),
    "flowpp_imagenet64_init": ("imagenet64", SMALL64 | {"blocks": 1, "components": 1}),
}
MODELS = [name for name in FILES if name.endswith("_small")]
INITS = [name for name in FILES if name.endswith("_init")]


class Golden:
    """One file, and the flow that it is about."""

    def __init__(self, name):
        self.config, self.overrides = FILES[name]
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = dict(file)
        self.variables = self.under("var:") or read(str(self.arrays["variables_in"])).variables
        self.levels = fk.zoo.CONFIGS[self.config].levels
        self.log_volume = self.arrays["x"][0].size * math.log(self.levels)

    def under(self, prefix):
        """The arrays with this prefix, in float64."""
        found = {name: value for name, value in self.arrays.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): value.astype(np.float64) for name, value in found.items()}

    def __getitem__(self, name):
        """As a tensor, images channels-first."""
        value = torch.from_numpy(self.arrays[name])
        return value.permute(0, 3, 1, 2).contiguous() if value.ndim == 4 else value

    @cached_property
    def flow(self):
        """The flow of the file's variables, in float64. Tests do not change it."""
        return self.make(self.variables)

    def make(self, variables, **overrides):
        return flowpp_from_reference(variables, config=self.config, **self.overrides | overrides)

    def run(self, flow, dtype=torch.float64):
        """What the graph gives for the file's images and noise, by its names and on its scales."""
        x, (dequantize, *rest) = self["x"], flow.transform
        if "eps" in self.arrays:
            dequantize.noise.base = FixedBase(self["eps"].to(dtype))
        with mock.patch("torch.rand", lambda shape, **options: self["u"].to(dtype)):
            cube, dequant_term = dequantize(x)
            total = flow(x)
        z, main_logdet = fk.Chain(*rest)(cube)
        if dequant_term.ndim > 1:  # the uniform one is elementwise
            dequant_term = dequant_term.sum((1, 2, 3))
        return {
            "v": cube * self.levels,
            "dequant_term": dequant_term + self.log_volume,
            "z": z,
            "main_logdet": main_logdet - self.log_volume,
            "total_logprob": total,
        }

    @cached_property
    def outputs(self):
        return self.run(self.flow)


@cache
def read(name):
    return Golden(name)


def differ(outputs, golden, prefix=""):
    """By how much each of these outputs is off."""
    return {name: (value.detach() - golden[prefix + name]).abs().max().item() for name, value in outputs.items()}


def test_every_file_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(FILES)


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_the_authors(name):
    golden = read(name)
    off = differ(golden.outputs, golden)
    assert max(off.values()) < 1e-8, off


@pytest.mark.parametrize("name", MODELS)
def test_forward_in_float32(name):
    golden = read(name)
    flow = deepcopy(golden.flow).float()
    off = differ(golden.run(flow, torch.float32), golden)
    assert max(off["v"], off["z"]) < 1e-3 and max(off.values()) < 1e-2, off


@pytest.mark.parametrize("name", MODELS)
def test_inverse_is_the_authors(name):
    golden = read(name)
    main = fk.Chain(*list(golden.flow.transform)[1:])
    with torch.no_grad():
        cube, log_term = main.inverse(golden["inv_z"].double())
    off = differ({"v": cube * golden.levels, "logdet": log_term + golden.log_volume}, golden, prefix="inv_")
    assert max(off.values()) < 1e-6, off


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_authors(name):
    golden = read(name)
    trained = {key: p for key, p in golden.flow.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(-golden.outputs["total_logprob"].mean(), list(trained.values()), retain_graph=True)
    # A flow made of numbers in the place of variables says which element comes from which.
    numbers = {key: np.full(value.shape, i, float) for i, (key, value) in enumerate(golden.variables.items())}
    origin = dict(golden.make(numbers).named_parameters())
    squares = torch.zeros(len(numbers), dtype=torch.float64)
    for key, grad in zip(trained, grads, strict=True):
        squares.index_add_(0, origin[key].detach().long().flatten(), grad.square().flatten())
    found = dict(zip(numbers, squares.sqrt().tolist(), strict=True))
    wanted = dict(zip(golden.arrays["grad_names"].tolist(), golden.arrays["grad_norm"].tolist(), strict=True))
    assert {key for key, norm in found.items() if norm} == wanted.keys()
    off = {key: abs(found[key] / norm - 1) for key, norm in wanted.items()}
    worst = max(off, key=off.get)
    assert off[worst] < 1e-8, f"{worst} is off by {off[worst]:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_makes_the_same_flow(name):
    golden = read(name)
    other = flowpp(config=golden.config, **golden.overrides).double().eval()
    other.load_state_dict(golden.flow.state_dict())
    for key, value in golden.run(other).items():
        assert torch.equal(value, golden.outputs[key]), key


def test_floors_of_log_scales_and_gains():
    golden = read("flowpp_cifar10_small")
    variables = {key: value.copy() for key, value in golden.variables.items()}
    overridden = (golden.arrays[f"floor_{key}"].tolist() for key in ("names", "index", "value"))
    for key, index, value in zip(*overridden, strict=True):
        variables[key].flat[index] = value
    outputs = golden.run(golden.make(variables))
    del outputs["v"]
    off = differ(outputs, golden, prefix="floor_")
    assert off.pop("z") < 1e-6  # stored in float32
    assert max(off.values()) < 1e-8, off


@pytest.mark.parametrize("name", INITS)
def test_initialization_is_the_authors(name):
    golden = read(name)
    flow = golden.make(golden.variables, dropout=0.0)
    flow.transform["dequantize"].noise.base = FixedBase(golden["eps"].double())
    fk.initialize(flow, golden["x"])
    after = golden.variables | golden.under("after:")
    for kernel, factor in golden.under("factor:").items():
        after[kernel] = golden.variables[kernel] * factor
    wanted = golden.make(after, dropout=0.0)
    torch.testing.assert_close(flow.state_dict(), wanted.state_dict(), rtol=1e-6, atol=1e-9)
    off = differ(golden.run(flow), golden)
    assert max(off.values()) < 1e-8, off


@pytest.mark.parametrize(
    "missing",
    [
        "context_proc/c1/c2/W",
        "Norm_4/norm1/b",
        "Pointwise_12/W0",
        "MixLogisticCoupling_3/block0/conv/a_proj/b",
        "MixLogisticCoupling_5/block1/attn/proj2/W",
    ],
)
def test_a_missing_variable_is_named(missing):
    golden = read("flowpp_noattn_small")
    variables = dict(golden.variables)
    del variables[missing]
    with pytest.raises(fk.zoo.WeightsError, match=f"no variable '{missing}', which cifar10-noattention has"):
        golden.make(variables)


def test_a_left_over_variable_is_named():
    golden = read("flowpp_noattn_small")
    extra = {"Pointwise_13/W0": np.eye(3), "Norm_13/norm0/g": np.ones((16, 8, 3))}
    with pytest.raises(fk.zoo.WeightsError, match=r"has no variable 'Norm_13/norm0/g' \(2 left over\)"):
        golden.make(golden.variables | extra)


@pytest.mark.parametrize(
    ("variable", "shape"),
    [
        ("MixLogisticCoupling_5/proj_in/W", (3, 3, 8, 3)),  # inputs and outputs exchanged
        ("MixLogisticCoupling_5/proj_in/b", (9,)),
        ("MixLogisticCoupling_5/block1/attn/proj2/W", (16, 8)),
        ("MixLogisticCoupling_5/block0/ln1/g", (1, 1, 1, 4)),
        ("MixLogisticCoupling_5/pos_emb", (8, 16, 8)),
        ("Norm_1/norm1/g", (16, 8, 4)),  # that of the other half is right
        ("Pointwise_8/W0", (4, 4)),
    ],
)
def test_a_wrong_shape_is_named(variable, shape):
    golden = read("flowpp_noattn_small")
    assert golden.variables[variable].shape != shape
    with pytest.raises(fk.zoo.WeightsError, match=variable):
        golden.make(golden.variables | {variable: np.ones(shape)})
