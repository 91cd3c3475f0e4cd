"""Weights are found where they are, fetched if need be, and refused with the reason if damaged or foreign."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_safetensors

import flowkit as fk
from flowkit.zoo import WeightsError, files, registry
from flowkit.zoo.files import Piece
from flowkit.zoo.flowpp import configuration
from tests.zoo.server import serving

SMALL = {"config": "digits", "filters": 8, "blocks": 1, "components": 2}
CONFIG = asdict(configuration(**SMALL))


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """Nobody's own cache or mirror, and no proxy between the test and its server."""
    for name in ("FLOWKIT_WEIGHTS", "FLOWKIT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLOWKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the packaged weights, to damage."""
    copy = tmp_path / "package"
    copy.mkdir()
    for file in registry._folder().iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(registry, "_folder", lambda: copy)
    monkeypatch.setattr(registry, "_checkout", lambda: None)
    return copy


@pytest.fixture
def large(folder, tmp_path):
    """A model whose card is in the package, and its several files, in bfloat16, in a folder elsewhere; and the flow."""
    torch.manual_seed(0)
    flow = fk.zoo.flowpp(**SMALL).eval()
    elsewhere = tmp_path / "elsewhere"
    fk.zoo.save(
        flow, elsewhere / "flowpp-large.json", model="flowpp", config=CONFIG, dtype=torch.bfloat16, piece_bytes=50_000
    )
    (elsewhere / "flowpp-large.json").rename(folder / "flowpp-large.json")
    return elsewhere, flow


def edit(path, **changes):
    card = json.loads(path.read_text())
    card.update(changes)
    path.write_text(json.dumps(card))
    return card


# ------------------------------------------------------------------------------------------------ what is shipped


def test_pretrained_digits_are_ready():
    flow = fk.zoo.flowpp(pretrained="digits")
    card = fk.zoo.card("flowpp-digits")
    assert not flow.training and not any(module.training for module in flow.modules())
    assert sum(p.numel() for p in flow.parameters()) == card["parameters"]
    weights = fk.zoo.available()["flowpp-digits"]
    assert weights == (card["evaluation"]["bits_per_dim"], card["size"], "package")
    x = flow.sample((16,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (16, 1, 8, 8) and x.min() >= 0 and x.max() <= 16
    loaded = fk.zoo.load("flowpp-digits")
    assert files.state_sha256(loaded.state_dict()) == card["evaluation"]["state_sha256"]
    assert files.state_sha256(flow.state_dict()) == card["evaluation"]["state_sha256"]


@pytest.mark.parametrize("name", registry.names())
def test_cards_say_what_a_reader_asks(name):
    card = fk.zoo.card(name)
    for key in ("data", "data_sha256", "steps", "seed"):
        assert card["training"][key] is not None
    evaluation = card["evaluation"]
    assert evaluation["model"] == name and evaluation["images"] > 0 and evaluation["standard_error"] > 0
    assert card["size"] == sum(piece["size"] for piece in card["files"])
    assert all(piece["size"] <= files.PIECE_BYTES for piece in card["files"])


def test_the_packaged_weights_are_small():
    """Larger ones stand in the repository's `weights`."""
    assert sum(file.stat().st_size for file in registry._folder().iterdir()) < 8_000_000


def test_card_holds_on_the_held_out_digits():
    """Few draws: above the card's bound with more draws, and not by much."""
    from flowkit.train import digits

    card = fk.zoo.card("flowpp-digits")
    flow = fk.zoo.flowpp(pretrained="digits")
    with torch.no_grad():
        bits = fk.metrics.bits_per_dim(flow, digits()[1], draws=4, generator=torch.Generator().manual_seed(0))
    above = bits.mean().item() - card["evaluation"]["bits_per_dim"]
    assert -0.01 < above < 0.15


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="weights are named 'flowpp-digit', wanted one of flowpp-.*flowpp-digits"):
        fk.zoo.load("flowpp-digit")
    with pytest.raises(ValueError, match="pretrained is 'nothing', wanted one of .*digits"):
        fk.zoo.flowpp(pretrained="nothing")


# ------------------------------------------------------------------------------------------------ where files are


def test_files_are_found_in_a_checkout(large, monkeypatch):
    elsewhere, flow = large
    assert fk.zoo.available()["flowpp-large"].where == "remote"
    monkeypatch.setattr(registry, "_checkout", lambda: elsewhere)
    assert fk.zoo.available()["flowpp-large"].where == "checkout"
    same(fk.zoo.load("flowpp-large"), flow)


def test_the_checkout_is_the_repository_and_nothing_else():
    """An installed package has no `weights` beside it, whatever stands in site-packages."""
    root = Path(registry.__file__).parents[2]
    assert registry._checkout() == (root / "weights" if (root / "pyproject.toml").exists() else None)


@pytest.mark.parametrize("mirror", ["folder", "file://", "http"])
def test_files_are_fetched_once_into_the_cache(large, monkeypatch, mirror, tmp_path):
    elsewhere, flow = large
    content = {file.name: file.read_bytes() for file in elsewhere.iterdir()}
    assert len(content) > 2
    with serving(**content) as server:
        address = {"folder": str(elsewhere), "file://": elsewhere.as_uri(), "http": server.url + "/"}[mirror]
        monkeypatch.setenv("FLOWKIT_WEIGHTS", address.replace("http:", "HTTP:"))
        same(fk.zoo.load("flowpp-large"), flow)
        assert fk.zoo.available()["flowpp-large"].where == "cache"
        same(fk.zoo.load("flowpp-large"), flow)
        asked = sorted(path for path, _ in server.requests)
        assert asked == (sorted(f"/{name}" for name in content) if mirror == "http" else [])
    kept = [file.name for file in (tmp_path / "home" / "weights").rglob("*.safetensors")]
    assert sorted(kept) == sorted(content)


def test_offline_uses_the_cache_and_nothing_else(large, monkeypatch):
    elsewhere, flow = large
    with serving(**{file.name: file.read_bytes() for file in elsewhere.iterdir()}) as server:
        monkeypatch.setenv("FLOWKIT_WEIGHTS", server.url)
        monkeypatch.setenv("FLOWKIT_OFFLINE", "1")
        with pytest.raises(
            WeightsError, match=f"is not there, and FLOWKIT_OFFLINE forbids fetching it from {server.url}"
        ):
            fk.zoo.load("flowpp-large")
        assert server.requests == []
        monkeypatch.setenv("FLOWKIT_OFFLINE", "0")
        fk.zoo.fetch_weights("flowpp-large")
        before = len(server.requests)
        monkeypatch.setenv("FLOWKIT_OFFLINE", "yes")
        same(fk.zoo.load("flowpp-large"), flow)
        assert len(server.requests) == before


def test_a_folder_is_no_network(large, monkeypatch):
    elsewhere, flow = large
    monkeypatch.setenv("FLOWKIT_WEIGHTS", str(elsewhere))
    monkeypatch.setenv("FLOWKIT_OFFLINE", "1")
    same(fk.zoo.load("flowpp-large"), flow)


def test_a_damaged_file_in_the_cache_is_fetched_anew(large, monkeypatch):
    elsewhere, flow = large
    monkeypatch.setenv("FLOWKIT_WEIGHTS", str(elsewhere))
    fk.zoo.fetch_weights("flowpp-large")
    for file in registry.cache_folder().rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setenv("FLOWKIT_WEIGHTS", "http://127.0.0.1:9")
    monkeypatch.setenv("FLOWKIT_OFFLINE", "1")
    with pytest.raises(WeightsError, match="is damaged, and FLOWKIT_OFFLINE"):
        fk.zoo.load("flowpp-large")
    monkeypatch.setenv("FLOWKIT_WEIGHTS", str(elsewhere))
    same(fk.zoo.load("flowpp-large"), flow)


def test_a_read_only_cache_serves(large, monkeypatch):
    """Nothing is written, locked or renamed where all is there."""
    elsewhere, flow = large
    monkeypatch.setenv("FLOWKIT_WEIGHTS", str(elsewhere))
    fk.zoo.fetch_weights("flowpp-large")

    def forbidden(*arguments, **options):
        raise AssertionError("the cache was to be written")

    monkeypatch.setattr(registry, "fetch", forbidden)
    same(fk.zoo.load("flowpp-large"), flow)


def test_no_source_is_said_with_its_cure(large):
    with pytest.raises(
        WeightsError, match=r"is not there, and no place .* is known. Set FLOWKIT_WEIGHTS to the address"
    ):
        fk.zoo.load("flowpp-large")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FLOWKIT_WEIGHTS", "s3://bucket", "FLOWKIT_WEIGHTS is 's3://bucket', wanted http://, https:// or a folder"),
        ("FLOWKIT_WEIGHTS", "https://me:secret@example.org", "FLOWKIT_WEIGHTS holds a user or a password"),
        ("FLOWKIT_OFFLINE", "perhaps", "FLOWKIT_OFFLINE is 'perhaps', wanted 1 or 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(large, monkeypatch, name, value, reason):
    monkeypatch.setenv("FLOWKIT_WEIGHTS", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with pytest.raises(WeightsError, match=reason):
        fk.zoo.load("flowpp-large")


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "{home}/.cache/flowkit"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/flowkit"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "{home}/Library/Caches/flowkit"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/flowkit"),
        ("linux", {"FLOWKIT_HOME": "~/mine"}, "{home}/mine"),
    ],
)
def test_the_cache_is_where_the_platform_has_caches(monkeypatch, platform, environment, folder):
    for name in ("FLOWKIT_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(registry.sys, "platform", platform)
    assert str(registry.cache_folder()) == folder.format(home=os.path.expanduser("~"))


# ------------------------------------------------------------------------------------------- damaged and foreign


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_weights_are_refused_by_their_hash(folder, damage):
    path = folder / "flowpp-digits.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes({"flip": content, "cut": content[:1000], "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"flowpp-digits.safetensors: \d+ bytes with SHA-256 .* is damaged"):
        fk.zoo.flowpp(pretrained="digits")


def test_missing_weights_beside_a_card_are_named(tmp_path):
    flow = fk.zoo.flowpp(**SMALL)
    fk.zoo.save(flow, tmp_path / "flowpp-mine.json", model="flowpp", config=CONFIG)
    (tmp_path / "flowpp-mine.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"flowpp-mine.safetensors: the card is there, but not the weights"):
        fk.zoo.load(tmp_path / "flowpp-mine.json")
    with pytest.raises(WeightsError, match="there is no such card"):
        fk.zoo.load(tmp_path / "flowpp-other.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged: Expecting value"),
        (b'{"model": "flowpp", ', "is damaged: "),
        (b"\xff\xfe\x00", "is damaged: "),
        (b"[1]", "holds a list, wanted an object"),
        (b"{}", "model is missing"),
    ],
)
def test_a_damaged_card_is_named(folder, content, reason):
    (folder / "flowpp-digits.json").write_bytes(content)
    for use in (fk.zoo.available, lambda: fk.zoo.card("flowpp-digits"), lambda: fk.zoo.flowpp(pretrained="digits")):
        with pytest.raises(WeightsError, match=f"flowpp-digits: its card .*{reason}"):
            use()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": 3}, "config is a int"),
        ({"dtype": "float33"}, "dtype is 'float33'"),
        ({"evaluation": {}}, "evaluation has no bits_per_dim"),
        ({"files": []}, "files is empty"),
        ({"files": [{"file": "a.safetensors"}]}, "files has"),
        ({"files": [{"file": "../a.safetensors", "size": 1, "sha256": ""}]}, "no name of a safetensors file"),
        ({"files": [{"file": "a.pt", "size": 1, "sha256": ""}]}, "no name of a safetensors file"),
        ({"config": {"colour": 1}}, "config of its card is damaged: .*colour"),
        ({"model": "glow"}, "config of its card is damaged"),
        ({"model": "gloom"}, "model is 'gloom', wanted one of flowpp, glow"),
    ],
)
def test_a_card_with_a_foreign_field_is_refused(folder, changes, reason):
    edit(folder / "flowpp-digits.json", **changes)
    with pytest.raises(WeightsError, match=f"flowpp-digits: .*{reason}"):
        fk.zoo.load("flowpp-digits")


def test_a_card_of_another_model_is_refused_by_its_keys(folder):
    path = folder / "flowpp-digits.json"
    config = json.loads(path.read_text())["config"]
    config["blocks"] += 1
    edit(path, config=config)
    with pytest.raises(WeightsError, match=r"flowpp-digits lacks transform\..* and \d+ more"):
        fk.zoo.flowpp(pretrained="digits")


def test_pieces_that_are_right_but_not_the_whole_are_refused(large, folder, monkeypatch):
    elsewhere, _ = large
    monkeypatch.setattr(registry, "_checkout", lambda: elsewhere)
    path = folder / "flowpp-large.json"
    card = json.loads(path.read_text())
    edit(path, files=card["files"][:-1])
    with pytest.raises(WeightsError, match="flowpp-large: its files have SHA-256 .* one after another, wanted"):
        fk.zoo.load("flowpp-large")


def test_a_tensor_in_two_files_is_refused(large, folder, monkeypatch):
    elsewhere, _ = large
    monkeypatch.setattr(registry, "_checkout", lambda: elsewhere)
    path = folder / "flowpp-large.json"
    card = json.loads(path.read_text())
    edit(path, files=[*card["files"], card["files"][0]])
    with pytest.raises(WeightsError, match=r"is in flowpp-large-00001-of-\d+.safetensors and in another file"):
        fk.zoo.load("flowpp-large")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a pickle in a zip", save_safetensors({"a": torch.zeros(9)})[:-8]]
)
def test_what_is_no_whole_safetensors_file_is_refused(content):
    with pytest.raises(WeightsError, match="some.file: not a whole safetensors file"):
        files.parse(content, "some.file")


def test_every_key_shape_dtype_and_value_must_fit():
    module = torch.nn.Linear(2, 3)
    state = dict(module.state_dict())
    with pytest.raises(WeightsError, match="w lacks bias"):
        files.fill(module, {"weight": state["weight"]}, "w")
    with pytest.raises(WeightsError, match="w has unknown gain"):
        files.fill(module, {**state, "gain": state["bias"]}, "w")
    with pytest.raises(WeightsError, match=r"w: bias is \(2,\), wanted \(3,\)"):
        files.fill(module, {**state, "bias": torch.zeros(2)}, "w")
    with pytest.raises(WeightsError, match=r"w: bias is torch.bfloat16, wanted torch.float32"):
        files.fill(module, {**state, "bias": torch.zeros(3).bfloat16()}, "w")
    with pytest.raises(WeightsError, match=r"w: weight is torch.float32, wanted bfloat16"):
        files.fill(module, state, "w", dtype="bfloat16")
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = state["weight"].clone()
        spoilt[1, 1] = value
        with pytest.raises(WeightsError, match="w: weight has 1 of 6 values that are NaN or infinite"):
            files.fill(module, {**state, "weight": spoilt}, "w")
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


# ---------------------------------------------------------------------------------------------- written and read


def same(loaded, flow):
    """The flow itself, with what bfloat16 leaves of its weights."""
    assert not loaded.training
    state = flow.state_dict()
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[key].bfloat16().float()), key


@pytest.mark.parametrize(("dtype", "piece_bytes"), [(None, 1 << 24), (None, 50_000), (torch.bfloat16, 20_000)])
def test_what_is_saved_is_loaded(tmp_path, dtype, piece_bytes):
    flow = fk.zoo.flowpp(**SMALL)
    path = tmp_path / "new" / "flowpp-mine.json"
    card = fk.zoo.save(
        flow, path, model="flowpp", config=CONFIG, training={"steps": 0}, dtype=dtype, piece_bytes=piece_bytes
    )
    assert fk.zoo.card(path) == json.loads(path.read_text()) == json.loads(json.dumps(card))
    loaded = fk.zoo.load(str(path))
    for key, value in flow.state_dict().items():
        wanted = value if dtype is None else value.to(dtype).to(value.dtype)
        assert torch.equal(loaded.state_dict()[key], wanted)
    written = sorted(file.name for file in path.parent.iterdir())
    pieces = [piece["file"] for piece in card["files"]]
    assert written == sorted([path.name, *pieces])
    assert all((path.parent / piece).stat().st_size <= piece_bytes for piece in pieces)
    assert pieces == (
        ["flowpp-mine.safetensors"]
        if piece_bytes == 1 << 24
        else [f"flowpp-mine-{i + 1:05d}-of-{len(pieces):05d}.safetensors" for i in range(len(pieces))]
    )
    whole = b"".join((path.parent / piece).read_bytes() for piece in pieces)
    assert card["sha256"] == hashlib.sha256(whole).hexdigest() and card["size"] == len(whole)


def test_weights_are_cast_into_the_dtype_of_the_model(tmp_path):
    flow = fk.zoo.flowpp(**SMALL)
    fk.zoo.save(flow, tmp_path / "flowpp-mine.json", model="flowpp", config=CONFIG, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float64)
    try:
        loaded = fk.zoo.load(tmp_path / "flowpp-mine.json")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("glow", {"shape": (3, 8, 8), "scales": 2, "steps": 1, "filters": 4}),
        ("iaf", {"features": 3, "hidden": (4,)}),
        ("maf", {"features": 3, "hidden": (4,)}),
        ("nsf", {"features": 3}),
        ("nice", {"features": 8, "hidden": (4,)}),
        ("realnvp", {"shape": (1, 8, 8), "filters": 4, "blocks": 1}),
        ("realnvp_tabular", {"features": 3, "couplings": 2, "batch_norm": True}),
    ],
)
def test_every_model_is_saved_and_loaded(tmp_path, model, config):
    flow = getattr(fk.zoo, model)(**config)
    fk.zoo.save(flow, tmp_path / "mine.json", model=model, config=config)
    loaded = fk.zoo.load(tmp_path / "mine.json")
    assert files.state_sha256(loaded.state_dict()) == files.state_sha256(flow.state_dict()) and not loaded.training


def test_integers_keep_their_dtype(tmp_path):
    module = torch.nn.BatchNorm1d(3)
    module.num_batches_tracked += 2**40 + 1
    fk.zoo.save(module, tmp_path / "norm.json", model="norm", config={}, dtype=torch.bfloat16)
    card, tensors = registry.read(tmp_path / "norm.json")
    other = torch.nn.BatchNorm1d(3)
    files.fill(other, tensors, "norm", dtype=card["dtype"])
    assert other.num_batches_tracked == 2**40 + 1 and other.running_var.dtype == torch.float32


def test_what_is_not_to_be_saved(tmp_path):
    module = torch.nn.Linear(20, 20)
    with pytest.raises(ValueError, match=r"path is .*m.pt, wanted the path of a card"):
        fk.zoo.save(module, tmp_path / "m.pt", model="m", config={})
    with pytest.raises(WeightsError, match="m: weight alone takes .* bytes, more than 1000"):
        fk.zoo.save(module, tmp_path / "m.json", model="m", config={}, piece_bytes=1000)
    with torch.no_grad():
        module.weight[0, 0] = 1e6
    with pytest.raises(WeightsError, match="m: weight has 1 of 400 values that are NaN or infinite"):
        fk.zoo.save(module, tmp_path / "m.json", model="m", config={}, dtype=torch.float16)
    module.bias.data = module.bias.data.double()
    with pytest.raises(WeightsError, match="of several dtypes, torch.float32, torch.float64"):
        fk.zoo.save(module, tmp_path / "m.json", model="m", config={})
    assert list(tmp_path.iterdir()) == []


def test_the_state_hash_sees_every_part_of_a_state():
    module = torch.nn.Linear(2, 3)
    same_again = torch.nn.Linear(2, 3)
    same_again.load_state_dict(module.state_dict())
    of = files.state_sha256(module.state_dict())
    assert of == files.state_sha256(same_again.state_dict())
    assert of != files.state_sha256(torch.nn.Linear(2, 3).state_dict())
    assert of != files.state_sha256(same_again.double().state_dict())


def test_a_piece_says_what_is_wrong():
    piece = Piece.of("a", b"abc")
    assert piece.fault(b"abc") == "" and piece.fault(b"abd").startswith("3 bytes with SHA-256 a52d")
