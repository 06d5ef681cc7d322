"""Attention among tokens that belong together: hashed buckets, routed clusters, clustered queries, sorted chunks."""

import re

import pytest
import torch
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.ops.auxiliary import collect_auxiliary
from layerzoo.ops.clusters import LAST, blocks_of_one, hamming_clusters, move_centroids, sort_by_label


def random(*shape):
    return torch.randn(*shape, dtype=torch.double)


def shared_attention(layer, x, causal=False):
    """Attention with keys q / |q| and without the token itself, which the first one sees if it has no other."""
    q, v = (t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in layer.qv(x).chunk(2, -1))
    scores = q @ F.normalize(q, dim=-1).mT / q.shape[-1] ** 0.5
    hidden = torch.eye(x.shape[1], dtype=torch.bool)
    hidden = hidden | torch.ones_like(hidden).triu() if causal else hidden
    if causal:
        hidden[0, 0] = False
    return layer.proj((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_one_bucket_is_attention_with_unit_keys_and_without_self(rounds, causal):
    layer = lz.create_layer("reformer", dim=16, num_heads=2, chunk_size=13, num_hashes=rounds, causal=causal).double()
    x = random(2, 12, 16)
    assert torch.allclose(layer(x), shared_attention(layer, x, causal), atol=1e-12)


def test_a_token_alone_in_its_bucket_keeps_its_value():
    layer, x = lz.create_layer("reformer", dim=16, num_heads=2).double(), random(2, 1, 16)
    assert torch.allclose(layer(x), layer.proj(layer.qv(x)[..., 16:]), atol=1e-12)


@pytest.mark.parametrize("length, buckets", [(7, 1), (8, 2), (31, 4), (32, 8), (256, 64), (512, 128), (4096, 1024)])
def test_buckets_grow_with_the_tokens_and_depend_on_the_direction_alone(length, buckets):
    layer, q = lz.create_layer("reformer", dim=16, num_heads=2, chunk_size=8).double(), random(1, 2, length, 8)
    found = layer.buckets(q, None)
    assert found.shape == (1, 2, 4, length) and (found.unique().numel() <= buckets) and (length < 4096 or found.unique().numel() > buckets // 2)
    assert torch.equal(layer.buckets(3 * q, None), found)
    assert buckets == 1 or not (layer.buckets(-q, None) == found).any()


def test_masked_tokens_do_not_add_buckets():
    layer, q = lz.create_layer("reformer", dim=16, num_heads=2, chunk_size=4).double(), random(1, 2, 40, 8)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, ::4] = True
    found = layer.buckets(q, mask)
    assert torch.equal(found[..., ::4], layer.buckets(q[:, :, ::4], None)) and (found[..., 1::4] == LAST).all()


def test_hashes_agree_under_autocast():
    layer, x = lz.create_layer("reformer", dim=64, num_heads=2, chunk_size=8), torch.randn(2, 100, 64)
    seen = []
    layer.buckets = lambda q, mask, find=layer.buckets: seen.append(find(q, mask)) or seen[-1]
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert torch.equal(*seen) and seen[0].unique().numel() > 8


@pytest.mark.parametrize("causal", [False, True])
def test_hashing_makes_no_square_matrix(causal):
    layer = lz.create_layer("reformer", dim=32, num_heads=1, num_hashes=1, causal=causal)
    small, large = (lz.cost(layer, (1, n, 32)) for n in (4096, 8192))
    assert large.activation_bytes < 2.05 * small.activation_bytes and large.flops < 2.2 * small.flops


def routed_attention(layer, x, causal=False):
    parts = [t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in layer.qkv(x).split(16, -1)]
    q, k = (F.layer_norm(t, (8,)) for t in (parts[0], parts[-2]))
    return layer.proj(F.scaled_dot_product_attention(q, k, parts[-1], is_causal=causal).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("local", [0, 1])
def test_one_cluster_is_attention_of_normed_queries_and_keys(causal, local):
    layer = lz.create_layer("routing", dim=16, num_heads=2, num_clusters=1, num_local_heads=local, causal=causal).double()
    x = random(2, 11, 16)
    assert torch.allclose(layer(x), routed_attention(layer, x, causal), atol=1e-12)


@pytest.mark.parametrize("name, options", [("routing", {}), ("routing", {"causal": True}), ("clusterformer", {})])
def test_centroids_follow_the_real_tokens_in_training_alone(name, options):
    layer, x = lz.create_layer(name, dim=16, num_heads=2, num_clusters=3, decay=0.5, **options).double(), random(2, 20, 16)
    before, mask = layer.centroids.clone(), torch.rand(2, 20) > 0.5
    layer.eval()(x)
    assert torch.equal(layer.centroids, before)
    layer.train()(x, mask)
    after = layer.centroids.clone()
    assert (after - before).abs().max() > 0.1 and torch.allclose(after.norm(dim=-1), torch.ones(()).double())
    layer.centroids.copy_(before)
    layer(x.masked_fill(~mask[..., None], 7.0), mask)
    assert torch.equal(layer.centroids, after)


@pytest.mark.parametrize("name, options", [("routing", {"causal": True}), ("routing", {}), ("clusterformer", {})])
def test_centroids_move_in_a_compiled_layer_too(name, options):
    torch._dynamo.reset()
    layer, x = lz.create_layer(name, dim=8, num_heads=2, num_clusters=3, **options).double().train(), random(2, 12, 8)
    before, found = layer.centroids.clone(), []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.centroids.copy_(before)
        with collect_auxiliary() as auxiliary:
            y = run(x)
        (y.square().sum() + auxiliary.loss()).backward()
        found.append((y, layer.centroids.clone(), layer.qkv.weight.grad.clone()))
        layer.zero_grad()
    assert not torch.equal(found[0][1], before)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found))


def test_a_centroid_moves_to_the_mean_of_its_rows():
    centroids, x = F.normalize(random(2, 3, 5), dim=-1), F.normalize(random(4, 2, 9, 5), dim=-1)
    labels, before = torch.randint(2, (4, 2, 9)), centroids.clone()
    move_centroids(centroids, x, labels, None, 0.9)
    for h in range(2):
        for c in range(2):
            mean = x[:, h][labels[:, h] == c].mean(0)
            assert torch.allclose(centroids[h, c], F.normalize(0.9 * before[h, c] + 0.1 * mean, dim=-1))
    assert torch.equal(centroids[:, 2], before[:, 2])  # no rows


def test_training_draws_queries_and_centroids_together():
    layer, x = lz.create_layer("routing", dim=16, num_heads=2, num_clusters=4, decay=0.9), torch.randn(4, 64, 16)
    found = []
    for _ in range(40):
        with collect_auxiliary() as auxiliary:
            layer(x)
        found.append(auxiliary.losses["commitment"][0].item() / layer.commitment)
    assert found[-1] < 0.9 * found[0] and 0 < found[-1] < 2


@pytest.mark.parametrize("causal", [False, True])
def test_commitment_is_the_distance_to_the_nearest_centroid(causal):
    layer, x = lz.create_layer("routing", dim=16, num_heads=2, num_clusters=3, causal=causal, commitment=2.0).double().eval(), random(2, 7, 16)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    with collect_auxiliary() as auxiliary:
        layer(x, mask)
    parts = layer.qkv(x).split(16, -1)[:-1]
    unit = torch.stack([F.normalize(F.layer_norm(p.unflatten(2, (2, 8))[:, :, 1], (8,)), dim=-1)[mask] for p in parts])
    nearest = torch.cdist(unit, layer.centroids).amin(-1).square()
    assert torch.allclose(auxiliary.loss(), 2 * nearest.mean())
    auxiliary.loss().backward()
    grad = layer.qkv.weight.grad.unflatten(0, (-1, 2, 8))
    assert (grad[:-1, 1].abs().amax((1, 2)) > 0).all() and not grad[:, 0].any() and not grad[-1].any()  # of routed heads, not of values


def test_tokens_that_no_cluster_took_are_counted_and_get_nothing():
    layer, x = lz.create_layer("routing", dim=8, num_heads=1, num_clusters=2).double(), random(1, 8, 8)
    layer.centroids.copy_(layer.centroids[:, :1].clone().expand(-1, 2, -1))  # both take the same four
    with collect_auxiliary() as auxiliary:
        y = layer(x)
    assert auxiliary.means()["unrouted"] == 0.5
    assert torch.isclose(y, layer.proj.bias).all(-1).sum() == 4


def test_routing_agrees_under_autocast():
    layer, x = lz.create_layer("routing", dim=64, num_heads=2, num_clusters=6), torch.randn(2, 96, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert (y - layer(x)).norm() < 0.02 * layer(x).norm()  # one token in another cluster costs more


def signs_around(centers, spread):
    """Rows of 1 and -1 near each center, each with `spread` of its bits turned."""
    rows = centers.repeat_interleave(10, 0)
    turned = torch.rand(rows.shape).argsort(1) < spread
    return torch.where(turned, -rows, rows)


def test_hamming_clusters_find_what_is_there():
    centers = torch.tensor([[1.0] * 24, [-1.0] * 24, [1.0, -1.0] * 12, [1.0] * 12 + [-1.0] * 12])
    signs = signs_around(centers, 3)[torch.randperm(40)]
    member = hamming_clusters(signs[None, None], None, 12, 10)[0, 0]
    assert torch.equal(member.sum(1), torch.ones(40))
    true = (signs @ centers.T).argmax(1)
    assert all(true[member[:, c] > 0].unique().numel() <= 1 for c in range(12))  # no cluster mixes two centers


def test_lloyds_steps_bring_queries_nearer_to_their_centers():
    signs, found = torch.randn(1, 2, 60, 16).sign(), []
    for steps in (0, 1, 10):
        member = hamming_clusters(signs, None, 5, steps)
        majority = (member.mT @ signs).sign()
        found.append((member @ majority * signs).sum())
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("name", ["clustered", "improved_clustered"])
def test_clustered_weights_sum_to_one(name):
    layer = lz.create_layer(name, dim=16, num_heads=2, num_clusters=3).double()
    with torch.no_grad():
        layer.qkv.weight[32:] = 0
        layer.qkv.bias[32:] = torch.arange(16)
    expected = layer.proj(torch.arange(16).double())
    assert torch.allclose(layer(random(2, 50, 16)), expected.expand(2, 50, -1), atol=1e-12)


def test_one_cluster_gives_all_queries_the_same():
    layer, x = lz.create_layer("clustered", dim=16, num_heads=2, num_clusters=1).double(), random(2, 9, 16)
    y = layer(x)
    assert torch.allclose(y, y[:, :1].expand_as(y), atol=1e-12) and not torch.allclose(y[0], y[1], atol=1e-3)


def test_exact_keys_bring_clustered_attention_nearer_to_attention():
    x, errors = 3 * random(2, 96, 32), []
    plain = lz.create_layer("mhsa", dim=32, num_heads=2).double()
    for name, options in (("clustered", {}), ("improved_clustered", {"num_top": 8}), ("improved_clustered", {"num_top": 48})):
        layer = lz.create_layer(name, dim=32, num_heads=2, num_clusters=8, **options).double()
        layer.load_state_dict({**layer.state_dict(), **plain.state_dict(), "directions": torch.linspace(-1, 1, 512).sin().view(16, 32)})
        errors.append((layer(x) - plain(x)).norm() / plain(x).norm())
    assert errors[0] > 1.05 * errors[1] > 1.5 * errors[2]


def test_blocks_hold_every_token_once_beside_its_own_label():
    labels = torch.randint(5, (2, 3, 37))
    tokens, slot, owner = blocks_of_one(labels, 5, 4)
    assert torch.equal(tokens.flatten(2).gather(2, slot), torch.arange(37).expand_as(slot))
    assert torch.equal(owner.gather(2, slot // 4), labels) and slot.sort(2).values.diff().min() > 0


def test_sorted_chunks_keep_the_order_inside_a_label():
    labels = torch.tensor([[2, 0, 2, 1, 0, 2, 0]])
    chunks, order, place = sort_by_label(labels, 4)
    assert order.tolist() == [[1, 4, 6, 3, 0, 2, 5, 7]] and chunks.tolist() == [[[0, 0, 0, 1], [2, 2, 2, LAST]]]
    assert torch.equal(order.gather(1, place), torch.arange(8)[None])


def test_chunks_of_sorted_tokens_see_only_themselves():
    layer = lz.create_layer("clusterformer", dim=16, num_heads=2, chunk_size=6, num_clusters=2).double()
    side = torch.tensor([1.0, -1.0] * 6).double()[torch.randperm(12)]
    layer.centroids.copy_(F.normalize(torch.ones(16), dim=0) * torch.tensor([[1.0], [-1.0]]))
    x = side[:, None] * (2 + random(12, 16).abs())
    y, there = layer(x[None])[0], side > 0
    for group in (there, ~there):
        alone = layer(x[None, group])[0]
        assert torch.allclose(y[group], alone, atol=1e-12)


@pytest.mark.parametrize("name, options, message", [
    ("reformer", {"chunk_size": 0}, "chunk_size: got 0, expected a whole number >= 1. Choose chunks such as 64 and 4 or 8 hashes."),
    ("reformer", {"num_hashes": 0}, "num_hashes: got 0, expected a whole number >= 1. Choose chunks such as 64 and 4 or 8 hashes."),
    ("reformer", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16."),
    ("routing", {"num_clusters": 0}, "num_clusters: got 0, expected a whole number of centroids >= 1. Choose about sqrt(N)."),
    ("routing", {"num_heads": 2, "num_local_heads": 2}, "num_local_heads: got 2, expected 0 to 1, so that one is routed. Leave it out."),
    ("routing", {"decay": 1.5}, "decay: got 1.5, expected a part of 1 that centroids keep in a step. Choose one such as 0.999."),
    ("clustered", {"num_clusters": 0}, "num_clusters: got 0, expected a whole number >= 1. The paper has 25, 63 and 10."),
    ("clustered", {"num_bits": 0}, "num_bits: got 0, expected a whole number >= 1. The paper has 25, 63 and 10."),
    ("improved_clustered", {"num_iterations": -1}, "num_iterations: got -1, expected a whole number >= 0. The paper has 25, 63 and 10."),
    ("improved_clustered", {"num_top": 0}, "num_top: got 0, expected a whole number of keys >= 1. The paper has 32."),
    ("clusterformer", {"chunk_size": 0}, "chunk_size: got 0, expected a whole number of sorted tokens >= 1. Choose one such as 64."),
    ("clusterformer", {"num_clusters": 0}, "num_clusters: got 0, expected a whole number of clusters to sort by. Choose one such as 16."),
    ("clusterformer", {"decay": -0.1}, "decay: got -0.1, expected a number from 0 to 1, the part kept. Choose one such as 0.99."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
