"""BioTune beside Optuna's own samplers: the same genome space, objective and budget.

One search says little, since all of them are random: give several seeds before you conclude. For
rivals that are training methods rather than samplers see the benchmarks in the documentation.
"""

import optuna

from biotune_optuna import BioTuneSampler, Objective, StudySpec, prepare

TRIALS = 30
SEEDS = range(3)

spec = StudySpec(model="tf_efficientnet_lite0", data="digits", image_size=64, train_size=400)
setup = prepare(spec)
samplers = {
    "biotune": lambda seed: BioTuneSampler(space=setup.space, seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
}

for name, make in samplers.items():
    for seed in SEEDS:
        study = optuna.create_study(
            storage="sqlite:///compare.db",
            study_name=f"{name}-{seed}",
            load_if_exists=True,
            direction="maximize",
            sampler=make(seed),
        )
        study.optimize(Objective(setup), n_trials=TRIALS)
        print(f"{name:8} seed {seed}: best of {len(study.trials)} trials {study.best_value:.3f}")
