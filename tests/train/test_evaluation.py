"""A card is what was measured, of every image; and unlike cards are not compared."""

import json
import math
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.train import Evaluation, compare, digits, evaluate, processes
from flowkit.train import evaluation as module
from flowkit.train.data.images import as_dataset
from flowkit.zoo import WeightsError
from tests.support import perturb
from tests.train.workers import together

LEVELS = 4


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(2, 3), torch.nn.Dropout(0.5)

    def forward(self, x, context=None):
        return self.dropout(torch.tanh(self.linear(x)))


def variational(seed=0):
    """A small flow on pairs of integers, with learned noise and dropout."""
    torch.manual_seed(seed)
    noise = fk.Flow(
        fk.Chain(fk.AffineCoupling(fk.nets.MLP((1,), (1, 2), hidden=(8,), context=3), dim=-1), fk.Sigmoid()).inv,
        fk.Normal((2,)),
        context_shape=(3,),
    )
    dequantize = fk.VariationalDequantizer(noise, LEVELS, Encoder())
    rest = {"logit": fk.Logit(margin=0.05), "norm": fk.ActNorm((2,))}
    return perturb(fk.Flow(fk.Chain(dequantize=dequantize, **rest), fk.Normal((2,))), scale=0.4)


def data(n=23, seed=0):
    return torch.randint(LEVELS, (n, 2), generator=torch.Generator().manual_seed(seed))


def scored(flow, x, **options):
    return evaluate(flow, x, **{"data_name": "toy", "split": "all", "batch": 5, **options})


def figures(card):
    return {name: value for name, value in asdict(card).items() if name != "seconds"}


# ----------------------------------------------------------------------------------------------------- the figures


def test_figures_of_an_exact_flow_are_those_of_numpy():
    x = torch.randn(23, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    card = scored(fk.Flow(fk.ActNorm((3,)), fk.Normal((3,))).double(), x, draws=7)
    bits = (0.5 * x.numpy() ** 2 + 0.5 * math.log(2 * math.pi)).sum(1) / (3 * math.log(2))
    assert card.exact and card.draws == 1 and card.images == 23 and card.shape == (3,)
    assert card.bits_per_dim == card.bits_per_dim_single == pytest.approx(bits.mean(), rel=1e-12)
    assert card.standard_error == pytest.approx(bits.std(ddof=1) / 23**0.5, rel=1e-12)
    assert card.bits_per_dim_uniform is None


def test_both_bounds_come_from_the_same_draws():
    flow, x = variational().eval(), data()
    card = scored(flow, x, draws=9, seed=3)
    rows = []
    with torch.no_grad():
        for number, part in enumerate(x.split(5)):
            seed = int(np.random.SeedSequence((3, number)).generate_state(2)[0])
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.stack([flow.log_prob(part, generator=generator).double() for _ in range(9)]))
    draws = torch.cat(rows, dim=1)
    to_bits = -1 / (2 * math.log(2))
    assert card.bits_per_dim_single == pytest.approx(draws.mean().item() * to_bits, rel=1e-12)
    weighted = (draws.logsumexp(0) - math.log(9)).mean().item() * to_bits
    assert card.bits_per_dim == pytest.approx(weighted, rel=1e-12)
    assert card.bits_per_dim < card.bits_per_dim_single


def test_one_draw_gives_one_figure():
    card = scored(variational(), data())
    assert card.bits_per_dim == card.bits_per_dim_single and card.standard_error == card.single_standard_error


def test_the_way_from_uniform_to_importance_weighted():
    """Of the shipped digits model: learned noise gains over uniform, and weighting over single samples."""
    flow, x = fk.zoo.load("flowpp-digits"), digits()[1][:40]
    card = scored(flow, x, draws=4, batch=20, uniform=True)
    assert card.bits_per_dim_uniform - card.bits_per_dim_single > 0.5
    assert card.bits_per_dim_single - card.bits_per_dim > 0.02
    replaced = fk.Flow(flow.transform.replace(dequantize=fk.UniformDequantizer(17)), flow.base).eval()
    again = scored(replaced, x, draws=4, batch=20)
    error = 4 * math.hypot(again.single_standard_error, card.uniform_standard_error)
    assert abs(again.bits_per_dim_single - card.bits_per_dim_uniform) < error
    assert "single samples of uniform noise" in str(card) and "4 importance samples each" in str(card)


def test_uniform_noise_needs_learned_noise_to_replace():
    flow = fk.Flow(fk.Chain(fk.UniformDequantizer(LEVELS), fk.Logit(0.05)), fk.Normal((2,)))
    with pytest.raises(ValueError, match="no part of the flow's chain is a VariationalDequantizer"):
        scored(flow, data(), uniform=True)


def test_dropout_is_off_and_modes_come_back():
    flow = variational().train()
    flow.transform["norm"].eval()
    modes = [part.training for part in flow.modules()]
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    first = figures(scored(flow, data(), draws=3))
    assert [part.training for part in flow.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())
    assert first == figures(scored(flow.eval(), data(), draws=3))


@pytest.mark.parametrize("batch", [1, 5, 22, 23, 24])
def test_no_image_is_left_out(batch):
    """Of images that are worse and worse, each counts once."""
    flow = fk.Flow(fk.ActNorm((1,)), fk.Normal((1,))).double()
    x = 2.0 ** torch.arange(23, dtype=torch.double)[:, None]
    wanted = ((0.5 * x**2 + 0.5 * math.log(2 * math.pi)) / math.log(2)).mean().item()
    card = scored(flow, x, batch=batch)
    assert card.images == 23 and card.bits_per_dim == pytest.approx(wanted, rel=1e-14)


def test_a_dtype_is_of_a_copy():
    flow = variational()
    card = scored(flow, data(), dtype=torch.float64)
    assert card.dtype == "float64" and next(flow.parameters()).dtype == torch.float32
    assert scored(flow, data()).dtype == "float32"


def test_autocast_stands_on_the_card():
    flow = variational()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scored(flow, data()).dtype == "float32, autocast bfloat16"


def test_a_score_that_is_none_is_named():
    flow = fk.Flow(fk.ActNorm((1,)), fk.Normal((1,)))
    x = torch.zeros(23, 1)
    x[17] = math.nan
    with pytest.raises(ValueError, match=r"image 17 has a log-probability of nan \(single\)"):
        scored(flow, x)


@pytest.mark.parametrize(
    ("options", "n", "reason"),
    [
        ({"draws": 0}, 23, "draws is 0"),
        ({"batch": 0}, 23, "batch is 0"),
        ({}, 1, "data has 1 images, wanted at least 2"),
        ({"seed": -1}, 23, "evaluate: seed is -1, wanted a whole number from 0"),
        ({"seed": 2**63}, 23, "evaluate: seed is 9223372036854775808, wanted"),
        ({"seed": 0.5}, 23, "evaluate: seed is 0.5, wanted"),
    ],
)
def test_what_cannot_be_scored(options, n, reason):
    with pytest.raises(ValueError, match=reason):
        scored(variational(), data(n), **options)


# ------------------------------------------------------------------------------------------------------- the data


class Pairs(torch.utils.data.Dataset):
    """Images and labels, one at a time."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return data()[index].to(torch.uint8), index


class Batches(Pairs):
    def __getitems__(self, indices):
        return data()[torch.as_tensor(indices)]


@pytest.mark.parametrize(
    "other",
    [Pairs(), Batches(), data().to(torch.uint8), data().numpy()],
    ids=["pairs", "batches", "uint8", "numpy"],
)
def test_data_is_the_same_in_every_form(other):
    flow = variational()
    assert figures(scored(flow, other)) == figures(scored(flow, data()))


def test_the_hash_sees_order_values_and_shape():
    flow, x = variational(), data()
    hashes = [scored(flow, y).data_sha256 for y in (x, x.flip(0), x[:-1], (x + 1) % LEVELS)]
    shaped = fk.Flow(fk.ActNorm((1,)), fk.Normal((1,)))
    hashes += [scored(shaped, x.reshape(-1, 1).float()).data_sha256]
    assert len(set(hashes)) == 5


# --------------------------------------------------------------------------------------------------------- context


def conditional(seed=0):
    """Of pairs of numbers, given one number."""
    torch.manual_seed(seed)
    net = fk.nets.MLP((1,), (1, 2), hidden=(8,), context=1)
    return perturb(
        fk.Flow(fk.Chain(fk.AffineCoupling(net, dim=-1)), fk.Normal((2,)), context_ndim=1).double(), scale=0.5
    )


def test_a_context_goes_with_its_event():
    flow, x = conditional(), torch.randn(23, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    context = torch.linspace(-2, 2, 23, dtype=torch.double)[:, None]
    wanted = (-flow.log_prob(x, context) / (2 * math.log(2))).mean().item()
    card = scored(flow, x, context=context)
    assert card.bits_per_dim == pytest.approx(wanted, rel=1e-12)
    assert abs(scored(flow, x, context=context.flip(0)).bits_per_dim - wanted) > 1e-3
    pairs = torch.utils.data.TensorDataset(x, context)
    assert figures(scored(flow, pairs)) == figures(card)
    assert figures(scored(flow, pairs, batch=7)) == {**figures(card), "batch": 7}, "the hash depends on the batch"


def test_the_hash_sees_a_context_that_is_read():
    x, context = torch.zeros(23, 2, dtype=torch.double), torch.arange(23, dtype=torch.double)[:, None]
    assert len({scored(conditional(), x, context=c).data_sha256 for c in (context, context + 1)}) == 2
    exact = fk.Flow(fk.ActNorm((2,)), fk.Normal((2,))).double()
    pairs = [torch.utils.data.TensorDataset(x, c) for c in (context, context + 1)]
    assert len({scored(exact, data).data_sha256 for data in [*pairs, x]}) == 1


def test_contexts_that_do_not_fit():
    x = torch.zeros(23, 2, dtype=torch.double)
    with pytest.raises(ValueError, match="the flow is conditional, but the images come without a context"):
        scored(conditional(), x)
    with pytest.raises(ValueError, match="context has length 22 and data is 23 events"):
        scored(conditional(), x, context=x[1:, :1])
    with pytest.raises(ValueError, match="context is given, but the flow takes none"):
        scored(variational(), data(), context=x)


# --------------------------------------------------------------------------------------------- several processes


def share(out):
    with processes("cpu") as ours:
        card = scored(variational(), data(), draws=3, uniform=True, ours=ours)
        (out / f"{ours.rank}.json").write_text(json.dumps(figures(card)))
        with pytest.raises(ValueError, match="image 17 has a log-probability of nan"):
            x = torch.zeros(23, 1)
            x[17] = math.nan
            scored(fk.Flow(fk.ActNorm((1,)), fk.Normal((1,))), x, ours=ours)
        with pytest.raises(ValueError, match="scores are kept by one process alone, and there are 2"):
            scored(variational(), data(), ours=ours, scores=out / "scores")


def test_two_processes_write_the_card_of_one(tmp_path):
    """5 batches on 2 processes: one of them has none in the last round."""
    together(share, tmp_path, folder=tmp_path)
    wanted = json.loads(json.dumps(figures(scored(variational(), data(), draws=3, uniform=True))))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [wanted, wanted]


# ----------------------------------------------------------------------------------------------------- going on


class Interrupted(Exception):
    pass


def stopping(flow, after):
    """`flow`, whose log_prob fails after so many calls; and the calls so far."""
    calls = []
    run = type(flow).log_prob

    def log_prob(x, context=None, *, generator=None):
        if len(calls) == after:
            raise Interrupted
        calls.append(x)
        return run(flow, x, context, generator=generator)

    flow.__dict__["log_prob"] = log_prob
    return flow, calls


def test_an_interrupted_evaluation_goes_on_to_the_same_figures(tmp_path):
    file = tmp_path / "new" / "scores.safetensors"
    wanted = figures(scored(variational(), data(), draws=4, uniform=True))
    with pytest.raises(Interrupted):
        scored(stopping(variational(), 4 * 2 + 1)[0], data(), draws=4, uniform=True, scores=file)
    flow, calls = stopping(variational(), 1000)
    assert figures(scored(flow, data(), draws=4, uniform=True, scores=file)) == wanted
    assert len(calls) == 4 * 3  # of 5 batches, the first two were done
    flow, calls = stopping(variational(), 0)
    assert figures(scored(flow, data(), draws=4, uniform=True, scores=file)) == wanted


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"draws": 2}, "draws"),
        ({"seed": 1}, "seed"),
        ({"batch": 6}, "batch"),
        ({"uniform": True}, "whether uniform noise is scored"),
        ({"x": data(seed=1)}, "data_sha256"),
        ({"flow": variational(seed=1)}, "state_sha256"),
        ({"dtype": torch.float64}, "state_sha256, dtype"),
    ],
)
def test_scores_of_another_evaluation_are_refused(tmp_path, changes, what):
    file = tmp_path / "scores.safetensors"
    scored(variational(), data(), draws=3, scores=file)
    options = {"flow": variational(), "x": data(), "draws": 3, **changes}
    with pytest.raises(ValueError, match=f"are of another evaluation: it differs in {what}"):
        scored(options.pop("flow"), options.pop("x"), **options, scores=file)


@pytest.mark.parametrize("content", [b"", b"something else entirely"])
def test_a_file_that_holds_no_scores_is_refused(tmp_path, content):
    file = tmp_path / "scores"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="scores holds no scores"):
        scored(variational(), data(), scores=file)
    assert file.read_bytes() == content


def test_scores_are_not_kept_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate: scores is '.*', a folder; wanted the path of a file"):
        scored(variational(), data(), scores=tmp_path)


def test_seeds_are_whole_numbers_of_any_library():
    assert figures(scored(variational(), data(), seed=np.int64(3))) == figures(scored(variational(), data(), seed=3))


# ------------------------------------------------------------------------------------------------------ the cards


def test_a_card_is_written_and_read(tmp_path):
    card = scored(variational(), data(), draws=3, uniform=True, model="toy", steps=5, ema=0.9)
    card.write(tmp_path / "new" / "card.json")
    assert Evaluation.read(tmp_path / "new" / "card.json") == card
    (tmp_path / "model.json").write_text(json.dumps({"model": "toy", "evaluation": asdict(card)}))
    assert Evaluation.read(tmp_path / "model.json") == card


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is damaged: "),
        ("[]", "damaged or of another release"),
        ('{"evaluation": null}', "the card has no evaluation: nothing was held out"),
        ('{"evaluation": {"draws": 3, "colour": 1}}', "differs in .*colour"),
    ],
)
def test_a_damaged_card_is_refused(tmp_path, content, reason):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(WeightsError, match=f"card.json.*{reason}"):
        Evaluation.read(tmp_path / "card.json")


def test_alike_cards_are_compared():
    first, second = scored(variational(), data(), draws=3), scored(variational(1), data(), draws=3, seed=5, batch=7)
    difference, error = compare(first, second)
    assert difference == first.bits_per_dim - second.bits_per_dim
    assert error == math.hypot(first.standard_error, second.standard_error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", "digits"),
        ("split", "train"),
        ("images", 22),
        ("data_sha256", "0" * 64),
        ("shape", (1, 2)),
        ("dtype", "float64"),
        ("draws", 64),
    ],
)
def test_unlike_cards_are_not_compared(field, value):
    card = scored(variational(), data(), draws=3)
    other = replace(card, **{field: value})
    with pytest.raises(ValueError) as error:
        compare(card, other)
    assert str(error.value) == f"compare: not measured alike: {field} is {getattr(card, field)!r} and {value!r}"


def test_an_unlike_card_is_refused_before_the_work():
    card = scored(variational(), data(), draws=3)
    flow, calls = stopping(variational(), 1000)
    with pytest.raises(ValueError, match="compare: not measured alike: draws is 2 and 3"):
        scored(flow, data(), draws=2, against=card)
    assert calls == []
    scored(flow, data(), draws=3, against=card)


def test_an_exact_flow_is_compared_with_any_number_of_draws():
    card = scored(variational(), data(), draws=3)
    assert compare(replace(card, exact=True, draws=1), card) == compare(card, replace(card, exact=True, draws=1))


def test_the_code_is_named():
    card = scored(variational(), data())
    assert card.flowkit == fk.__version__ and card.torch == torch.__version__
    git = ["git", "-C", fk.__path__[0], "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert card.commit is None or card.commit.removesuffix("+changes") == head


def test_without_git_no_commit_is_named(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", missing)
    assert module.code_version()["commit"] is None


def test_the_shipped_card_is_of_the_shipped_weights_and_data():
    shipped = Evaluation.of(fk.zoo.card("flowpp-digits")["evaluation"])
    few = evaluate(fk.zoo.load("flowpp-digits"), digits()[1], data_name="digits", split="held-out", draws=2)
    assert few.state_sha256 == shipped.state_sha256 and few.parameters == shipped.parameters
    assert fk.zoo.card("flowpp-digits")["training"]["data_sha256"] == module.data_sha256(as_dataset(digits()[0]))[0]
    compare(replace(few, draws=shipped.draws), shipped)  # raises if measured unlike
    assert abs(few.bits_per_dim_single - shipped.bits_per_dim_single) < 0.02


@pytest.mark.thorough
def test_the_shipped_figures_are_found_again():
    shipped = Evaluation.of(fk.zoo.card("flowpp-digits")["evaluation"])
    names = {"data_name": "digits", "split": "held-out", "uniform": True}
    again = evaluate(
        fk.zoo.load("flowpp-digits"), digits()[1], **names, draws=shipped.draws, batch=shipped.batch, seed=shipped.seed
    )
    for name in ("bits_per_dim", "standard_error", "bits_per_dim_single", "bits_per_dim_uniform"):
        assert getattr(again, name) == pytest.approx(getattr(shipped, name), abs=1e-5)
