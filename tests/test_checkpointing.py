"""Activation checkpointing: the same numbers with less kept."""

import pickle

import pytest
import torch

import flowkit as fk


def made():
    torch.manual_seed(0)
    flow = fk.zoo.flowpp(config="digits", filters=8, blocks=2, dropout=0.2, attention="softmax")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow, torch.randint(17, (4, 1, 8, 8))


def run(flow, x):
    """Log-probabilities, gradients, and the bytes kept for the backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in flow.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_prob = flow(x)
    log_prob.mean().backward()
    return log_prob, [p.grad for p in flow.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("memory", ["layer", "block"])
def test_same_numbers_to_the_bit_and_less_kept(memory):
    plain, x = made()
    wanted, gradients, kept = run(plain, x)
    flow, _ = made()
    fk.activation_checkpointing(flow, memory)
    got, same, less = run(pickle.loads(pickle.dumps(flow)), x)
    assert torch.equal(got, wanted) and len(same) == len(gradients)
    assert all(torch.equal(one, other) for one, other in zip(same, gradients, strict=True))
    assert less < 0.25 * kept
    fk.activation_checkpointing(flow, "none")
    assert run(flow, x)[2] == kept


def test_backwards_and_without_gradients():
    flow, x = made()
    z = flow.to_latent(x, generator=torch.Generator().manual_seed(0)).detach()
    flow.eval()
    wanted = flow.from_latent(z)
    fk.activation_checkpointing(flow, "block")
    assert torch.equal(flow.from_latent(z), wanted)
    with torch.no_grad():
        assert not flow.log_prob(x).requires_grad


def test_compiles_in_one_graph():
    flow, _ = made()
    flow.eval()
    fk.activation_checkpointing(flow, "layer")
    chain = flow.transform["columns1"]
    values = torch.rand(2, 1, 8, 8)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    results = []
    for function in (chain, compiled):
        z, term = function(values)
        flow.zero_grad()
        (z.sum() + term.sum()).backward()
        results.append([z, term, *(p.grad.clone() for p in chain.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_refuses_another_word():
    with pytest.raises(ValueError, match="memory is 'layers', wanted one of none, layer, block"):
        fk.activation_checkpointing(torch.nn.Identity(), "layers")
