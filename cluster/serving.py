"""Ray Serve's settings for calls of a few kilobytes: environment variables that it reads at import.

By default replicas call each other through Ray's object store; over gRPC a call takes half the time
(docs/results.md). They are those of RAY_SERVE_THROUGHPUT_OPTIMIZED without its direct ingress, which does not give
the replacement of a dead gateway the same port, and without buffering replicas' output.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

LEAN = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}


@contextlib.contextmanager
def lean_serve() -> Iterator[None]:
    """Apply these settings to Ray Serve where Ray is started within the block, here and in its workers.

    Raises:
        RuntimeError: Ray Serve was imported before without them.
    """
    before = {name: os.environ.get(name) for name in LEAN}
    if "ray.serve" in sys.modules and before != LEAN:
        raise RuntimeError("Ray Serve is imported already; its settings can't be changed any more")
    os.environ.update(LEAN)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
