"""A film strip of an episode: a few frames, and under each what was asked of the arm there."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from world_gymnast_ros.episodes.reader import Episode
from world_gymnast_ros.images import resize_rgb
from world_gymnast_ros.types import U8

CAPTION_PX = 30
TITLE_PX = 18
BACKGROUND, INK = (24, 24, 28), (235, 235, 235)
VERDICT_NAMES = ("OK", "CLAMPED", "HOLD", "STOP")
VERDICT_INKS = ((150, 220, 150), (240, 200, 90), (240, 140, 70), (240, 80, 80))


def film_strip(episode: Episode, count: int = 8, height_px: int = 180) -> U8:
    """Return an image uint8 (H, W, 3) with `count` evenly spaced frames, the first and the last among them."""
    actions = episode.actions
    picks = np.unique(np.linspace(0, len(actions), min(count, len(actions) + 1)).round().astype(int))
    width_px = max(1, round(height_px * episode.frames.shape[2] / episode.frames.shape[1]))
    sheet = Image.new("RGB", (width_px * len(picks), TITLE_PX + height_px + CAPTION_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title = f"{episode.instruction}   [{episode.adapter}]   {episode.outcome.outcome}, ended by {episode.ended_by}"
    draw.text((4, 3), title, fill=INK)
    for place, t in enumerate(picks.tolist()):
        left, below = place * width_px, TITLE_PX + height_px + 2
        sheet.paste(Image.fromarray(resize_rgb(episode.frames[t], (height_px, width_px))), (left, TITLE_PX))
        seconds = (episode.frame_stamps_ns[t] - episode.frame_stamps_ns[0]) * 1e-9
        draw.text((left + 4, below), f"{t}: {seconds:.1f} s", fill=INK)
        if t < len(actions):
            verdict = int(episode.steps.verdict[t])
            moved_mm = 1000.0 * float(np.linalg.norm(actions[t, :3]))
            grip = "open" if actions[t, 6] > 0.5 else "shut"
            draw.text((left + 4, below + 13), f"{VERDICT_NAMES[verdict]} {moved_mm:.0f} mm {grip}",
                      fill=VERDICT_INKS[verdict])
    return np.asarray(sheet)
