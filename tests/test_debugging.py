"""The validation mode names where a value goes wrong; certificates say how good an inverse is."""

import math

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.debugging import inverse_certificates, validation
from flowkit.functional import logit_mix_logistic_cdf_inverse
from flowkit.functional.rootfind import recorded_solves, solve_increasing
from flowkit.interception import intercepted
from tests.support import perturb


def coupling_flow(map=None, width=4):
    torch.manual_seed(0)
    map = map or fk.maps.Affine()
    net = fk.nets.MLP((width // 2,), (width // 2, map.num_params), hidden=(8,))
    parts = {"norm": fk.ActNorm((width,)), "couple": fk.Coupling(map, net, dim=-1), "mix": fk.LULinear(width)}
    return perturb(fk.Flow(fk.Chain(**parts), fk.Normal(width)), 0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Validation


class Faulty(nn.Module):
    """A net that gives a value of its own in one place."""

    def __init__(self, out, value, example, inner=False):
        super().__init__()
        self.out, self.value, self.example = out, value, example
        self.lift = nn.Linear(2, math.prod(out))
        self.fault = Fault(value, example) if inner else nn.Identity()

    def forward(self, x, context=None):
        y = self.fault(self.lift(x)).unflatten(-1, self.out)
        if isinstance(self.fault, nn.Identity):
            y = y.index_fill(0, torch.tensor([self.example]), self.value)
        return y


class Fault(nn.Module):
    def __init__(self, value, example):
        super().__init__()
        self.value, self.example = value, example

    def forward(self, x):
        return x.index_fill(0, torch.tensor([self.example]), self.value)


def test_a_layer_the_example_the_element_and_its_parameters_are_named():
    flow = coupling_flow()
    with torch.no_grad():
        flow.transform["norm"].gain[2] = math.inf
        flow.transform["norm"].bias.zero_()
    with validation(flow), pytest.raises(fk.DomainError) as caught:
        flow.log_prob(torch.ones(3, 4))
    message = str(caught.value)
    assert message.startswith(
        "transform.norm: z is inf in example 0, element 2, wanted a finite value; running forward"
    )
    assert "x is from 1 to 1, here 1" in message and "bias is from 0 to 0" in message
    assert "and not finite in 1 of 4" in message


def test_parameters_of_a_map_are_shown_by_name_at_the_element():
    flow = coupling_flow()
    flow.transform["couple"].conditioner = Faulty((2, 2), 100.0, example=1)
    with validation(flow), pytest.raises(fk.DomainError) as caught:
        flow.log_prob(torch.ones(3, 4))
    message = str(caught.value)
    assert message.startswith("transform.couple.map: z is inf in example 1, element 0, wanted a finite value")
    assert "to 100, here 100" in message.split("log_scale is ")[1].split(";")[0]
    assert "shift is " in message
    for map, names in (
        (fk.maps.MixLogistic(3), {"logits", "means", "log_scales", "log_scale", "shift"}),
        (fk.maps.RationalQuadratic(4), {"widths", "heights", "slopes"}),
        (fk.maps.Additive(), {"shift"}),
    ):
        named = map.named_params(torch.randn(5, 2, map.num_params))
        assert set(named) == names and all(value.shape[:2] == (5, 2) for value in named.values())


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_net_that_gives_nan_is_named_in_both_directions(direction):
    flow = coupling_flow()
    flow.transform["couple"].conditioner = Faulty((2, 2), math.nan, example=2)
    run = flow.log_prob if direction == "forward" else flow.from_latent
    pattern = r"^transform\.couple\.conditioner: its output is nan in example 2, element \(0, 0\), wanted a finite"
    with validation(flow), pytest.raises(fk.DomainError, match=pattern):
        run(torch.ones(3, 4))
    flow.transform["couple"].conditioner = Faulty((2, 2), math.nan, example=2, inner=True)
    with validation(flow), pytest.raises(fk.DomainError, match=r"conditioner\.fault: its output is nan in example 2, "):
        run(torch.ones(3, 4))


def test_an_infinity_inside_a_net_counts_only_if_it_comes_out():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = Fault(-math.inf, 0)
            self.lift = nn.Linear(2, 4)

        def forward(self, x, context=None):
            return self.lift(self.mask(x).exp()).unflatten(-1, (2, 2))

    flow = coupling_flow()
    flow.transform["couple"].conditioner = Masked()
    with validation(flow):
        flow.log_prob(torch.ones(3, 4))
    flow.transform["couple"].conditioner = Faulty((2, 2), math.inf, example=1, inner=True)
    with validation(flow), pytest.raises(fk.DomainError, match=r"conditioner\.fault: its output is inf in example 1, "):
        flow.log_prob(torch.ones(3, 4))


def test_examples_are_told_from_elements():
    flow = fk.Flow(fk.Chain(logit=fk.Logit()), fk.Normal((2, 3)))  # elementwise: only the flow knows the event
    x = torch.full((5, 4, 2, 3), 0.5)
    x[3, 1, 0, 2] = math.nan
    with validation(flow), pytest.raises(fk.DomainError, match=r"x is nan in example \(3, 1\), element \(0, 2\), want"):
        flow.log_prob(x)
    with (
        validation(flow),
        pytest.raises(fk.DomainError, match=r"logit: z is nan in example \(3, 1\), element \(0, 2\)"),
    ):
        flow.from_latent(x)
    with validation(flow), pytest.raises(fk.DomainError, match=r"logit: x is nan, element \(0, 2\), wanted no NaN"):
        flow.log_prob(x=x[3, 1])
    with validation(flow.transform), pytest.raises(fk.DomainError, match=r"x is nan in example \(3, 1, 0, 2\), wanted"):
        flow.transform(x)


def test_log_terms_and_densities_are_checked():
    class Silent(fk.Bijector):
        in_ndim = out_ndim = 1

        def __init__(self, term):
            super().__init__()
            self.term = term

        def forward(self, x, context=None):
            return x, torch.tensor([0.0, self.term])

        inverse = forward

    for term in (math.nan, -math.inf):
        flow = fk.Flow(fk.Chain(silent=Silent(term)), fk.Normal(2))
        with (
            validation(flow),
            pytest.raises(fk.DomainError, match=f"silent: the log-term is {term} in example 1, want"),
        ):
            flow.log_prob(torch.zeros(2, 2))
    flow = fk.Flow(fk.ActNorm((2,)), fk.Normal(2))
    flow.base.scale.fill_(math.nan)
    with validation(flow), pytest.raises(fk.DomainError, match="^base: log_prob is nan in example 0, wanted a number"):
        flow.log_prob(torch.zeros(2, 2))
    # No density outside a box, and no bin outside the cube, are answers.
    box = fk.Flow(fk.Flip(-1), fk.Uniform(2))
    with validation(box):
        assert box.log_prob(torch.tensor([2.0, 0.5])) == -math.inf
    with validation(dequantize := fk.UniformDequantizer(4)):
        assert dequantize.inverse(torch.tensor([1.5]))[1] == -math.inf


def test_a_value_outside_a_codomain_is_named_only_if_nothing_comes_of_it():
    center = fk.ScaleShift(1.0, -0.5, domain=torch.distributions.constraints.unit_interval)
    flow = fk.Flow(fk.Chain(dequantize=fk.UniformDequantizer(4), center=center, norm=fk.ActNorm((2,))), fk.Normal(2))
    with validation(flow):
        assert flow.from_latent(torch.tensor([0.75, 0.0])).tolist() == [3, 2]
    squash = fk.Flow(fk.Chain(squash=fk.Sigmoid(), flip=fk.Flip(-1)), fk.Uniform(2))
    with (
        validation(squash),
        pytest.raises(fk.DomainError, match=r"squash: z is 1.5 in example 0, element 1, wanted Int"),
    ):
        squash.from_latent(torch.tensor([[1.5, 0.2]]))
    with validation(flow.transform["center"]), pytest.raises(fk.DomainError, match="x is 1.5"):
        flow.transform["center"](torch.tensor([0.5, 1.5]))


def test_a_map_that_several_couplings_share_is_named_by_the_one_that_runs():
    map = fk.maps.Affine()
    nets = [fk.nets.MLP((1,), (1, 2), hidden=(4,)), Faulty((1, 2), 100.0, example=0)]
    nets[1].lift = nn.Linear(1, 2)
    parts = {name: fk.Coupling(map, net, dim=-1) for name, net in zip(("one", "two"), nets, strict=True)}
    flow = fk.Flow(fk.Chain(**parts), fk.Normal(2))
    with validation(flow), pytest.raises(fk.DomainError, match=r"^transform\.two\.map: z is inf"):
        flow.log_prob(torch.ones(2, 2))


def test_gradients_are_checked_where_backward_meets_them():
    class Root(fk.Bijector):
        """Its gradient is infinite at 0, and its values are not."""

        in_ndim = out_ndim = 0

        def forward(self, x, context=None):
            return x.abs().sqrt() * x.sign(), torch.zeros_like(x)

        def inverse(self, z, context=None):
            return z * z.abs(), torch.zeros_like(z)

    flow = fk.Flow(fk.Chain(norm=fk.ActNorm((2,)), root=Root(), last=fk.ActNorm((2,))), fk.Normal(2))
    with torch.no_grad():
        flow.transform["last"].bias.fill_(1.0)
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    flow.log_prob(x).sum().backward()  # outside the mode nothing is said
    pattern = r"^transform\.root: the gradient of x is nan in example 1, element 1, .*; running backward; x is from 0"
    with validation(flow), pytest.raises(fk.DomainError, match=pattern):
        flow.log_prob(x).sum().backward()
    with validation(flow):
        log_prob = flow.log_prob(x)
    log_prob.sum().backward()  # it ends with the context
    with validation(flow):
        flow.log_prob(x[:1]).sum().backward()


def test_gradients_of_parameters_nets_and_losses():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x, context=None):
            return self.weight.abs().sqrt().expand(len(x), 2, 2)

    flow = coupling_flow()
    flow.transform["couple"].conditioner = Scale()
    pattern = r"^transform\.couple\.conditioner\.weight: the gradient of this parameter is -?(inf|nan) at index \(0, 0"
    with validation(flow), pytest.raises(fk.DomainError, match=pattern):
        flow.log_prob(torch.ones(3, 4)).sum().backward()
    flow = coupling_flow()
    with (
        validation(flow),
        pytest.raises(fk.DomainError, match=r"the gradient of log_prob is nan in example 0, .* loss"),
    ):
        (flow.log_prob(torch.ones(3, 4)) * math.nan).sum().backward()
    with validation(flow):  # of a call that fails nothing is left
        with pytest.raises(fk.ShapeError):
            flow.log_prob(torch.ones(3, 5))
        flow.log_prob(torch.ones(3, 4)).sum().backward()
    assert not any(parameter._backward_hooks for parameter in flow.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Certificates


@pytest.mark.parametrize("map", [fk.maps.MixLogistic(4), fk.maps.MixGaussian(4)], ids=["logistic", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_search_is_certified_element_by_element(map, dtype):
    flow = coupling_flow(map).to(dtype)
    with inverse_certificates(flow) as report:
        x = flow.sample((5, 7))
    certificate = report["transform.couple"]
    (call,), (whole,) = certificate.map_calls, certificate.calls
    assert [c.path for c in report] == ["transform.mix", "transform.couple", "transform.norm"]
    assert report.ok and certificate.numerical and certificate.converged == 1.0
    assert call.iterations.shape == call.converged.shape == call.residual.shape == call.conditioning.shape == (5, 7, 2)
    assert whole.error.shape == (5, 7, 4) and certificate.iterations == call.iterations.max() < 30
    assert 0 < certificate.residual < 20 and len(certificate.worst) == 2
    assert call.residual[certificate.worst].max() == certificate.residual
    # dx/dz against autograd
    with torch.no_grad():
        y = flow.transform["norm"](x)[0]
        params = flow.transform["couple"].conditioner(y[..., :2], None)
    second = y[..., 2:].clone().requires_grad_()
    (slope,) = torch.autograd.grad(map(second, params)[0].sum(), second)
    torch.testing.assert_close(call.conditioning, 1 / slope, rtol=1e-4, atol=0)


def test_a_search_that_is_stopped_short_is_reported(monkeypatch):
    flow = coupling_flow(fk.maps.MixLogistic(4))
    with torch.no_grad():
        flow.transform["couple"].conditioner.apply(lambda m: m.weight.mul_(20) if isinstance(m, nn.Linear) else None)
    monkeypatch.setattr("flowkit.functional.logistic_linear._ITERATIONS", 2)
    with inverse_certificates(flow) as report:
        flow.sample((50,))
    certificate = report["transform.couple"]
    assert not report.ok and not certificate.ok and certificate.converged < 1 and certificate.residual > 1000
    assert certificate.iterations == 2
    call = certificate.map_calls[0]
    assert not call.converged[certificate.worst].all()
    assert "NO" in str(report) and "| NO |" in report.to_markdown()


def test_an_inverse_that_is_none_is_reported():
    class Wrong(fk.Bijector):
        in_ndim = out_ndim = 1

        def forward(self, x, context=None):
            return 2 * x, x.new_full(x.shape[:-1], 0.0)

        def inverse(self, z, context=None):
            worse = torch.zeros(z.shape).index_fill(0, torch.tensor([3]), 1.0)
            return z / 2 + worse, z.new_full(z.shape[:-1], 0.0)

    flow = fk.Flow(fk.Chain(wrong=Wrong(), norm=fk.ActNorm((2,))), fk.Normal(2))
    with inverse_certificates(flow) as report:
        flow.sample((6,))
    certificate = report["transform.wrong"]
    assert not report.ok and report["transform.norm"].ok
    assert certificate.worst == (3,) and certificate.round_trip == pytest.approx(2.0, rel=1e-5)
    assert certificate.iterations is certificate.converged is certificate.conditioning is None
    with inverse_certificates(flow, tolerance=1e9) as report:
        flow.sample((6,))
    assert report.ok


def test_values_that_have_no_way_back_are_reported():
    flow = fk.Flow(fk.Chain(logit=fk.Logit()), fk.Normal(1))
    with inverse_certificates(flow) as report:
        flow.from_latent(torch.tensor([[0.0], [30.0]]))  # the sigmoid of 30 is 1 in float32
    assert not report.ok and report["transform.logit"].residual == math.inf and report["transform.logit"].worst == (1,)


def test_closed_forms_schemes_views_and_multi_scale_flows_are_certified():
    parts = {
        "view": fk.within(fk.PairColumns(), fk.ActNorm((2, 1, 4, 2)), fk.Flip(-4)),
        "spline": fk.Elementwise(fk.maps.RationalQuadratic(4), (1, 4, 4)),
        "squeeze": fk.Squeeze(),
        "out": fk.Slice(2, fk.Normal((2, 2, 2)), dim=-3),
        "mix": fk.Conv1x1((2, 2, 2)),
    }
    flow = perturb(fk.Flow(fk.Chain(**parts), fk.Normal((2, 2, 2))))
    with inverse_certificates(flow) as report:
        flow.sample((9,))
    assert report.ok, str(report)
    assert {"transform.view.1", "transform.spline", "transform.squeeze", "transform.out", "transform.mix"} <= {
        certificate.path for certificate in report
    }
    assert report["transform.spline"].conditioning > 0 and max(map(len, str(report).splitlines())) <= 120


def test_a_flow_that_is_turned_round_and_a_dequantizers_noise():
    turned = fk.Flow(coupling_flow(fk.maps.MixLogistic(3)).transform.inv, fk.Normal(4))
    with inverse_certificates(turned) as report:
        turned.sample((3,))
        assert len(report) == 0 and report.ok  # nothing was inverted
        turned.log_prob(torch.randn(3, 4))
    assert report.ok and report["transform.transform.couple"].iterations
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1).eval()
    with inverse_certificates(flow) as report:
        flow.log_prob(torch.randint(17, (2, 1, 8, 8)))
    assert report.ok and "transform.columns1.0" in [certificate.path for certificate in report]  # a view, undone
    with pytest.raises(KeyError, match="no inverse of 'transform.logit' ran"):
        report["transform.logit"]


def test_certificates_leave_nothing_behind_and_cost_one_forward():
    flow = coupling_flow(fk.maps.MixLogistic(3)).train()
    calls = []
    flow.transform["couple"].conditioner.register_forward_hook(lambda *_: calls.append(1))
    with inverse_certificates(flow):
        flow.sample((3,))
    assert len(calls) == 2 and flow.transform["couple"].conditioner.training
    flow.sample((3,))
    assert len(calls) == 3
    assert not any({"forward", "inverse"} & set(part.__dict__) for part in flow.modules())
    with pytest.raises(ValueError, match="tolerance is 0"), inverse_certificates(flow, tolerance=0):
        pass


def test_a_batch_norm_in_train_mode_is_not_moved():
    flow = fk.Flow(fk.BatchNorm((2,)), fk.Normal(2)).train()
    before = flow.transform.running_mean.clone()
    with inverse_certificates(flow) as report:
        flow.sample((30,))
    assert report.ok and torch.equal(flow.transform.running_mean, before) and flow.transform.training


# ---------------------------------------------------------------------------------------------------------------------
# What they stand on


def test_solves_are_recorded_only_on_request():
    y, parameters = torch.linspace(-3, 3, 50), [torch.randn(50, 4) for _ in range(3)]
    with recorded_solves() as outer:
        with recorded_solves() as inner:
            logit_mix_logistic_cdf_inverse(y, *parameters)
        assert len(inner) == 1 and not outer
        torch.func.vmap(logit_mix_logistic_cdf_inverse)(y, *parameters)
        assert [solve.iterations.shape for solve in outer] == [(50,)]
    logit_mix_logistic_cdf_inverse(y, *parameters)
    assert len(inner) == 1 and inner[0].converged.all() and inner[0].iterations.shape == (50,)


@pytest.mark.parametrize("compact", [True, False])
def test_iterations_are_counted_for_each_element(compact):
    def cubic(x):
        return x**3 + x, (3 * x**2 + 1).log()

    target = torch.tensor([0.0, 10.0, 1e6], dtype=torch.float64)
    bound = torch.full_like(target, 200.0)
    start, resolution = torch.zeros_like(target), torch.ones_like(target)
    with recorded_solves() as solves:
        x, _ = solve_increasing(cubic, target, -bound, bound, start, resolution, iterations=40, compact=compact)
    torch.testing.assert_close(x**3 + x, target)
    (solve,) = solves
    assert solve.iterations[0] == 1 < solve.iterations[1:].min() and solve.iterations.max() < 40
    assert solve.converged.all()
    with recorded_solves() as solves:
        solve_increasing(cubic, target, -bound, bound, start, resolution, iterations=3, compact=compact)
    assert solves[0].converged.tolist() == [True, False, False] and solves[0].iterations.tolist() == [1, 3, 3]


def test_recording_does_not_break_a_graph():
    def root(target):
        one = torch.ones_like(target)
        return solve_increasing(
            lambda x: (x.exp(), x + 0), target, -9 * one, 9 * one, one, one, iterations=12, compact=False
        )[0]

    target = torch.linspace(0.1, 5, 7)
    with recorded_solves() as solves:
        torch.testing.assert_close(torch.compile(root, fullgraph=True, backend="eager")(target), target.log())
        assert not solves
        root(target)
    assert len(solves) == 1


def test_interceptions_nest_and_say_when_a_call_fails():
    part, said = fk.Flip(-1), []
    with intercepted([part], before=lambda *_: said.append("outer")):
        with intercepted([part], before=lambda *_: said.append("inner"), failed=lambda _: said.append("failed")):
            part(torch.zeros(2))
            with pytest.raises(fk.ShapeError):
                part(x=torch.zeros(()))
        part(torch.zeros(2))
    part(torch.zeros(2))
    assert said == ["inner", "outer", "inner", "outer", "failed", "outer"] and "forward" not in part.__dict__
