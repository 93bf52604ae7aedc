"""Modules of extras that are not installed."""

import pytest

from llm_blender_ray.configs import extras
from llm_blender_ray.configs.extras import missing_extra, require


def test_a_module_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("json", "pytest")
    monkeypatch.setitem(extras.EXTRAS, "not_there", "serve")
    with pytest.raises(ModuleNotFoundError) as caught:
        require("json", "not_there")
    assert missing_extra(caught.value) == "not_there is not installed: pip install 'llm-blender-ray[serve]'"
    assert missing_extra(ModuleNotFoundError("other", name="other")) is None
