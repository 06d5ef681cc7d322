"""Every pair of `bench_peers` in the vision families is built; pairs that no other test compares have the same weights and outputs."""

import pytest
import torch
from torch import nn

from layerzoo.report.bench_layers import step_of
from layerzoo.report.bench_peers import PEERS, pair
from layerzoo.report.peer import DIM, HEADS, Called
from layerzoo.report.vision_peers import VISION_PEERS

HEAD = DIM // HEADS


def named(peers):
    return [pytest.param(peer, id=f"{peer.layer}-{peer.package}") for peer in peers]


def test_a_layer_and_a_package_name_one_pair():
    names = [(peer.layer, peer.package) for peer in (*PEERS, *VISION_PEERS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("peer", named(VISION_PEERS))
def test_both_of_a_pair_map_a_shape_to_itself_and_are_as_large(peer):
    pytest.importorskip(peer.module)
    ours, theirs, shape = pair(peer, 64)
    with torch.no_grad():
        x = torch.randn(shape)
        assert ours(x).shape == theirs(x).shape == shape
    sizes = sorted(sum(p.numel() for p in module.parameters()) for module in (ours, theirs))
    assert sizes[1] <= 1.1 * sizes[0]
    for _ in range(2):  # nothing of a step is left that the next one would need
        (step := step_of(theirs, shape))()
        step()


def linear(**parts):
    """Weights, and biases where there are any, of modules under the names of ours; of several as one."""
    tensors = {}
    for name, modules in parts.items():
        modules = modules if isinstance(modules, tuple) else (modules,)
        for kind in ("weight", "bias"):
            if all(getattr(m, kind) is not None for m in modules):
                tensors[f"{name.replace('__', '.')}.{kind}"] = torch.cat([getattr(m, kind) for m in modules])
    return tensors


def window(peer):
    return linear(qkv=peer.qkv, proj=peer.proj) | {"relative_bias.table": peer.relative_position_bias_table.T}


def window_of_max_vit(peer):
    tensors = linear(qkv=peer.to_qkv, proj=peer.to_out[0]) | {"proj.bias": torch.zeros(DIM)}
    return tensors | {"relative_bias.table": peer.rel_pos_bias.weight.T}


def swin_v2(peer):
    attention, output = peer
    attention.key.bias = nn.Parameter(torch.zeros_like(attention.query.bias))  # it has none
    tensors = linear(
        qkv=(attention.query, attention.key, attention.value), proj=output, relative_bias__mlp__0=attention.continuous_position_bias_mlp[0],
        relative_bias__mlp__2=attention.continuous_position_bias_mlp[2])
    return tensors | {"log_scale": attention.logit_scale}


def halo(peer):
    """Its queries are scaled before they meet the offsets; its tables hold six that no block has."""
    rows, columns = (table[6:] * HEAD**-0.5 for table in (peer.rel_pos_emb.rel_height, peer.rel_pos_emb.rel_width))
    return linear(qkv=(peer.to_q, peer.to_kv), proj=peer.to_out) | {"relative_rows": rows, "relative_columns": columns}


def spatial_reduction(peer):
    peer.layer_norm.eps = 1e-5
    return linear(qkv=(peer.query, peer.key, peer.value), conv=peer.spatial_reduction, norm=peer.layer_norm, proj=peer.proj)


def twins(peer):
    return linear(near__qkv=(peer.to_q, peer.to_kv), near__proj=peer.to_out[0])


def lambda_layer(peer):
    nn.init.zeros_(peer.pos_conv.bias)
    return linear(qkv=(peer.to_q, peer.to_k, peer.to_v)) | {"offsets.weight": peer.pos_conv.weight}


def botnet(peer):
    attention, output = peer
    return linear(qkv=attention.to_qkv, proj=output) | {
        "relative.rows": attention.pos_emb.rel_height, "relative.columns": attention.pos_emb.rel_width}


def coatnet(peer):
    """Its channels go head by head, q, k and v within each."""
    place = torch.arange(3 * DIM).view(HEADS, 3, HEAD).transpose(0, 1).flatten()
    return linear(proj=peer.proj) | {
        "qkv.weight": peer.qkv.weight[place], "qkv.bias": peer.qkv.bias[place],
        "relative_bias.table": peer.rel_pos.relative_position_bias_table.T}


def gated_positional(peer):
    return linear(qkv=(peer.qk, peer.v), proj=peer.proj) | {"offset_score": peer.pos_proj.weight, "gate": peer.gating_param}


def cvt(peer):
    """Keys and values have one convolution."""
    near, far = peer.to_q.net, peer.to_kv.net
    return linear(qkv=(near[2], far[2]), local__0=near[0], local__1=far[0], local__2=far[0], proj=peer.to_out[0])


def hugging_cvt(peer):
    """It divides scores by the root of all channels."""
    attention = peer.attention
    parts = [getattr(attention, f"convolution_projection_{name}").convolution_projection.convolution for name in ("query", "key", "value")]
    attention.scale = HEAD**-0.5
    return linear(
        qkv=(attention.projection_query, attention.projection_key, attention.projection_value), proj=peer.output.dense,
        **{f"local__{i}": conv for i, conv in enumerate(parts)})


def levit(peer):
    """Its table is divided by the scale; our channels go head by head."""
    parts = [conv[0].weight.flatten(1).unflatten(0, (HEADS, -1)) for conv in (peer.to_q, peer.to_k, peer.to_v)]
    weight = torch.cat(parts, 1).flatten(0, 1)
    return linear(proj=peer.to_out[1]) | {
        "qkv.weight": weight, "qkv.bias": torch.zeros(len(weight)), "table": peer.pos_bias.weight.T / peer.scale}


def focal(peer):
    levels = {f"levels__{i}": level[0] for i, level in enumerate(peer.focal_layers)}
    return linear(expand=peer.projection_in, modulator=peer.projection_context, proj=peer.projection_out, **levels)


PORTS = {
    ("window_attention", "timm"): window, ("window_attention", "torchvision"): window, ("window_attention", "vit-pytorch"): window_of_max_vit,
    ("swin_v2_attention", "transformers"): swin_v2, ("halo", "halonet-pytorch"): halo, ("spatial_reduction", "transformers"): spatial_reduction,
    ("twins", "vit-pytorch"): twins, ("lambda_layer", "lambda-networks"): lambda_layer, ("botnet", "bottleneck-transformer-pytorch"): botnet,
    ("coatnet_attention", "timm"): coatnet, ("gated_positional_attention", "timm"): gated_positional, ("cvt_attention", "vit-pytorch"): cvt,
    ("cvt_attention", "transformers"): hugging_cvt, ("levit", "vit-pytorch"): levit, ("focal_modulation", "transformers"): focal,
    ("large_kernel_conv", "timm"): lambda peer: linear(conv=peer.large_conv.conv, small=peer.small_conv.conv),
    ("se", "torchvision"): lambda peer: linear(fc1=peer.fc1, fc2=peer.fc2),
}


@pytest.mark.parametrize("peer", named(p for p in VISION_PEERS if (p.layer, p.package) in PORTS))
@torch.no_grad()
def test_with_the_same_weights_both_compute_the_same(peer):
    pytest.importorskip(peer.module)
    ours, theirs, shape = (m.double() if isinstance(m, nn.Module) else m for m in pair(peer, 256))
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.05)
    layer, public = (next(m for m in module.modules() if not isinstance(m, Called)) for module in (ours, theirs))
    tensors, own = PORTS[peer.layer, peer.package](public), layer.state_dict()
    assert tensors.keys() == own.keys()
    layer.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in tensors.items()})
    x = torch.randn(2, *shape[1:], dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-8)
