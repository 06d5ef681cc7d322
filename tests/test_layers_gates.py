"""Gates, gated layers, large-kernel attention, focal modulation and class attention: timm's with the same weights, what they see, refusals."""

import importlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.cli import check_build
from layerzoo.layers.gate.se import squeezed
from layerzoo.recipe import read_recipe

GATES = ["se", "eca", "cbam", "gather_excite", "coordinate_attention", "simam"]  # y = g x with g in (0, 1); global_context adds


def timm(module, name, dim, **options):
    """A module of timm with random weights, biases and statistics, in float64 and eval mode."""
    peer = getattr(pytest.importorskip(f"timm.{module}"), name)(dim, **options).double().eval()
    for p in peer.parameters():
        nn.init.normal_(p)
    for norm in (m for m in peer.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return peer


def layer_with(name, dim, weights, **options):
    """A layer with these weights, all of them, in its own shapes."""
    layer = lz.create_layer(name, dim=dim, **options).double().eval()
    own = layer.state_dict()
    assert own.keys() == weights.keys()
    layer.load_state_dict({k: v.reshape(own[k].shape) for k, v in weights.items()})
    return layer


def folded(conv, norm):
    """Weight and bias of a convolution without a bias and the batch norm after it, in eval, as one."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv.weight * scale[:, None, None, None], norm.bias - scale * norm.running_mean


def same(layer, peer, grid=(5, 7)):
    x = torch.randn(2, layer.dim, *grid, dtype=torch.double)
    assert torch.allclose(layer(x), peer(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", [16, 200])
def test_se_equals_timm(dim):
    peer = timm("layers", "SEModule", dim)
    same(layer_with("se", dim, peer.state_dict()), peer)


@pytest.mark.parametrize("dim", [4, 64, 300])
def test_eca_equals_timm(dim):
    peer = timm("layers", "EcaModule", dim)
    same(layer_with("eca", dim, peer.state_dict()), peer)


def test_cbam_equals_timm():
    peer = timm("layers.cbam", "CbamModule", 16, rd_divisor=8)
    weight, bias = folded(peer.spatial.conv.conv, peer.spatial.conv.bn)
    weights = {"fc1.weight": peer.channel.fc1.weight, "fc2.weight": peer.channel.fc2.weight, "conv.weight": weight, "conv.bias": bias}
    same(layer_with("cbam", 16, weights), peer)


@pytest.mark.parametrize("fuse", ["add", "scale"])
def test_global_context_equals_timm(fuse):
    peer = timm("layers", "GlobalContext", 24, rd_divisor=8, fuse_add=fuse == "add", fuse_scale=fuse == "scale")
    mlp = peer.mlp_add if fuse == "add" else peer.mlp_scale
    mlp.norm.eps = 1e-5
    layer = layer_with("global_context", 24, {"score.weight": peer.conv_attn.weight, **mlp.state_dict()}, fuse=fuse)
    same(layer, peer)


def test_coordinate_attention_equals_timm():
    peer = timm("layers.coord_attn", "CoordAttn", 16)
    weight, bias = folded(peer.conv1, peer.bn1)
    none = torch.zeros(16)
    same(layer_with("coordinate_attention", 16, {
        "squeeze.weight": weight, "squeeze.bias": bias, "rows.weight": peer.conv_h.weight, "rows.bias": none,
        "columns.weight": peer.conv_w.weight, "columns.bias": none}), peer)


@pytest.mark.parametrize("extent", [0, 2, 4, 8])
@pytest.mark.parametrize("grid", [(1, 1), (4, 8), (5, 11)])
def test_gathering_by_means_equals_timm(extent, grid):
    peer = timm("layers", "GatherExcite", 3, extent=extent, use_mlp=False)
    same(layer_with("gather_excite", 3, {}, extent=extent), peer, grid)


@pytest.mark.parametrize("levels, window", [(2, 3), (3, 5), (0, 3)])
def test_focal_modulation_equals_timm(levels, window):
    peer = timm("models.focalnet", "FocalModulation", 6, focal_window=window, focal_level=levels)
    names = {"f": "expand", "h": "modulator", "focal_layers": "levels"}
    weights = {re.sub(r"(levels\.\d)\.0", r"\1", ".".join((names.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]))): v
               for k, v in peer.state_dict().items()}
    same(layer_with("focal_modulation", 6, weights, num_levels=levels, kernel_size=window), peer)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_class_attention_equals_timm(qkv_bias):
    peer = timm("models.cait", "ClassAttn", 16, num_heads=4, qkv_bias=qkv_bias)  # whose bias of k changes nothing
    token = torch.randn(16, dtype=torch.double)
    weights = {"class_token": token, **{k: v for k, v in peer.state_dict().items() if k != "k.bias"}}
    layer, x = layer_with("class_attention", 16, weights, num_heads=4, qkv_bias=qkv_bias), torch.randn(2, 9, 16, dtype=torch.double)
    update = peer(torch.cat([token.expand(2, 1, 16), x], 1))
    assert torch.allclose(layer(x), update.expand(2, 9, 16), rtol=0, atol=1e-9)
    mask, update = torch.arange(9).expand(2, -1) < 4, peer(torch.cat([token.expand(2, 1, 16), x[:, :4]], 1))
    assert torch.allclose(layer(x, mask)[:, :4], update.expand(2, 4, 16), rtol=0, atol=1e-9)


def test_channels_between_are_rounded_as_in_timm():
    rounded = pytest.importorskip("timm.layers").make_divisible
    for reduction in (1, 3, 16, 32):
        assert [squeezed(dim, reduction) for dim in range(1, 700)] == [rounded(dim / reduction, 8, round_limit=0.0) for dim in range(1, 700)]


def test_eca_sees_more_channels_where_there_are_more():
    sizes = [lz.create_layer("eca", dim=dim).conv.kernel_size[0] for dim in (1, 8, 64, 128, 512, 2048)]
    assert sizes == [3, 3, 3, 5, 5, 7]


@pytest.mark.parametrize("name", GATES)
def test_gates_let_through_at_most_all(name):
    layer, x = lz.create_layer(name, dim=8), torch.randn(2, 8, 5, 6)
    passed = layer(x) / x
    assert passed.min() > 0 and passed.max() < 1 and not torch.allclose(passed[0], passed[1])


@pytest.mark.parametrize("fuse, start", [("add", 1.0), ("scale", 0.5)])
def test_global_context_starts_as_a_multiple_of_the_input(fuse, start):
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(lz.create_layer("global_context", dim=8, fuse=fuse)(x), start * x)


def test_global_context_is_the_same_everywhere():
    layer, x = lz.create_layer("global_context", dim=8), torch.randn(2, 8, 3, 4)
    nn.init.normal_(layer.fc2.weight)
    change = layer(x) - x
    assert torch.allclose(change, change[:, :, :1, :1].expand_as(x), atol=1e-5) and not torch.allclose(change[0], change[1])


def test_simam_by_the_variance():
    layer, x = lz.create_layer("simam", dim=4, eps=0.01), torch.randn(2, 4, 5, 6)
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    assert torch.allclose(layer(x), x * ((x - mean) ** 2 / (4 * (variance + 0.01)) + 0.5).sigmoid())
    assert torch.allclose(layer(x[..., :1, :1]), x[..., :1, :1] * torch.tensor(0.5).sigmoid())
    assert torch.allclose(layer(torch.full((1, 4, 3, 3), 2.0)), 2 * torch.tensor(0.5).sigmoid())


@pytest.mark.parametrize("options", [
    {"extent": 8, "excite": "mlp"}, {"extent": 2, "gather": "conv"}, {"gather": "conv", "grid": (6, 7), "excite": "mlp"}, {"excite": "mlp"}], ids=str)
@pytest.mark.parametrize("grid", [(1, 3), (6, 7)])
def test_gather_excite_equals_its_twin(options, grid):
    layer, x = lz.create_layer("gather_excite", dim=3, **options).double(), torch.randn(2, 3, *grid, dtype=torch.double)
    assert torch.allclose(layer(x), importlib.import_module("oracles.gather_excite").twin(layer, x), rtol=0, atol=1e-12)


def test_gathering_the_map_keeps_its_scale_on_an_enlarged_map():
    layer = lz.create_layer("gather_excite", dim=4, gather="conv", grid=(4, 6)).double()
    nn.init.constant_(layer.gather.weight, 0.1)
    x = torch.randn(1, 4, 4, 6, dtype=torch.double)
    assert torch.allclose(layer(x.repeat(1, 1, 3, 2)), layer(x).repeat(1, 1, 3, 2), rtol=0, atol=1e-12)


def reach(layer, side=33):
    """Rows of the place in the middle whose input reaches its output."""
    x = torch.randn(1, layer.dim, side, side, requires_grad=True)
    (seen,) = torch.autograd.grad(layer(x)[0, :, side // 2, side // 2].sum(), x)
    rows = seen.abs().sum((0, 1, 3)).nonzero().flatten() - side // 2
    return rows.min().item(), rows.max().item()


@pytest.mark.parametrize("name, options, seen", [
    ("large_kernel_attention", {}, (-11, 11)), ("large_kernel_attention", {"kernel_size": 5, "dilation": 2}, (-5, 5)),
    ("gather_excite", {"extent": 4}, (-3, 3)), ("gather_excite", {"extent": 4, "gather": "conv"}, (-3, 3)), ("gather_excite", {}, (-16, 16)),
    ("focal_modulation", {}, (-16, 16))], ids=str)
def test_reach(name, options, seen):
    assert reach(lz.create_layer(name, dim=2, **options)) == seen


def test_large_kernel_attention_without_its_kernels_is_an_mlp():
    layer, x = lz.create_layer("large_kernel_attention", dim=6), torch.randn(2, 6, 4, 5)
    nn.init.zeros_(layer.channels.weight)
    nn.init.ones_(layer.channels.bias)
    assert torch.allclose(layer(x), layer.proj(F.gelu(layer.proj_in(x))), atol=1e-6)


def test_focal_modulation_is_its_query_where_nothing_modulates():
    layer, x = lz.create_layer("focal_modulation", dim=6), torch.randn(2, 6, 4, 5)
    nn.init.zeros_(layer.modulator.weight)
    nn.init.ones_(layer.modulator.bias)
    assert torch.allclose(layer(x), layer.proj(layer.expand(x)[:, :6]), atol=1e-6)


def test_class_attention_makes_no_keys():
    small, large = (lz.cost(lz.create_layer("class_attention", dim=64), (1, n, 64)).flops for n in (1024, 2048))
    assert large - small == 1024 * 2 * 4 * 64  # scores and sums of two heads


def test_gated_is_its_gate_on_its_layer():
    gated = lz.create_layer("gated", dim=8, layer={"name": "conv", "kernel_size": 5}, gate="cbam")
    x = torch.randn(2, 8, 4, 5)
    assert gated.layer.conv.kernel_size == (5, 5) and torch.equal(gated(x), gated.gate(gated.layer(x)))
    plain = lz.create_layer("gated", dim=8, gate="identity")
    assert torch.equal(plain(x), plain.layer(x))


def test_gated_takes_names_dicts_and_classes():
    pooling, se = (type(lz.create_layer(name, dim=8)) for name in ("pooling", "se"))
    for layer, gate, kind in (("mhsa", "eca", "ECA"), ({"name": "conv"}, {"name": "simam", "eps": 0.1}, "SimAM"), (pooling, se, "SE")):
        assert type(lz.create_layer("gated", dim=8, layer=layer, gate=gate).gate).__name__ == kind


def test_gated_hands_on_heads_and_grid():
    gate = {"name": "gather_excite", "gather": "conv"}
    gated = lz.create_layer("gated", dim=12, layer={"name": "coatnet_attention", "num_heads": 4}, gate=gate, num_heads=3, grid=(2, 5))
    assert gated.layer.num_heads == 4 and gated.layer.grid == gated.gate.grid == (2, 5)
    block = lz.create_block("gated", 12, num_heads=3, grid=(2, 5))
    assert block(torch.randn(1, 12, 2, 5)).shape == (1, 12, 2, 5)
    block = lz.create_block({"name": "gated", "layer": "linformer"}, 12, num_heads=3, grid=(2, 5))
    assert (block.layer.layer.num_heads, block.layer.layer.grid) == (3, (2, 5))


@pytest.mark.parametrize("model", ["vit_tiny", "hybrid_nano"])
def test_gated_layers_in_a_recipe(tmp_path, model):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"meta:\n  summary: s\nmodel:\n  name: {model}\n  layer:\n    name: gated\n    layer: coatnet_attention\n"
        "    gate: {name: gather_excite, extent: 2, excite: mlp}\ndata:\n  source: digits\n  img_size: 32\n", encoding="utf-8")
    model = check_build(read_recipe(str(path)), str(path))
    gated = [m for m in model.modules() if type(m).__name__ == "Gated"]
    assert gated and all((type(m.layer).__name__, m.gate.extent) == ("CoAtNetAttention", 2) and m.layer.grid for m in gated)


@pytest.mark.parametrize("name, options, message", [
    ("se", {"reduction": 0}, "reduction: got 0, expected a whole number >= 1, by which the channels are divided. Choose one such as 16."),
    ("cbam", {"reduction": 1.5}, "reduction: got 1.5, expected a whole number >= 1, by which the channels are divided."),
    ("cbam", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1."),
    ("eca", {"kernel_size": 2}, "kernel_size: got 2, expected an odd whole number >= 1."),
    ("gather_excite", {"extent": 6}, "extent: got 6, expected 0, the whole map, or a power of two >= 2. The paper has 0, 2, 4 and 8."),
    ("gather_excite", {"extent": 1}, "extent: got 1, expected 0, the whole map, or a power of two >= 2."),
    ("gather_excite", {"gather": "max"}, "gather: got 'max', expected one of mean, conv. Choose one of these."),
    ("gather_excite", {"excite": "se"}, "excite: got 'se', expected one of none, mlp. Choose one of these."),
    ("gather_excite", {"gather": "conv"}, "grid: got None, expected (H, W), both >= 1."),
    ("global_context", {"fuse": "mul"}, "fuse: got 'mul', expected one of add, scale. Choose one of these."),
    ("simam", {"eps": 0}, "eps: got 0, expected a number > 0. The paper's is 1e-4."),
    ("large_kernel_attention", {"kernel_size": 6}, "kernel_size: got 6, expected an odd whole number >= 1."),
    ("large_kernel_attention", {"dilation": 0}, "dilation: got 0, expected a whole number of positions >= 1. The paper's is 3."),
    ("focal_modulation", {"num_levels": -1}, "num_levels: got -1, expected a whole number of levels >= 0. The paper's are 2 and 3."),
    ("class_attention", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16."),
    ("gated", {"gate": "see"}, "layers name: got 'see', expected a known name such as se, "),
    ("gated", {"gate": {"name": "se", "ratio": 4}}, "option of SE: got 'ratio', expected a known name such as "),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
