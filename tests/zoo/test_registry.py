"""Weights files that are damaged, cut short or foreign are refused, with the reason."""

import json

import pytest
import torch
from safetensors.torch import save

import flowkit as fk
from flowkit.zoo import WeightsError, registry


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the packaged weights, to damage."""
    source = registry._folder()
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(registry, "_folder", lambda: tmp_path)
    return tmp_path


def test_pretrained_digits_are_ready():
    flow = fk.zoo.flowpp(pretrained="digits")
    card = fk.zoo.card("flowpp", "digits")
    assert not flow.training and not any(module.training for module in flow.modules())
    assert sum(p.numel() for p in flow.parameters()) == card["parameters"]
    assert fk.zoo.available() == {"digits": card["bits_per_dim"]}
    x = flow.sample((16,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (16, 1, 8, 8) and x.min() >= 0 and x.max() <= 16


def test_card_says_what_a_reader_asks():
    card = fk.zoo.card("flowpp", "digits")
    for key in ("data", "split", "steps", "seed", "bits_per_dim", "bits_per_dim_standard_error", "importance_samples"):
        assert card[key] is not None
    assert len(card["sha256"]) == 64 and card["size"] < 4 << 20


def test_card_holds_on_the_held_out_digits():
    """Few draws, few images: within four standard errors above the card's bound with more draws."""
    from flowkit.train import digits

    card = fk.zoo.card("flowpp", "digits")
    flow = fk.zoo.flowpp(pretrained="digits")
    with torch.no_grad():
        bits = fk.metrics.bits_per_dim(flow, digits()[1], draws=4, generator=torch.Generator().manual_seed(0))
    above = bits.mean().item() - card["bits_per_dim"]
    assert -0.01 < above < 0.15


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_weights_are_refused_by_their_hash(folder, damage):
    path = folder / "flowpp-digits.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes({"flip": content, "cut": content[:1000], "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"flowpp-digits.safetensors: \d+ bytes with SHA-256 .* the file is damaged"):
        fk.zoo.flowpp(pretrained="digits")


def test_missing_weights_are_named(folder):
    (folder / "flowpp-digits.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"flowpp-digits.safetensors: the card is there, but not the weights"):
        fk.zoo.flowpp(pretrained="digits")


def test_a_card_of_another_model_is_refused_by_its_keys(folder):
    path = folder / "flowpp-digits.json"
    card = json.loads(path.read_text())
    card["config"]["blocks"] += 1
    path.write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"flowpp-digits lacks transform\..* and \d+ more"):
        fk.zoo.flowpp(pretrained="digits")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle in a zip", save({"a": torch.zeros(9)})[:-8]])
def test_what_is_no_whole_safetensors_file_is_refused(content):
    with pytest.raises(WeightsError, match="some.file: not a whole safetensors file"):
        registry.parse(content, "some.file")


def test_every_key_and_shape_must_fit():
    module = torch.nn.Linear(2, 3)
    state = dict(module.state_dict())
    with pytest.raises(WeightsError, match="w lacks bias"):
        registry.load(module, {"weight": state["weight"]}, "w")
    with pytest.raises(WeightsError, match="w has unknown gain"):
        registry.load(module, {**state, "gain": state["bias"]}, "w")
    with pytest.raises(WeightsError, match=r"w: bias is \(2,\), wanted \(3,\)"):
        registry.load(module, {**state, "bias": torch.zeros(2)}, "w")
