"""Gaps of the installed packages: modules of an extra that is not installed, methods of another release."""

from collections.abc import Sequence
from importlib.util import find_spec

EXTRAS = {
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "opentelemetry": "otel",
    "s3fs": "s3",
    "aiobotocore": "s3",
    "botocore": "s3",
    "tenacity": "s3",
    "matplotlib": "report",
    "accelerate": "train",
    "peft": "train",
    "scipy": "evaluation",
    "statsmodels": "evaluation",
    "vllm": "vllm",
}


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it isn't."""
    return find_spec(module) is not None


def require(*modules: str) -> None:
    """Check that modules of extras are installed, before work that will import them; it imports none of them.

    Raises:
        ModuleNotFoundError: One is not; see `missing_extra`.
    """
    for module in modules:
        if not is_installed(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def missing_extra(error: Exception) -> str | None:
    """Describe the extra that installs a missing module; None for a module of no extra, and for other errors.

    Args:
        error: Raised by an import; its `name` is the module that was not found.
    """
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module not in EXTRAS:
        return None
    return f"{module} is not installed: pip install 'llm-blender-ray[{EXTRAS[module]}]'"


def missing_method(owner: type, names: Sequence[str]) -> str | None:
    """Return the first of these names that is no method of a class; None when all are."""
    return next((name for name in names if not callable(getattr(owner, name, None))), None)
