"""Record one episode: a folder with an MCAP file, a step table, a header and an outcome.

While recording the folder is called `<id>.partial`; `close` renames it, so a folder without that suffix is whole.
Takes serialized messages, so that it needs no ROS; time is an argument.
"""
from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from world_gymnast_ros.episodes.bag import BagFile
from world_gymnast_ros.episodes.files import (
    HEADER_NAME,
    MCAP_NAME,
    METADATA_NAME,
    PARTIAL_SUFFIX,
    STEPS_NAME,
    check_episode_id,
    episode_error,
    free_bytes,
    sync_folder,
    write_json,
    write_whole,
)
from world_gymnast_ros.episodes.marking import mark_outcome
from world_gymnast_ros.episodes.outcome import Outcome, check_ended_by, read_outcome, write_outcome
from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, JPEG_QUALITY, jpeg_cdr, schema_of
from world_gymnast_ros.episodes.steps_file import StepsFile
from world_gymnast_ros.errors import EpisodeError
from world_gymnast_ros.types import U8

FORMAT = "world_gymnast_ros/episode/1"
FLUSH_EVERY_NS = 250_000_000
"""What a killed process can lose; the promise is one second."""
RESERVE_BYTES = 64 * 2**20
"""Recording stops while this much is still free, so that the episode can be closed properly."""


def new_episode_id(instruction: str, now_ns: int) -> str:
    """Return a sortable folder name: UTC time to the millisecond, then the instruction's words."""
    time = datetime.fromtimestamp(now_ns / 1e9, tz=timezone.utc)  # noqa: UP017 (Python 3.10: ROS 2 Humble)
    words = re.sub(r"[^a-z0-9]+", "-", instruction.lower()).strip("-")[:60].strip("-")
    return f"{time:%Y%m%d-%H%M%S}-{now_ns // 10**6 % 1000:03d}" + (f"-{words}" if words else "")


def unused_episode_id(root: Path, episode_id: str) -> str:
    """Return the id, or with a number behind it where `root` has it already: a simulated clock may stand still."""
    candidate, number = episode_id, 1
    while (root / candidate).exists() or (root / (candidate + PARTIAL_SUFFIX)).exists():
        number += 1
        candidate = f"{episode_id}-{number}"
    return candidate


def episode_header(episode_id: str, header: dict[str, Any], started_ns: int, ended_ns: int | None,
                   ended_by: str | None, messages: dict[str, int]) -> dict[str, Any]:
    """Return the content of `episode.json`; `repair` adds what it found."""
    return {"format": FORMAT, "episode_id": episode_id, "header": header, "started_ns": started_ns,
            "ended_ns": ended_ns, "ended_by": ended_by, "messages": messages, "repaired": None}


class EpisodeWriter:
    """Write one episode. Every failure is an EpisodeError; earlier episodes are never touched.

    After an EpisodeError from `write`, call `close("fault", now_ns)`: it saves what is there when the reserve ran
    low, and raises again, leaving the `.partial` folder for `repair`, when the disk itself failed.
    """

    def __init__(self, root: Path, episode_id: str, header: dict[str, Any], now_ns: int,
                 reserve_bytes: int = RESERVE_BYTES) -> None:
        """Open `<root>/<episode_id>.partial`. `header` is JSON: instruction, adapter, scene, notes and the like."""
        self.episode_id = check_episode_id(episode_id)
        self.final = root / self.episode_id
        self.folder = root / (self.episode_id + PARTIAL_SUFFIX)
        self._header, self._started_ns, self._reserve_bytes = header, now_ns, reserve_bytes
        self._last_flush_ns = now_ns
        self._refusal: EpisodeError | None = None
        self._open = False
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise EpisodeError(f"the header of episode {episode_id} is not JSON: {error}") from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._check_space()
            for folder in (self.final, self.folder):
                if folder.exists():
                    raise EpisodeError(f"{folder} exists already; choose another episode id (or repair the partial)")
            self.folder.mkdir()
            self._bag = BagFile(self.folder / MCAP_NAME, {"episode_id": episode_id, "header": text})
            self._steps = StepsFile(self.folder / STEPS_NAME)
        except OSError as error:
            raise episode_error("start recording in", self.folder, error) from error
        self._open = True
        self._write_header(ended_by=None, ended_ns=None)
        write_outcome(self.folder, Outcome())

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return dict(self._bag.counts)

    @property
    def is_open(self) -> bool:
        """Tell whether `close` is still to come: false once it saved the episode, or the disk failed."""
        return self._open

    def write(self, topic: str, msg_type: str, cdr: bytes, stamp_ns: int, definition: str | None = None) -> None:
        """Record one serialized message. `stamp_ns`: when it was received; `definition`: .msg text of a foreign type.

        A type that rosbags does not know and no .msg file defines raises EpisodeError and the recording goes on.
        """
        self._check_open()
        if self._refusal is not None:
            raise self._refusal
        try:
            known = self._bag.types.get(topic, msg_type)
            if known != msg_type:
                raise EpisodeError(f"topic {topic} was {known} and now brings {msg_type}; record it under another name")
            self._steps.take(msg_type, cdr)  # refuses bytes of another type before they are in the recording
            if topic not in self._bag.types:
                self._bag.open_channel(topic, msg_type, *schema_of(msg_type, definition))
            self._bag.add(topic, cdr, stamp_ns)
            self._flush_if_due(stamp_ns)
        except OSError as error:
            raise self._broken("write to", error) from error

    def write_image(self, topic: str, rgb: U8, stamp_ns: int, received_ns: int, frame_id: str = "",
                    quality: int = JPEG_QUALITY) -> None:
        """Record an image uint8 (H, W, 3) as JPEG on `<topic>/compressed`. `stamp_ns`: its capture time."""
        self.write(f"{topic}/compressed", COMPRESSED_IMAGE, jpeg_cdr(rgb, stamp_ns, frame_id, quality), received_ns)

    def flush(self, now_ns: int) -> None:
        """Hand everything to the operating system, if that is due. For a timer, where topics may fall silent."""
        self._check_open()
        try:
            self._flush_if_due(now_ns)
        except OSError as error:
            raise self._broken("write to", error) from error

    def mark(self, outcome: str, marked_by: str, partial_score: float | None, now_ns: int) -> Outcome:
        """Mark the episode while it is recorded; `close` keeps that unless it is given another outcome."""
        return mark_outcome(self.folder, outcome, marked_by, partial_score, now_ns)

    def close(self, ended_by: str, now_ns: int, outcome: str = "unknown", marked_by: str = "",
              partial_score: float | None = None) -> Path:
        """Finish the recording and return its folder. `ended_by`: done, stopped, fault or time.

        Without `marked_by` the outcome stays as it was marked on the way.
        """
        check_ended_by(ended_by)
        Outcome(outcome, marked_by, partial_score)  # refused here, it leaves the recording open
        self._check_open()
        self._open = False
        try:
            if self._bag.links() == 0:
                raise FileNotFoundError(2, "the recording was removed")
            metadata = self._bag.finish()
            write_whole(self.folder / METADATA_NAME, metadata.encode())
            if marked_by:
                self.mark(outcome, marked_by, partial_score, now_ns)
            self._steps.finish(ended_by, read_outcome(self.folder))
            self._write_header(ended_by, now_ns)
            self.folder.rename(self.final)
            sync_folder(self.final.parent)
        except OSError as error:
            raise self._broken("close", error) from error
        except EpisodeError as error:
            raise EpisodeError(f"{error}; then {self._repair_hint()}") from error
        return self.final

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Let go of the file. An episode that was not closed stays `.partial`, for `repair`."""
        if self._open:
            self._open = False
            self._abandon()

    def _abandon(self) -> None:
        self._bag.abandon()
        self._steps.abandon()

    def _check_open(self) -> None:
        if not self._open:
            raise self._refusal or EpisodeError(f"episode {self.episode_id} is closed; start another one")

    def _check_space(self) -> None:
        free = free_bytes(self.final.parent)
        if free < self._reserve_bytes:
            raise EpisodeError(
                f"{self.final.parent} has {free / 2**20:.0f} MiB free, below the reserve of "
                f"{self._reserve_bytes / 2**20:.0f} MiB; free space or record to another disk"
            )

    def _flush_if_due(self, now_ns: int) -> None:
        # A clock that jumps back (a simulator reset) must not stop the flushing.
        if 0 <= now_ns - self._last_flush_ns < FLUSH_EVERY_NS:
            return
        self._last_flush_ns = now_ns
        self._bag.flush()
        if self._bag.links() == 0:
            raise FileNotFoundError(2, "the recording was removed")
        try:
            self._check_space()
        except EpisodeError as error:
            self._refusal = error
            raise

    def _broken(self, doing: str, error: OSError) -> EpisodeError:
        self._open = False
        self._abandon()
        told = episode_error(doing, self.folder, error)
        self._refusal = EpisodeError(f"{told}; then {self._repair_hint()}")
        return self._refusal

    def _repair_hint(self) -> str:
        return f"`world-gymnast episodes repair {self.folder}` saves what is there"

    def _write_header(self, ended_by: str | None, ended_ns: int | None) -> None:
        write_json(self.folder / HEADER_NAME, episode_header(
            self.episode_id, self._header, self._started_ns, ended_ns, ended_by, self.counts))
