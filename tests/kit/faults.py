"""A backend whose n-th call loses its connection, before or after the database did the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable


def connection_lost() -> OperationalError:
    return OperationalError(
        "SELECT 1", {}, Exception("server closed the connection"), connection_invalidated=True
    )


class Faults:
    """Counts the calls of the objects it is put around and fails those numbered in ``at``."""

    def __init__(self, *, at: set[int] = frozenset(), after: bool = False) -> None:  # type: ignore[assignment]
        self.at = at
        self.after = after
        self.calls = 0
        self.names: list[str] = []

    def around(self, target: Any, names: tuple[str, ...] = ()) -> Any:
        return _Proxy(target, self)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.names.append(name)
            fails = self.calls in self.at
            if fails and not self.after:
                raise connection_lost()
            result = function(*args, **kwargs)
            if fails:
                raise connection_lost()
            return result

        return call


class _Proxy:
    def __init__(self, target: Any, faults: Faults) -> None:
        self._target = target
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name.startswith("_") or not callable(value) or name == "remove_session":
            return value
        return self._faults.wrap(name, value)
