"""What processes forked by the tests find ready: libraries loaded, SQLAlchemy's tables mapped."""

import optuna
from optuna.storages import RDBStorage

from tests.kit.sampler import PRESETS, make_sampler, objective

storage = RDBStorage("sqlite://")
for preset in PRESETS:
    study = optuna.create_study(storage=storage, sampler=make_sampler(preset))
    study.optimize(objective, n_trials=5)
storage.remove_session()
storage.engine.dispose()
