"""What a full training takes is measured on a network that trains in full."""

from __future__ import annotations

import torch
from torch import nn

from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.speed import measure_speed


def test_a_network_whose_body_was_frozen_is_measured_in_full():
    """As the probe before a search leaves it: its backward pass would be that of the head."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    network[0].requires_grad_(False)
    speed = measure_speed(
        network, TrainSettings(batch_size=4), device=torch.device("cpu"), sides=[16]
    )
    assert network[0].weight.grad is not None
    assert speed.training(16) > 0
