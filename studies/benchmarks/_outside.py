# ruff: noqa: ARG002 - the signatures are Optuna's
"""Searchers from outside of Optuna, as Optuna samplers over a space of numbers.

Each is made only where its package is installed: HEBO (Cowen-Rivers et al., 2022), whose process is
heteroscedastic, SMAC3 (Lindauer et al., 2022), and OptunaHub's AutoSampler, which is fetched when
it is first asked for.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from biotune_optuna.sampler import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from biotune_optuna import GenomeSpace

    Genes = NDArray[np.float64]


class OutsideSampler(optuna.samplers.BaseSampler):
    """Asks an optimiser of the unit cube, and tells it every value that is to be minimised."""

    def __init__(self, space: GenomeSpace, seed: int) -> None:
        self._space: Mapping[str, BaseDistribution] = space.distributions()
        self._told = 0
        self._begin(len(self._space), seed)

    def _begin(self, n: int, seed: int) -> None:
        raise NotImplementedError

    def _ask(self) -> Genes:
        raise NotImplementedError

    def _tell(self, genes: Genes, cost: float) -> None:
        raise NotImplementedError

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codec.to_params(self._space, np.clip(self._ask(), 0.0, 1.0))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise ValueError(f"{param_name} is no parameter of the space")

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        genes = codec.to_unit(self._space, trial.params)
        if state is TrialState.COMPLETE and values is not None and genes is not None:
            self._tell(genes, -values[0])


class HEBOSampler(OutsideSampler):
    """HEBO with its defaults; also learns from genomes that were given."""

    def _begin(self, n: int, seed: int) -> None:
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        self._names = [f"x{i:03d}" for i in range(n)]
        parts = [{"name": name, "type": "num", "lb": 0, "ub": 1} for name in self._names]
        self._hebo = HEBO(DesignSpace().parse(parts), scramble_seed=seed)

    def _ask(self) -> Genes:
        return np.asarray(self._hebo.suggest(n_suggestions=1)[self._names].to_numpy(float)[0])

    def _tell(self, genes: Genes, cost: float) -> None:
        import pandas as pd

        frame = pd.DataFrame(genes[None], columns=self._names)
        self._hebo.observe(frame, np.array([[cost]]))


class SMACSampler(OutsideSampler):
    """SMAC3's facade for black boxes (a Gaussian process); also learns from genomes given."""

    def _begin(self, n: int, seed: int) -> None:
        from ConfigSpace import ConfigurationSpace
        from smac import BlackBoxFacade, Scenario

        self._names = [f"x{i:03d}" for i in range(n)]
        space = ConfigurationSpace(dict.fromkeys(self._names, (0.0, 1.0)), seed=seed)
        scenario = Scenario(space, n_trials=10_000, seed=seed, output_directory=_scratch())
        self._configurations = space
        self._smac = BlackBoxFacade(
            scenario,
            _never,
            initial_design=BlackBoxFacade.get_initial_design(scenario, n_configs=10),
            overwrite=True,
            logging_level=False,
        )
        self._open: list[Any] = []

    def _ask(self) -> Genes:
        info = self._smac.ask()
        self._open.append(info)
        return np.array([info.config[name] for name in self._names])

    def _tell(self, genes: Genes, cost: float) -> None:
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo, TrialValue

        if self._open:
            info = self._open.pop()
        else:
            values = dict(zip(self._names, genes.tolist(), strict=True))
            info = TrialInfo(Configuration(self._configurations, values=values), seed=0)
        self._smac.tell(info, TrialValue(cost=cost))


def _never(_config: Any, seed: int = 0) -> float:
    raise AssertionError(f"SMAC3 is asked and told; it evaluates nothing, seed {seed}")


def _scratch() -> str:
    return mkdtemp(prefix="smac-")


def _auto(_: GenomeSpace, seed: int) -> optuna.samplers.BaseSampler:
    import optunahub

    made: optuna.samplers.BaseSampler = optunahub.load_module("samplers/auto_sampler").AutoSampler(
        seed=seed
    )
    return made


_PACKAGES: dict[str, tuple[str, Callable[[GenomeSpace, int], optuna.samplers.BaseSampler]]] = {
    "HEBO": ("hebo", HEBOSampler),
    "SMAC3": ("smac", SMACSampler),
    "AutoSampler": ("optunahub", _auto),
}
OUTSIDE = {name: make for name, (package, make) in _PACKAGES.items() if find_spec(package)}
"""Makers of those whose package is installed."""
