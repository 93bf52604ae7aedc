"""Optional dependencies: which extra of the package installs a missing module."""

EXTRAS = {
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "s3fs": "s3",
    "aiobotocore": "s3",
    "botocore": "s3",
    "tenacity": "s3",
    "matplotlib": "report",
    "accelerate": "train",
    "vllm": "vllm",
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Describe the extra that installs a missing module; None for a module of no extra.

    Args:
        error: Raised by an import; `name` is the module that was not found.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return f"{module} is not installed: pip install 'llm-blender-ray[{EXTRAS[module]}]'"
