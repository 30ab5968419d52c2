"""`Cosmos3Settings`: everything about a Cosmos 3 world model that its repository does not tell, stated in one place."""
from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from world_gymnast_ros.errors import BadConfig
from world_gymnast_ros.models.checkpoint import CONFIG, read_config

FRAMES_PER_LATENT = 4
"""Frames come in fours, after the first."""
CANVASES: dict[int, tuple[tuple[int, int], ...]] = {
    256: ((256, 256), (256, 320), (320, 256), (192, 320), (320, 192)),
    480: ((640, 640), (544, 736), (736, 544), (480, 832), (832, 480)),
    704: ((960, 960), (832, 1088), (1088, 832), (704, 1280), (1280, 704)),
    720: ((960, 960), (832, 1104), (1104, 832), (720, 1280), (1280, 720)),
}
"""(H, W) of the canvases of a tier, px: a frame lies in the one of the nearest shape."""
VIEWS = ("ego_view", "third_person_view", "wrist_view", "concat_view")
STATISTICS = "statistics.json"


@dataclass(frozen=True)
class Cosmos3Settings:
    """Settings of NVIDIA's Bridge example; written to `config.json`.

    `pipeline`: folder of the diffusers repository, as seen from this one, or its hub name. `statistics`: JSON file with
    `q01` and `q99` of the ten numbers of a step, as seen from this folder.

    `stride` actions are drawn by one call, a multiple of 4; a shorter chunk is padded with standing still, and the next
    call begins at the last frame that was kept: nothing older is remembered. `resolution_tier` chooses the canvas,
    `frame_size` H, W is what is drawn on it. `sampling_steps`, `guidance` (1 is none, others take twice the work) and
    `flow_shift` are the sampler's. `view_point` is what the model is told of the camera; Bridge's was trained as
    "ego_view".
    """

    model_type: ClassVar[str] = "cosmos3_world"
    pipeline: str = "."
    statistics: str = STATISTICS
    stride: int = 16
    resolution_tier: int = 480
    frame_size: tuple[int, int] = (480, 640)
    sampling_steps: int = 30
    guidance: float = 1.0
    flow_shift: float = 10.0
    view_point: str = VIEWS[0]

    def __post_init__(self) -> None:
        if isinstance(self.frame_size, list):  # JSON knows no tuples
            object.__setattr__(self, "frame_size", tuple(self.frame_size))
        whole = all(type(getattr(self, name)) is int for name in ("stride", "resolution_tier", "sampling_steps"))
        rules = (
            ("stride", whole and self.stride in range(FRAMES_PER_LATENT, 65, FRAMES_PER_LATENT),
             f"a multiple of {FRAMES_PER_LATENT} within {FRAMES_PER_LATENT}..64"),
            ("resolution_tier", self.resolution_tier in CANVASES, f"one of {', '.join(map(str, CANVASES))}"),
            ("frame_size", len(self.frame_size) == 2 and all(type(side) is int and side >= 1
                                                             for side in self.frame_size), "a height and a width, px"),
            ("sampling_steps", whole and 1 <= self.sampling_steps <= 1000, "within 1..1000"),
            ("guidance", np.isfinite(self.guidance) and 0.0 < self.guidance <= 20.0, "above 0 and at most 20"),
            ("flow_shift", np.isfinite(self.flow_shift) and 0.0 < self.flow_shift <= 100.0, "above 0 and at most 100"),
            ("view_point", self.view_point in VIEWS, f"one of {', '.join(VIEWS)}"),
        )
        for name, good, limit in rules:
            if not good:
                raise BadConfig(f"Cosmos3Settings.{name} is {getattr(self, name)!r}; it must be {limit}")

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"model_type": self.model_type, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cosmos3Settings:
        """Build from `config.json`; BadConfig on an unknown key or a value of another kind."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - {"model_type"})
        if unknown:
            raise BadConfig(f"unknown Cosmos 3 settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls(**{k: v for k, v in values.items() if k in known})
        except TypeError as error:
            raise BadConfig(f"a Cosmos 3 setting is of the wrong kind ({error})") from error

    @classmethod
    def read(cls, folder: Path) -> Cosmos3Settings:
        """Return the settings of config.json in a folder, or NVIDIA's where the folder is the repository itself."""
        described = (folder / CONFIG).is_file() and f'"{cls.model_type}"' in (folder / CONFIG).read_text("utf-8")
        return cls.from_dict(read_config(folder, cls.model_type)) if described else cls()

    def drawn_size(self, downscale: int) -> tuple[int, int]:
        """Return (H, W) of what is drawn for frames of `frame_size`, px; `downscale` of the autoencoder."""
        height, width = self.frame_size
        canvas = min(CANVASES[self.resolution_tier], key=lambda c: abs(c[0] / c[1] - height / width))
        scale = min(canvas[0] / height, canvas[1] / width, 1.0)
        down, across = (max(int(scale * side + 0.5) // downscale, 1) * downscale for side in self.frame_size)
        return down, across
