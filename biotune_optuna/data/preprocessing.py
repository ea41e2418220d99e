"""What happens to a picture before the network sees it, written down with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from biotune_optuna.data.decode import check_geometry
from biotune_optuna.data.views import VIEWS, is_views
from biotune_optuna.errors import DataError, ModelError

SCHEMA_VERSION = 1
_AMP = ("auto", "off", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Geometry, normalisation and arithmetic of training, to be repeated in prediction.

    Attributes:
        size: Side of the square that the network sees, in pixels.
        crop_pct: Share of the shorter side kept by the centre crop, in (0, 2]; above 1 there is a
            black edge.
        interpolation: Filter of the resizing, as in `biotune_optuna.data.decode.preprocess`.
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        batch_size: Images at once in evaluation. Floating-point sums depend on it in their last
            bits, so it is part of what makes two predictions the same to the bit.
        channels_last: Memory format of network and images; of influence on the last bits too.
        amp: Autocast as in `TrainSettings.amp`: ``auto`` (CUDA only), ``off``, ``bf16``, ``fp16``.
        views: How each image is shown besides, see `biotune_optuna.data.views`; predictions are
            the mean over all views. Default none.

    Raises:
        DataError: If a setting is out of range.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    batch_size: int = 64
    channels_last: bool = True
    amp: str = "auto"
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_geometry(size=self.size, crop_pct=self.crop_pct, interpolation=self.interpolation)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"mean {self.mean!r} and std {self.std!r} need 3 values, std > 0")
        if self.batch_size < 1:
            raise DataError(f"batch size {self.batch_size!r} is not a positive whole number")
        if self.amp not in _AMP:
            raise DataError(f"amp {self.amp!r} is unknown; known are {', '.join(_AMP)}")
        if not is_views(self.views):
            raise DataError(f"views {self.views!r} are unknown; known are {', '.join(VIEWS)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data with ``schema_version``; ``views`` where there are some."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        if not self.views:  # as earlier versions wrote it
            del data["views"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Rebuilds what `to_dict` gave.

        Raises:
            ModelError: If the data is of another schema or lacks a field.
            DataError: If a setting is out of range.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"preprocessing schema version {version!r} cannot be read; "
                f"this version reads {SCHEMA_VERSION}"
            )
        try:
            values = {one.name: data[one.name] for one in fields(cls) if one.name != "views"}
            views = data.get("views", ())
            values["views"] = tuple(views) if isinstance(views, list) else views
            values["mean"] = tuple(float(value) for value in data["mean"])
            values["std"] = tuple(float(value) for value in data["std"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the preprocessing lacks or garbles a field: {error}") from None
