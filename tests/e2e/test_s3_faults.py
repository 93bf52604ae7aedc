"""What a bad network does between this project and S3: every request of every operation meets every fault once."""

import contextlib
import itertools
import json
import os
import re
import urllib.request
from collections import Counter

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_proxy import (
    cut_body,
    lose_answer,
    refuse,
    reset,
    reset_in_body,
    stall,
    stall_in_body,
)

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.pipelines.rows.readers import read_rows
from llm_blender_ray.pipelines.rows.s3 import ATTEMPTS, retry_settings
from llm_blender_ray.pipelines.rows.storage import get, names, put, remove
from llm_blender_ray.pipelines.rows.uris import list_files, open_binary, replacing, translate_errors

ROWS = [{"id": str(number), "prompt": f"{number} " * 1000} for number in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PART = 5 * 2**20  # the least S3 takes
ERRORS = {  # and how often: aiohttp asks once more by itself after a reset
    "error": (refuse(500, "InternalError"), 1),
    "reset": (reset, 2),
    "lost answer": (lose_answer, 2),
    "silence": (stall, 1),
}
BROKEN_BODIES = {"reset": reset_in_body, "cut": cut_body, "silence": stall_in_body}


@pytest.fixture(autouse=True)
def s3_settings(monkeypatch):
    """A file of some MB is several ranges or parts. Settings are fsspec's, which needs no new clients for them."""
    settings = {"default_block_size": PART, "config_kwargs": {}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    return settings["config_kwargs"]


@pytest.fixture
def impatient(s3_settings):
    s3_settings["read_timeout"] = 0.5


@pytest.fixture
def two_attempts(s3_settings):
    s3_settings["retries"] = {"mode": "standard", "total_max_attempts": 2}


def _get(bucket):
    assert get(f"{bucket}/in/a.jsonl") == b"rows"


def _put(bucket):
    put(f"{bucket}/out/a", b"new")


def _names(bucket):
    assert names(f"{bucket}/in") == {"a.jsonl", "b.jsonl"}


def _remove(bucket):
    remove(f"{bucket}/in")


def _list_file(bucket):
    assert list_files(f"{bucket}/in/a.jsonl") == [f"{bucket}/in/a.jsonl"]


def _list_folder(bucket):
    assert list_files(f"{bucket}/in") == [f"{bucket}/in/a.jsonl", f"{bucket}/in/b.jsonl"]


def _list_glob(bucket):
    assert list_files(f"{bucket}/*/a*") == [f"{bucket}/in/a.jsonl"]


def _open(bucket):
    uri = f"{bucket}/in/a.jsonl"
    with translate_errors(uri, "read it"), open_binary(uri) as file:
        assert file.read() == b"rows"


def _replace(bucket):
    uri = f"{bucket}/out/b"
    with translate_errors(uri, "write it"), replacing(uri) as file:
        file.write(b"new")


OPERATIONS = (_get, _put, _names, _open, _replace, _remove, _list_file, _list_folder, _list_glob)


@pytest.fixture
def bucket(s3_bucket, s3_faults):
    for name in ("a.jsonl", "b.jsonl"):
        put(f"{s3_bucket}/in/{name}", b"rows")
    s3_faults.clear()
    return s3_bucket


@pytest.mark.parametrize(
    ("operation", "fault"),
    [*itertools.product(OPERATIONS[:5], ERRORS), *itertools.product(OPERATIONS[5:], ["error"])],
)
def test_every_request_is_repeated(impatient, bucket, s3_faults, operation, fault):
    inject, times = ERRORS[fault]
    plan = s3_faults.plan(inject, times=times)
    operation(bucket)
    assert plan.injected == times * len(set(s3_faults.requests)) > 0
    s3_faults.clear()
    assert names(f"{bucket}/in") == (set() if operation is _remove else {"a.jsonl", "b.jsonl"})
    assert get(f"{bucket}/out/a") == (b"new" if operation is _put else None)
    assert get(f"{bucket}/out/b") == (b"new" if operation is _replace else None)


@pytest.mark.parametrize("fault", BROKEN_BODIES)
@pytest.mark.parametrize("operation", [_get, _names, _open])
def test_a_body_that_breaks_off_is_read_again(impatient, bucket, s3_faults, operation, fault):
    plan = s3_faults.plan(BROKEN_BODIES[fault], "GET")
    operation(bucket)
    assert plan.injected == 1


def test_rows_come_through_a_bad_network_as_they_were(s3_bucket, s3_faults):
    """Written in parts and read in ranges, each of which goes wrong once or twice."""
    upload = s3_faults.plan(reset, "PUT", "partNumber=")
    around = s3_faults.plan(refuse(503, "SlowDown"), "POST")
    with replacing(f"{s3_bucket}/in/a.jsonl") as file:
        for at in range(0, len(LINES), 2**20):
            file.write(LINES[at : at + 2**20])
    assert upload.injected == len(upload.seen) == len(LINES) // PART + 1 > 2
    assert around.injected == len(around.seen) == 2
    first, second, third = (
        s3_faults.plan(fault, "GET", r"a\.jsonl", first=number)
        for number, fault in [(1, reset_in_body), (3, refuse(503, "SlowDown")), (4, cut_body)]
    )
    read = list(read_rows(f"{s3_bucket}/in"))
    assert first.injected == second.injected == third.injected == 1
    assert [(row["id"], row["prompt"], row["error"]) for row in read] == [
        (row["id"], row["prompt"], None) for row in ROWS
    ]


def test_parquet_comes_through_a_bad_network(s3_bucket, s3_faults):
    table = pa.table({"prompt": [row["prompt"] for row in ROWS]})
    with replacing(f"{s3_bucket}/in/a.parquet") as file:
        pq.write_table(table, file, compression="none", use_dictionary=False)
    plan = s3_faults.plan(reset_in_body, "GET", "parquet", times=2)
    assert [row["prompt"] for row in read_rows(f"{s3_bucket}/in")] == table["prompt"].to_pylist()
    assert plan.injected == 2


def test_a_file_that_is_replaced_while_it_is_read_is_told(s3_bucket):
    uri = f"{s3_bucket}/a.jsonl"
    put(uri, bytes(4 * PART))
    said = "can't read it: another file took its place while it was read"
    with open_binary(uri) as file:
        file.read(1)
        put(uri, bytes(4 * PART + 1))
        with pytest.raises(BlendError, match=said), translate_errors(uri, "read it"):
            file.read()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_stays_down_is_one_line_soon(two_attempts, bucket, s3_faults, operation):
    s3_faults.plan(refuse(500, "InternalError"), times=None)
    with pytest.raises(BlendError, match=rf"^{bucket}/[^ ]+: can't (read|write|list|remove) it: [^\n]+$"):
        operation(bucket)
    assert all(times == 2 for times in Counter(s3_faults.requests).values())


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        *itertools.product([_get], [reset, stall, reset_in_body, cut_body]),
        *itertools.product([_get, _open], [stall_in_body]),
    ],
)
def test_a_connection_that_never_holds_is_one_line_soon(
    impatient, two_attempts, bucket, s3_faults, operation, fault
):
    plan = s3_faults.plan(fault, "GET", times=None)
    with pytest.raises(BlendError, match=rf"^{bucket}/in/a.jsonl: can't read it: [^\n]+$") as caught:
        operation(bucket)
    assert "no message" not in str(caught.value)
    assert 2 <= plan.injected <= 4  # two requests, and for each two bodies or what aiohttp adds


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_forbidden_is_asked_once(bucket, s3_faults, operation):
    s3_faults.plan(refuse(403, "AccessDenied", "Access Denied"), times=None)
    with pytest.raises(BlendError, match=r"^[^\n]+: (Access Denied|Forbidden); check the AWS credentials [^\n]+$"):
        operation(bucket)
    assert set(Counter(s3_faults.requests).values()) == {1}


def test_a_file_that_can_not_be_looked_at_is_not_missing(two_attempts, bucket, s3_faults):
    s3_faults.plan(refuse(500, "InternalError"), "HEAD", times=None)
    with pytest.raises(BlendError, match="can't list it"):
        list_files(f"{bucket}/in/a.jsonl")


def test_a_folder_that_can_not_be_listed_is_not_left_out(bucket, s3_faults):
    put(f"{bucket}/closed/c.jsonl", b"rows")
    s3_faults.plan(refuse(403, "AccessDenied"), "GET", "prefix=closed%2F", times=None)
    with pytest.raises(BlendError, match="can't list it"):
        list_files(f"{bucket}/*/*.jsonl")


def test_an_object_that_can_not_be_removed_is_told(bucket, s3_faults):
    """S3 answers the removal of many with 200, whatever became of each."""

    async def refuse_one(exchange):
        body = b"<DeleteResult><Error><Key>in/a.jsonl</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        exchange.writer.write(body)
        await exchange.writer.drain()

    s3_faults.plan(refuse_one, "POST", "delete")
    with pytest.raises(BlendError, match=f"{bucket}/in: can't remove it: 2 of its objects were not removed"):
        remove(f"{bucket}/in")


def test_an_upload_that_ended_unheard_is_written(bucket, s3_faults):
    """moto ends an upload as often as asked; other stores have none of that id the second time."""
    lost = s3_faults.plan(lose_answer, "POST", "uploadId=")
    gone = s3_faults.plan(refuse(404, "NoSuchUpload"), "POST", "uploadId=", first=2)
    _replace(bucket)
    assert lost.injected == gone.injected == 1
    assert get(f"{bucket}/out/b") == b"new"


def test_an_upload_that_is_gone_is_not_taken_for_written(bucket, s3_faults):
    """An older object of the name is no proof."""
    put(f"{bucket}/out/b", b"old")
    s3_faults.plan(refuse(404, "NoSuchUpload"), "POST", "uploadId=")
    with pytest.raises(BlendError, match="can't write it"):
        _replace(bucket)
    assert get(f"{bucket}/out/b") == b"old"


def test_wrong_credentials_are_one_line(bucket, s3_faults, monkeypatch, new_s3):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    with _checking_credentials(s3_faults), pytest.raises(BlendError, match="check the AWS credentials") as caught:
        get(f"{bucket}/in/a.jsonl")
    assert not re.search("a-key|a-secret|\n", str(caught.value))


@contextlib.contextmanager
def _checking_credentials(proxy):
    """moto looks at credentials only when told to."""
    url, headers = f"{proxy.url}/moto-api/reset-auth", {"content-type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, b"0", headers)).close()
    try:
        yield
    finally:
        urllib.request.urlopen(urllib.request.Request(url, b"inf", headers)).close()


def test_no_credentials_are_one_line(bucket, monkeypatch, new_s3, tmp_path):
    _without_settings(monkeypatch, tmp_path)
    with pytest.raises(BlendError, match="Unable to locate credentials; check the AWS credentials"):
        get(f"{bucket}/in/a.jsonl")


def test_a_missing_profile_is_one_line(bucket, monkeypatch, new_s3):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(BlendError, match=rf"{bucket}/a: can't reach it: .*profile \(nobody\) could not be found"):
        get(f"{bucket}/a")


@pytest.mark.parametrize(
    "endpoint", ["http://user:pass-word@host:9000", "http://user:pass-word@host:port", "host:9000"]
)
def test_an_endpoint_that_is_none_is_one_line_without_its_password(monkeypatch, new_s3, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(BlendError, match=r"^s3://rows/a: [^\n]+$") as caught:
        get("s3://rows/a")
    assert not re.search("user|pass|word", str(caught.value))


def _without_settings(monkeypatch, home):
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))


def test_a_profile_of_the_operator_is_followed(bucket, s3_faults, monkeypatch, new_s3, tmp_path):
    """Endpoint, credentials and how often to try."""
    _without_settings(monkeypatch, tmp_path)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_faults.url}\nmax_attempts = 3\n"
    )
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = test\naws_secret_access_key = test-secret\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert get(f"{bucket}/in/a.jsonl") == b"rows"
    plan = s3_faults.plan(refuse(500, "InternalError"), times=None)
    with pytest.raises(BlendError, match="can't read it"):
        get(f"{bucket}/in/a.jsonl")
    assert plan.injected == 3


def test_the_endpoint_of_s3_wins_over_that_of_all_services(bucket, s3_faults, monkeypatch, new_s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_faults.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert get(f"{bucket}/in/a.jsonl") == b"rows"


@pytest.mark.parametrize(
    ("variables", "config", "expected"),
    [
        ({}, "", {"mode": "standard", "total_max_attempts": ATTEMPTS}),
        ({"AWS_MAX_ATTEMPTS": "2"}, "", {"mode": "standard"}),
        ({"AWS_RETRY_MODE": "adaptive"}, "", {"total_max_attempts": ATTEMPTS}),
        ({}, "[default]\nretry_mode = legacy\nmax_attempts = 9\n", {}),
        ({"AWS_PROFILE": "lab"}, "[profile lab]\nmax_attempts = 9\n", {"mode": "standard"}),
    ],
)
def test_only_what_the_operator_left_open_is_set(monkeypatch, tmp_path, variables, config, expected):
    _without_settings(monkeypatch, tmp_path)
    (tmp_path / "config").write_text(config)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert retry_settings() == expected
