"""The MCAP file of an episode, in the form that rosbag2, Foxglove, rosbags and mcap read."""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from world_gymnast_ros.episodes.files import MCAP_NAME, episode_error
from world_gymnast_ros.errors import EpisodeError

CHUNK_BYTES = 2**20
"""Rarely reached: `flush` ends a chunk every quarter of a second. The file's index grows with the number of chunks, and
is held in memory until its end."""
ROS_DISTRO = "jazzy"
CUSTOM_DATA_NAME = "world_gymnast_ros"
LATCHED_TOPICS = ("instruction", "adapter", "arm_status", "tf_static")

_FOREVER = {"sec": 9223372036, "nsec": 854775807}


def _yaml(value: Any) -> str:
    """Dump YAML without anchors: the copy shares no part with itself."""
    return cast("str", yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False))


def _qos(latched: bool) -> list[dict[str, Any]]:
    return [{
        "history": "keep_last", "depth": 1 if latched else 10, "reliability": "reliable",
        "durability": "transient_local" if latched else "volatile", "deadline": _FOREVER, "lifespan": _FOREVER,
        "liveliness": "automatic", "liveliness_lease_duration": _FOREVER, "avoid_ros_namespace_conventions": False,
    }]


def recorded(path: Path, topics: Sequence[str] | None = None, starting_ns: int | None = None,
             before_ns: int | None = None, validate: bool = False) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield (topic, type, receive time ns, CDR) of every message, or of `topics`; `validate`: check the checksums.

    `starting_ns` is the first receive time, `before_ns` one past the last. Raises EpisodeError, whatever mcap raises on
    a file that was cut or changed.
    """
    with opened(path) as file:
        try:
            reader = make_reader(file, validate_crcs=validate)
            found = reader.iter_messages(topics, starting_at=starting_ns, ending_before=before_ns)
            for schema, channel, message in found:
                yield channel.topic, "" if schema is None else schema.name, message.log_time, message.data
        except GeneratorExit:
            raise
        except OSError as error:
            raise episode_error("read", path, error) from error
        except Exception as error:
            raise broken(path, error) from error


def recorded_types(path: Path) -> dict[str, str]:
    """Return the type of every recorded topic. Raises EpisodeError, whatever mcap raises."""
    with opened(path) as file:
        try:
            summary = make_reader(file).get_summary()
        except OSError as error:
            raise episode_error("read", path, error) from error
        except Exception as error:
            raise broken(path, error) from error
    if summary is None:
        raise broken(path, "no index")
    return {c.topic: summary.schemas[c.schema_id].name for c in summary.channels.values()
            if c.schema_id in summary.schemas}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a recording. Raises EpisodeError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise episode_error("read", path, error) from error
    with file:
        yield file


def broken(path: Path, error: object) -> EpisodeError:
    """Return the error of a recording that cannot be read to its end, with the remedy."""
    return EpisodeError(f"{path} is broken ({error!r:.160}); run `world-gymnast episodes repair {path.parent}`")


class BagFile:
    """One MCAP file being written. Every method may raise OSError."""

    def __init__(self, path: Path, custom_data: dict[str, str]) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        # Tells `repair` that this recording is alive; the kernel lets go of it when the process dies.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # mcap leaves some methods without types.
        self._writer: Any = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE)
        self._channels: dict[str, int] = {}
        self.types: dict[str, str] = {}
        self._schemas: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._latched: dict[str, bool] = {}
        self._custom_data = custom_data
        self.counts: dict[str, int] = {}
        self.first_ns: int | None = None
        self.last_ns = 0
        self._writer.start(profile="ros2", library="world_gymnast_ros")
        self._writer.add_metadata(CUSTOM_DATA_NAME, custom_data)
        self.flush()

    def open_channel(self, topic: str, msg_type: str, definition: str, digest: str) -> None:
        """Name the type of a topic, before its first message. `definition` with dependencies, `digest` RIHS01."""
        if msg_type not in self._schemas:
            self._schemas[msg_type] = self._writer.register_schema(msg_type, "ros2msg", definition.encode())
            self._hashes[msg_type] = digest
        latched = topic.rsplit("/", 1)[-1] in LATCHED_TOPICS
        metadata = {"offered_qos_profiles": _yaml(_qos(latched)), "topic_type_hash": self._hashes[msg_type]}
        self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[msg_type], metadata)
        self.types[topic], self._latched[topic], self.counts[topic] = msg_type, latched, 0

    def add(self, topic: str, cdr: bytes, stamp_ns: int) -> None:
        """Add one message to an open channel. `stamp_ns`: when it was received."""
        self._writer.add_message(self._channels[topic], log_time=stamp_ns, data=cdr, publish_time=stamp_ns,
                                 sequence=self.counts[topic])
        self.counts[topic] += 1
        self.first_ns = stamp_ns if self.first_ns is None else min(self.first_ns, stamp_ns)
        self.last_ns = max(self.last_ns, stamp_ns)

    def flush(self) -> None:
        """Hand every message to the operating system: a killed process loses nothing written before."""
        self._writer.flush()

    def links(self) -> int:
        """Return how many names the file has: 0 when somebody removed it."""
        return os.fstat(self._file.fileno()).st_nlink

    def finish(self) -> str:
        """Write the index and close; return the text of rosbag2's metadata.yaml."""
        info = self._metadata()
        self._writer.add_metadata("rosbag2", {"serialized_metadata": _yaml(info)})
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return _yaml({"rosbag2_bagfile_information": info})

    def abandon(self) -> None:
        """Close the file as it is."""
        try:
            self._file.close()
        except OSError:
            # The flush inside close fails again on a full disk; Python closes the descriptor all the same.
            return

    def _metadata(self) -> dict[str, Any]:
        start_ns = self.first_ns or 0
        duration_ns = max(0, self.last_ns - start_ns)
        total = sum(self.counts.values())
        topics = [{
            "topic_metadata": {
                "name": topic, "type": kind, "serialization_format": "cdr",
                "offered_qos_profiles": _qos(self._latched[topic]), "type_description_hash": self._hashes[kind],
            },
            "message_count": self.counts[topic],
        } for topic, kind in self.types.items()]
        times = {"starting_time": {"nanoseconds_since_epoch": start_ns}, "duration": {"nanoseconds": duration_ns}}
        return {
            "version": 9, "storage_identifier": "mcap", **times, "message_count": total,
            "topics_with_message_count": topics, "compression_format": "", "compression_mode": "",
            "relative_file_paths": [MCAP_NAME], "files": [{"path": MCAP_NAME, **times, "message_count": total}],
            "custom_data": self._custom_data, "ros_distro": ROS_DISTRO,
        }
