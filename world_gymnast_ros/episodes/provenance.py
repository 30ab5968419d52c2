"""What a Step does not say of itself: its chunk as the policy gave it, its image, whose policy it was."""
from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from world_gymnast_ros.episodes.schemas import COMPRESSED_IMAGE, RAW_IMAGE, decoder, header_stamp_ns
from world_gymnast_ros.types import I64

CHUNK = "world_gymnast_ros/msg/ActionChunk"
ADAPTER = "world_gymnast_ros/msg/Adapter"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
POLICY_STATUS = "policy_node"
"""The name, after its namespace, under which policy_node tells its policy in the diagnostics."""
MAX_CHUNKS = 512
"""So many are remembered, minutes of control: a step comes within seconds of its chunk."""


def stamp_ns(time: Any) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)


def images_acted_on(images_ns: I64, sent_ns: I64, seen_ns: I64, chunk_index: I64) -> I64:
    """Return the places (T,) in the sorted capture times `images_ns` of the images that steps were taken at.

    The first action of a chunk belongs to the very image that the policy saw (`seen_ns`), where that was recorded;
    any other to the newest one when it was sent; -1: there was none yet.
    """
    newest = np.searchsorted(images_ns, sent_ns, side="right") - 1
    if not len(images_ns):
        return newest.astype(np.int64)
    seen = np.searchsorted(images_ns, seen_ns, side="left")
    exact = (chunk_index == 0) & (images_ns[np.minimum(seen, len(images_ns) - 1)] == seen_ns)
    return np.where(exact, seen, newest).astype(np.int64)


class Provenance:
    """Listens to the other topics of a recording, and completes the rows of its steps."""

    def __init__(self) -> None:
        self._decoders: dict[str, Callable[[bytes], Any]] = {}
        self._chunks: dict[tuple[int, int], Any] = {}
        self._adapters: dict[str, tuple[str, str]] = {}
        self._images_ns = array("q")
        self._policy = ""

    def hear(self, msg_type: str, cdr: bytes, definition: str | None = None) -> None:
        """Take in one message of any type. Raises EpisodeError on bytes that do not fit a type of interest."""
        if msg_type in (COMPRESSED_IMAGE, RAW_IMAGE):
            self._images_ns.append(header_stamp_ns(cdr))
        elif msg_type in (CHUNK, ADAPTER, DIAGNOSTICS):
            if msg_type not in self._decoders:
                self._decoders[msg_type] = decoder(msg_type, definition)
            message = self._decoders[msg_type](cdr)
            if msg_type == CHUNK:
                self._on_chunk(message)
            elif msg_type == ADAPTER:
                self._adapters[message.name or "base"] = message.sha256, _world_model(message.scores_json)
            else:
                self._policy = next((status.hardware_id for status in message.status
                                     if status.name.rpartition("/")[2] == POLICY_STATUS),
                                    self._policy)

    def _on_chunk(self, message: Any) -> None:
        self._chunks[int(message.sequence), stamp_ns(message.frame_stamp)] = message
        while len(self._chunks) > MAX_CHUNKS:
            del self._chunks[next(iter(self._chunks))]

    def complete(self, rows: list[dict[str, Any]]) -> None:
        """Fill in what is known by now; what is not stays NaN, 0, -1 or empty."""
        if not rows:
            return
        sent_ns, seen_ns, index = (np.array([row[name] for row in rows], np.int64)
                                   for name in ("stamps_ns", "frame_stamps_ns", "chunk_index"))
        frames = images_acted_on(np.sort(np.array(self._images_ns, np.int64)), sent_ns, seen_ns, index)
        for row, frame in zip(rows, frames.tolist(), strict=True):
            sha256, world_model = self._adapters.get(row["adapter"], ("", ""))
            row |= {"frame": frame, "policy": self._policy, "adapter_sha256": sha256, "world_model": world_model}
            chunk = self._chunks.get((int(row["chunk_sequence"]), row["frame_stamps_ns"]))
            if chunk is not None and len(chunk.deltas) >= 7 * (row["chunk_index"] + 1):
                row |= {"policy_output": chunk.deltas[7 * row["chunk_index"]:][:7],
                        "inference_start_ns": stamp_ns(chunk.inference_start),
                        "inference_end_ns": stamp_ns(chunk.inference_end),
                        "chunk_stamps_ns": stamp_ns(chunk.header.stamp)}


def _world_model(scores_json: str) -> str:
    try:
        scores = json.loads(scores_json or "{}")
    except ValueError:
        return ""
    return str(scores.get("world_model", "")) if isinstance(scores, dict) else ""
