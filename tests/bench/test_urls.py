"""Passwords in URLs."""

import pytest

from bench.errors import UserError
from bench.urls import masked, refuse_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:s3cret@host:5000/a@b", "http://***@host:5000/a@b"),
        ("https://s3cret@host", "https://***@host"),
        ("ftp://me:s3cret@host/runs", "ftp://***@host/runs"),
        ("ftp://me:5000@host/runs", "ftp://***@host/runs"),
        ("postgresql+psycopg2://me:s3/cr@t@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("postgresql://db/mlflow?user=me&password=s3cret#x", "postgresql://db/mlflow?user=me&password=***#x"),
        ("http://host/?token=s3cret&page=2", "http://host/?token=***&page=2"),
        ("https://host/set?sv=1&sig=s3cret", "https://host/set?sv=1&sig=***"),
        ("s3://b/set?AWS_SECRET_ACCESS_KEY=s3cret", "s3://b/set?AWS_SECRET_ACCESS_KEY=***"),
    ],
)
def test_a_password_is_found_refused_and_not_shown(url, shown):
    assert masked(url) == shown
    assert masked(f"cannot open {url} (no route, me@home)") == f"cannot open {shown} (no route, me@home)"
    with pytest.raises(UserError) as told:
        refuse_password("--data", url, "set A_PASSWORD")
    assert str(told.value) == f"--data {shown} holds a password: set A_PASSWORD"


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account.dfs.core.windows.net/set",
        "ftp://me@host/set",
        "ftp://host:21/a@b",
        "http://127.0.0.1:5000",
        "http://[::1]:5000/x?page=2&design=3",
        "sqlite:////home/me/runs/mlflow.db",
        "postgresql://me@db:5432/mlflow?sslmode=require",
        "s3://bucket/a@b/runs",
        "file:///data/a:b",
    ],
)
def test_what_holds_none_is_taken(url):
    assert masked(url) == url
    refuse_password("--data", url, "")
