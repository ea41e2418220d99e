"""The trainings of a confirmation, shared by any number of workers.

Each worker sees by the records what is to be trained next, and claims a training on the study's
board. A training's result depends on its seed and not on who ran it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError

from biotune_optuna.confirmation.protocol import Final, FinalRecord
from biotune_optuna.confirmation.record import Training
from biotune_optuna.errors import StorageError
from biotune_optuna.schema import RESULT_KEY
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.study.board import Board, Standing, board_of
from biotune_optuna.study.kept import KeptWeights
from biotune_optuna.study.stop import Stopped, StopRequest

if TYPE_CHECKING:
    import optuna
    from torch import Tensor

    from biotune_optuna.confirmation.protocol import Contest, Unit, Wanted
    from biotune_optuna.confirmation.record import Contender

_Kept = tuple[Mapping[str, Any], float]
_PAUSES = (0.1, 2.0)  # seconds between two looks where others are at all that is left


@dataclass
class Sharing:
    """How a worker shares the trainings of a study.

    Attributes:
        board: Where they are claimed.
        stop: Asks to stop; the running training is handed back.
        weights: Where final trainings keep what they have made.
    """

    board: Board
    stop: StopRequest = field(default_factory=StopRequest)
    weights: KeptWeights = field(default_factory=KeptWeights)

    @classmethod
    def of(cls, study: optuna.Study, stop: StopRequest | None = None) -> Sharing | None:
        """Return how the trainings of a study are shared; None where its storage keeps no leases.

        Args:
            study: The study.
            stop: Asks to stop.
        """
        storage = study._storage
        if not isinstance(storage, ResilientStorage) or storage.url.kind == "memory":
            return None
        return cls(board_of(study), stop or StopRequest())

    def once(self, key: str, work: Callable[[], None], until_then: Callable[[], None]) -> bool:
        """Do something that exactly one worker does; return whether it was this one.

        Args:
            key: What is done.
            work: Does it.
            until_then: Called while another worker is at it; returns when nothing is left to help.
        """
        pause, longest = _PAUSES
        while key not in (standing := self.board.look()).done:
            trial = None if key in standing.taken else self.board.claim(key)
            if trial is not None:
                with self.held(trial):
                    work()
                    self.board.finish(trial, {}, 0.0)
                return True
            until_then()
            self.wait(pause)
            pause = min(2 * pause, longest)
        return False

    def wait(self, seconds: float) -> None:
        """Wait for others; raise `Stopped` if asked to."""
        if self.stop.wait(seconds):
            raise Stopped

    @contextlib.contextmanager
    def held(self, trial: optuna.Trial) -> Iterator[None]:
        """Within the block, hold a claim; give it up when the block fails.

        A claim may have been lost meanwhile, because its lease ran out. Then somebody else has the
        training, and what came of it here is not needed.
        """
        board = self.board

        def hand_back() -> None:
            with contextlib.suppress(Exception):
                board.hand_back(trial, "stopped")

        with self.stop.calling(lambda: None, hand_back):
            try:
                yield
            except StorageError:
                board.forget(trial)
                raise
            except UpdateFinishedTrialError:
                board.forget(trial)
            except Exception as error:
                board.fail(trial, error)
                raise
            except BaseException:
                hand_back()
                raise

    def forget_weights(self) -> None:
        """Remove the files of final trainings: the model has been exported."""
        for trial in self.board.look().done.values():
            if digest := trial.user_attrs.get(RESULT_KEY, {}).get("weights"):
                self.weights.drop(digest)


class Shared:
    """A contest whose trainings are shared.

    Args:
        contest: The contest.
        sharing: With whom.
    """

    def __init__(self, contest: Contest, sharing: Sharing) -> None:
        self.contest, self.sharing = contest, sharing

    def contenders(self, ahead: Callable[[], Sequence[Wanted]] = tuple) -> list[Contender]:
        """Carry out, with others, all trainings on validation images; return what came of them.

        Args:
            ahead: Returns the models that will be trained finally, as far as can be guessed. While
                others are at all that is left, a worker begins with them, or with repeats of a
                rival at the rate that is being tried. What comes of a training depends on its seed
                alone, so that a wrong guess costs nothing but its time.
        """

        def train(unit: Unit) -> tuple[Mapping[str, Any], float]:
            training = self.contest.train(unit)
            return training.to_dict(), training.score

        def guess(unit: Unit) -> tuple[Mapping[str, Any], float]:
            if unit.kind == "finish":
                return self._train_finally(unit)
            training = self.contest.train(unit, keep=False)
            return training.to_dict(), training.score

        def guessed(standing: Standing) -> list[Unit]:
            units = [*self.contest.likely(), *self._missing(ahead(), standing)]
            return [unit for unit in units if self._key(unit) not in standing.done]

        self._work(lambda _standing: self.contest.wanted(), train, (guessed, guess))
        return self.contest.contenders()

    def train(self, models: Sequence[Wanted]) -> None:
        """Carry out, with others, the final trainings of several models."""
        self._work(lambda standing: self._missing(models, standing), self._train_finally)

    def _missing(self, models: Sequence[Wanted], standing: Standing) -> list[Unit]:
        known = [self._known(model, standing) for model in models]
        self.contest.n_finished = sum(map(len, known))
        pairs = zip(models, known, strict=True)
        return [unit for model, one in pairs for unit in self.contest.missing(model, one)]

    def _train_finally(self, unit: Unit) -> tuple[Mapping[str, Any], float]:
        record, changed = self.contest.train_finally(unit)
        self.sharing.weights.put(changed)
        return record.to_dict(), 0.0

    def final(self, model: Wanted) -> Final:
        """Return a model that was trained; what is not kept where this process can read it, anew.

        Raises:
            StudyError: None of its trainings holds, and one must.
        """
        known = self._known(model, self.sharing.board.look())

        def weights(seed: int) -> Mapping[str, Tensor]:
            kept = self.sharing.weights.get(known[seed].weights)
            if kept is not None:
                return kept
            return self.contest.train_finally(self.contest.final_unit(model, seed))[1]

        return self.contest.final(model, known, weights)

    def _known(self, model: Wanted, standing: Standing) -> dict[int, FinalRecord]:
        found = {}
        for seed in self.contest.final_seeds(model):
            trial = standing.done.get(self._key(self.contest.final_unit(model, seed)))
            if trial is not None:
                found[seed] = FinalRecord.from_dict(trial.user_attrs.get(RESULT_KEY, {}))
        return found

    def _key(self, unit: Unit) -> str:
        """Name a training by all that it depends on."""
        depends = repr((self.contest.key(unit), unit.epochs))
        mark = hashlib.sha256(depends.encode()).hexdigest()[:8]
        return f"{unit.kind}: {unit.name} | {mark}"

    def _work(
        self,
        wanted: Callable[[Standing], list[Unit]],
        train: Callable[[Unit], _Kept],
        ahead: tuple[Callable[[Standing], list[Unit]], Callable[[Unit], _Kept]] | None = None,
    ) -> None:
        """Train what is wanted until nothing is.

        Args:
            wanted: The trainings that nobody has finished, in order, from what is known now.
            train: Carries out one; returns what the board keeps of it, and a value.
            ahead: The same of trainings to begin with while others are at all that is wanted.
        """
        board, (pause, longest) = self.sharing.board, _PAUSES
        standing = board.look()  # first: what is done there has been written down before
        while units := wanted(standing):
            self.sharing.stop.check()
            if guessed := [unit for unit in units if self._key(unit) in standing.done]:
                for unit in guessed:  # before it was known to be wanted
                    result = standing.done[self._key(unit)].user_attrs[RESULT_KEY]
                    self.contest.ledger.add(unit.name, Training.from_dict(result))
                continue
            carry_out = train
            free = [unit for unit in units if self._key(unit) not in standing.taken]
            if not free and ahead is not None:
                further, carry_out = ahead[0](standing), ahead[1]
                free = [unit for unit in further if self._key(unit) not in standing.taken]
            if not free:
                self.sharing.wait(pause)
                pause = min(2 * pause, longest)
            elif (trial := board.claim(self._key(free[0]))) is not None:
                pause = _PAUSES[0]
                with self.sharing.held(trial):
                    result, value = carry_out(free[0])
                    board.finish(trial, result, value)
            standing = board.look()
