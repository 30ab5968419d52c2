"""How fast WorldGym imagines: this package against the public procedure, on the same weights and the same noise.

    nice -n 10 python bench/imagination.py                         the table of docs/measured/imagination.md
    python bench/imagination.py --shapes small --copies 8          one row of it
    python bench/imagination.py --shapes published --passes        the published size, one window-full frame

The public procedure is written here as plainly as its description (`Public`), on this package's layers: so a ratio
tells what the procedure costs, not whose layers are faster. It either computes the whole window at every denoising
step, or, with its cache, once per frame; it embeds all frames of the window at every step, and it takes guidance in two
passes. Its cache is filled causally here, so that all draw the same frames, which is asserted.

Methods take turns, and of the repetitions the least time counts: other work on the machine can only slow a method down.
Each figure stands twice, after 20 and after 40 frames; on a busy machine only processor time says something.
"""
from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from world_gymnast_ros.models.world_models.worldgym_dit import DiTShape, TemporalCache, WorldGymDiT
from world_gymnast_ros.models.world_models.worldgym_sampler import LatentSampler, signal_shares
from world_gymnast_ros.models.world_models.worldgym_settings import PERSISTENT, RECOMPUTE, WorldGymSettings

FRAMES = (20, 40)
COUNTED = {"window recomputed": 6290, "cache rebuilt": 989}
"""Frame-forwards of the public procedure for 40 frames, ten steps, a window of 20; twice that with guidance."""
SETTINGS = WorldGymSettings()


@dataclass(frozen=True)
class Shape:
    """A network and the height and width of its latent frames."""

    dim: int
    depth: int
    heads: int
    side: int

    def network(self, dtype: torch.dtype) -> WorldGymDiT:
        """Return a network of random weights that are no no-op."""
        torch.manual_seed(0)
        with torch.device("meta"):
            network = WorldGymDiT(DiTShape(dim=self.dim, depth=self.depth, heads=self.heads))
        network = network.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
        for p in network.parameters():
            torch.nn.init.normal_(p, 0.0, 0.5 / math.sqrt(self.dim))
        return network


SHAPES = {"tiny": Shape(64, 2, 2, 16), "small": Shape(128, 4, 4, 16), "medium": Shape(256, 8, 8, 32),
          "published": Shape(1024, 16, 16, 32)}


class Public:
    """The public rollout procedure: frames drawn one by one, at each step over all frames of the window."""

    def __init__(self, network: WorldGymDiT, settings: WorldGymSettings, first: Tensor, cached: bool) -> None:
        self.network, self.settings, self.cached = network, settings, cached
        self.frames = first.unsqueeze(1)
        self.actions = torch.zeros(len(first), 1, network.shape.action_dim)
        self.calls = self.frame_forwards = 0

    @torch.inference_mode()
    def advance(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Draw K frames (G, K, h, w, C)."""
        drawn = actions.shape[1]
        for n in range(drawn):
            self.actions = torch.cat([self.actions, actions[:, n:n + 1]], 1)
            self.frames = torch.cat([self.frames, noise[:, n:n + 1]], 1)
            self._draw_last()
        return self.frames[:, -drawn:]

    def _draw_last(self) -> None:
        s, shares = self.settings, signal_shares()
        levels = torch.linspace(-1, 999, s.sampling_steps + 1, dtype=torch.long).tolist()
        oldest = max(0, self.frames.shape[1] - s.window)
        window, actions = self.frames[:, oldest:].clone(), self.actions[:, oldest:]
        context = window.shape[1] - 1
        window[:, :-1] *= math.sqrt(shares[s.context_level])
        null = torch.zeros_like(actions)
        null[..., -1] = 1.0
        guided = s.guidance != 1.0
        caches = [TemporalCache(s.window) for _ in range(1 + guided)]
        for step in range(s.sampling_steps, 0, -1):
            at = torch.tensor([s.context_level] * context + [levels[step]])
            v = self._pass(window, at, actions, caches[0], step == s.sampling_steps)
            if guided:
                without = self._pass(window, at, null, caches[1], step == s.sampling_steps)
                v = (1 - s.guidance) * without + s.guidance * v
            a, b = shares[levels[step]], 1.0 if levels[step - 1] < 0 else shares[levels[step - 1]]
            x = window[:, -1:]
            clean, eps = math.sqrt(a) * x - math.sqrt(1 - a) * v, math.sqrt(1 - a) * x + math.sqrt(a) * v
            window[:, -1:] = math.sqrt(b) * clean + math.sqrt(1 - b) * eps
        self.frames[:, -1:] = window[:, -1:]

    def _pass(self, window: Tensor, at: Tensor, actions: Tensor, cache: TemporalCache, fill: bool) -> Tensor:
        """Return v of the last frame; every frame of the window is embedded and conditioned."""
        self.calls += 1
        levels, last = at.expand(len(window), -1), window.shape[1] - 1
        if not self.cached or fill:
            self.frame_forwards += window.shape[1]
            v = self.network.run(window, self.network.modulate(levels, actions), cache if self.cached else None)
            return v[:, -1:].float()
        self.frame_forwards += 1
        self.network._tokens(window)
        modulation = self.network.modulate(levels[:, last:], actions[:, last:])
        return self.network.run(window[:, last:], modulation, cache, last).float()


Method = tuple[str, Callable[[WorldGymDiT, Tensor], Any]]


def methods(guidance: float, steps: tuple[int, ...], together: int) -> list[Method]:
    """Return the methods that are compared, by name.

    With `together` > 1 also the persistent ones that draw so many frames in staggered steps.
    """
    s = replace(SETTINGS, guidance=guidance)
    found: list[Method] = [
        ("window recomputed", lambda net, first: Public(net, s, first, False)),
        ("cache rebuilt", lambda net, first: Public(net, s, first, True)),
        (RECOMPUTE, lambda net, first: LatentSampler(net, replace(s, after_window=RECOMPUTE), first)),
        (PERSISTENT, lambda net, first: LatentSampler(net, replace(s, after_window=PERSISTENT), first)),
    ]
    for n in steps:
        found.append((f"{PERSISTENT}, {n} steps", lambda net, first, n=n: LatentSampler(
            net, replace(s, after_window=PERSISTENT, sampling_steps=n), first)))
    for n in (s.sampling_steps, *steps) if together > 1 else ():
        found.append((f"{PERSISTENT}, {n} steps, {together} together", lambda net, first, n=n: LatentSampler(
            net, replace(s, after_window=PERSISTENT, sampling_steps=n, frames_at_once=together), first)))
    return found


def run(make: Method, network: WorldGymDiT, first: Tensor, actions: Tensor, noise: Tensor) -> dict[str, Any]:
    """Draw all frames with one method; return wall and processor seconds at 20 and at 40, counts, and the frames."""
    sampler = make[1](network, first)
    wall, cpu = time.perf_counter(), time.process_time()
    parts, at = [], {}
    each = sampler.settings.frames_at_once
    for n in range(each, actions.shape[1] + 1, each):
        parts.append(sampler.advance(actions[:, n - each:n], noise[:, n - each:n]))
        if n in FRAMES:
            at[n] = (time.perf_counter() - wall, time.process_time() - cpu)
    held = sampler.cache.bytes / 1e6 if isinstance(sampler, LatentSampler) else None
    return {"at": at, "counted": sampler.frame_forwards, "frames": torch.cat(parts, 1), "cache_mb": held}


def compare(name: str, copies: int, guidance: float, repeats: int, dtype: torch.dtype, steps: tuple[int, ...],
            together: int = 1) -> dict[str, Any]:
    """Compare all methods on one shape and batch; the same frames are asserted."""
    shape, g = SHAPES[name], torch.Generator().manual_seed(1)
    network = shape.network(dtype)
    size = (shape.side, shape.side, network.shape.channels)
    first = torch.randn(copies, *size, generator=g)
    actions = torch.randn(copies, max(FRAMES), network.shape.action_dim, generator=g)
    noise = torch.randn(copies, max(FRAMES), *size, generator=g)
    best: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for make in methods(guidance, steps, together):
            found = run(make, network, first, actions, noise)
            before = best.setdefault(make[0], found)
            for n in FRAMES:
                before["at"][n] = tuple(map(min, zip(before["at"][n], found["at"][n], strict=True)))
    truth = best["window recomputed"]["frames"]
    for method, counted in COUNTED.items():
        counted *= 2 if guidance != 1.0 else 1
        assert best[method]["counted"] == counted, (method, best[method]["counted"])
    exact = max(float((best[m]["frames"] - truth).abs().max()) for m in ("cache rebuilt", RECOMPUTE))
    assert dtype != torch.float32 or exact < 1e-3, exact
    row = {"shape": name, "copies": copies, "guidance": guidance, "dtype": str(dtype).removeprefix("torch."),
           "identical_within": exact, "methods": {}}
    for method, found in best.items():
        row["methods"][method] = {
            "frame_forwards": found["counted"], "cache_mb": found["cache_mb"],
            "wall_s": {n: found["at"][n][0] for n in FRAMES}, "cpu_s": {n: found["at"][n][1] for n in FRAMES}}
    return row


def passes(name: str, copies: int, dtype: torch.dtype, repeats: int, window: bool = True) -> dict[str, Any]:
    """Time the three passes that a frame under a full window is made of: 20 frames, 2 and 1, in processor seconds.

    The seconds of a frame are their sum: an extrapolation, and named so. Without `window` that pass is left out, which
    takes by far the most time and memory, and the cache holds random keys.
    """
    shape, s = SHAPES[name], SETTINGS
    network = shape.network(dtype)
    size = (shape.side, shape.side, network.shape.channels)
    cache = TemporalCache(s.window)
    spent: dict[str, float] = {}

    @torch.inference_mode()
    def timed(what: str, first: int, count: int) -> None:
        latents, actions = torch.randn(copies, count, *size), torch.randn(copies, count, network.shape.action_dim)
        begin = time.process_time()
        network.run(latents, network.modulate(torch.full((count,), 14), actions), cache, first, count - 1)
        spent[what] = min(spent.get(what, math.inf), time.process_time() - begin)

    def filled() -> None:
        cache.begin(0, s.window, torch.device("cpu"))
        heads, patches = network.shape.heads, (shape.side // network.shape.patch) ** 2
        for block in range(shape.depth):
            some = torch.randn(copies, patches, heads, s.window, shape.dim // heads).to(dtype)
            cache.attend(block, some, some, some)

    for _ in range(repeats):
        cache.clear()
        if window:
            timed("window", 0, s.window)
        else:
            filled()
        timed("two", s.window - 1, 2)
        for _ in range(3):
            timed("one", s.window, 1)
    n = s.sampling_steps
    frame = {PERSISTENT: spent["two"] + (n - 1) * spent["one"]}
    if window:
        rebuilt = spent["window"] + (n - 1) * spent["one"]
        frame |= {"window recomputed": n * spent["window"], "cache rebuilt": rebuilt, RECOMPUTE: rebuilt}
    return {"shape": name, "copies": copies, "dtype": str(dtype).removeprefix("torch."), "pass_cpu_s": spent,
            "extrapolated_frame_cpu_s": frame, "cache_mb": cache.bytes / 1e6,
            "weights_mb": sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as a Markdown table."""
    out = ["| shape | copies | guidance | method | frame-forwards | wall, s | processor, s | over recomputing: wall, "
           "processor | over rebuilt cache: wall, processor | cache, MB |", "|" + "---|" * 10]
    for row in rows:
        for method, found in row["methods"].items():
            cells = [row["shape"], str(row["copies"]), f"{row['guidance']:g}", method, f"{found['frame_forwards']:,}"]
            cells += [_both(found[clock], "{:.2f}") for clock in ("wall_s", "cpu_s")]
            for base in COUNTED:
                than = row["methods"][base]
                cells.append(", ".join(_both({n: than[clock][n] / found[clock][n] for n in FRAMES}, "{:.1f}")
                                       for clock in ("wall_s", "cpu_s")))
            cells.append("" if found["cache_mb"] is None else f"{found['cache_mb']:.1f}")
            out.append(f"| {' | '.join(cells)} |")
    return out


def _both(values: dict[int, float], form: str) -> str:
    return " / ".join(form.format(values[n]) for n in FRAMES)


def main() -> None:
    """Measure, print a table, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["small"], choices=sorted(SHAPES))
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", nargs="*", type=int, default=[4, 2, 1], help="few-step schedules")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 (default: float32)")
    parser.add_argument("--passes", action="store_true", help="time single passes under a full window, and extrapolate")
    parser.add_argument("--no-window", action="store_true", help="with --passes: leave out that over the whole window")
    parser.add_argument("--together", type=int, default=1, help="also draw so many frames in staggered steps: a "
                        "divisor of 20")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    rows = []
    for name in args.shapes:
        for copies in args.copies:
            rows.append(passes(name, copies, dtype, args.repeats, not args.no_window) if args.passes else
                        compare(name, copies, args.guidance, args.repeats, dtype, tuple(args.steps), args.together))
            print("\n".join(lines(rows[-1:])) if not args.passes else json.dumps(rows[-1], indent=1), flush=True)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"threads {args.threads}, {dtype}, peak memory of the process {peak_mb:.0f} MB")
    if args.out:
        args.out.write_text(json.dumps({"threads": args.threads, "peak_mb": peak_mb, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
