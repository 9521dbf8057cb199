"""Secrets inside URIs: a run that carries one is refused, and what is written or shown does not hold it."""

import json

import pytest

import rtrain
from recipes.dlrm_movielens import run
from rtrain import config
from rtrain.errors import ConfigError
from rtrain.tracking import has_secret, mask, mask_command, mask_text

SECRET = "hunter2"
CARRIERS = {
    "password": f"s3://AKIA:{SECRET}@bucket/runs",
    "password alone": f"redis://:{SECRET}@host/0",
    "password with a slash": f"postgresql://me:pa/{SECRET}@db/x",
    "password with a slash after a number": f"postgresql://me:12/{SECRET}@db/x",
    "password with an at sign": f"postgresql://me:pa@ss/{SECRET}@db/x",
    "password with a question mark": f"postgresql://me:pa?{SECRET}@db/x",
    "password with a hash": f"postgresql://me:pa#{SECRET}@db/x",
    "password with a question mark after a number": f"postgresql://me:12?{SECRET}@db/x",
    "password with a hash after a number": f"postgresql://me:12#{SECRET}@db/x",
    "password with a slash and a question mark": f"postgresql://me:pa/a?{SECRET}@db/x",
    "password with a space": f"s3://me:pa {SECRET}@bucket/x",
    "password with brackets": f"s3://me:[{SECRET}@bucket/x",
    "token for a user": f"https://{SECRET}@host/repo",
    "token for a user, beside a word for a password": f"https://{SECRET}:x-oauth-basic@host/repo",
    "token for a user, without a password": f"https://{SECRET}:@host/repo",
    "function key": f"https://a.azurewebsites.net/api/x?code={SECRET}",
    "JSON web token": f"https://host/x?jwt={SECRET}",
    "chained": f"simplecache::https://{SECRET}@host/rows.parquet",
    "second of two": f"s3://bucket/a,https://me:{SECRET}@host/b",
    "signed for S3": f"https://b.s3.amazonaws.com/k?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
    "credential for S3": f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}%2F20260101",
    "session for S3": f"https://b.s3.amazonaws.com/k?X-Amz-Security-Token={SECRET}",
    "signed for S3, the old way": f"https://b.s3.amazonaws.com/k?AWSAccessKeyId={SECRET}",
    "signed for Azure": f"https://a.blob.core.windows.net/c/x?sv=2024&sig={SECRET}",
    "signed for Google": f"https://storage.googleapis.com/b/x?X-Goog-Signature={SECRET}",
    "API key": f"https://host/p?n=1;api_key={SECRET}",
    "spelled otherwise": f"https://host/p?s%69g={SECRET}",
    "in the fragment": f"https://host/p#access_token={SECRET}",
    "in a path's parameter": f"https://host/p;jsessionid={SECRET}",
    "another URI in the query": f"https://host/?to=https%3A%2F%2Fme%3A{SECRET}%40other%2F",
    "of a path": f"data/x.parquet?X-Amz-Signature={SECRET}",
    "connection string": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}",
    "pass phrase": f"https://host/?passphrase={SECRET}",
    "policy of a signed cookie": f"https://host/?Policy={SECRET}",
}
INNOCENT = (
    "s3://bucket/runs", "file:///C:/a@b", "abfs://container@account.dfs.core.windows.net/x@y", "sftp://me@host/x",
    "hdfs://me@name-node:8020/x", "http://[::1]:5000/x", "http://host:5000/a?to=a@b.c", "http://host:5000?to=a@b.c", "hf://datasets/o/n@main",
    "https://host/pkg@1.2", "https://host/?design=3&tokenizer=b&monkey=c&sig=", "a:b@c",
)  # fmt: skip


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_run_with_a_secret_in_any_text_of_its_config_is_refused(carrier: str) -> None:
    flat = config.flatten(run())
    texts = {
        key: (CARRIERS[carrier],) if isinstance(value, list) else CARRIERS[carrier]
        for key, value in flat.items()
        if not key.endswith("$type") and isinstance(value, str | list | None)
    }
    assert {"name", "storage", "data.source", "tracking.project", "tracking.mlflow_uri", "tracking.to"} < set(texts)
    told = {}
    for key, value in texts.items():
        with pytest.raises(ConfigError) as caught:
            rtrain.override(run(), {key: value})
        told[key] = str(caught.value)
    for key in ("name", "storage", "data.source", "tracking.project", "data.schema.features.2.vocabulary"):
        assert told[key].startswith(f"{key}: the URI carries a password, token or signature, and the config is stored")
    assert not any(SECRET in told[key] for key in ("name", "storage", "data.source", "tracking.mlflow_uri"))


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_is_written_or_shown_does_not_hold_the_secret(carrier: str) -> None:
    uri = CARRIERS[carrier]
    for nested in (uri, [uri], (1, (uri,)), {"a": {"b": [uri]}}, {uri: 1}, {"a": ({"b": uri},)}):
        assert has_secret(nested)
        assert SECRET not in json.dumps(mask({"some.field": nested}))
    assert SECRET not in mask_command(f"python x.py train --storage '{uri}' --name n")
    assert SECRET not in mask_command(f"python x.py train '--storage={uri}'")
    if " " not in uri:
        assert SECRET not in mask_text(f"it's at {uri} now")


@pytest.mark.parametrize("uri", INNOCENT)
def test_what_only_looks_like_a_secret_stays(uri: str) -> None:
    assert not has_secret(uri)
    assert mask({"storage": uri, "more": [uri]}) == {"storage": uri, "more": [uri]}
    command = f"python x.py  train --storage '{uri}'"
    assert mask_command(command) == command
    assert rtrain.override(run(), {"data.source": uri}) != run()
