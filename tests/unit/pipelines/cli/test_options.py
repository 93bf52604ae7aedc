"""Settings made of options."""

from typing import Self

import pytest
from pydantic import BaseModel, model_validator

from llm_blender_ray.pipelines.cli.options import UsageError, settings_of


class Both(BaseModel):
    """Two settings that exclude each other."""

    a: int = 0
    b_c: int = 0

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.a and self.b_c:
            raise ValueError("give a or b")
        return self


@pytest.mark.parametrize(
    ("values", "message"), [({"a": 1, "b_c": 2}, "give a or b"), ({"b_c": "x"}, "--b-c: Input should be")]
)
def test_a_mistake_is_one_line_with_its_option_where_it_has_one(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(Both, **values)
    assert caught.value.format_message().startswith(message)
