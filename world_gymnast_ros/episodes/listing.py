"""List and check recorded episodes."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from world_gymnast_ros.episodes.bag import recorded
from world_gymnast_ros.episodes.files import (
    HEADER_NAME,
    MCAP_NAME,
    METADATA_NAME,
    OUTCOME_NAME,
    PARTIAL_SUFFIX,
    STEPS_NAME,
    read_json,
)
from world_gymnast_ros.episodes.image_count import lost_images
from world_gymnast_ros.episodes.outcome import ENDED_BY, Outcome, read_outcome
from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, IMAGES, RAW_IMAGE, check_recorded, header_stamp_ns
from world_gymnast_ros.episodes.steps import outcome_in_table, read_steps
from world_gymnast_ros.errors import BadFrame, EpisodeError

MAX_LOST_SHARE = 0.25
"""Of the images recorded, estimated from the gaps: more are reported."""
MAX_IMAGE_GAP_S = 1.0
"""A longer silence of the camera is reported. The frames of real 5 Hz data are 0.2 s apart."""


@dataclass(frozen=True)
class EpisodeInfo:
    """One line of a listing. `steps` and `duration_s` are 0 for a partial episode."""

    path: Path
    partial: bool
    instruction: str
    ended_by: str
    outcome: Outcome
    steps: int
    duration_s: float


def list_episodes(root: Path) -> list[EpisodeInfo]:
    """Describe every episode folder under `root`, partial ones too, by name. Raises EpisodeError without a folder."""
    if not root.is_dir():
        raise EpisodeError(f"{root} is not a folder; name the one that the recorder writes to")
    return [describe(path) for path in sorted(root.iterdir()) if (path / MCAP_NAME).is_file()]


def describe(folder: Path) -> EpisodeInfo:
    """Describe one episode without opening its recording. What cannot be read is left empty; `check` tells why."""
    partial = folder.name.endswith(PARTIAL_SUFFIX)
    try:
        header = read_json(folder / HEADER_NAME)
    except EpisodeError:
        header = {}
    try:
        outcome = read_outcome(folder)
    except EpisodeError:
        outcome = Outcome()
    try:
        steps = read_steps(folder / STEPS_NAME)
        count, instruction = len(steps), next((text for text in steps.instruction if text), "")
    except EpisodeError:
        count, instruction = 0, ""
    start_ns, end_ns = header.get("started_ns") or 0, header.get("ended_ns") or 0
    return EpisodeInfo(
        path=folder, partial=partial, instruction=instruction or str(header.get("header", {}).get("instruction", "")),
        ended_by=str(header.get("ended_by") or ""), outcome=outcome, steps=count,
        duration_s=max(0, end_ns - start_ns) * 1e-9,
    )


def check(folder: Path) -> list[str]:
    """Read the whole episode, decode its images, and list what is wrong; an empty list means nothing is."""
    problems: list[str] = []
    if folder.name.endswith(PARTIAL_SUFFIX):
        problems.append("was never finished: repair it")
    counts, images_ns = _count(folder / MCAP_NAME, problems)
    _check_header(folder, counts, problems)
    for read in (read_outcome, _read_table):
        try:
            read(folder)
        except EpisodeError as error:
            problems.append(str(error))
    _check_images(images_ns, problems)
    return problems


def _read_table(folder: Path) -> None:
    table = read_steps(folder / STEPS_NAME)
    header = read_json(folder / HEADER_NAME)
    steps = header["messages"].get("/step", header["messages"].get("step"))
    if steps is not None and steps != len(table):
        raise EpisodeError(f"{STEPS_NAME} has {len(table)} rows for {steps} Step messages: repair it")
    told, outcome = outcome_in_table(folder / STEPS_NAME), read_outcome(folder).outcome
    if told not in ("", outcome):
        raise EpisodeError(f"{STEPS_NAME} says {told}, {OUTCOME_NAME} {outcome}, which counts: repair it")
    sequence = np.unique(table.chunk_sequence)
    missing = 0 if len(sequence) == 0 else int(sequence[-1] - sequence[0]) + 1 - len(sequence)
    if missing:
        raise EpisodeError(f"{missing} of the chunks {sequence[0]}..{sequence[-1]} were never played or not recorded")


def _count(path: Path, problems: list[str]) -> tuple[Counter[str], list[int]]:
    """Read every message and decode every image; return the number per topic, and the images' capture times."""
    counts: Counter[str] = Counter()
    images_ns: list[int] = []
    sizes: Counter[tuple[int, int]] = Counter()
    bad: list[str] = []
    try:
        for topic, kind, _, cdr in recorded(path, validate=True):
            counts[topic] += 1
            if kind not in IMAGES:
                continue
            images_ns.append(header_stamp_ns(cdr))
            try:
                sizes[check_recorded(kind, cdr)] += 1
            except (BadFrame, EpisodeError) as error:
                bad.append(f"number {len(images_ns)} at {(images_ns[-1] - images_ns[0]) * 1e-9:.2f} s: {error}")
    except EpisodeError as error:
        problems.append(f"{MCAP_NAME} cannot be read to its end: {error}")
    if bad:
        problems.append(f"{len(bad)} of {len(images_ns)} images cannot be used, {bad[0]}")
    if len(sizes) > 1:
        counted = ", ".join(f"{n} of {width}x{height}" for (height, width), n in sizes.items())
        problems.append(f"the images have {len(sizes)} sizes ({counted}): the camera's resolution was changed")
    return counts, images_ns


def _check_header(folder: Path, counts: Counter[str], problems: list[str]) -> None:
    try:
        header = read_json(folder / HEADER_NAME)
        if header.get("ended_by") not in ENDED_BY:
            problems.append(f"ended_by is {header.get('ended_by')!r}, expected one of {', '.join(ENDED_BY)}: repair it")
        if header.get("messages") != dict(counts):
            problems.append(f"{HEADER_NAME} tells of {header.get('messages')}, the recording holds {dict(counts)}")
    except EpisodeError as error:
        problems.append(str(error))
    try:
        info = yaml.safe_load((folder / METADATA_NAME).read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        if info["message_count"] != sum(counts.values()):
            problems.append(f"{METADATA_NAME} tells of {info['message_count']} messages, there are {counts.total()}")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        problems.append(f"{METADATA_NAME} cannot be read ({error!r}): repair it")


def _check_images(images_ns: list[int], problems: list[str]) -> None:
    if not images_ns:
        problems.append(f"holds no image ({COMPRESSED_IMAGE} or {RAW_IMAGE})")
        return
    gap_s = float(np.diff(np.sort(np.array(images_ns))).max(initial=0)) * 1e-9
    if gap_s > MAX_IMAGE_GAP_S:
        problems.append(f"the camera was silent for {gap_s:.1f} s (limit {MAX_IMAGE_GAP_S} s)")
    lost = lost_images(images_ns)
    if lost > MAX_LOST_SHARE * len(images_ns):
        problems.append(f"about {lost} images were lost beside {len(images_ns)} recorded (limit "
                        f"{MAX_LOST_SHARE:.0%}): the machine or the network was too busy")
