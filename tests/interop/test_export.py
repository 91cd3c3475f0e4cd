"""Programs of `torch.export` against the flows that they were made from."""

import io

import pytest
import torch

import flowkit as fk
from flowkit.interop import export_from_latent, export_log_prob, export_sample
from tests.conformance.cases import DISTRIBUTIONS
from tests.support import perturb


def mlp(out, context=0):
    return fk.nets.MLP((2,), (2, out), hidden=(8,), context=context)


def coupling_flow():
    couple = fk.AffineCoupling(mlp(2), dim=-1)
    return fk.Flow(fk.Chain(couple, fk.Flip(dim=-1), fk.ActNorm((4,)), fk.Sigmoid()), fk.Uniform((4,)))


def spline_flow():
    spline = fk.maps.RationalQuadratic(5)
    couple = fk.Coupling(spline, mlp(spline.num_params), dim=-1)
    return fk.Flow(fk.Chain(fk.LULinear(4), couple, fk.QRLinear(4), fk.HouseholderLinear(4)), fk.Logistic((4,)))


def conditional_flow():
    couple = fk.AffineCoupling(mlp(2, context=3), dim=-1)
    return fk.Flow(couple, fk.Normal((4,)), context_net=fk.nets.MLP((2,), (3,)), context_shape=(2,))


def turned_flow():
    """Its log-density runs a numerical inverse."""
    couple = fk.MixLogisticCDFCoupling(fk.nets.MLP((1,), (1, 8), hidden=(8,)), components=2, dim=-1)
    return fk.Flow(couple.inv, fk.Normal((2,)))


def dequantized_flow():
    return fk.Flow(fk.Chain(fk.UniformDequantizer(4), fk.Logit(margin=0.05), fk.ActNorm((3,))), fk.Normal((3,)))


def image_flow():
    gated = fk.nets.GatedConvAttention((1, 2, 4), 2, filters=4, blocks=1, heads=2)
    couple = fk.Coupling(fk.maps.Affine(1.0), gated, dim=-4)
    norm = fk.within(fk.Squeeze(), fk.LUConv1x1((4, 1, 4)))
    return fk.Flow(fk.Chain(norm, fk.within(fk.PairColumns(), couple)), fk.Normal((1, 2, 8)))


def autoregressive_flow():
    return fk.zoo.maf(3, transforms=1, hidden=(8,))


def glow_flow():
    return fk.zoo.glow((1, 4, 4), levels=4, scales=2, steps=1, filters=4)


MAKERS = (
    coupling_flow,
    spline_flow,
    conditional_flow,
    turned_flow,
    dequantized_flow,
    image_flow,
    autoregressive_flow,
    glow_flow,
)
FLOWS = {make.__name__: make for make in MAKERS}


def made(name):
    torch.manual_seed(0)
    return perturb(FLOWS[name](), 0.2)


def loaded(program):
    """As another process would have it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def agree(program, method, *arguments):
    torch.manual_seed(1)
    got = program(*(value.requires_grad_(value.is_floating_point()) for value in arguments))
    torch.manual_seed(1)
    with torch.no_grad():
        wanted = method(*arguments)
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def contexts(flow, n):
    return () if flow.context_ndim is None else (torch.randn(n, 2),)


@pytest.mark.parametrize("name", FLOWS)
def test_log_prob(name):
    flow = made(name)
    program = loaded(export_log_prob(flow, *contexts(flow, 1)))
    for n in (0, 1, 7):
        given = contexts(flow, n)
        x = flow.sample(() if given else (n,), *given)
        agree(program, flow.eval().log_prob, x, *given)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "turned_flow"])
def test_from_latent(name):
    flow = made(name)
    program = loaded(export_from_latent(flow, *contexts(flow, 1)))
    for n in (0, 1, 7):
        agree(program, flow.from_latent, torch.rand(n, *flow.base.event_shape), *contexts(flow, n))


@pytest.mark.parametrize("name", FLOWS)
def test_sample(name):
    flow = made(name)
    program = loaded(export_sample(flow, *contexts(flow, 1)))
    for n in (0, 1, 7):
        if flow.context_ndim is None:
            agree(program, lambda rows: flow.sample((len(rows),)), torch.empty(n))
        else:
            agree(program, lambda context: flow.sample((), context), *contexts(flow, n))


BASES = [row for row in DISTRIBUTIONS if row.name.split("-")[0] in fk.distributions.__all__]


@pytest.mark.parametrize("row", BASES, ids=lambda row: row.name)
def test_every_base(row):
    """A draw of any size goes through the exporter only if no `generator=None` is handed to torch."""
    base, context = row.make(), row.case().context
    given = () if context is None else (context.float(),)
    x = base.sample(() if given else (3,), *given)
    agree(export_log_prob(base, *given).module(), base.log_prob, x, *given)
    agree(
        export_sample(base, *given).module(),
        lambda rows: base.sample(() if given else (len(rows),), *given),
        *(given or (torch.empty(5),)),
    )


def test_plain_export_of_a_flow_keeps_gradients():
    flow = made("spline_flow")
    program = torch.export.export(flow, (torch.randn(5, 4),), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
    x = torch.randn(7, 4, requires_grad=True)
    (got,), (wanted,) = (torch.autograd.grad(f(x).sum(), x) for f in (program, flow))
    torch.testing.assert_close(got, wanted)


def test_a_program_is_a_snapshot_in_eval_mode():
    flow = made("coupling_flow").train()
    x = torch.randn(3, 4).sigmoid()
    wanted = flow.log_prob(x)
    program = export_log_prob(flow).module()
    assert flow.training
    perturb(flow, 0.5)
    torch.testing.assert_close(program(x), wanted.detach())


def test_contexts_that_do_not_fit():
    for export in (export_log_prob, export_from_latent, export_sample):
        with pytest.raises(fk.ShapeError, match="context is missing"):
            export(made("conditional_flow"))
        with pytest.raises(fk.ShapeError, match="takes none"):
            export(made("coupling_flow"), torch.zeros(2))
        with pytest.raises(TypeError, match="is a Exp, wanted a"):
            export(fk.Exp())
    with pytest.raises(TypeError, match="wanted a Flow, which has a latent"):
        export_from_latent(fk.Normal((2,)))


@pytest.mark.thorough
def test_the_pretrained_digits():
    flow = fk.zoo.flowpp("digits")
    x = flow.sample((5,))
    agree(loaded(export_log_prob(flow)), flow.log_prob, x)
    agree(loaded(export_from_latent(flow)), flow.from_latent, torch.randn(3, *flow.base.event_shape))
