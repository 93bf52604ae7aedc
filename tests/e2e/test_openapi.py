"""The service against its own OpenAPI document, with requests that fit it and requests that don't."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fake_parts import fake_blender
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import app_of, served

from llm_blender_ray.configs.serving import Limits, Serving
from llm_blender_ray.pipelines.serve.ballots import Ballots

BALLOTS = Ballots(os.devnull)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_of(serving=Serving(limits=Limits(candidates=8, max_tokens=8)), ballots=BALLOTS)) as url:
        yield url


def map_body(context: Any, body: Any) -> Any:
    """Ask models that there are, and leave them time: else nearly all would end with 404 or 503."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and body["model"]:
        other = "alder" if "messages" in body and "candidates" not in body else "ranker"
        body = {**body, "model": ("blend", other)[len(body["model"]) % 2]}
    if isinstance(body.get("blend"), dict):
        body = {**body, "blend": {name: value for name, value in body["blend"].items() if name != "deadline_s"}}
    return body


document = app_of(fake_blender(), ballots=BALLOTS, meter=lambda metric, value, labels=None: None).openapi()
# 413 beside schemathesis' own: the size of a request is looked at before its fields
REFUSALS = ["400", "404", "405", "413", "415", "422"]
config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
schema = schemathesis.openapi.from_dict(document, config=config)
schema.hook(map_body)


@schema.parametrize()
@settings(max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_are_answered_as_documented(case: schemathesis.Case, url: str) -> None:
    """No 5xx; only documented statuses, content types and shapes; what doesn't fit is refused."""
    # what a schema can't say: a config's limits, models there are, fields that go together
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])
