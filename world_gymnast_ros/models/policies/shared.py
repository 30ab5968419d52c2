"""Act with any stored adapter on the one copy of a policy, which a session of this process may be training."""
from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from world_gymnast_ros.errors import AdapterMismatch
from world_gymnast_ros.models.policies.adapted import BASE
from world_gymnast_ros.models.policies.lora import LoraWeights
from world_gymnast_ros.models.policies.turns import Turn
from world_gymnast_ros.serving.http_server import ModelServer
from world_gymnast_ros.serving.server import PolicyService
from world_gymnast_ros.store import Store
from world_gymnast_ros.types import ActionChunk, AdapterRef, Frame

KEPT = 2
"""So many adapters stay in memory: the one that acts, and the one before."""

class Shareable(Protocol):
    """What it takes of a policy: see `models.policies.adapted.AdaptedPolicy`."""

    name: str
    trained_on: str
    chunk_size: int
    turn: Turn

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily."""

    def read_adapter(self, ref: AdapterRef) -> LoraWeights:
        """Read and verify an adapter of this policy."""

    def acting_as(self, name: str, weights: LoraWeights | None) -> AbstractContextManager[Any]:
        """Act with other weights inside the block."""


Find = Callable[[str], AdapterRef]
"""From the SHA-256 of an adapter's weights to its verified reference. Raises AdapterMismatch where it is not known."""


class SharedPolicy:
    """Implements `serving.server.SwitchingPolicy`. What is trained meanwhile is neither acted with nor changed."""

    def __init__(self, policy: Shareable, find: Find, default: AdapterRef | None = None) -> None:
        """`find` gives an adapter by its hash; `default`: what acts where no hash is named (None: the base)."""
        self._policy, self._find = policy, find
        self._known: dict[str, tuple[str, LoraWeights | None]] = {"": (BASE, None)}
        self.default = default.sha256 if default is not None else ""
        if default is not None:
            self._keep(default)
        self.name, self.trained_on = policy.name, policy.trained_on
        self.chunk_size: int = policy.chunk_size

    def know(self, sha256: str) -> str:
        """Read the adapter with this hash ("": the base); return its name. Raises AdapterMismatch or BadCheckpoint."""
        return self._named(sha256)[0]

    def _named(self, sha256: str) -> tuple[str, LoraWeights | None]:
        with self._policy.turn:
            if sha256 not in self._known:
                self._keep(self._find(sha256))
            return self._known[sha256]

    def _keep(self, ref: AdapterRef) -> None:
        weights = self._policy.read_adapter(ref)
        old = [key for key in self._known if key not in ("", self.default)]
        for key in old[:max(0, len(old) - KEPT + 1)]:
            self._known.pop(key, None)
        self._known[ref.sha256] = (ref.name, weights)

    def act(self, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily, with the default adapter."""
        return self.act_with(self.default, frame, instruction)

    def act_with(self, sha256: str, frame: Frame, instruction: str) -> ActionChunk:
        """Choose one chunk greedily with the adapter of this hash ("": the base). Raises AdapterMismatch."""
        with self._policy.turn, self._policy.acting_as(*self._named(sha256)):
            return self._policy.act(frame, instruction)


def in_store(root: Path) -> Find:
    """Return what finds adapters by hash among those stored under `root`, each verified when it is read."""
    def find(sha256: str) -> AdapterRef:
        if len(sha256) == 64 and all(c in "0123456789abcdef" for c in sha256):
            store = Store(root)
            for folder in sorted(root.glob(f"*-{sha256[:8]}")):
                ref = store.get(folder.name)
                if ref.sha256 == sha256:
                    return ref
        raise AdapterMismatch(f"no adapter with SHA-256 {sha256[:12]!r} is stored under {root}; store it there (adapt, "
                              "adapt_node), or serve the folder that holds it")
    return find


def serve_copy(policy: Shareable, adapters: Path, port: int) -> ModelServer:
    """Let others on this machine act through this copy of the policy, adapters by hash from the folder `adapters`;
    nobody beyond the machine can. Answers in a thread until `stop_serving`. BadConfig where the port is taken."""
    server = ModelServer(PolicyService(SharedPolicy(policy, in_store(adapters))), port=port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def stop_serving(server: ModelServer) -> None:
    """Stop the thread of `serve_copy` and free its port."""
    server.shutdown()
    server.server_close()
