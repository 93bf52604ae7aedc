"""Fingerprint of an input: whether its files are those of an earlier session, without reading them."""

import os
from collections.abc import Sequence

from llm_blender_ray.configs.identity import settings_digest
from llm_blender_ray.pipelines.rows.uris import filesystem, is_local, list_files, translate_errors


def fingerprint(uri: str, limit: int | None, without: Sequence[str] = ()) -> str:
    """Digest of the names, sizes and versions of a URI's files; it changes whenever the rows may have.

    Raises:
        BlendError: There are no files.
    """
    versions = []
    for file in list_files(uri, without):
        fs, path = filesystem(file)
        with translate_errors(file, "read it"):
            info = fs.info(os.path.realpath(path) if is_local(fs) else path)  # of a link's target
        changed = info.get("ETag") or info.get("mtime") or info.get("LastModified")  # number, text or datetime
        versions.append([file, info.get("size"), changed if isinstance(changed, int | float) else str(changed)])
    return settings_digest([versions, limit])
