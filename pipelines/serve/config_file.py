"""Config file of a service on a cluster, where the Serve config names its path.

Ray Serve compares arguments, so that it does not notice an edit of the file: the gateways do, and log it.
"""

import hashlib
import logging
from pathlib import Path

from llm_blender_ray.configs.loading import ConfigError

_log = logging.getLogger(__name__)


class ConfigFile:
    """A config file as it was when the application was built.

    Attributes:
        path: Path on the cluster's nodes.
        digest: SHA-256 of its content, in hexadecimal digits.
    """

    def __init__(self, path: str, expected: str | None = None) -> None:
        """Read the file.

        Args:
            path: Its path on this node.
            expected: Its digest as the Serve config has it; None: any.

        Raises:
            ConfigError: It can't be read, or has another digest.
        """
        self.path = path
        try:
            self.digest = _digest(path)
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror or error}") from error
        if expected is not None and self.digest != expected:
            raise ConfigError(
                f"{path}: its SHA-256 is {self.digest[:12]}... on this node, and {expected[:12]}... was deployed"
            )
        self._logged = self.digest

    def warn_of_edit(self) -> None:
        """Log once that the file is another one now. A node without the file has nothing to compare."""
        try:
            found = _digest(self.path)
        except OSError:
            return
        if found not in (self.digest, self._logged):
            _log.warning(
                "%s has changed, and the service runs the earlier config: deploy it with args.digest %s",
                self.path,
                found,
            )
        self._logged = found


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
