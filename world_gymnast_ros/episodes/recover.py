"""Rebuild an episode whose recording was cut off: killed process, full disk, pulled plug, flipped bits.

Every whole chunk is kept; only what was never handed to the operating system, or fails its checksum, is lost.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mcap.records import Channel, Chunk, Footer, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from world_gymnast_ros.episodes.bag import CUSTOM_DATA_NAME, BagFile
from world_gymnast_ros.episodes.files import (
    HEADER_NAME,
    MCAP_NAME,
    METADATA_NAME,
    PARTIAL_SUFFIX,
    STEPS_NAME,
    episode_error,
    read_json,
    write_json,
    write_whole,
)
from world_gymnast_ros.episodes.outcome import Outcome, read_outcome, write_outcome
from world_gymnast_ros.episodes.steps_file import StepsFile
from world_gymnast_ros.episodes.writer import episode_header
from world_gymnast_ros.errors import EpisodeError

REBUILT_NAME = "episode.mcap.rebuilt"
DAMAGED_NAME = "episode.mcap.damaged"


@dataclass(frozen=True)
class Salvage:
    """What `repair` found. `lost_chunks`: chunks that failed their checksum; `lost_messages`: whole, but of a topic
    that no whole chunk names; `cut_off`: the file had no end."""

    messages: int
    steps: int
    lost_chunks: int
    lost_messages: int
    cut_off: bool


@dataclass
class _Found:
    """What the records of a broken file told so far."""

    schemas: dict[int, Schema]
    channels: dict[int, Channel]
    custom_data: dict[str, str]
    steps: StepsFile
    lost_chunks: int = 0
    nameless: int = 0
    whole: bool = False

    def salvage(self, bag: BagFile) -> Salvage:
        """Sum up, once everything is copied."""
        return Salvage(sum(bag.counts.values()), self.steps.count, self.lost_chunks, self.nameless, not self.whole)


def repair(folder: Path, now_ns: int) -> tuple[Path, Salvage]:
    """Rebuild the episode in `folder`, rename it if it was `.partial`, and return (its folder, what was saved).

    An episode without a recorded end gets ended_by "fault"; a whole one is rebuilt to the same content. The outcome
    stays. A file with corrupt chunks inside is kept beside the new one. Raises EpisodeError, and then changes
    nothing, when the episode is being recorded, holds no whole message, or the disk refuses.
    """
    source = folder / MCAP_NAME
    found: _Found | None = None
    final = folder.with_name(folder.name.removesuffix(PARTIAL_SUFFIX))
    if final != folder and final.exists():
        raise EpisodeError(f"{final} exists beside {folder.name}; move one of them away")
    try:
        with source.open("rb") as file:
            _refuse_if_recording(file, folder)
            found = _Found({}, {}, {}, StepsFile(folder / STEPS_NAME))
            bag, metadata = _rebuild(file, folder, found)
        _write_beside(folder, final.name, found, bag, metadata, now_ns)
        if found.lost_chunks:
            source.rename(folder / DAMAGED_NAME)
        (folder / REBUILT_NAME).replace(source)
        folder.rename(final)
    except OSError as error:
        raise episode_error("repair", source, error) from error
    finally:
        if found is not None:
            found.steps.abandon()  # nothing is left to abandon after a success
        with contextlib.suppress(OSError):
            (folder / REBUILT_NAME).unlink(missing_ok=True)
    return final, found.salvage(bag)


def _refuse_if_recording(file: Any, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EpisodeError(f"{folder} is being recorded right now; stop the recorder first") from error
    except OSError:
        # Some network file systems have no locks: then nothing was locked in the first place.
        return


def _rebuild(file: Any, folder: Path, found: _Found) -> tuple[BagFile, str]:
    target = folder / REBUILT_NAME
    target.unlink(missing_ok=True)
    limit = (folder / MCAP_NAME).stat().st_size
    # First the names of everything, from anywhere: the chunk that introduced a topic may be the corrupt one.
    for record in _records(file, limit, found):
        if isinstance(record, Schema):
            found.schemas[record.id] = record
        elif isinstance(record, Channel):
            found.channels[record.id] = record
        elif isinstance(record, Metadata) and record.name == CUSTOM_DATA_NAME:
            found.custom_data = dict(record.metadata)
    file.seek(0)
    bag = BagFile(target, found.custom_data)
    try:
        for record in _records(file, limit, found):
            _take(record, found, bag)
        if not bag.counts:
            raise EpisodeError(f"{folder / MCAP_NAME} ({limit} bytes) holds no whole message; remove the folder")
        return bag, bag.finish()
    except BaseException:
        bag.abandon()
        raise


def _records(file: Any, limit: int, found: _Found) -> Iterator[McapRecord]:
    """Yield every whole record, chunks opened; skip chunks with a wrong checksum; stop where the file breaks off."""
    reader = StreamReader(file, emit_chunks=True, record_size_limit=limit)
    records = iter(reader.records)
    found.lost_chunks, found.whole = 0, False
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except Exception:  # whatever mcap raises where the file breaks off or was changed
            return
        if isinstance(record, Footer):
            found.whole = True
        if not isinstance(record, Chunk):
            yield record
            continue
        try:
            inside = breakup_chunk(record, validate_crc=True)
        except Exception:  # a checksum, or whatever a decompressor raises on damaged bytes: it is counted
            found.lost_chunks += 1
            continue
        yield from inside


def _take(record: McapRecord, found: _Found, bag: BagFile) -> None:
    if not isinstance(record, Message):
        return
    channel = found.channels.get(record.channel_id)
    schema = found.schemas.get(channel.schema_id) if channel else None
    if channel is None or schema is None:
        found.nameless += 1
        return
    text = schema.data.decode()
    if channel.topic not in bag.types:
        bag.open_channel(channel.topic, schema.name, text, channel.metadata.get("topic_type_hash", ""))
    bag.add(channel.topic, record.data, record.log_time)
    found.steps.take(schema.name, record.data, text)


def _write_beside(folder: Path, episode_id: str, found: _Found, bag: BagFile, metadata: str, now_ns: int) -> None:
    try:
        old = read_json(folder / HEADER_NAME)
    except EpisodeError:
        old = episode_header(episode_id, _header_in(found.custom_data), bag.first_ns or 0, None, None, {})
    try:
        outcome = read_outcome(folder)
    except EpisodeError:
        outcome = Outcome()
    write_whole(folder / METADATA_NAME, metadata.encode())
    found.steps.finish(str(old.get("ended_by") or "fault"), outcome)
    if outcome == Outcome():
        write_outcome(folder, outcome)
    write_json(folder / HEADER_NAME, {
        **old, "messages": dict(bag.counts), "ended_by": old.get("ended_by") or "fault",
        "ended_ns": old.get("ended_ns") or bag.last_ns,
        "repaired": {**asdict(found.salvage(bag)), "repaired_ns": now_ns},
    })


def _header_in(custom_data: dict[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(custom_data.get("header", "{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}
