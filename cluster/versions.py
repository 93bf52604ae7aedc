"""Versions of a service's deployments: an update restarts what has another version, and nothing else.

Ray Serve gives all deployments of an application one version: a digest of its import path, runtime environment
and arguments for `serve deploy`, a random one for `serve.run`. So any change would restart every model. It has no
public setting for the version of one deployment.
"""

import hashlib
import json
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from ray.serve import Deployment

log = logging.getLogger(__name__)

try:
    from ray.serve._private.config import DeploymentConfig as _DeploymentConfig
except ImportError:  # another release of Ray: every update restarts all deployments
    _DeploymentConfig = None

if _DeploymentConfig is not None:

    class _VersionedConfig(_DeploymentConfig):  # type: ignore[misc, valid-type, unused-ignore]
        """Options of a deployment that keep their version when Ray Serve sets the application's."""

        _version: str = ""

        def to_proto_bytes(self) -> bytes:
            """Called when the deployment is sent to Ray Serve's controller."""
            self.version = self._version
            return bytes(super().to_proto_bytes())


def versioned(deployment: Deployment, *decisive: BaseModel | str) -> Deployment:
    """The deployment with a version of its own.

    Args:
        deployment: Without bound arguments.
        *decisive: What a restart is needed for when it changes. Numbers of `replicas` are no part of it.

    Returns:
        The deployment; its replicas run on through updates that leave the version and the actors' options as they
        are.
    """
    made = deployment.options()
    options = getattr(made, "_deployment_config", None)
    if _DeploymentConfig is None or not isinstance(options, _DeploymentConfig):
        log.warning("this Ray sets the versions of deployments itself: an update restarts all of them")
        return made
    own = _VersionedConfig.model_validate(dict(options))
    own._version = version_of(deployment.func_or_class.__qualname__, *decisive)
    made._deployment_config = own
    return made


def version_of(*decisive: BaseModel | str) -> str:
    """Digest of settings, without their numbers of `replicas`, and of this package's release."""
    content = [one.model_dump(mode="json") if isinstance(one, BaseModel) else one for one in decisive]
    _leave_out(content, "replicas")
    return hashlib.sha256(json.dumps([_release(), content], sort_keys=True).encode()).hexdigest()[:16]


def _release() -> str:
    try:
        return version("llm-blender-ray")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""


def _leave_out(data: Any, key: str) -> None:
    """Remove a key from all mappings, in place."""
    if isinstance(data, dict):
        data.pop(key, None)
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        _leave_out(value, key)
