"""The table of a flow: its rows, its figures against a count by hand, and its two forms."""

import math

import pytest
import torch

import flowkit as fk
from flowkit.layers import layers
from flowkit.tables import markdown_table, text_table
from tests.support import perturb


def coupling_flow(**options):
    net = fk.nets.MLP((2,), (2, fk.maps.MixLogistic(3).num_params), hidden=(8,))
    couple = fk.Coupling(fk.maps.MixLogistic(3), net, dim=-1)
    flow = fk.Flow(fk.Chain(norm=fk.ActNorm((4,)), couple=couple, mix=fk.LULinear(4)), fk.Normal(4), **options)
    return perturb(flow, 0.3)


def test_shapes_and_parameters_without_data():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1)
    table = flow.summary()
    assert table["transform.squeeze1.0"].in_shape == (1, 8, 8) and table["transform.squeeze1.0"].out_shape == (4, 4, 4)
    assert table["transform.columns1.1.couple"].kind == "Coupling[MixLogistic]"
    assert table["transform.columns1.1.couple"].in_shape == (2, 1, 8, 4)
    assert table["transform.columns1.5"].kind == "PairColumns.inv"
    assert (table["transform.columns1.5"].in_shape, table["transform.columns1.5"].out_shape) == (
        (2, 1, 8, 4),
        (1, 8, 8),
    )
    assert table.total.in_shape == flow.event_shape
    count = sum(p.numel() for p in flow.parameters())
    assert table.total.parameters == table.total.trainable == sum(row.own_parameters for row in table.rows) == count
    for row in table.rows:
        inner = flow.get_submodule(row.path)
        assert row.parameters == sum(p.numel() for p in inner.parameters()), row.path
        assert row.in_shape is not None and row.log_term is row.forward_ms is row.saved_bytes is None
    assert table.rows[0].own_parameters == 0 and table.rows[0].parameters == count
    with pytest.raises(KeyError, match=r"no layer 'transform.nothing'; there are transform, transform\.dequantize"):
        table["transform.nothing"]


def test_rows_stand_in_the_order_of_the_data_where_a_chain_is_turned_round():
    flow = fk.Flow(fk.Chain(scale=fk.ActNorm((2,)), unit=fk.Sigmoid()).inv, fk.Normal(2))
    names = [layer.path for layer in layers(flow)]
    assert names == ["transform", "transform.transform.unit", "transform.transform.scale", "base"]
    wide = fk.Flow(fk.Chain(pair=fk.PairColumns(), flip=fk.Flip(-4)).inv, fk.Normal((1, 4, 4)))
    assert wide.summary()["transform.transform.pair"].in_shape == (2, 1, 4, 2)
    assert wide.summary()["transform.transform.pair"].out_shape == (1, 4, 4)


def test_frozen_and_shared_parameters():
    shared = fk.LULinear(2)
    flow = fk.Flow(fk.Chain(one=shared, norm=fk.ActNorm((2,)), two=fk.Inverse(shared)), fk.Normal(2))
    flow.transform["norm"].requires_grad_(False)
    table = flow.summary()
    assert table["transform.norm"].trainable == 0 and table["transform.norm"].parameters == 4
    assert table["transform.one"].own_parameters == 6 and table["transform.two"].own_parameters == 0
    assert table.total.parameters == 10 == sum(row.own_parameters for row in table.rows)
    assert "trainable" in str(table) and "trainable" not in str(coupling_flow().summary())
    # The time and the log-term of the second use are its own.
    measured = flow.summary(x=torch.randn(3, 2))
    assert measured["transform.two"].forward_ms is not None


def test_log_terms_add_up_to_log_prob():
    flow = coupling_flow().eval()
    x = torch.randn(50, 4)
    table = flow.summary(x=x)
    log_prob = flow.log_prob(x).double()
    parts = [table[f"transform.{name}"] for name in ("norm", "couple", "mix")]
    assert sum(row.log_term for row in parts) == pytest.approx(table["transform"].log_term, abs=1e-4)
    assert table["transform"].log_term + table["base"].log_term == pytest.approx(log_prob.mean().item(), abs=1e-4)
    assert table.total.log_term == pytest.approx(log_prob.mean().item(), abs=1e-5)
    assert table.total.log_term_deviation == pytest.approx(log_prob.std(correction=0).item(), abs=1e-5)
    bits = fk.metrics.bits_per_dim(flow, x).mean().item()
    assert table["transform"].bits_per_dim + table["base"].bits_per_dim == pytest.approx(bits, abs=1e-5)
    expected = flow.transform["norm"].gain.log().sum().item()
    assert table["transform.norm"].log_term == pytest.approx(expected, abs=1e-5)
    assert table["transform.norm"].log_term_deviation == pytest.approx(0, abs=1e-6)


def test_an_elementwise_layer_is_summed_over_the_event():
    flow = fk.Flow(fk.Exp().inv, fk.Normal((3, 2)))
    x = torch.rand(5, 4, 3, 2) + 0.1
    assert flow.summary(x=x)["transform"].log_term == pytest.approx(-x.log().sum((-1, -2)).mean().item(), rel=1e-5)


def test_saved_memory_is_counted_by_hand():
    class Square(fk.Bijector):
        in_ndim = out_ndim = 1

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, x, context=None):
            y = x * self.weight  # saves x, which for the first is the caller's, and the parameter
            return y * y, (2 * y.abs()).log().sum(-1)  # saves y once, y's sign, and |2 y|

        def inverse(self, z, context=None):
            x = z.sqrt() / self.weight
            return x, -(2 * z.sqrt()).log().sum(-1)

    flow = fk.Flow(fk.Chain(one=Square(), two=Square()), fk.Normal(8))
    table = flow.summary(x=torch.rand(16, 8) + 0.5)
    floats = 4 * 8  # bytes of one vector
    # y for y * y and abs; |2 y| for its logarithm
    assert table["transform.one"].saved_bytes == 2 * floats
    # and its input, which is what the first has made
    assert table["transform.two"].saved_bytes == 3 * floats
    assert table["transform"].saved_bytes == 5 * floats
    # and the flow itself a byte for each example: whether it stands at an end that no latent leads to
    assert table.total.saved_bytes == table["transform"].saved_bytes + table["base"].saved_bytes + 1
    assert table["base"].saved_bytes > 0


def test_saved_memory_sees_checkpointing():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=2)
    x = torch.randint(17, (4, 1, 8, 8))
    sizes = []
    for memory in ("none", "block", "layer"):
        fk.activation_checkpointing(flow, memory)
        sizes.append(flow.summary(x=x, repeats=1).total.saved_bytes)
    assert max(sizes[1:]) < 0.5 * sizes[0], sizes


def test_searches_are_counted_and_times_are_taken():
    flow = coupling_flow()
    table = flow.summary(samples=20)
    row = table["transform.couple"]
    assert 1 <= row.iterations <= row.most_iterations < 30
    assert table["transform.norm"].iterations is None
    assert 0 < row.forward_ms < table.total.forward_ms and 0 < row.inverse_ms < table.total.inverse_ms
    assert table["base"].inverse_ms is None


def test_nothing_is_left_behind():
    flow = fk.Flow(fk.Chain(norm=fk.BatchNorm((4,)), couple=coupling_flow().transform["couple"]), fk.Normal(4)).train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.summary(x=torch.randn(30, 4) * 5)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert flow.training and all(p.grad is None for p in flow.parameters())
    assert not any({"forward", "inverse", "log_prob"} & set(part.__dict__) for part in flow.modules())


def test_models_on_the_meta_device():
    with torch.device("meta"):
        flow = fk.zoo.flowpp(config="digits")
    assert flow.summary().total.parameters == sum(p.numel() for p in flow.parameters())
    with pytest.raises(ValueError, match="parameters on the meta device have no values"):
        flow.summary(samples=2)


def conditional_flow(**options):
    net = fk.nets.MLP((4,), (3, 2), hidden=(8,))
    return fk.Flow(fk.FromContext(fk.maps.Affine(), net, event_ndim=1), fk.Normal(3), **options)


def test_conditional_flows_take_a_context_or_ones():
    labels = conditional_flow(context_net=torch.nn.Embedding(10, 4), context_ndim=0)
    table = labels.summary((3,))
    assert table["context_net"].parameters == 40 and table["context_net"].out_shape == (4,)
    one = perturb(labels).summary(samples=7)
    x = torch.randn(5, 3)
    same = labels.summary(x=x, context=torch.ones((), dtype=torch.long))
    assert one.total.log_term is not None and same.total.log_term == labels.summary(x=x).total.log_term
    assert same.total.log_term == pytest.approx(labels.log_prob(x, torch.tensor(1)).mean().item(), rel=1e-5)
    vectors = conditional_flow(context_ndim=1)
    with pytest.raises(fk.ShapeError, match="context is missing; this flow was made without context_shape"):
        vectors.summary()
    assert vectors.summary(context=torch.zeros(4)).total.in_shape == (3,)
    several = vectors.summary(samples=6, context=torch.randn(2, 4))
    assert "over 12 examples" in str(several)
    assert conditional_flow(context_shape=(4,)).summary(samples=3).total.in_shape == (3,)


def test_multi_scale_flows_and_what_stands_in_a_layer():
    out = fk.Slice(2, fk.Flow(fk.ActNorm((2,)), fk.Normal(2)), dim=-1)
    flow = fk.Flow(fk.Chain(first=fk.ActNorm((4,)), out=out, last=fk.LULinear(2)), fk.Normal(2))
    table = perturb(flow).summary(samples=100)
    assert (table["transform.out"].in_shape, table["transform.out"].out_shape) == ((4,), (2,))
    assert table["transform.out"].parameters == 4 and table["transform.out"].own_parameters == 0
    assert table["transform.out.base.transform"].own_parameters == 4
    assert table["transform.out.base"].log_term is None  # its share is that of the layer
    assert table["transform"].log_term + table["base"].log_term == pytest.approx(table.total.log_term, abs=1e-4)


def test_dequantizing_flows():
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=1).eval()
    table = flow.summary(x=torch.randint(17, (3, 1, 8, 8)), generator=torch.Generator().manual_seed(0))
    noise = table["transform.dequantize.noise.transform"]
    assert noise.in_shape == (1, 8, 8) and noise.log_term is not None and noise.iterations is not None
    assert table["transform.dequantize"].own_parameters > 0
    assert table["transform"].log_term + table["base"].log_term == pytest.approx(table.total.log_term, rel=1e-4)
    assert "a lower bound" in str(table)
    assert max(map(len, str(table).splitlines())) <= 120


def test_text_and_markdown():
    table = coupling_flow().summary(x=torch.randn(10, 4))
    text, markdown = str(table), table.to_markdown()
    assert max(map(len, text.splitlines())) <= 120
    assert all(
        word in text for word in ("couple Coupling[MixLogistic]", "log-term", "bits/dim", "fwd ms", "≤", "saved")
    )
    lines = markdown.splitlines()
    assert len(lines) == 2 + len(table.rows) + 1 and len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| `transform.norm` | ActNorm | 4 |") and lines[-1].startswith("| total | Flow |")


def test_bad_arguments():
    flow = coupling_flow()
    with pytest.raises(fk.ShapeError, match=r"event_shape is \(5,\), wanted \(4,\)"):
        flow.summary((5,))
    assert flow.summary(4).total.in_shape == (4,)
    with pytest.raises(ValueError, match="x and samples are given"):
        flow.summary(x=torch.zeros(1, 4), samples=2)
    with pytest.raises(ValueError, match="samples is 0, wanted a whole number of at least 1"):
        flow.summary(samples=0)
    with pytest.raises(ValueError, match="repeats is 0, wanted a whole number of at least 1"):
        flow.summary(x=torch.zeros(1, 4), repeats=0)
    with pytest.raises(ValueError, match="repeats is None, wanted a whole number"):
        flow.summary(x=torch.zeros(1, 4), repeats=None)
    with pytest.raises(ValueError, match="samples is '3', wanted a whole number"):
        flow.summary(samples="3")
    with pytest.raises(ValueError, match="the data hold no example"):
        flow.summary(x=torch.zeros(0, 4))
    with pytest.raises(fk.ShapeError, match="x has shape"):
        flow.summary(x=torch.zeros(2, 5))
    with pytest.raises(fk.ShapeError, match="this distribution takes none"):
        flow.summary(context=torch.zeros(2))


def test_one_example_without_batch_dims():
    table = coupling_flow().summary(x=torch.zeros(4))
    assert math.isfinite(table.total.log_term) and table.total.log_term_deviation == 0
    assert "over 1 example;" in str(table)


def test_tables_cut_the_first_column_and_escape_bars():
    text = text_table(["name", "n"], [["a" * 60, "1"], [], ["b", "22"]], left=1, width=40)
    assert text.splitlines()[2] == "a" * 35 + "…   1" and set(text.splitlines()[3]) == {"-"}
    assert markdown_table(["a", "b"], [["x|y", "1"]], left=1).splitlines()[2] == "| x\\|y | 1 |"
