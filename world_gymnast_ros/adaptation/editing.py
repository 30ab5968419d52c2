"""Have an image editor repaint the bare table of a captured frame: another cloth, objects that are not the task's.

The editor gets the frame and a mask of bare table (`variation.bare_table`). Of what it answers only pixels of that mask
are taken: the arm, with a margin, and all that stands out against the table stay as the camera gave them, bit for bit,
whatever the editor painted there.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from world_gymnast_ros.adaptation.variation import ARM_MARGIN, Mask, arm_distance, bare_table, box_mean
from world_gymnast_ros.errors import BadFrame, RemoteModelError
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import U8, Frame, ImageEditor, Start

MIN_TABLE = 0.05
"""With less of the image as bare table there is nothing to paint on."""
MIN_CHANGE_LEVELS = 1.0
"""An editor that changes the mask by less, on average, did nothing."""
SOFT_EDGE = 60
"""The image's height by the pixels over which the painted part comes in."""


@dataclass(frozen=True)
class Canvas:
    """The square of `size_px` that an editor works on. A frame of `frame_size` (H, W) px lies at its top left, scaled
    so that the longer side fits; the rest is filled with its edges repeated."""

    frame_size: tuple[int, int]
    size_px: int

    @property
    def held(self) -> tuple[int, int]:
        """Height and width of the frame on the square, px."""
        height, width = (max(1, round(n * self.size_px / max(self.frame_size))) for n in self.frame_size)
        return height, width

    def put(self, rgb: U8) -> U8:
        """Return the square uint8 (S, S, 3) of a frame uint8 (H, W, 3)."""
        height, width = self.held
        return np.pad(resize_rgb(rgb, self.held), ((0, self.size_px - height), (0, self.size_px - width), (0, 0)),
                      mode="edge")

    def put_mask(self, mask: Mask) -> Mask:
        """Return the square bool (S, S) of a mask bool (H, W): where all of a pixel is in it."""
        height, width = self.held
        levels = resize_rgb(np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, -1), self.held)[..., 0]
        return np.pad(levels == 255, ((0, self.size_px - height), (0, self.size_px - width)))

    def take(self, square: U8) -> U8:
        """Return the frame uint8 (H, W, 3) that a square holds."""
        height, width = self.held
        return resize_rgb(square[:height, :width], self.frame_size)


def edited(start: Start, camera: ArrayLike, editor: ImageEditor, prompt: str, size_px: int, seed: int,
           keep: Mask | None = None) -> Start:
    """Return a start whose bare table an editor has painted, its captured frame as `original`.

    `camera` (12,) sees the frame; `keep` bool (H, W): pixels that stay as well. BadFrame where nobody knows where the
    arm is, or where there is no bare table. RemoteModelError where the editor gives no image, one of another size, or
    one with nothing changed.
    """
    if start.state is None:
        raise BadFrame("without the arm's state its place in the image is unknown; give --state, or do not edit")
    rgb = start.captured.rgb
    height, width = rgb.shape[:2]
    arm = arm_distance(start.state, camera, (height, width)) <= ARM_MARGIN
    table = bare_table(rgb, arm if keep is None else arm | keep)
    if table.mean() < MIN_TABLE:
        raise BadFrame(f"only {table.mean():.1%} of the image is bare table, an editor needs {MIN_TABLE:.0%}")
    canvas = Canvas((height, width), size_px)
    answer = editor.paint(canvas.put(rgb), canvas.put_mask(table), prompt, seed)
    if answer.shape != (size_px, size_px, 3):
        raise RemoteModelError(f"{editor.name} answered with an image of {answer.shape[1]}x{answer.shape[0]} pixels, "
                               f"{size_px}x{size_px} were sent; set editor_px to what it draws")
    painted = canvas.take(answer)
    if np.abs(painted[table].astype(int) - rgb[table]).mean() < MIN_CHANGE_LEVELS:
        raise RemoteModelError(f"{editor.name} changed nothing")
    share = box_mean(table.astype(np.float64)[..., None], max(1, height // SOFT_EDGE)) * table[..., None]
    out = np.round(rgb * (1 - share) + painted * share).astype(np.uint8)
    return replace(start, frame=Frame(out, start.captured.stamp_ns), original=start.captured)
