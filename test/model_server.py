"""A model server of this package on a free port, in a thread."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from world_gymnast_ros.serving.http_server import ModelServer


@contextmanager
def serving(service: Any) -> Iterator[ModelServer]:
    """Serve until the block ends."""
    with ModelServer(service, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
