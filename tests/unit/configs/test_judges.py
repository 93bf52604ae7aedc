"""Configs of `blend judge`: rubrics, pairs, and mistakes in them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_blender_ray.actors.records import Matchup, Prompt
from llm_blender_ray.actors.scorers.judge import question
from llm_blender_ray.configs.identity import deciding
from llm_blender_ray.configs.judges import JudgeConfig, PairDesign
from llm_blender_ray.configs.loading import ConfigError, load, load_mapping
from llm_blender_ray.configs.rubrics import rubric_names
from llm_blender_ray.configs.strategies import Sparse

JUDGE = {"llm": {"engine": "echo", "name": "j", "model": "m"}}
OTHER = {"llm": {"engine": "echo", "name": "k", "model": "m"}}

SAMPLED = {"llm": JUDGE["llm"] | {"samples": 2, "sampling": {"temperature": 1}}}


def config(**settings: Any) -> JudgeConfig:
    return load_mapping({"judges": [JUDGE]} | settings, JudgeConfig, name="c")


@pytest.mark.parametrize("name", ["design", "baseline"])
def test_the_example_takes_another_design_or_a_baseline_from_the_command_line(name: str) -> None:
    example = load(Path(__file__).parents[3] / "configs/judge.yaml", JudgeConfig, [f"pairs.{name}=sparse"])
    assert example.pairs.baseline == ("sparse" if name == "baseline" else None)


@pytest.mark.parametrize("name", rubric_names())
def test_included_rubrics_show_both_answers_between_fences(name: str) -> None:
    rubric = config(rubric=name).rubric
    text = question(Matchup(Prompt("1", "How?"), "Ann's\n```", "Bob's"), "", rubric.prompt or "")
    assert text.index("How?") < text.index("Ann's") < text.index("Bob's")
    assert text.count("````\n") == 6 and "{" not in text


def test_a_rubric_is_a_name_a_file_or_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Which of {answer_a} and {answer_b} answers {prompt}?")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"criterion": "how short it is"}))
    for rubric, expected in (("mine.txt", "prompt"), ("mine.yaml", "criterion")):
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"judges": [JUDGE], "rubric": rubric}))
        found = load(tmp_path / "judge.yaml", JudgeConfig).rubric
        assert found.model_dump(exclude_defaults=True).keys() == {expected}
    assert config(rubric={"criterion": "how short it is"}).rubric.criterion == "how short it is"
    assert config().rubric == config(rubric="helpfulness").rubric


def test_a_judge_may_have_its_own_rubric_and_pairs() -> None:
    own = JUDGE | {"rubric": "factuality", "pairs": {"design": "sparse:degree=2"}}
    parts = config(judges=[own, OTHER], pairs={"baseline": "blend"}).parts
    assert list(parts) == ["j", "k"]
    assert isinstance((parts["j"].pairs or PairDesign()).design, Sparse)
    assert (parts["k"].pairs or PairDesign()).baseline == "blend"
    assert parts["j"].rubric != parts["k"].rubric == config().rubric


def test_the_text_of_a_rubric_decides_results_and_a_family_does_not() -> None:
    plain = deciding(config().parts["j"])
    assert plain["rubric"]["prompt"].startswith("Two assistants")
    assert deciding(config(judges=[JUDGE | {"own_models": ["a"]}]).parts["j"]) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": []}, "judges: expected at least one judge"),
        ({"judges": [JUDGE, JUDGE]}, "judges: two have the same name: j"),
        ({"rubric": "helpfull"}, "'helpfull' is neither a readable file"),
        ({"rubric": {"four_way": True}}, "four_way needs a prompt"),
        ({"rubric": {"prompt": "{answer_a}"}}, "expected {answer_b} in it"),
        ({"pairs": {"baseline": "x", "design": "full"}}, "give it or a design"),
        ({"pairs": {"baseline": "models"}}, "expected one contestant"),
        ({"pairs": {"design": "fulll"}}, "unknown strategy 'fulll'"),
        ({"prices": {"x": {"input": 1, "output": 1}}}, "prices.x is no judge's name"),
        ({"cmp_results": "x"}, "'x' is no judge's name"),
        ({"judges": [JUDGE, OTHER], "cmp_results": True}, "expected the name of one of the judges: j, k"),
        ({"budget": {"usd_per_request": 1}}, "only usd_per_run"),
        ({"judges": [SAMPLED]}, "one answer is used"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**settings)
    assert message in str(raised.value)
