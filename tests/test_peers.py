"""A second oracle: public implementations of the same function, with their weights in our layers. Peers are in the extra `bench`."""

import sys
from pathlib import Path

import pytest
import torch

import layerzoo as lz

DIM, HEADS, GRID = 32, 4, (6, 8)
LENGTH = GRID[0] * GRID[1]
HEAD = {"heads": HEADS, "dim_head": DIM // HEADS}


@pytest.fixture(autouse=True)
def twins_hide_no_package(monkeypatch):
    """Some twins have the name of a peer's package, and pytest puts their folder first."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(Path(__file__).parent)])


def joined(*layers):
    """The weights of separate projections as one."""
    return torch.cat([layer.weight for layer in layers])


def load(layer, **tensors):
    """Give a layer exactly these weights; in its names, dots are written as double underscores."""
    layer.load_state_dict({name.replace("__", "."): tensor.detach() for name, tensor in tensors.items()})
    return layer.eval()


def vit_pytorch_mhsa():
    peer = pytest.importorskip("vit_pytorch.vit").Attention(DIM, **HEAD)
    norm, (out, _) = peer.norm, peer.to_out
    ours = load(lz.create_layer("mhsa", DIM, num_heads=HEADS, qkv_bias=False), qkv__weight=peer.to_qkv.weight, proj__weight=out.weight, proj__bias=out.bias)
    return peer, lambda x: ours(norm(x))


def x_transformers_mhsa():
    peer = pytest.importorskip("x_transformers.x_transformers").Attention(DIM, **HEAD, flash=True)
    ours = load(
        lz.create_layer("mhsa", DIM, num_heads=HEADS, qkv_bias=False), qkv__weight=joined(peer.to_q, peer.to_k, peer.to_v),
        proj__weight=peer.to_out.weight, proj__bias=torch.zeros(DIM))
    return lambda x: y[0] if isinstance(y := peer(x), tuple) else y, ours


def timm_mhsa():
    peer = pytest.importorskip("timm.models.vision_transformer").Attention(DIM, num_heads=HEADS, qkv_bias=True)
    return peer, load(lz.create_layer("mhsa", DIM, num_heads=HEADS), **{k.replace(".", "__"): v for k, v in peer.state_dict().items()})


def torch_mhsa():
    peer = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    ours = load(
        lz.create_layer("mhsa", DIM, num_heads=HEADS), qkv__weight=peer.in_proj_weight, qkv__bias=peer.in_proj_bias,
        proj__weight=peer.out_proj.weight, proj__bias=peer.out_proj.bias)
    return lambda x: peer(x, x, x, need_weights=False)[0], ours


def linformer():
    peer = pytest.importorskip("linformer").LinformerSelfAttention(DIM, seq_len=LENGTH, k=10, **HEAD)
    ours = load(
        lz.create_layer("linformer", DIM, grid=GRID, num_heads=HEADS, num_landmarks=10, qkv_bias=False),
        qkv__weight=joined(peer.to_q, peer.to_k, peer.to_v), key_rows=peer.proj_k.T, value_rows=peer.proj_v.T,
        proj__weight=peer.to_out.weight, proj__bias=peer.to_out.bias)
    return peer, ours


def performer():
    """Without the number added to features: the peer adds it at another scale."""
    package = pytest.importorskip("performer_pytorch.performer_pytorch")
    package.softmax_kernel.__kwdefaults__["eps"] = 0
    peer = package.SelfAttention(DIM, **HEAD, nb_features=12)
    ours = load(
        lz.create_layer("performer", DIM, num_heads=HEADS, num_features=12, qkv_bias=False, eps=0), qkv__weight=joined(peer.to_q, peer.to_k, peer.to_v),
        directions=peer.fast_attention.projection_matrix, proj__weight=peer.to_out.weight, proj__bias=peer.to_out.bias)
    return peer, ours


def nystrom():
    """One head: the peer starts its pseudo-inverse with one scale for all heads and samples, which six steps do not forget."""
    peer = pytest.importorskip("nystrom_attention").NystromAttention(DIM, dim_head=DIM, heads=1, num_landmarks=8, residual_conv_kernel=5)
    ours = load(
        lz.create_layer("nystrom", DIM, num_heads=1, num_landmarks=8, conv_kernel=5, qkv_bias=False), qkv__weight=peer.to_qkv.weight,
        proj__weight=peer.to_out[0].weight, proj__bias=peer.to_out[0].bias, conv__weight=peer.res_conv.weight)
    return lambda x: torch.cat([peer(sample[None]) for sample in x]), ours


def efficient_attention():
    """The peer divides queries by sqrt(d) after their softmax, which the output projection can as well."""
    peer = pytest.importorskip("linear_attention_transformer.linear_attention_transformer").SelfAttention(DIM, heads=HEADS)
    ours = load(
        lz.create_layer("efficient_attention", DIM, num_heads=HEADS, qkv_bias=False), qkv__weight=joined(peer.to_q, peer.to_k, peer.to_v),
        proj__weight=peer.to_out.weight * (DIM // HEADS) ** -0.5, proj__bias=peer.to_out.bias)
    return peer, ours


def xcit():
    peer = pytest.importorskip("timm.models.xcit").XCA(DIM, num_heads=HEADS, qkv_bias=True)
    torch.nn.init.uniform_(peer.temperature, 0.5, 2)
    return peer, load(lz.create_layer("xcit", DIM, num_heads=HEADS), **{k.replace(".", "__"): v for k, v in peer.state_dict().items()})


def relu_linear():
    """The peer's channels go head by head, q, k and v within each; ours go q, k, v, and the heads within each."""
    peer = pytest.importorskip("timm.models.efficientvit_mit").LiteMLA(DIM, DIM, dim=DIM // HEADS, scales=(3,), eps=1e-15)
    place = torch.arange(3 * DIM).view(HEADS, 3, DIM // HEADS).transpose(0, 1).flatten()
    scale = (1 + peer.proj.norm.eps) ** -0.5  # its batch norm, untrained
    near, mixing = peer.aggreg[0]
    ours = load(
        lz.create_layer("relu_linear", DIM, num_heads=HEADS, kernel_sizes=(3,)), qkv__weight=peer.qkv.conv.weight[place].flatten(1),
        scales__0__0__weight=near.weight[place], scales__0__1__weight=mixing.weight[place],
        proj__weight=peer.proj.conv.weight.flatten(1) * scale, proj__bias=torch.zeros(DIM))
    peer.eval()
    return lambda x: peer(x.mT.unflatten(2, GRID)).flatten(2).mT, ours


def axial_attention():
    peer = pytest.importorskip("axial_attention").AxialAttention(dim=DIM, dim_index=1, heads=HEADS, num_dimensions=2)
    tensors = {}
    for name, along in zip(("columns", "rows"), (module.fn for module in peer.axial_attentions)):
        tensors |= {
            f"{name}__qkv__weight": joined(along.to_q, along.to_kv), f"{name}__proj__weight": along.to_out.weight, f"{name}__proj__bias": along.to_out.bias}
    ours = load(lz.create_layer("axial_attention", DIM, num_heads=HEADS, qkv_bias=False), **tensors)
    return lambda x: peer(x.mT.unflatten(2, GRID)).flatten(2).mT, ours


PAIRS = [
    vit_pytorch_mhsa, x_transformers_mhsa, timm_mhsa, torch_mhsa, linformer, performer, nystrom, efficient_attention, xcit, relu_linear, axial_attention]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
def test_equals_a_public_implementation(pair):
    peer, ours = pair()
    if isinstance(peer, torch.nn.Module):
        peer.eval()
    x = torch.randn(3, LENGTH, DIM)
    with torch.no_grad():
        y = ours(x, grid=GRID) if isinstance(ours, torch.nn.Module) else ours(x)
        assert torch.allclose(y, peer(x), atol=1e-5, rtol=1e-5)
