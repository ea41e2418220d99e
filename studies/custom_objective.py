"""Bring your own network, data and training loop: here a table instead of images.

A network that tells the digits 0-4 apart is fine-tuned to the digits 5-9 with 100 rows of a table.
Which of its layers should move, and how fast? The objective returns any number to be maximised.
"""

import copy

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from biotune_optuna import BioTuneSampler, GenomeSpace, model_blocks, rank_finished


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x, y, epochs: int = 30) -> None:
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


digits = load_digits()
table = torch.tensor(digits.data / 16, dtype=torch.float32)
target = torch.tensor(digits.target)
old, new = target < 5, target >= 5

torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(3)]
net = nn.Sequential(*layers, nn.Linear(64, 5))
train(net, torch.optim.Adam(net.parameters(), lr=1e-3), table[old], target[old])

table, target = table[new], target[new] - 5
x, x_val, y, y_val = train_test_split(table, target, train_size=100, random_state=0)
blocks = model_blocks(
    net, patterns={"first": r"0\.", "second": r"1\.", "third": r"2\.", "head": ""}
)
space = GenomeSpace(blocks, lr=(1e-4, 1e-2))


def objective(trial: optuna.Trial) -> float:
    recipe = space.suggest(trial).decode()
    model = copy.deepcopy(net)
    torch.manual_seed(1)  # the same for every trial, so that only the recipe differs
    model[-1].reset_parameters()
    optimizer = torch.optim.AdamW(recipe.apply(model))
    recipe.train_mode(model)
    train(model, optimizer, x, y)
    return (model.eval()(x_val).argmax(1) == y_val).float().mean().item()


study = optuna.create_study(direction="maximize", sampler=BioTuneSampler(space=space, seed=0))
study.optimize(objective, n_trials=40)
best = study.trials[rank_finished(study, space)[0]]  # by the model, not the luckiest value
space.genome(best.params).decode().save("recipe.json")
print(f"trial {best.number}:", space.genome(best.params).decode().describe())
