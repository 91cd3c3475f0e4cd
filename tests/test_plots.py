"""What pictures show, read from what was drawn; and how bad arguments are refused."""

import math
import subprocess
import sys

import pytest
import torch

import flowkit as fk
from flowkit import plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def axes():
    return plt.figure().add_subplot()


def couple(context=None):
    return fk.AffineCoupling(fk.nets.MLP((1,), (1, 2), hidden=(8,), context=context or 0), dim=-1)


def planar(context=None):
    """A flow over the plane that is not the identity; conditional on a vector if `context` is its size."""
    torch.manual_seed(0)
    shape = {} if context is None else {"context_shape": (context,)}
    chain = fk.Chain(first=fk.Chain(couple(context), fk.Flip(dim=-1)), second=couple(context), mix=fk.LULinear(2))
    flow = fk.Flow(chain, fk.Normal((2,)), **shape)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def bounded(shape=(3,), levels=4):
    return fk.Flow(fk.Chain(fk.UniformDequantizer(levels), fk.Logit(margin=0.05)), fk.Normal(shape))


def shown(ax):
    return torch.as_tensor(ax.images[-1].get_array().data)


class TestDensity:
    def test_pixels_hold_the_density_at_their_middles(self, axes):
        flow = planar()
        assert plots.density(flow, extent=(-3, 5, -2, 2), pixels=20, title="it", ax=axes) is axes
        x = torch.stack([torch.tensor(-3 + 0.4 * (6 + 0.5)), torch.tensor(-2 + 0.2 * (11 + 0.5))])
        torch.testing.assert_close(shown(axes)[11, 6], flow.log_prob(x).exp().double())
        assert axes.images[0].origin == "lower" and axes.get_title() == "it"
        assert [*axes.images[0].get_extent()] == [-3, 5, -2, 2]

    def test_extent_is_chosen_to_hold_the_mass(self):
        ax = plots.density(planar(), pixels=100)
        left, right, bottom, top = ax.images[0].get_extent()
        mass = shown(ax).sum().item() * (right - left) * (top - bottom) / 100**2
        assert 0.97 < mass < 1.0001

    def test_a_narrow_peak_does_not_leave_the_rest_pale(self):
        peak = fk.Mixture(fk.Normal((2, 2), scale=torch.tensor([[0.01], [1.0]])), weights=[0.001, 0.999])
        pale = plots.density(peak, extent=(-2, 2, -2, 2), pixels=101)
        assert shown(pale).max() > 1 and pale.images[0].norm.vmax < 0.2
        assert plots.density(peak, extent=(-2, 2, -2, 2), top=3.0).images[0].norm.vmax == 3.0

    def test_context_is_one(self, axes):
        flow, context = planar(context=3), torch.tensor([0.3, -1.0, 2.0])
        plots.density(flow, extent=(-1, 1, -1, 1), pixels=2, context=context, ax=axes)
        torch.testing.assert_close(shown(axes)[0, 0], flow.log_prob(torch.tensor([-0.5, -0.5]), context).exp().double())
        with pytest.raises(fk.ShapeError, match=r"density: context has the batch \(2,\)"):
            plots.density(flow, context=torch.zeros(2, 3))
        with pytest.raises(fk.ShapeError, match="context is missing"):
            plots.density(flow)

    def test_double_precision(self):
        assert shown(plots.density(planar().double(), pixels=3)).isfinite().all()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"extent": (0, 1, 0)}, r"density: extent is \(0, 1, 0\)"),
            ({"extent": (0, 1, 1, 0)}, "density: extent is"),
            ({"extent": (0, math.inf, 0, 1)}, "density: extent is inf"),
            ({"pixels": 1}, "density: pixels is 1"),
            ({"top": 0.0}, "density: top is 0.0"),
        ],
    )
    def test_refuses_by_name(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plots.density(planar(), **arguments)

    def test_refuses_what_has_no_density_of_the_plane(self):
        with pytest.raises(fk.ShapeError, match=r"density: distribution has events \(3,\), wanted \(2,\)"):
            plots.density(fk.Normal((3,)))
        with pytest.raises(fk.NotExact, match="density: distribution has only a bound"):
            plots.density(bounded((2,)))
        with pytest.raises(TypeError, match="density: distribution is a LULinear"):
            plots.density(fk.LULinear(2))


class TestPoints:
    def test_offsets_and_colors(self, axes):
        x, colors = torch.randn(7, 2, requires_grad=True), torch.arange(7)
        assert plots.points(x, colors=colors, extent=(-1, 1, -2, 2), ax=axes) is axes
        (drawn,) = axes.collections
        torch.testing.assert_close(torch.as_tensor(drawn.get_offsets().data), x.detach().double())
        assert drawn.get_array().tolist() == colors.tolist()
        assert axes.get_xlim() == (-1, 1) and axes.get_ylim() == (-2, 2)

    def test_a_density_underneath_keeps_its_title(self, axes):
        plots.density(fk.Normal((2,)), extent=(-1, 1, -1, 1), pixels=2, title="it", ax=axes)
        assert plots.points(torch.randn(5, 2), ax=axes).get_title() == "it"

    def test_more_points_are_smaller(self):
        few, many = (plots.points(torch.randn(n, 2)).collections[0].get_sizes()[0] for n in (100, 10_000))
        assert few > many > 0

    def test_refuses_by_name(self):
        for x in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 3)):
            with pytest.raises(fk.ShapeError, match="points: x has shape"):
                plots.points(x)
        with pytest.raises(fk.ShapeError, match=r"points: colors has shape \(2,\), wanted \(3,\)"):
            plots.points(torch.zeros(3, 2), colors=torch.zeros(2))
        with pytest.raises(TypeError, match="points: x is a list"):
            plots.points([[0.0, 1.0]])
        with pytest.raises(ValueError, match="points: extent is"):
            plots.points(torch.zeros(3, 2), extent=(1, 0, 0, 1))


def family(ax, which):
    """The lines of a grid of one direction."""
    return torch.stack([torch.as_tensor(line) for line in ax.collections[which].get_segments()])


class TestWarps:
    def test_every_layer_moves_what_the_last_one_gave(self):
        flow, x = planar(), torch.randn(5, 2)
        axes = plots.warps(flow, points=x, colors=torch.arange(5), lines=4, reach=2.0)
        assert [ax.get_title() for ax in axes] == ["data", "first", "second", "mix"]
        grid = family(axes[0], 0).float()
        assert grid.shape[0] == 4 and grid[:, :, 0].unique().tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 2])
        with torch.no_grad():
            for ax, part in zip(axes[1:], flow.transform, strict=True):
                grid, x = part(grid)[0], part(x)[0]
                torch.testing.assert_close(family(ax, 0).float(), grid, atol=1e-5, rtol=1e-5)
                drawn = torch.as_tensor(ax.collections[2].get_offsets().data).float()
                torch.testing.assert_close(drawn, x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            x, flow.to_latent(torch.as_tensor(axes[0].collections[2].get_offsets().data).float())
        )

    def test_back_from_latents(self):
        flow = planar()
        axes = plots.warps(flow, inverse=True, lines=3)
        assert [ax.get_title() for ax in axes] == ["latent", "mix", "second", "first"]
        with torch.no_grad():
            data = flow.from_latent(family(axes[0], 1).float())
        torch.testing.assert_close(family(axes[-1], 1).float(), data, atol=1e-5, rtol=1e-5)

    def test_a_chain_turned_round_is_passed_the_other_way(self):
        chain = fk.Chain(scale=fk.ActNorm((2,)), squash=fk.Sigmoid())
        flow = fk.Flow(chain.inv, fk.Uniform((2,)))
        axes = plots.warps(flow, inverse=True, reach=3.0)
        assert [ax.get_title() for ax in axes] == ["latent", "scale", "squash"]
        torch.testing.assert_close(family(axes[2], 0), family(axes[0], 0).sigmoid(), atol=1e-6, rtol=1e-6)

    def test_a_transform_that_is_no_chain_is_one_layer(self):
        axes = plots.warps(fk.Flow(fk.LULinear(2), fk.Normal((2,))))
        assert [ax.get_title() for ax in axes] == ["data", "LULinear"]

    def test_views_of_the_plane_are_drawn_as_its_numbers(self):
        chain = fk.Chain(fk.Partition(torch.tensor([True, False])), couple(), fk.Flip(dim=-1))
        axes = plots.warps(fk.Flow(chain, fk.Normal((2,))))
        assert len(axes) == 4

    def test_context_goes_through_the_net_for_it(self):
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 3)
        inner, context = planar(context=3), torch.tensor([0.7])
        flow = fk.Flow(inner.transform, fk.Normal((2,)), context_net=net, context_shape=(1,))
        x = torch.randn(4, 2)
        axes = plots.warps(flow, points=x, context=context)
        drawn = torch.as_tensor(axes[-1].collections[2].get_offsets().data).float()
        torch.testing.assert_close(drawn, flow.to_latent(x, context).detach(), atol=1e-5, rtol=1e-5)

    def test_the_view_keeps_to_the_points(self):
        far = fk.Flow(fk.Chain(grow=fk.Exp()), fk.Uniform((2,), low=0.0, high=1e9))
        _, ax = plots.warps(far, points=torch.rand(50, 2), reach=20.0)
        assert ax.get_xlim()[1] < 5

    def test_given_axes(self):
        given = [*plt.figure().subplots(1, 4)]
        assert plots.warps(planar(), axes=given) == given
        with pytest.raises(ValueError, match="warps: axes are 2, wanted 4"):
            plots.warps(planar(), axes=given[:2])

    def test_refuses_by_name(self):
        for arguments, message in (
            ({"reach": 0.0}, "warps: reach is 0.0"),
            ({"lines": 1}, "warps: lines is 1"),
            ({"colors": torch.zeros(3)}, "warps: colors are given without points"),
            ({"points": torch.zeros(3)}, "warps: points has shape"),
        ):
            with pytest.raises(ValueError, match=message):
                plots.warps(planar(), **arguments)
        with pytest.raises(fk.ShapeError, match=r"warps: flow has events \(3,\), wanted \(2,\)"):
            plots.warps(fk.Flow(fk.LULinear(3), fk.Normal((3,))))
        with pytest.raises(fk.NotExact, match=r"warps: 0 \(UniformDequantizer\) draws noise"):
            plots.warps(bounded((2,)))
        with pytest.raises(fk.ShapeError, match="warps: context has the batch"):
            plots.warps(planar(context=3), context=torch.zeros(2, 3))
        with pytest.raises(TypeError, match="warps: flow is a Normal"):
            plots.warps(fk.Normal((2,)))


def bars(ax):
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(labels, [bar.get_width() for bar in ax.patches], strict=True))


class TestLogTerms:
    def test_bars_add_up_to_log_prob(self):
        flow, x = planar(), torch.randn(50, 2)
        table = flow.summary(x=x, repeats=1)
        for depth, names in ((0, ["transform", "base"]), (1, ["first", "second", "mix", "base"])):
            drawn = bars(plots.log_terms(table, depth=depth))
            assert [*drawn] == names
            assert sum(drawn.values()) == pytest.approx(flow.log_prob(x).mean().item(), abs=1e-5)
        deep = bars(plots.log_terms(table, depth=9))
        assert [*deep] == ["first.0", "first.1", "second", "mix", "base"]
        assert deep["first.0"] == table["transform.first.0"].log_term

    def test_noise_inside_a_dequantizer_is_no_bar_of_its_own(self):
        noise = fk.Flow(fk.Chain(fk.ActNorm((3,)), fk.Sigmoid()).inv, fk.Normal((3,)))
        flow = fk.Flow(fk.Chain(fk.VariationalDequantizer(noise, levels=4), fk.Logit(margin=0.05)), fk.Normal((3,)))
        x = torch.randint(4, (20, 3))
        table = flow.summary(x=x, repeats=1)
        ax = plots.log_terms(table, depth=9, unit="bits/dim")
        assert [*bars(ax)] == ["0", "1", "base"]
        assert sum(bars(ax).values()) == pytest.approx(table.total.bits_per_dim, abs=1e-6)
        assert ax.get_title() == f"mean bits/dim {table.total.bits_per_dim:.2f}"

    def test_colors_tell_gain_from_cost_in_either_unit(self):
        flow = fk.Flow(fk.Chain(grow=fk.ActNorm((2,))), fk.Normal((2,)))
        with torch.no_grad():
            flow.transform["grow"].gain.fill_(3.0)
        table = flow.summary(x=torch.zeros(4, 2), repeats=1)
        nats, bits = (plots.log_terms(table, unit=unit).patches for unit in ("nats", "bits/dim"))
        assert nats[0].get_width() > 0 > bits[0].get_width()
        assert nats[0].get_facecolor() == bits[0].get_facecolor() != nats[1].get_facecolor()

    def test_a_chain_turned_round(self):
        flow = fk.Flow(fk.Chain(scale=fk.ActNorm((2,)), squash=fk.Sigmoid()).inv, fk.Normal((2,)))
        x = torch.rand(9, 2)
        drawn = bars(plots.log_terms(flow.summary(x=x, repeats=1)))
        assert [*drawn] == ["squash", "scale", "base"]
        assert sum(drawn.values()) == pytest.approx(flow.log_prob(x).mean().item(), abs=1e-5)

    def test_refuses_by_name(self):
        table = planar().summary(samples=3, repeats=1)
        with pytest.raises(TypeError, match="log_terms: summary is a Flow"):
            plots.log_terms(planar())
        with pytest.raises(ValueError, match="log_terms: summary has no log-terms"):
            plots.log_terms(planar().summary())
        outside = fk.Flow(fk.LULinear(2), fk.Uniform((2,))).summary(x=torch.full((3, 2), 2.0), repeats=1)
        with pytest.raises(ValueError, match="log_terms: the log-term of base is -inf"):
            plots.log_terms(outside)
        with pytest.raises(ValueError, match="log_terms: depth is -1"):
            plots.log_terms(table, depth=-1)
        with pytest.raises(ValueError, match="log_terms: unit is 'bits'"):
            plots.log_terms(table, unit="bits")


class TestBoundByDraws:
    def test_line_is_the_bound_of_groups_of_the_same_draws(self, axes):
        flow, x = bounded(), torch.randint(4, (6, 3))
        plots.bound_by_draws(flow, x, draws=5, generator=torch.Generator().manual_seed(1), label="a", ax=axes)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            each = torch.stack([flow.log_prob(x, generator=generator).double() for _ in range(5)])
        in_bits = -1 / (3 * math.log(2))
        pairs = each[:4].reshape(2, 2, 6).logsumexp(1) - math.log(2)
        four = each[:4].logsumexp(0) - math.log(4)
        wanted = [in_bits * t.mean().item() for t in (each, pairs, four)]
        (line,) = axes.lines
        assert line.get_xdata().tolist() == [1, 2, 4]
        assert line.get_ydata().tolist() == pytest.approx(wanted, rel=1e-9)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a"]

    def test_one_draw_is_bits_per_dim(self):
        flow, x = bounded(), torch.randint(4, (6, 3))
        line = plots.bound_by_draws(flow, x, draws=1, generator=torch.Generator().manual_seed(1)).lines[-1]
        bits = fk.metrics.bits_per_dim(flow, x, generator=torch.Generator().manual_seed(1)).mean().item()
        assert line.get_ydata().tolist() == pytest.approx([bits], rel=1e-9)

    def test_refuses_by_name(self):
        x = torch.zeros(2, 3, dtype=torch.int64)
        with pytest.raises(ValueError, match="bound_by_draws: flow is exact"):
            plots.bound_by_draws(fk.Normal((3,)), torch.zeros(2, 3))
        with pytest.raises(ValueError, match="bound_by_draws: draws is 0"):
            plots.bound_by_draws(bounded(), x, draws=0)
        with pytest.raises(fk.ShapeError, match="bound_by_draws: x has shape"):
            plots.bound_by_draws(bounded(), x[:0])
        with pytest.raises(TypeError, match="bound_by_draws: x is a list"):
            plots.bound_by_draws(bounded(), [[0, 1, 2]])


class TestImageGrid:
    def test_images_lie_row_by_row_with_gaps(self, axes):
        images = torch.arange(3 * 4).reshape(3, 1, 2, 2)
        plots.image_grid(images, levels=12, columns=2, title="three", ax=axes)
        sheet = (shown(axes) * 11).round()
        assert sheet.shape == (5, 5)
        for place, image in (((0, 0), 0), ((0, 3), 1), ((3, 0), 2)):
            assert sheet[place[0] : place[0] + 2, place[1] : place[1] + 2].tolist() == images[image, 0].tolist()
        assert (sheet[2] == 11).all() and (sheet[3:, 3:] == 11).all()
        assert axes.get_title() == "three" and not axes.axison

    def test_colour(self):
        image = torch.tensor([255, 0, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
        assert shown(plots.image_grid(image)).tolist() == [[[1.0, 0.0, 0.2]]]

    def test_refuses_by_name(self):
        images = torch.zeros(2, 1, 4, 4, dtype=torch.int64)
        for wrong in (images[0], images[:0], images.expand(2, 2, 4, 4)):
            with pytest.raises(fk.ShapeError, match="image_grid: images have shape"):
                plots.image_grid(wrong)
        with pytest.raises(ValueError, match="image_grid: levels is 1"):
            plots.image_grid(images, levels=1)
        with pytest.raises(ValueError, match="image_grid: columns is 0"):
            plots.image_grid(images, columns=0)
        with pytest.raises(TypeError, match="image_grid: images is a list"):
            plots.image_grid([1])


class TestTrainingCurves:
    ROWS = [{"step": step, "bits_per_dim": 5.0 - step, "held_out_bits_per_dim": None} for step in range(3)]
    ROWS[2]["held_out_bits_per_dim"] = 3.5

    def test_lines_of_the_runs(self, axes):
        plots.training_curves({"one": self.ROWS, "two": self.ROWS[:2]}, ax=axes)
        lines = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines}
        assert lines == {
            "one, training": ([0, 1, 2], [5.0, 4.0, 3.0]),
            "one, held out": ([2], [3.5]),
            "two, training": ([0, 1], [5.0, 4.0]),
        }
        assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()

    def test_refuses_runs_without_rows(self):
        with pytest.raises(ValueError, match="training_curves: there are no rows"):
            plots.training_curves({"one": []})


def test_missing_matplotlib_is_named_with_its_extra():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None
import torch, flowkit as fk
from flowkit import plots
flow = fk.Flow(fk.LULinear(2), fk.Normal((2,)))
for call in (lambda: plots.density(flow), lambda: plots.points(torch.zeros(1, 2)), lambda: plots.warps(flow)):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        f"{name}: matplotlib is missing; in a clone: pip install '.[plots]'" for name in ("density", "points", "warps")
    ]


def test_importing_it_does_not_import_matplotlib():
    code = "import sys, flowkit, flowkit.plots; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
