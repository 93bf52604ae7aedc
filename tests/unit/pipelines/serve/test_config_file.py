"""The config file that a Serve config names by its path."""

import hashlib
from pathlib import Path

import pytest
from serving import logged

from llm_blender_ray.configs.loading import ConfigError
from llm_blender_ray.pipelines.serve.config_file import ConfigFile

LOGGER = "llm_blender_ray.pipelines.serve.config_file"


def test_an_edit_is_logged_once_with_the_digest_to_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text("models: []")
    file = ConfigFile(str(path))
    with logged(LOGGER, monkeypatch) as records:
        file.warn_of_edit()
        assert records == []
        path.write_text("models: [more]")
        for _ in range(2):
            file.warn_of_edit()
        (record,) = records
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert str(path) in record.getMessage() and digest in record.getMessage()
        assert ConfigFile(str(path), digest).digest == digest
        path.write_text("models: []")
        file.warn_of_edit()  # as deployed again
        path.unlink()
        file.warn_of_edit()  # a node without the file
        assert len(records) == 1


def test_another_file_than_the_deployed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    with pytest.raises(ConfigError, match=r"blend\.yaml: can't be read: No such file"):
        ConfigFile(str(path))
    path.write_text("models: []")
    with pytest.raises(ConfigError, match=r"its SHA-256 is .* on this node, and 0123456789ab\.\.\. was deployed"):
        ConfigFile(str(path), "0123456789abcdef")
