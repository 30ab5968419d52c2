"""Write the README.md that lies beside every checkpoint: what it is, how it was made, what it measured."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from world_gymnast_ros.files import write_text


def _rows(values: dict[str, Any]) -> list[str]:
    out = ["| | |", "|---|---|"]
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        out.append(f"| {name} | {value} |")
    return out


def write_card(directory: str | Path, title: str, figures: dict[str, Any], settings: dict[str, Any],
               notes: str = "") -> None:
    """Write README.md with measured `figures` and training `settings` into a checkpoint directory."""
    lines = [f"# {title}", "", "Weights are safetensors in bfloat16.", ""]
    if notes:
        lines += [notes, ""]
    lines += ["## Measured", "", *_rows(figures), "", "## Training", "", *_rows(settings), ""]
    write_text(Path(directory) / "README.md", "\n".join(lines))
