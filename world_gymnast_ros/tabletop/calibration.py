"""What real episodes of known outcome teach the geometric judge: a few numbers, no weights.

    camera    where it stands: all first frames show the arm, whose pose is measured; no outcome is needed
    height    of the named object: the one with which the measured places explain the outcomes best
    approach  how high the hand must come near it, where low ones fail: what is tall falls over, which no dream shows
    detection from which confidence on it takes what it sees for the named object, where that looks unfamiliar
    radius    of the disc as which the named object is pushed: what rolls on acts as a greater one
    margin    of its verdict, together with the threshold of the learned judge and, where low approaches fail, with
              how much higher than that the hand must come: all are chosen as a pair

So a moved camera or a new shape costs two dozen episodes, where weights would need hundreds.
"""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from world_gymnast_ros.data.episode import Episode
from world_gymnast_ros.evaluation.replay import judge_recorded
from world_gymnast_ros.evaluation.scene_judge import MIN_OUTCOMES
from world_gymnast_ros.progress import shown
from world_gymnast_ros.robot.arm_parts import part_points
from world_gymnast_ros.robot.camera import fit_camera, project
from world_gymnast_ros.tabletop.geometric_judge import GeometricJudge
from world_gymnast_ros.tabletop.scene_reader import SceneReader
from world_gymnast_ros.tabletop.tasks import parse
from world_gymnast_ros.types import F64, U8

MOVED_SIGMA_M, TURNED_SIGMA_RAD = 0.08, 0.12
"""How far a camera may have been moved since the judge was made."""
STILL_SIGMA_M, STILL_SIGMA_RAD = 0.005, 0.006
"""How far it may be from what all first frames together say."""
MIN_SIGHTINGS = 24
"""Parts of the arm seen; fewer do not move the camera."""
HEIGHTS_M = tuple(float(h) for h in np.arange(0.010, 0.0601, 0.0025).round(4))
HEIGHT_SIGMA_M = 0.02
APPROACHES_M = tuple(float(h) for h in np.arange(0.05, 0.1301, 0.005).round(4))
DETECTION_THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
RADII_M = tuple(float(r) for r in np.arange(0.014, 0.0421, 0.002).round(4))
RADIUS_SIGMA_M = 0.01
DETECTION_GAIN = 3.0
"""So much more likely, in nats, must outcomes be for another threshold and radius to be believed."""
APPROACH_GAIN = 3.0
"""So much more likely (in nats) must outcomes be for a limit of the approach to be believed, where there was none."""
HIGHER_M = (0.0, 0.01, 0.02, 0.03)
"""So much higher than a learned approach a pair may ask for: what is likely enough to be believed may be too low."""
MARGINS_SIGMAS = (1.28, 1.0, 0.75, 0.5, 0.25, 0.0)
J = TypeVar("J", bound=GeometricJudge)
MOST_CERTAIN = 0.97
"""No single outcome counts as more certain than this, for arms slip and labels err."""


def first_frames(episodes: Sequence[Episode]) -> list[U8]:
    """Return the first frames at the camera's own size where they were kept, else as recorded."""
    return [e.frames[0] if e.captured is None else e.captured for e in episodes]


def fit_camera_again(judge: GeometricJudge, episodes: Sequence[Episode]) -> str:
    """Move the judge's nominal camera to where all first frames together show the arm; return a line about it.

    Left where it was when too little of the arm is seen, or the parts agree no better with the new place.
    """
    known = [e for e in episodes if e.states is not None]
    if not known:
        return "camera: as it was; no recording holds the arm's state"
    seen = [judge.locator.detect(frame[None], ())[2:]
            for frame in shown(first_frames(known), "looking for the arm", "image")]
    uv = np.concatenate([s[0] for s in seen]).astype(np.float64).reshape(-1, 2)
    confidence = np.concatenate([s[1] for s in seen]).astype(np.float64).ravel()
    points = part_points(np.stack([e.states[0] for e in known])).astype(np.float64).reshape(-1, 3)  # type: ignore[index]
    use = confidence > judge.config.found
    if use.sum() < MIN_SIGHTINGS:
        return f"camera: as it was; {use.sum()} sightings of the arm, at least {MIN_SIGHTINGS} are needed"
    loose = dataclasses.replace(judge.reader.prior, shift_sigma_m=MOVED_SIGMA_M, rotation_sigma_rad=TURNED_SIGMA_RAD)
    fitted = fit_camera(loose, points, uv, np.where(use, confidence, 0.0))

    def off(pose: F64) -> float:
        return float(np.median(np.linalg.norm(project(pose, judge.reader.prior, points[use]) - uv[use], axis=-1)))
    before, after = off(judge.reader.prior.T_base_camera), off(fitted.T_base_camera)
    if not after < before:
        return f"camera: as it was; the arm is {before:.4f} off in the images, {after:.4f} after a fit"
    moved_mm = 1000 * np.linalg.norm((fitted.T_base_camera - judge.reader.prior.T_base_camera)[:3, 3])
    judge.config.T_base_camera = [float(v) for v in fitted.T_base_camera.ravel()]
    judge.config.shift_sigma_m, judge.config.rotation_sigma_rad = STILL_SIGMA_M, STILL_SIGMA_RAD
    return (f"camera: {moved_mm:.0f} mm from where it was thought to be, by {use.sum()} sightings of the arm, "
            f"{before:.4f} off before and {after:.4f} after (halves of the image)")


def fit_height(judge: GeometricJudge, episodes: Sequence[Episode]) -> str:
    """Set the named object's height to the most probable one, given outcomes; return a line about it.

    Maximum a posteriori over HEIGHTS_M and the present height, around that; measured on true frames, without a margin.
    Where the object is pushed it counts for more, the hand passing over it or not, and must be better by
    DETECTION_GAIN.
    """
    name, fault = named(episodes)
    if fault:
        return f"height: as it was; {fault}"
    present = judge.reader.height_m(name)
    heights = sorted({*HEIGHTS_M, present})
    bare, likely = with_settings(judge, sure_sigmas=0.0), []  # looks at each captured frame once, for all heights
    for height in shown(heights, "height of the object", "height"):
        set_height(bare, name, height, is_push(episodes))
        likely.append(log_likelihood(bare, episodes) - 0.5 * ((height - present) / HEIGHT_SIGMA_M) ** 2)
    best, gain = heights[int(np.argmax(likely))], max(likely) - likely[heights.index(present)]
    if is_push(episodes) and gain < DETECTION_GAIN:
        return f"height of the {name}: as it was; none explains the outcomes by {DETECTION_GAIN:g} nats better"
    set_height(judge, name, best, is_push(episodes))
    return f"height of the {name}: {1000 * best:.1f} mm, was {1000 * present:.1f}"


def set_height(judge: GeometricJudge, name: str, height_m: float, pushed: bool) -> None:
    """Let the middle of an object be `height_m` above the table: there it is seen, and where it is `pushed`, the hand
    passes over it only above twice that. Changes the judge's settings in place."""
    if pushed:
        size_m = [judge.reader.size_m(name)[0], round(2.0 * height_m, 4)]
        judge.config.object_sizes_m = {**judge.config.object_sizes_m, name: size_m}
    judge.config.object_heights_m = {**judge.config.object_heights_m, name: height_m}


def is_push(episodes: Sequence[Episode]) -> bool:
    """Return whether the episodes, all of one instruction, are of pushing."""
    return parse(episodes[0].instruction).family == "push"


def fit_approach(judge: GeometricJudge, episodes: Sequence[Episode]) -> str:
    """Learn how high the hand must be when it first comes near the named object; return a line about it.

    Only where a limit explains the outcomes of a reach by APPROACH_GAIN better than none; a limit that is there
    already gives way to a better one, or to none, by the same measure.
    """
    name, fault = named(episodes)
    if fault or parse(episodes[0].instruction).family != "reach":
        return f"approach: as it was; {fault or 'learned for reaching alone'}"
    bare = with_settings(judge)  # looks at each captured frame once, for all limits
    likely = []
    for height in shown((0.0, *APPROACHES_M), "approach to the object", "height"):
        set_strictness(bare, name, Strictness(height, 0.0))
        likely.append(log_likelihood(bare, episodes))
    free, best = likely[0], int(np.argmax(likely))
    limit_m = APPROACHES_M[best - 1] if likely[best] >= free + APPROACH_GAIN else 0.0
    set_strictness(judge, name, Strictness(limit_m, judge.config.sure_sigmas))
    if not limit_m:
        return f"approach to the {name}: free; no limit explains the outcomes by {APPROACH_GAIN:g} nats better"
    return (f"approach to the {name}: at least {1000 * limit_m:.0f} mm high, which explains the outcomes by "
            f"{likely[best] - free:.1f} nats better")


def fit_detection(judge: GeometricJudge, episodes: Sequence[Episode]) -> str:
    """Learn the detection threshold of the named object, and where it is pushed, its radius; return a line about it.

    Both at once, the pair that explains the outcomes best: with too few detections nothing can be said of the radius,
    and with a wrong radius detections explain nothing. An episode without a detection counts as a toss of a coin. Only
    what explains them by DETECTION_GAIN better than the present pair is believed.
    """
    name, fault = named(episodes)
    if fault:
        return f"detection: as it was; {fault}"
    usual_m, top_m = judge.reader.size_m(name)
    present = judge.reader.detection_threshold(name), usual_m
    open_minded = with_settings(judge, sure_sigmas=0.0, object_found={name: 0.0})  # looks at each frame once
    known = [e for e in episodes if e.states is not None]
    confidence = np.array([open_minded.reader.measure(frame, e.states[0], (name,)).confidence[0]  # type: ignore[index]
                     for frame, e in shown(list(zip(first_frames(known), known, strict=True)), "detection", "image")])
    likely = {}
    radii_m = {usual_m, *RADII_M} if is_push(episodes) else {usual_m}
    for radius_m in shown(radii_m, "detection and radius", "radius"):
        open_minded.config.object_sizes_m = {**judge.config.object_sizes_m, name: [radius_m, top_m]}
        p = outcome_probability(open_minded, known)
        for found in {present[0], *DETECTION_THRESHOLDS}:
            coin = ~(confidence > found) | np.isnan(p)
            likely[found, radius_m] = float(np.log(np.where(coin, 0.5, p)).sum()
                                            - 0.5 * ((radius_m - usual_m) / RADIUS_SIGMA_M) ** 2)
    best = max(sorted(likely, reverse=True), key=likely.__getitem__)
    gain = likely[best] - likely[present]
    if gain < DETECTION_GAIN:
        return f"detection of the {name}: as it was; nothing explains the outcomes by {DETECTION_GAIN:g} nats better"
    judge.config.object_found = {**judge.config.object_found, name: best[0]}
    judge.config.object_sizes_m = {**judge.config.object_sizes_m, name: [best[1], top_m]}
    return (f"detection of the {name}: threshold {best[0]:g}, was {present[0]:g}; pushed as a disc of "
            f"{1000 * best[1]:.0f} mm, was {1000 * usual_m:.0f}; explains the outcomes by {gain:.1f} nats better")


def named(episodes: Sequence[Episode]) -> tuple[str, str]:
    """Return the one object that all episodes name, and why nothing can be learned about it, or ''."""
    names = sorted({parse(e.instruction).target for e in episodes})
    if len(names) != 1:
        return "", f"{len(names)} objects are named, one can be learned at a time"
    wins = sum(bool(e.success) for e in episodes)
    if min(wins, len(episodes) - wins) < MIN_OUTCOMES:
        return names[0], (f"{wins} successes and {len(episodes) - wins} failures, at least {MIN_OUTCOMES} of each are "
                          "needed")
    return names[0], ""


def log_likelihood(judge: GeometricJudge, episodes: Sequence[Episode]) -> float:
    """Return the log likelihood, nats, of the outcomes by what the judge measures on true frames, where it can."""
    p = outcome_probability(judge, episodes)
    return float(np.log(p[np.isfinite(p)]).sum())


def outcome_probability(judge: GeometricJudge, episodes: Sequence[Episode]) -> F64:
    """Return how likely the judge holds each outcome (E,) on true frames; NaN where it has no verdict."""
    won = np.array([e.success for e in episodes])
    p = np.clip(judge_recorded(judge, [e.frames for e in episodes], episodes)[0], 1.0 - MOST_CERTAIN, MOST_CERTAIN)
    return np.asarray(np.where(won, p, 1.0 - p), np.float64)


def with_settings(judge: J, **settings: object) -> J:
    """Return a judge with other settings and the same network; nothing that it measured before is kept."""
    locator = copy.copy(judge.locator)
    locator.config = copy.deepcopy(judge.config)
    for key, value in settings.items():
        setattr(locator.config, key, {**getattr(locator.config, key), **value} if isinstance(value, dict) else value)
    return type(judge)(locator)


@dataclass(frozen=True, order=True)
class Strictness:
    """How strict the geometric judge is: `approach_m` that the hand must come from (0: from anywhere), and
    `margin_sigmas`."""

    approach_m: float
    margin_sigmas: float

    def __str__(self) -> str:
        above = f", approach {1000 * self.approach_m:.0f} mm" if self.approach_m else ""
        return f"margin {self.margin_sigmas:g} sigmas{above}"


def set_strictness(judge: GeometricJudge, name: str, strictness: Strictness) -> None:
    """Change the judge's settings in place; what it measured stays true."""
    judge.config.sure_sigmas = strictness.margin_sigmas
    others = {k: v for k, v in judge.config.approach_heights_m.items() if k != name}
    judge.config.approach_heights_m = {**others, name: strictness.approach_m} if strictness.approach_m else others


class CalibratedJudge(GeometricJudge):
    """A geometric judge that a scene can be taught. Implements `evaluation.scene_judge.SceneJudge`."""

    @property
    def objects(self) -> SceneReader:
        """Finds the objects that it judges by, as it has learned the camera."""
        return self.reader

    def with_camera(self, episodes: Sequence[Episode]) -> tuple[CalibratedJudge, str]:
        """Return it with the camera where these episodes show it, or as it is, and a line about that."""
        judge = with_settings(self)
        line = fit_camera_again(judge, episodes)
        return (self if judge.config.to_dict() == self.config.to_dict() else with_settings(judge)), line

    def learned(self, episodes: Sequence[Episode]) -> tuple[CalibratedJudge, list[str]]:
        """Return it with all that the module names but the margin, and a line about each."""
        parse(episodes[0].instruction)
        judge, line = self.with_camera(episodes)
        judge = with_settings(judge)
        lines = [line, *(fit(judge, episodes) for fit in (fit_detection, fit_height, fit_approach))]
        return with_settings(judge), lines

    def strictness(self, episodes: Sequence[Episode]) -> Strictness:
        """Return how strict it is about the object that the episodes name."""
        return Strictness(self.config.approach_heights_m.get(parse(episodes[0].instruction).target, 0.0),
                          self.config.sure_sigmas)

    def set_strictness(self, strictness: Strictness, episodes: Sequence[Episode]) -> None:
        """Be so strict about the object that the episodes name; in place."""
        set_strictness(self, parse(episodes[0].instruction).target, strictness)

    def predicted_by_strictness(self, rollouts: Sequence[U8], episodes: Sequence[Episode]
                                ) -> dict[Strictness, NDArray[np.bool_]]:
        """Return predicted success bool (E,) at each of MARGINS_SIGMAS and at its present margin; where it has learned
        an approach to the object that the episodes name, at each of HIGHER_M above it too."""
        present = self.strictness(episodes)
        heights = [round(present.approach_m + more, 4) for more in HIGHER_M] if present.approach_m else [0.0]
        predicted = {}
        try:
            tried = [Strictness(h, m) for h in heights for m in {*MARGINS_SIGMAS, present.margin_sigmas}]
            for strictness in shown(tried, "how strict to be", "margin"):
                self.set_strictness(strictness, episodes)
                predicted[strictness] = judge_recorded(self, rollouts, episodes)[1]
        finally:
            self.set_strictness(present, episodes)
        return predicted

    def save(self, directory: Path) -> None:
        """Write its checkpoint."""
        self.locator.save(directory)
