"""Signs of a failed fuser in what it writes; `test_fuser` has the answers of a real one."""

import pytest

from llm_blender_ray.pipelines.train.generation import generation_warnings


@pytest.mark.parametrize(
    ("answers", "references", "sign"),
    [
        (["a", "b", "c"], ["x", "y", "z"], None),
        (["a", "", " "], ["x", "y", "z"], "empty output: 2 of 3 answers"),
        (["", ""], ["x", "y"], "empty output: 2 of 2"),
        (["a", "", "b", ""], ["w", "x", "y", "z"], None),
        (["a", "a", "a"], ["x", "y", "z"], "constant: the answers to 3 held-out rows are all 'a'"),
        (["a", "a", "a"], ["x", "x", "x"], None),  # it was taught so
        (["a", "a"], ["x", "y"], None),  # too few to judge by
        ([], [], None),
    ],
)
def test_no_text_and_one_text_for_all_are_signs(
    answers: list[str], references: list[str], sign: str | None
) -> None:
    found = generation_warnings(answers, references)
    assert len(found) == (sign is not None)
    assert sign is None or found[0].startswith(sign)
