"""Laplace actions: the density, its samples, their gradients, and the scale that the head gives."""
import math

import pytest
import torch

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.policies.laplace_head import (
    MAX_SCALE,
    MIN_SCALE,
    LaplaceScale,
    draw,
    entropy,
    log_density,
)

torch.set_num_threads(1)


def test_density_and_entropy_are_the_librarys() -> None:
    torch.manual_seed(0)
    mean, log_scale, actions = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5, 7)
    other = torch.distributions.Laplace(mean, log_scale.exp())
    torch.testing.assert_close(log_density(actions, mean, log_scale), other.log_prob(actions))
    torch.testing.assert_close(entropy(log_scale), other.entropy())


def test_samples_have_the_mean_and_spread_of_a_laplace() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = draw(torch.tensor(0.3), torch.tensor(math.log(0.2)), uniform)
    assert float(x.mean()) == pytest.approx(0.3, abs=0.003)
    assert float((x - 0.3).abs().mean()) == pytest.approx(0.2, rel=0.02)  # the scale is the mean absolute deviation
    assert float(((x - 0.3).abs() > 0.4).double().mean()) == pytest.approx(math.exp(-2), rel=0.03)
    assert torch.isfinite(draw(torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))).all()


def test_samples_carry_gradients_to_mean_and_scale() -> None:
    mean, log_scale = torch.tensor([0.1], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    x = draw(mean, log_scale, torch.tensor([0.9]))
    x.backward()
    assert float(mean.grad) == 1.0
    assert float(log_scale.grad) == pytest.approx(float(x.detach() - 0.1), rel=1e-5)  # d/d log b of b times a constant


def test_the_head_begins_at_the_stated_scale_and_keeps_to_its_limits() -> None:
    with pytest.raises(BadConfig, match=r"least one of 0\.5"):
        LaplaceScale(16, 7, 0.05, least=0.5)
    head = LaplaceScale(16, 7, 0.05, least=0.02)
    features = torch.full((1, 16), -1.0)
    with torch.no_grad():
        head.fc.weight.fill_(0.5)
    low = head(features)
    assert math.log(0.02) < float(low.detach().max()) < math.log(0.021)
    low.sum().backward()
    assert float(head.fc.bias.grad.min()) > 1e-6, "a scale at its limit can still grow"
    head = LaplaceScale(16, 7, 0.05)
    torch.testing.assert_close(head(torch.randn(2, 5, 16)), torch.full((2, 5, 7), math.log(0.05)))
    with torch.no_grad():
        head.fc.weight.fill_(100.0)
    for features, limit in ((torch.ones(1, 16), MAX_SCALE), (-torch.ones(1, 16), MIN_SCALE)):
        torch.testing.assert_close(head(features), torch.full((1, 7), math.log(limit)))
