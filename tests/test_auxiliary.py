"""What layers report beside their output: gathered, added to the loss, logged, and traced by torch.compile."""

import doctest

import pytest
import torch
from torch import nn

from layerzoo.config import OptimizerConfig, TaskConfig
from layerzoo.ops import auxiliary
from layerzoo.ops.auxiliary import add_loss, add_statistic, collect_auxiliary, collecting
from layerzoo.tasks.classify import Classify


class Reports(nn.Module):
    """A linear map that reports the mean square of its output and the share of positive ones."""

    def __init__(self, dim, dim_out):
        super().__init__()
        self.proj = nn.Linear(dim, dim_out)

    def forward(self, x):
        y = self.proj(x.flatten(1))
        if collecting():
            add_loss("square", y.square().mean(), weight=0.5)
            add_statistic("positive", (y > 0).float().mean())
        return y


def test_doctest():
    results = doctest.testmod(auxiliary)
    assert results.attempted == 2 and results.failed == 0


def test_losses_are_summed_and_both_are_averaged_over_layers():
    model, x = nn.Sequential(Reports(6, 6), Reports(6, 4)), torch.randn(3, 6)
    with collect_auxiliary() as found:
        y = model(x)
    hidden = model[0](x)
    squares = [hidden.square().mean(), y.square().mean()]
    assert torch.allclose(found.loss(), 0.5 * sum(squares)) and found.loss().requires_grad
    means = found.means()
    assert means.keys() == {"square", "positive"} and not any(m.requires_grad for m in means.values())
    assert torch.allclose(means["square"], 0.25 * sum(squares))
    assert torch.allclose(means["positive"], ((hidden > 0).float().mean() + (y > 0).float().mean()) / 2)


def test_nothing_is_kept_without_a_collector_nor_after_an_error():
    Reports(6, 4)(torch.randn(3, 6))
    with pytest.raises(RuntimeError), collect_auxiliary() as found:
        Reports(6, 4)(torch.randn(3, 5))
    assert not collecting() and found.loss() == 0 and found.means() == {}


def test_inner_collectors_take_what_is_theirs():
    with collect_auxiliary() as outer:
        with collect_auxiliary() as inner:
            add_loss("a", torch.tensor(1.0), weight=1)
        add_loss("b", torch.tensor(2.0), weight=1)
    assert inner.losses.keys() == {"a"} and outer.losses.keys() == {"b"}


def test_compiled_in_one_graph():
    model, x = nn.Sequential(Reports(6, 6), Reports(6, 4)), torch.randn(3, 6)
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        with collect_auxiliary() as here:
            y = run(x)
        (y.sum() + here.loss()).backward()
        found.append((here.loss(), *here.means().values(), model[0].proj.weight.grad.clone()))
    assert all(torch.allclose(a, b) for a, b in zip(*found))


def test_the_task_trains_and_returns_what_layers_report():
    config = TaskConfig(optimizer=OptimizerConfig("sgd", lr=0.1), channels_last=False)
    model, x, y = Reports(12, 3), torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    task = Classify(model, config, classes=["a", "b", "c"])
    out = task.training_step((x, y))
    logits = model(x)
    expected = nn.functional.cross_entropy(logits, y) + 0.5 * logits.square().mean()
    assert out.keys() == {"loss", "square", "positive"} and torch.allclose(out["loss"], expected)
    assert isinstance(Classify(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), config, classes=["a", "b", "c"]).training_step((x, y)), torch.Tensor)
