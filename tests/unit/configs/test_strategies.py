"""Strategies as settings: mappings, text of the command line, and the one line that a mistake gives."""

import pytest
from pydantic import TypeAdapter, ValidationError

from llm_blender_ray.configs.strategies import Full, Sparse, Strategy, Swiss, ToReference

SETTINGS: TypeAdapter[Strategy] = TypeAdapter(Strategy)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("full", Full()),
        ("swiss:rounds=4,orders=one", Swiss(rounds=4, orders="one")),
        ("swiss:confidence=0.9,budget=null", Swiss(confidence=0.9)),
        ("sparse:aggregation=bradley-terry", Sparse(aggregation="bradley-terry")),
        ("reference:reference=median", ToReference(reference="median")),
        ("reference:reference=3", ToReference(reference=3)),
        ({"kind": "swiss", "rounds": 4}, Swiss(rounds=4)),
        (Swiss(rounds=4), Swiss(rounds=4)),
    ],
    ids=str,
)
def test_a_strategy_is_a_mapping_or_text(given: object, expected: object) -> None:
    assert SETTINGS.validate_python(given) == expected


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ("swis", "unknown strategy 'swis', expected one of full, sparse"),
        ("swiss:round=4", "swiss has no option 'round', it takes orders, aggregation, budget, seed, rounds"),
        ("swiss:", "swiss has no option ''"),
        ("swiss:kind=full", "swiss has no option 'kind'"),
        ("swiss:rounds", "expected swiss:option=value"),
        ("swiss:rounds=4,rounds=5", "each option once"),
        ("swiss:rounds=[", "rounds=[ is not a YAML value"),
        ("swiss:rounds=many", "swiss: rounds: expected a valid integer"),
        ("sparse:degree=3", "sparse: degree: expected a multiple of 2, got 3"),
        ("reference:reference=best", "reference: reference: expected 'longest', 'shortest'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(given: str, mistake: str) -> None:
    with pytest.raises(ValidationError) as error:
        SETTINGS.validate_python(given)
    (only,) = error.value.errors()
    assert mistake in only["msg"] and "\n" not in only["msg"]


@pytest.mark.parametrize("given", [{"kind": "swis"}, {"rounds": 4}, {"kind": "swiss", "round": 4}, 4, None])
def test_what_is_no_strategy_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(given)
