"""Families as one: what mixing matrices say, and layers of different families that are equal."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layerzoo as lz


def test_numbers_of_known_matrices():
    whole = lz.mixing(torch.ones(12, 12), (3, 4))
    assert whole.receptive_field == 11 and whole.entropy == pytest.approx(1) and whole.rank == pytest.approx(1)
    own = lz.mixing(torch.eye(12), (3, 4))
    assert (own.receptive_field, own.distance) == (1, 0) and own.entropy == pytest.approx(0) and own.rank == pytest.approx(12)
    right = torch.eye(12).roll(1, 1) * (torch.arange(12) % 4 < 3)[:, None]  # each sees its right neighbour, the last of a row nothing
    assert lz.mixing(right, (3, 4)).distance == pytest.approx(1) and lz.mixing(right, (3, 4)).receptive_field == 1
    assert lz.mixing(torch.ones(1, 1), (1, 1)) == lz.Mixing(1, 0, pytest.approx(1), 0)


@pytest.mark.parametrize("matrix, got", [(torch.ones(4, 6), "(4, 6)"), (torch.zeros(6, 6), "(6, 6), all zeros")])
def test_other_matrices_are_refused(matrix, got):
    message = f"matrix: got {got}, expected influence (6, 6) for a map of (2, 3). Pass that of `effective_matrix` and its grid."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.mixing(matrix, (2, 3))


def test_a_larger_kernel_sees_more_and_farther():
    kernels = [lz.mixing(lz.effective_matrix(lz.create_layer("depthwise_conv", dim=8, kernel_size=k), torch.randn(1, 8, 9, 9)), (9, 9)) for k in (1, 3, 7)]
    assert [m.receptive_field for m in kernels] == sorted(m.receptive_field for m in kernels) and kernels[0].distance == 0 < kernels[1].distance < kernels[2].distance


def test_convolution_is_quadratic_attention_in_their_matrices():
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.double)
    assert torch.allclose(lz.effective_matrix(lz.conv_to_attention(conv), x), lz.effective_matrix(conv, x), atol=1e-9)


def test_local_attention_is_graph_attention_on_the_grid_of_eight_neighbours():
    layer = lz.create_layer("stand_alone_attention", dim=8, num_heads=2, kernel_size=3).double()
    grid, x = (4, 5), torch.randn(1, 8, 4, 5, dtype=torch.double)
    with torch.no_grad():
        for name, table in layer.named_parameters():
            if "qkv" not in name and "proj" not in name:
                table.zero_()  # no positions: a graph knows neighbours, not where they stand
    place = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    edges = (place[:, None] - place).abs().amax(-1) <= 1
    tokens = x.flatten(2).mT
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in F.linear(tokens, layer.qkv.weight, layer.qkv.bias).chunk(3, -1))
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=edges)  # a sum over the edges of the graph
    expected = layer.proj(heads.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(tokens, grid=grid), expected, atol=1e-12)


def test_random_synthesizer_without_softmax_is_a_token_mixing_map():
    layer = lz.create_layer("synthesizer_random", dim=4, num_heads=1, grid=(2, 3)).double()
    x = torch.randn(2, 6, 4, dtype=torch.double)
    scores = torch.randn(6, 6, dtype=torch.double)
    with torch.no_grad():
        table = next(p for n, p in layer.named_parameters() if p.shape[-2:] == (6, 6))
        table.copy_(scores.softmax(-1).log())  # the softmax of these scores is the mixing map itself
        mixed = nn.Linear(6, 6, bias=False).double()
        mixed.weight.copy_(scores.softmax(-1))
        values = layer.value(x) if hasattr(layer, "value") else layer.split(x)[2].squeeze(1)
        expected = layer.proj(mixed(values.mT).mT)
    assert torch.allclose(layer(x, grid=(2, 3)), expected, atol=1e-12)
