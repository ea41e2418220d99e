"""Evolve a genome of three blocks; the objective stands in for a training."""

import optuna
import optunahub

biotune = optunahub.load_module("samplers/biotune")
space = biotune.GenomeSpace([biotune.BlockRecipe(name, 1.0) for name in ("stem", "body", "head")])


def objective(trial: optuna.Trial) -> float:
    """Return a recipe is best with a frozen stem and a body at twice the base rate."""
    recipe = space.suggest(trial).decode()
    return 1 - abs(recipe.multipliers["body"] - 2.0) / 10 - recipe.multipliers["stem"] / 10


if __name__ == "__main__":
    study = optuna.create_study(
        direction="maximize", sampler=biotune.BioTuneSampler(space=space, seed=0)
    )
    study.optimize(objective, n_trials=50)
    best = biotune.rank_finished(study, space)[0]
    print(space.genome(study.trials[best].params).decode().describe())  # noqa: T201
