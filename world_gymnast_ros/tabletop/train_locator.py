"""Train the locator on single frames: cross-entropy over cells, with a softened target around the true one."""
from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.models.policies.words import COLOURS, SHAPES
from world_gymnast_ros.models.vision import fast_math
from world_gymnast_ros.robot.arm_parts import part_points
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.locator import STRIDE, Locator, LocatorConfig, LocatorNetwork, places
from world_gymnast_ros.training.optim import MuonAdamW, warm_then_decay
from world_gymnast_ros.types import F32, F64, I64, U8

QUERIES = 4
"""Objects asked for in each image; what is not there is asked for too."""
SPREAD_CELLS = 0.7
MIN_FOUND = 50
RAYLEIGH_MEDIAN = 1.1774
"""The median distance from the mean of a plane's normal distribution, in sigmas of one axis."""
WORKSPACE = ((0.12, -0.20, 0.022), (0.42, 0.25, 0.25))
"""The arm's box, as in config/arm.yaml: no hand goes beyond it, in the dream neither."""


@dataclass(frozen=True)
class SingleFrames:
    """Images uint8 (N, H, W, 3); names (N, M) with places float32 (N, M, 2) in the image; parts (N, P, 2)."""

    images: U8
    names: np.ndarray
    places: F32
    parts: F32


def project(points: F32, cameras: F32) -> F32:
    """Return u, v (N, K, 2) of base points (N, K, 3) by projections (N, 12)."""
    camera = cameras.reshape(-1, 1, 3, 4)
    seen = (camera[..., :3] @ points[..., None])[..., 0] + camera[..., 3]
    return np.asarray(seen[..., :2] / np.maximum(seen[..., 2:], 0.05), np.float32)


def read_single_frames(paths: Iterable[Path]) -> SingleFrames:
    """Read files of `twin.single_frames.make_single_frames`. EpisodeError names a bad one."""
    parts: list[tuple[np.ndarray, ...]] = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as d:
                images, names, xyz, state, camera = (d[k] for k in ("image", "names", "xyz", "state", "camera"))
        except (OSError, ValueError, KeyError) as error:
            raise EpisodeError(f"{path} holds no single frames ({error}); make some with `world-gymnast twin frames`"
                               ) from error
        parts.append((images, names, project(xyz, camera), project(part_points(state), camera)))
    if not parts:
        raise EpisodeError("no single frames to learn from; make some with `world-gymnast twin frames`")
    return SingleFrames(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def target_cells(uv: Tensor, inside: Tensor, height: int, width: int) -> Tensor:
    """Return soft targets (..., cells + 1) of places (..., 2); all on the last where not `inside` (...)."""
    ys = 2 * (torch.arange(height) + 0.5) / height - 1
    xs = 2 * (torch.arange(width) + 0.5) / width - 1
    across = ((uv[..., 0, None] - xs) * width / 2 / SPREAD_CELLS).square()
    down = ((uv[..., 1, None] - ys) * height / 2 / SPREAD_CELLS).square()
    cells = torch.exp(-0.5 * (down[..., :, None] + across[..., None, :])).flatten(-2)
    cells = cells / cells.sum(-1, keepdim=True).clamp_min(1e-9) * inside[..., None]
    return torch.cat([cells, (~inside)[..., None].float()], -1)


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary colour and brightness; make half of the images coarse, as a small world model draws them."""
    B = len(images)
    gain = torch.from_numpy((rng.uniform(0.8, 1.2, (B, 1, 1, 1)) * rng.uniform(0.93, 1.07, (B, 3, 1, 1))
                             ).astype(np.float32))
    x = (images * gain).clamp(0, 1).pow(torch.from_numpy(rng.uniform(0.8, 1.25, (B, 1, 1, 1)).astype(np.float32)))
    coarse = torch.from_numpy(np.flatnonzero(rng.random(B) < 0.4))
    if len(coarse):
        size = x.shape[2:]
        small = F.interpolate(F.adaptive_avg_pool2d(x[coarse], (64, 64)), size=size, mode="bilinear")
        x[coarse] = small
    noise = torch.from_numpy(rng.uniform(0, 0.03, (B, 1, 1, 1)).astype(np.float32))
    return (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(rng.integers(1 << 31))))
            ).clamp_(0, 1)


def draw(frames: SingleFrames, rng: np.random.Generator, count: int, config: LocatorConfig, rows: I64 | None = None
         ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return images (B, 3, H, W), words (B, Q, 2), places of the asked (B, Q, 2), whether they are there (B, Q),
    and places of the parts (B, P, 2)."""
    rows = rng.integers(len(frames.images), size=count) if rows is None else rows
    words = np.zeros((len(rows), QUERIES, 2), np.int64)
    uv = np.full((len(rows), QUERIES, 2), 9.0, np.float32)
    for b, r in enumerate(rows):
        there = {str(n): k for k, n in enumerate(frames.names[r]) if n}
        asked = list(rng.permutation(list(there)))[:QUERIES - 1]
        while len(asked) < QUERIES:  # near misses teach most: the same colour or shape as something there
            name = f"{rng.choice(config.colours)} {rng.choice(config.shapes)}"
            if name not in there:
                asked.append(name)
        for q, name in enumerate(asked):
            colour, shape = name.split()
            words[b, q] = config.colours.index(colour), config.shapes.index(shape)
            if name in there:
                uv[b, q] = frames.places[r, there[name]]
    images = torch.from_numpy(frames.images[rows]).permute(0, 3, 1, 2).float().div_(255.0)
    asked_at = torch.from_numpy(uv)
    there_at = asked_at.abs().amax(-1) < 1.0
    return images, torch.from_numpy(words), asked_at, there_at, torch.from_numpy(frames.parts[rows])


def loss_of(network: LocatorNetwork, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of objects plus that of the arm's parts."""
    images, words, uv, there, parts = batch
    h, w = network.config.height // STRIDE, network.config.width // STRIDE
    objects, found = network(images, words)
    seen = parts.abs().amax(-1) < 1.0
    return (-(target_cells(uv, there, h, w) * objects.log_softmax(-1)).sum(-1).mean()
            - (target_cells(parts, seen, h, w) * found.log_softmax(-1)).sum(-1).mean())


def errors_px(network: LocatorNetwork, frames: SingleFrames, seed: int, count: int = 512) -> dict[str, float]:
    """Return median and 90 % error in image pixels of objects and parts that are there, and the share of what is
    there and what is not that was told rightly."""
    rng = np.random.default_rng((seed, 5))
    c = network.config
    rows = rng.permutation(len(frames.images))[:count]
    gaps, part_gaps, there_right, absent_right = [], [], [], []
    half = torch.tensor([c.width / 2, c.height / 2])
    for i in range(0, len(rows), 32):
        images, words, uv, there, parts = draw(frames, rng, 0, c, rows[i:i + 32])
        with torch.inference_mode():
            objects, found = network(images, words)
            at, confidence = places(objects, c.height // STRIDE, c.width // STRIDE)
            part_at, _ = places(found, c.height // STRIDE, c.width // STRIDE)
        gaps.append(((at - uv) * half).norm(dim=-1)[there])
        part_gaps.append(((part_at - parts) * half).norm(dim=-1)[parts.abs().amax(-1) < 1.0])
        there_right.append((confidence > 0.5)[there])
        absent_right.append((confidence <= 0.5)[~there])
    o, p = torch.cat(gaps), torch.cat(part_gaps)
    return {"object_median_px": float(o.median()), "object_p90_px": float(o.quantile(0.9)),
            "part_median_px": float(p.median()), "part_p90_px": float(p.quantile(0.9)),
            "found": float(torch.cat(there_right).float().mean()),
            "absent_found_out": float(torch.cat(absent_right).float().mean())}


def train_locator(network: LocatorNetwork, frames: SingleFrames, steps: int, batch: int, seed: int) -> None:
    """Train in place for `steps`."""
    rng = np.random.default_rng((seed, 1))
    optimiser = MuonAdamW(network, 2e-3, 2e-3)
    network.train()
    bar = tqdm(range(steps), unit="step", desc="locator")
    for step in bar:
        optimiser.set_scale(warm_then_decay(step, steps))
        images, *rest = draw(frames, rng, batch, network.config)
        with fast_math(torch.device("cpu")):
            loss = loss_of(network, (augment(images, rng), *rest))  # type: ignore[arg-type]
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.2f}", refresh=False)
    network.eval()


def hand_follows(files: Iterable[Path]) -> tuple[float, list[float]]:
    """Return how the measured hand follows its targets in play data: the share of the last step that it lags behind,
    and how far it stays from a target at rest (3,), m. Least squares over all steps without contact (reach)."""
    steps, gaps = [], []
    for path in files:
        with np.load(path, allow_pickle=False) as d:
            if str(d["family"][0]) != "reach":
                continue
            targets, measured = d["states"][..., :3].astype(np.float64), d["measured"][..., :3].astype(np.float64)
        steps.append(np.diff(targets, axis=1).reshape(-1, 3))
        gaps.append((targets - measured)[:, 1:].reshape(-1, 3))
    if not steps:
        raise EpisodeError("no play data of the reach family to see how the hand follows; make some with "
                           "`world-gymnast twin play train_play --family reach`")
    step, gap = np.concatenate(steps), np.concatenate(gaps)
    centred = step - step.mean(0)
    lag = float((centred * (gap - gap.mean(0))).sum() / np.square(centred).sum())
    return lag, [round(float(x), 5) for x in (gap - lag * step).mean(0)]


def place_errors_m(locator: Locator, path: Path, count: int) -> F64:
    """Return how far off in m (N,) objects are measured to be, those that are found and in reach."""
    judge = GeometricJudge(locator)
    errors = []
    with np.load(path, allow_pickle=False) as d:
        for i in range(min(count, len(d["image"]))):
            for name, xyz in zip(d["names"][i], d["xyz"][i], strict=True):
                if not name or np.abs(xyz[1]) > 0.3:
                    continue
                measured = judge.reader.measure(d["image"][i], d["state"][i], (str(name),))
                if not measured.fault:
                    errors.append(np.linalg.norm(measured.places_m[0, :2] - xyz[:2]))
    return np.array(errors)


CARD = """# {name}

The geometric judge: finds named objects and the arm's parts in the captured frame, and from the arm's measured pose
where the camera is (`tabletop/locator.py`, `tabletop/geometric_judge.py`).

- Data: {files} files of single images of varied scenes of the twin ({images} images), the last file held out.
- Training: {steps} steps of {batch} images, seed {seed}, {minutes:.0f} minutes. {parameters:,} parameters.
- Held out: objects found to {object_median_px:.2f} px (90 %: {object_p90_px:.2f}) of {width}, arm parts to
  {part_median_px:.2f} px (90 %: {part_p90_px:.2f}); of what is there {found:.1%} found, of what is not
  {absent:.1%} told.
- Places on the table, with the camera corrected by the arm: median error {median_mm:.1f} mm, 90 % {p90_mm:.1f} mm
  ({measured} objects); `sigma_m` in config.json follows from the median.
- The hand lags {lag:.2f} of its last step and stays {sag} m short, from play data.
- Knows the twin's colours and shapes and nothing else. It was never shown a real image.
"""


def main(args: argparse.Namespace, camera: Sequence[float], focal: Sequence[float]) -> int:
    """Train, write the judge and its card. `camera`: where the camera usually stands, T_base_camera as 16 numbers, row
    by row; `focal` (2,): its focal lengths in halves of the image."""
    files = sorted(args.frames.glob("*.npz"))
    if len(files) < 2:
        raise EpisodeError(f"--frames {args.frames} holds {len(files)} files; two are needed at least, one held out")
    lag, sag = hand_follows(sorted(args.play.glob("*.npz")))
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = LocatorConfig(colours=list(COLOURS), shapes=list(SHAPES), T_base_camera=list(camera), focal=list(focal),
                           hand_lag=round(lag, 4), hand_sag_m=sag, workspace_low_m=list(WORKSPACE[0]),
                           workspace_high_m=list(WORKSPACE[1]))
    network = LocatorNetwork(config)
    frames, began_s = read_single_frames(files[:-1]), time.monotonic()
    train_locator(network, frames, args.steps, args.batch, args.seed)
    locator = Locator(network, "")
    seen = errors_px(network, read_single_frames(files[-1:]), args.seed)
    off = place_errors_m(locator, files[-1], 400)
    if len(off) < MIN_FOUND:
        raise EpisodeError(f"after {args.steps} steps only {len(off)} objects of the held-out images are found, at "
                           f"least {MIN_FOUND} are needed to say how exactly; train longer (--steps), on more images")
    config.sigma_m = round(float(np.median(off)) / RAYLEIGH_MEDIAN, 5)
    locator.save(args.out)
    absent = seen.pop("absent_found_out")
    card = CARD.format(name=config.name, files=len(files), images=len(frames.images), steps=args.steps,
                       batch=args.batch, seed=args.seed, minutes=(time.monotonic() - began_s) / 60,
                       parameters=sum(p.numel() for p in network.parameters()), width=config.width, absent=absent,
                       median_mm=1e3 * np.median(off), p90_mm=1e3 * np.quantile(off, 0.9), measured=len(off), lag=lag,
                       sag=sag, **seen)
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)
    return 0
