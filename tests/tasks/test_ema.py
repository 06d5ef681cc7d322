"""The average against its formula."""

import torch
from torch import nn

from layerzoo.tasks.ema import WeightAverage


def test_formula():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay=0.3)
    average.follow(model)
    expected = {k: v.double() for k, v in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(5, 3))
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        assert decay == (2 / 11 if step == 1 else 3 / 12 if step == 2 else 0.3)
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.double()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert average.model[1].num_batches_tracked == 5


def test_takes_no_gradient_and_is_its_own_copy():
    model = nn.Linear(3, 3)
    average = WeightAverage(model, decay=0.9)
    assert not any(p.requires_grad for p in average.parameters()) and model.weight.requires_grad
    assert average.model.weight.data_ptr() != model.weight.data_ptr()
