"""Sparse per-position units: slots and who gets them, routers and their losses, the balanced assignment, the memory."""

import itertools
import math
import re
from fractions import Fraction

import pytest
import torch

from layerzoo.ffn.base import ExpertsFFN, RoutedFFN
from layerzoo.ops.assignment import balanced_assignment
from layerzoo.ops.auxiliary import collect_auxiliary
from layerzoo.ops.experts import Experts, balance_loss, mix_experts, top_two, z_loss
from layerzoo.registry import FFNS

ROUTED = ["glam", "gshard_moe", "st_moe", "switch_moe"]
EXPERTS = [*ROUTED, "base_layer", "hash_layer"]
TOP_TWO = ["glam", "gshard_moe", "st_moe"]
DRAWS = {"switch_moe": {"jitter": 0.0}, "st_moe": {"threshold": 0.0}}  # options at which training draws nothing


def build(name, dim=8, **options):
    return FFNS.create(name, dim, **options).double()


def slots_in_eval(name):
    return "eval_capacity_factor" if "eval_capacity_factor" in FFNS.options(name) else "capacity_factor"


def favour(layer, order):
    """Let the router of a layer prefer experts in this order, for tokens whose first channel is 1."""
    weight = layer.router.weight if hasattr(layer, "router") else layer.centroids if hasattr(layer, "centroids") else layer.directions
    with torch.no_grad():
        weight.zero_()
        for rank, e in enumerate(order):
            weight[e, 0] = 3.0 - rank


def pointing(*shape):
    """Tokens whose first channel is 1."""
    x = torch.randn(*shape, dtype=torch.double)
    x[..., 0] = 1
    return x


@pytest.mark.parametrize("name", ["base_layer", "hash_layer", "switch_moe"])
def test_one_expert_is_the_mlp(name):
    layer, mlp, x = build(name, num_experts=1), build("mlp"), torch.randn(2, 9, 8, dtype=torch.double)
    net = layer.eval().experts
    mlp.load_state_dict({
        "fc1.weight": net.weight1[0].T, "fc1.bias": net.bias1[0, 0], "fc2.weight": net.weight2[0].T, "fc2.bias": net.bias2[0, 0]})
    gate = (x @ layer.centroids.T).sigmoid() if name == "base_layer" else 1
    assert torch.allclose(layer(x), gate * mlp(x), atol=1e-12)


@pytest.mark.parametrize("name", ["base_layer", "hash_layer", "switch_moe"])
def test_slots_go_to_the_first_tokens_and_the_others_get_nothing(name):
    layer, x = build(name, num_experts=4, **{slots_in_eval(name): 1.5}).eval(), pointing(2, 9, 8)
    favour(layer, [2, 0, 1, 3])
    mask = torch.tensor([[True] * 9, [False, True, False, True, True, True, True, False, False]])
    served = layer(x, mask).any(-1)
    assert served[0].tolist() == [True] * 4 + [False] * 5  # ceil(1.5 * 9 / 4) slots
    assert served[1].tolist() == [False, True, False, True] + [False] * 5  # ceil(1.5 * 5 / 4)


@pytest.mark.parametrize("name", TOP_TWO)
def test_first_choices_are_served_before_second_ones(name):
    layer = build(name, dim=3, num_experts=3, **{slots_in_eval(name): 1.0}).eval()  # 2 slots for 6 tokens
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([[3, 2, 0], [2, 3, 0], [0.0, 0, 1]]))
    x = torch.eye(3, dtype=torch.double)[[0, 0, 0, 1, 1, 1]].unsqueeze(0)  # three like expert 0 then 1, three like 1 then 0
    assert layer(x).any(-1).tolist() == [[True, True, False, True, True, False]]


CAUSAL = [name for name in EXPERTS if FFNS.card(name).causal]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_a_prefix_is_as_alone(name, training):
    """Whatever comes later, and however many tokens: turns, slots and their number are those of the prefix."""
    layer, x = build(name, causal=True, num_experts=3, **DRAWS.get(name, {}), **{slots_in_eval(name): 0.6}).train(training), pointing(2, 23, 8)
    if name == "gshard_moe":  # which has no option without draws
        layer.choose = lambda probs: top_two(probs, 0)
    whole = layer(x)
    for length in (1, 2, 7, 22):
        assert torch.allclose(layer(x[:, :length]), whole[:, :length], atol=1e-12)
    assert (whole.abs().amax(-1) == 0).any() or name in TOP_TWO, "some have no slot"


def test_causal_slots_are_served_as_they_come():
    """One expert, half a slot for each token: the first of two has it, whether the second asks or not."""
    layer, x = build("switch_moe", num_experts=1, eval_capacity_factor=0.5, causal=True).eval(), torch.randn(1, 7, 8, dtype=torch.double)
    assert layer(x)[0].abs().amax(-1).bool().tolist() == [True, False] * 3 + [True]


@pytest.mark.parametrize("name", EXPERTS)
def test_with_slots_for_all_no_token_changes_another(name):
    layer, x = build(name, num_experts=4, **{slots_in_eval(name): 4.0}).eval(), torch.randn(2, 11, 8, dtype=torch.double)
    assert torch.allclose(layer(x)[:, 5:6], layer(x[:, 5:6]), atol=1e-12)


@pytest.mark.parametrize("name", EXPERTS)
def test_in_training_a_sample_is_as_alone(name):
    layer, x = build(name, num_experts=4, **DRAWS.get(name, {})).train(), torch.randn(3, 13, 8, dtype=torch.double)
    if name == "gshard_moe":
        layer.choose = lambda probs: top_two(probs, 0)
    mask = torch.rand(3, 13) > 0.3
    y = layer(x, mask)
    for i in range(3):
        assert torch.allclose(y[i: i + 1], layer(x[i: i + 1], mask[i: i + 1]), atol=1e-12)
        assert torch.allclose(y[i, mask[i]], layer(x[i: i + 1, mask[i]])[0], atol=1e-12)


@pytest.mark.parametrize("factor", [1.25, 2.0, 1.1, 0.7])
def test_capacity_is_exact_for_numbers_and_tensors(factor):
    layer = ExpertsFFN(4, 6, capacity_factor=factor, eval_capacity_factor=factor)
    counts = torch.arange(0, 1000)
    expected = [math.ceil(Fraction(str(factor)) * n / 6) for n in counts.tolist()]
    assert layer.capacity(counts).tolist() == expected == [layer.capacity(n) for n in counts.tolist()]
    assert layer.capacity(600) == round(100 * factor)


def test_training_and_evaluation_have_slots_of_their_own():
    layer = build("switch_moe", num_experts=4)
    assert (layer.train().capacity(64), layer.eval().capacity(64)) == (20, 32)


def test_a_choice_with_gate_zero_takes_no_slot():
    experts, x = Experts(2, 4, 8).double(), torch.randn(1, 3, 4, dtype=torch.double)
    choice, limit = torch.tensor([[[0, 0, 0], [1, 1, 1]]]), torch.tensor([[1]])
    gate = torch.tensor([[[1.0, 0, 1], [0, 0.5, 0.5]]], dtype=torch.double)
    y = mix_experts(experts, x, choice, gate, limit, 1)
    both = experts(torch.stack([x[0], x[0]]))
    assert torch.allclose(y[0], torch.stack([both[0, 0], 0.5 * both[1, 1], torch.zeros(4).double()]), atol=1e-12)


@pytest.mark.parametrize("name, threshold", [("glam", 0), ("gshard_moe", 0.5), ("st_moe", 0.2)])
def test_second_experts_are_drawn_in_training_alone(name, threshold):
    layer, probs = build(name), torch.tensor([0.1, 0.0, 0.9, 0.0], dtype=torch.double).expand(1, 20000, 4)
    choice, gate = layer.eval().choose(probs)
    assert choice[0, :, 0].tolist() == [2, 0] and torch.allclose(gate[0, :, 0], torch.tensor([0.9, 0.1], dtype=torch.double))
    assert (gate == gate[..., :1]).all()
    _, drawn = layer.train().choose(probs)
    assert torch.equal(drawn[:, 0], gate[:, 0])
    assert abs((drawn[0, 1] > 0).double().mean() - (0.1 / threshold if threshold else 1)) < 0.02
    assert set(drawn[0, 1].unique().tolist()) <= {0.0, gate[0, 1, 0].item()}


def test_jitter_blurs_the_router_in_training_alone():
    layer, x = build("switch_moe", jitter=0.5), torch.randn(1, 50, 8, dtype=torch.double)
    real = torch.ones(1, 50, dtype=torch.bool)
    gates = [layer.train().route(x, real)[1] for _ in range(2)]
    assert not torch.equal(*gates)
    assert torch.equal(*(layer.eval().route(x, real)[1] for _ in range(2)))


@pytest.mark.parametrize("name", ROUTED)
def test_balance_loss_is_one_if_even_and_the_number_of_experts_if_not(name):
    layer, x = build(name, num_experts=4, balance_weight=0.5), pointing(2, 12, 8)
    with torch.no_grad():
        layer.router.weight.zero_()
    with collect_auxiliary() as even:
        layer(x)
    favour(layer, [1, 0, 2, 3])
    with torch.no_grad():
        layer.router.weight *= 100
    with collect_auxiliary() as collapsed:
        layer(x)
    losses = [auxiliary.losses["balance"][0].item() for auxiliary in (even, collapsed)]
    assert math.isclose(losses[0], 0.5) and math.isclose(losses[1], 0.5 * 4, rel_tol=1e-6)
    assert collapsed.statistics["router_collapse"][0] == 1


def test_z_loss_is_the_mean_square_of_the_log_partition_function():
    layer, x = build("st_moe", num_experts=4, z_weight=0.25), torch.randn(2, 5, 8, dtype=torch.double)
    with collect_auxiliary() as auxiliary:
        layer(x)
    expected = (x @ layer.router.weight.T).exp().sum(-1).log().square().mean()
    assert torch.allclose(auxiliary.losses["router_z"][0], 0.25 * expected)
    assert auxiliary.losses.keys() == {"balance", "router_z"}


def test_losses_are_means_over_samples_of_their_real_tokens():
    logits, mask = torch.randn(3, 7, 4, dtype=torch.double), torch.rand(3, 7) > 0.4
    mask[0], mask[2] = True, False
    probs, first = logits.softmax(-1), logits.argmax(-1)
    cut = [(probs[i: i + 1, m], first[i: i + 1, m], logits[i: i + 1, m], m[None, m]) for i, m in enumerate(mask[:2])]
    alone = [(balance_loss(p, f, r), z_loss(s, r)) for p, f, s, r in cut]
    together = balance_loss(probs, first, mask), z_loss(logits, mask)
    assert torch.allclose(torch.stack(together), torch.tensor(alone, dtype=torch.double).mean(0))


@pytest.mark.parametrize("name", ROUTED)
def test_losses_reach_the_router(name):
    layer = build(name)
    with collect_auxiliary() as auxiliary:
        layer(torch.randn(2, 12, 8, dtype=torch.double), torch.tensor([[True] * 12, [False] * 12]))
    auxiliary.loss().backward()
    assert layer.router.weight.grad.any() and layer.router.weight.grad.isfinite().all() and layer.experts.weight1.grad is None


@pytest.mark.parametrize("name", EXPERTS)
def test_drop_rate_is_the_share_of_choices_without_a_slot(name):
    layer, x = build(name, num_experts=4, **{slots_in_eval(name): 1.0}).eval(), pointing(2, 16, 8)
    favour(layer, [3, 1, 0, 2])
    mask = torch.arange(16) < torch.tensor([[16], [8]])
    with collect_auxiliary() as auxiliary:
        layer(x, mask)
    assert math.isclose(auxiliary.statistics["drop_rate"][0], 3 / 4, rel_tol=1e-6)  # all tokens want the one expert, or the same two
    assert auxiliary.statistics["router_collapse"][0] == 1


def test_even_first_choices_are_no_collapse():
    layer, x = build("switch_moe", dim=4, num_experts=4).eval(), torch.eye(4, dtype=torch.double).repeat(3, 1).unsqueeze(0)
    with torch.no_grad():
        torch.nn.init.eye_(layer.router.weight)
    with collect_auxiliary() as auxiliary:
        layer(x)
    assert abs(auxiliary.statistics["router_collapse"][0]) < 1e-6 and auxiliary.statistics["drop_rate"][0] == 0


@pytest.mark.parametrize("tokens, experts", [(12, 3), (13, 4), (3, 5), (1, 2), (50, 8)])
def test_assignment_is_balanced(tokens, experts):
    scores, real = torch.randn(4, tokens, experts) + 3 * torch.randn(experts), torch.rand(4, tokens) > 0.3
    real[0], real[1] = True, False
    choice = balanced_assignment(scores, real)
    for i in range(4):
        loads = torch.bincount(choice[i, real[i]], minlength=experts)
        assert loads.max() - loads.min() <= 1
        assert torch.equal(choice[i, real[i]], balanced_assignment(scores[i: i + 1, real[i]], real[i: i + 1, real[i]])[0])


def test_assignment_is_near_the_best_balanced_one():
    every = torch.tensor(sorted(set(itertools.permutations([0, 0, 1, 1, 2, 2]))))
    scores = torch.randn(200, 6, 3) + torch.tensor([2.0, 0, 0])
    sums = scores[:, torch.arange(6), every].sum(-1)
    found = scores.gather(-1, balanced_assignment(scores, torch.ones(200, 6, dtype=torch.bool)).unsqueeze(-1)).sum((1, 2))
    best, mean = sums.max(1).values, sums.mean(1)
    assert (found <= best + 1e-5).all() and ((found - mean) / (best - mean)).mean() > 0.95


def test_assignment_of_two_experts_is_the_best():
    every = torch.tensor(sorted(set(itertools.permutations([0, 0, 0, 1, 1, 1]))))
    scores = torch.randn(50, 6, 2)
    found = scores.gather(-1, balanced_assignment(scores, torch.ones(50, 6, dtype=torch.bool)).unsqueeze(-1)).sum((1, 2))
    assert torch.allclose(found, scores[:, torch.arange(6), every].sum(-1).max(1).values, atol=1e-5)


def test_base_layer_drops_nothing_in_training_and_learns_from_its_gate():
    layer, x = build("base_layer", num_experts=4), pointing(2, 10, 8)
    favour(layer, [3, 1, 0, 2])
    with collect_auxiliary() as auxiliary:
        y = layer.train()(x)
    assert auxiliary.statistics["drop_rate"][0] == 0 and auxiliary.statistics["router_collapse"][0] < 0.05 and not auxiliary.losses
    y.square().sum().backward()
    assert all(grad.any() for grad in layer.centroids.grad)


def test_equal_tokens_share_an_expert_wherever_they_are():
    layer, x = build("hash_layer", num_experts=4), torch.randn(1, 6, 8, dtype=torch.double)
    choice, gate = layer.route(torch.cat([x, x.flip(1)], 1), None)
    assert torch.equal(choice[0, 0, :6], choice[0, 0, 6:].flip(0)) and (gate == 1).all()
    assert len(choice.unique()) > 1 and not [n for n, _ in layer.named_parameters() if "experts" not in n]


@pytest.mark.parametrize("name", ["base_layer", "gshard_moe", "scaling_ffn", "switch_moe"])
def test_training_compiles_whole(name):
    torch._dynamo.reset()
    layer, x = FFNS.create(name, **FFNS.card(name).sizes["tiny"]).train(), torch.randn(2, 12, 8)
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, mask)
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


def test_one_hidden_channel_of_each_block_is_on():
    layer, x = build("scaling_ffn", block_size=4).eval(), torch.randn(2, 5, 8, dtype=torch.double)
    seen = []
    layer.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer.fc1.bias.data += 10  # so that none that is on is zero
    layer(x)
    assert (seen[0].unflatten(-1, (-1, 4)) != 0).sum(-1).eq(1).all()


def test_blocks_of_one_channel_are_a_dense_mlp():
    layer, x = build("scaling_ffn", block_size=1), torch.randn(2, 5, 8, dtype=torch.double)
    dense = layer.fc2(layer.fc1(x).relu())
    assert torch.allclose(layer.eval()(x), dense, atol=1e-12) and torch.allclose(layer.train()(x), dense, atol=1e-12)


def test_the_controller_is_hard_in_three_samples_of_ten_and_soft_in_the_others():
    layer, scores = build("scaling_ffn", block_size=4), torch.randn(4000, 3, 2, 4, dtype=torch.double, requires_grad=True)
    active = layer.train().select(scores)
    hard = ((active - active.round()).abs() < 1e-9).flatten(1).all(1)
    assert abs(hard.double().mean() - 0.3) < 0.03
    assert torch.allclose(active[~hard], scores.softmax(-1)[~hard]) and torch.allclose(active.sum(-1), torch.ones(()).double())
    weight = torch.randn_like(active)
    grads = [torch.autograd.grad((m * weight).sum(), scores, retain_graph=True)[0] for m in (active, scores.softmax(-1))]
    assert torch.allclose(*grads)  # straight through
    other = (active[hard].argmax(-1) != scores[hard].argmax(-1)).double().mean()
    assert 0.01 < other < 0.2  # by Gumbel noise


def test_a_memory_read_whole_is_attention_to_all_its_keys():
    layer, x = build("product_key_memory", num_heads=2, num_keys=3, top_k=9, key_dim=4), torch.randn(2, 5, 8, dtype=torch.double)
    queries = layer.norm(layer.query(x).unflatten(-1, (2, 8)))
    first, second = torch.einsum("bnhsd,shkd->sbnhk", queries.unflatten(-1, (2, 4)), layer.keys)
    weights = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2).softmax(-1)
    assert torch.allclose(layer(x), (weights @ layer.values).sum(2), atol=1e-12)


@pytest.mark.parametrize("num_keys, top_k", [(6, 1), (6, 5), (6, 20), (9, 32), (4, 16)])
def test_the_pruned_search_finds_the_best_keys(num_keys, top_k):
    layer, scores = build("product_key_memory", num_keys=num_keys, top_k=top_k), torch.randn(2, 4, 50, num_keys)
    left, right = layer.select(scores)
    every = (scores[0].unsqueeze(-1) + scores[1].unsqueeze(-2)).flatten(-2)
    assert torch.equal((left * num_keys + right).sort(-1).values, every.topk(top_k, -1).indices.sort(-1).values)


def test_memory_usage_is_the_share_of_values_that_real_tokens_read():
    layer, x = build("product_key_memory", num_heads=1, num_keys=4, top_k=1), torch.randn(2, 30, 8, dtype=torch.double)
    with collect_auxiliary() as auxiliary:
        layer(x, torch.arange(30) < torch.tensor([[1], [0]]))
        layer(x)
    one, many = auxiliary.statistics["memory_usage"]
    assert one == 1 / 16 and 1 / 16 < many <= 1


@pytest.mark.parametrize("name, options, message", [
    ("switch_moe", {"num_experts": 0}, "num_experts: got 0, expected at least 1, which a token takes. Choose one such as 8."),
    ("glam", {"num_experts": 1}, "num_experts: got 1, expected at least 2, which a token takes. Choose one such as 8."),
    ("switch_moe", {"capacity_factor": 0}, "capacity_factor: got 0, expected a number > 0, slots over N / E. Choose one such as 1.25."),
    ("base_layer", {"eval_capacity_factor": -1}, "eval_capacity_factor: got -1, expected a number > 0, slots over N / E."),
    ("switch_moe", {"jitter": 1}, "jitter: got 1, expected a number in [0, 1), the router's noise. The paper's code has 0.01."),
    ("st_moe", {"threshold": 2}, "threshold: got 2, expected a gate in [0, 1]. 0.2 is usual; 0 = always a second expert."),
    ("scaling_ffn", {"block_size": 5}, "block_size: got 5, expected a divisor of the 32 hidden channels. Choose another."),
    ("scaling_ffn", {"controller_rank": 0}, "controller_rank: got 0, expected a whole number >= 1. None is dim / block_size."),
    ("product_key_memory", {"key_dim": 0}, "key_dim: got 0, expected a whole number >= 1. Choose 4 heads, 128 half keys, of width 64."),
    ("product_key_memory", {"num_keys": 5, "top_k": 26}, "top_k: got 26, expected 1 to 25, the number of values. The paper's is 32."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FFNS.create(name, 8, **options)


def test_bases_name_what_is_missing():
    factors = {"capacity_factor": 1.0, "eval_capacity_factor": 1.0}
    with pytest.raises(NotImplementedError, match=re.escape("ExpertsFFN must define route(); see layerzoo/ffn/hash_layer.py for an example")):
        ExpertsFFN(8, 2, **factors).route(torch.randn(1, 3, 8), None)
    with pytest.raises(NotImplementedError, match=re.escape("RoutedFFN must define choose(); see layerzoo/ffn/switch_moe.py for an example")):
        RoutedFFN(8, 2, balance_weight=0.0, **factors).route(torch.randn(1, 3, 8), None)
