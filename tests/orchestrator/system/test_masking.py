"""Secrets in texts are masked: by the form of an address, and by what the environment holds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.system.masking import OWN, _is_path, is_secret, masked, masked_values, without_user

VALUE = "wJalr/XUtn+FEMI=K7"


HELD = [
    ("AWS_SECRET_ACCESS_KEY", VALUE, VALUE),
    ("AWS_SESSION_TOKEN", VALUE, VALUE),
    ("RAY_AUTH_TOKEN", f" {VALUE} ", VALUE),
    ("HF_TOKEN", VALUE, VALUE),
    ("MLFLOW_TRACKING_PASSWORD", VALUE, VALUE),
    ("DB_PASS", VALUE, VALUE),
    ("ORCHESTRATOR_LEDGER", f"postgresql://me:{quote(VALUE, safe='')}@host/db", VALUE),
    ("ORCHESTRATOR_LEDGER", f"postgresql://me:{quote(VALUE, safe='')}@host/db", quote(VALUE, safe="")),
    ("ORCHESTRATOR_LEDGER", "postgresql://host/db?user=me&password=w0rd-of-mine", "w0rd-of-mine"),
    ("MLFLOW_TRACKING_URI", "https://me:w0rd-of-mine@host:5000", "w0rd-of-mine"),
    ("GIT_REMOTE", "https://ghp_0123456789@host/repository", "ghp_0123456789"),
    ("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=me;AccountKey={VALUE};Suffix=net", VALUE),
    ("SETTINGS", f"AccountName=me;AccountKey={VALUE};Suffix=net", VALUE),
    (
        "GOOGLE_CREDENTIALS",
        json.dumps({"client_email": "me", "private_key": "-----B\nMIIEvQIBADA\n-----E"}),
        "MIIEvQIBADA",
    ),
    ("DB_DSN", "host=db user=me password=w0rd-of-mine", "w0rd-of-mine"),
    ("ANY", "host=db password='two w0rds' user=me", "two w0rds"),
    ("CONN", "Server=db;Uid=me;Pwd=two w0rds;Database=d", "two w0rds"),
    ("SA", json.dumps({"a": [{"auths": {"h": {"auth": "bWU6dzByZA=="}}}]}), "bWU6dzByZA=="),
    ("SA", json.dumps({"stores": ["s3://me:w0rd/of/mine@b"]}), "w0rd/of/mine"),
    ("MY_PEM", "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADA\nb2YgbWluZQ==\n-----END", "b2YgbWluZQ=="),
    ("DEPLOY", "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADA\\n-----END PRIVATE KEY-----", "MIIEvQIBADA"),
    ("HTTP_AUTHORIZATION", "Bearer w0rd-of-mine", "w0rd-of-mine"),
    ("ANY", "Basic bWU6dzByZA==", "bWU6dzByZA=="),
    ("GITHUB_PAT", VALUE, VALUE),
    ("DBPASS", VALUE, VALUE),
    ("HFTOKEN", VALUE, VALUE),
    ("LEDGER", "postgresql://me:pass@w0rd1234@host.example:1/db", "w0rd1234"),
    ("LEDGER", "postgresql://me:pa/ss@w0rd1234@host.example/db", "w0rd1234"),
    ("LEDGER", "postgresql://me:pass@wo/rd-12345@host.example/db", "rd-12345"),
    ("LEDGER", "mysql://me:is?it-a-w0rd@host.example/db", "it-a-w0rd"),
    ("MLFLOW", "HTTPS://t0ken-of-mine@host/x", "t0ken-of-mine"),
]
"""(name of a variable, its value, what of it is a secret)"""


@pytest.mark.parametrize("number", range(len(HELD)))  # pytest puts what else it would show into a variable
def test_what_a_variable_holds_as_a_secret_is_masked_wherever_it_stands(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value, secret = HELD[number]
    text = f"ValueError: {secret!s}, and me on host; twice: '{secret}'"
    assert secret in masked(text)
    monkeypatch.setenv(name, value)
    assert masked(text) == text.replace(secret, "***")
    assert secret.encode() not in masked_values(text.encode())
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "orchestrator"),
        ("POSTGRES_PASSWORD", "orchestrator"),
        ("TOKENIZERS_PARALLELISM", "false-or-true"),
        ("RAY_AUTH_TOKEN_PATH", "/home/me/.ray/auth_token"),
        ("MLFLOW_TRACKING_USERNAME", "orchestrator-of-mine"),
        ("SECRET", "short"),
        ("PWD_OF_MINE", "/a/folder/somewhere"),
        ("MY_KEYS", "/tmp"),
        ("LS_COLORS", "*.key=00;36:*.sig=00"),
        ("TOKENIZER", "bert-base-uncased"),
        ("MODEL_MAX_TOKENS", "one-thousand"),
        ("KEYBOARD", "of-a-country"),
        ("KEYCLOAK_REALM", "contrastive"),
        ("POSTGRES_PASSWORD", "postgres"),
        ("MINIO_ROOT_PASSWORD", "minioadmin"),
        ("DB_PASSWORD", "Changeme"),
        ("TOKEN", " " * 9),
        ("OLDPWD", "/a/folder/somewhere"),
        ("AUTH_SERVER_URL", "http://auth.example/realm"),
        ("MLFLOW_TRACKING_URI", "http://host.example:5000/a@of-a-version"),
        ("REPOSITORY", "git+https://host.example/some-repository@of-a-version"),
        ("LEDGER", "postgresql://host.example:5432/database?a=b@of-mine"),
        ("ANY", "words such as RAY_AUTH_MODE=disabled among others"),
        ("ANY", "https://host.example/?auth_type=something&token_type=of-a-kind"),
    ],
)
def test_names_of_people_and_places_are_no_secrets(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is the user of infra/compose.yaml. Mutant check: by the name alone every line of ours has masks."""
    text = f"orchestrator resume runs/short of {value}"
    monkeypatch.setenv(name, value)
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to postgresql+psycopg://me:w0rd@host/db failed", "to postgresql+psycopg://me:***@host/db failed"),
        ("API request to http://me:w0rd@h:5000/api/2.0 failed", "API request to http://***@h:5000/api/2.0 failed"),
        ("'https://t0ken@h/x' and s3://b/k", "'https://***@h/x' and s3://b/k"),
        ("PUT http://h/b/k?X-Amz-Security-Token=w0rd&part=1", "PUT http://h/b/k?X-Amz-Security-Token=***&part=1"),
        ("redis://:w0rd@h:6379/0", "redis://:***@h:6379/0"),
        ("s3://AKIA:w0/rd@b/x and 'S3://AKIA:w0@rd@b/x@2'", "s3://AKIA:***@b/x and 'S3://AKIA:***@2'"),
        ("HTTPS://t0ken@h/x?X-Goog-Credential=w0rd", "HTTPS://***@h/x?X-Goog-Credential=***"),
        ("http://h:5000/x@2?keyword=a&tokenizer=b", "http://h:5000/x@2?keyword=a&tokenizer=b"),
        (
            "see http://127.0.0.1:5000/#/experiments/1 or me@host",
            "see http://127.0.0.1:5000/#/experiments/1 or me@host",
        ),
        ("s3://b/run?endpoint_override=h:9000&scheme=http", "s3://b/run?endpoint_override=h:9000&scheme=http"),
        ("is a & b? c=d", "is a & b? c=d"),
        ("host 'w0rd@h' of postgresql://me:pa@w0rd@h/db", "host 'w0rd@h' of postgresql://me:***@h/db"),
        ("postgresql://me:pa/ss?@w0rd@h/db and me@h", "postgresql://me:***@h/db and me@h"),
        ("git+HTTPS://t0ken@h:8443/a@v1 http://h:80/b@v1", "git+HTTPS://***@h:8443/a@v1 http://h:80/b@v1"),
        ("connect: host=db user=me password='my w0rd' port=1", "connect: host=db user=me password=*** port=1"),
        ("PGPASSWORD=w0rd psql; Driver={a};Pwd=w0rd;Uid=me", "PGPASSWORD=*** psql; Driver={a};Pwd=***;Uid=me"),
        ("{'Authorization': 'Bearer w0rd', 'a': 1}", "{'Authorization': 'Bearer ***', 'a': 1}"),
        ("Authorization: Basic bWU6dzByZA== sent", "Authorization: Basic *** sent"),
        ("the authorization: it failed; key = 3", "the authorization: it failed; key = 3"),
        ("export A_PASSWORD=... B=x PGPASSWORD=$C", "export A_PASSWORD=... B=x PGPASSWORD=$C"),
        ("give postgresql://USER:PASSWORD@HOST/DATABASE", "give postgresql://USER:PASSWORD@HOST/DATABASE"),
        (
            "GET /x?X-Amz-Credential=w0rd&auth=w0rd&pwd=w0rd&max_tokens=5",
            "GET /x?X-Amz-Credential=***&auth=***&pwd=***&max_tokens=5",
        ),
    ],
)
def test_a_password_within_an_address_is_masked_by_its_form(text: str, shown: str) -> None:
    assert masked(text) == shown


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=8), st.text())
def test_no_secret_survives_whatever_it_is_and_wherever_it_stands(secret: str, around: str) -> None:
    """But one that is our own name, or is in the mask, or names a file: that is where the secret lies."""
    assume(not _is_path(secret))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OF_MINE_TOKEN", secret)
        found = masked(f"{around}{secret}{around}")
    assert not secret.strip() or secret.lower() in OWN or set(secret) <= {"*"} or secret not in found


WRITTEN: dict[str, Callable[[str], str]] = {
    "SQLAlchemy": lambda one: quote(one, safe=" +"),
    "with slashes": quote,
    "a form": quote_plus,
    "small letters": lambda one: re.sub("%..", lambda hexes: hexes[0].lower(), quote(one, safe="")),
    "repr": lambda one: repr(f"'.' \"{one}\""),
    "bytes": lambda one: repr(f"'.' \"{one}\"".encode()),
    "ascii": ascii,
    "JSON": lambda one: json.dumps([one], ensure_ascii=False),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("secret", ["a w/o?r+d'\"\\n", "wörd/with&more", "it's a w%rd\\"])
def test_a_secret_is_found_however_a_message_writes_it(way: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_MINE_TOKEN", secret)
    text = WRITTEN[way](secret)
    assert re.sub(r"[\W_b]", "", masked(text)) == ""


@pytest.mark.parametrize(
    "text", ["?", "&a", "a://:", "http://", "https://a:b", "password='", "?a=", "a.a-a+", "x://u:aaaa"]
)
def test_a_long_text_takes_no_longer_than_it_is_long(text: str) -> None:
    """Mutant check: a name of a parameter that may hold `?`; 40,000 of them took seconds, and 400,000 minutes."""
    began = time.process_time()
    masked(text * (200_000 // len(text)))
    assert time.process_time() - began < 20


SAYING = """PASS DBPASS MYSQL_PWD CREDS GITHUB_PAT MY_JWT API_COOKIE AUTH_HEADER HTTP_AUTHORIZATION SLACK_WEBHOOK_URL
APIKEY KEY SENTRY_DSN"""
SILENT = "TOKENIZER MAX_TOKENS N_NEW_TOKENS KEYBOARD KEYRING BYPASS COMPASS PATH_OF_MINE MONKEY AUTHOR SIGNAL PASSES"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("NCCL_DEBUG", "INFO", False),
        ("HF_HOME", "/models", False),
        ("HTTP_PROXY", "http://proxy:3128", False),
        ("HTTP_PROXY", "http://me:w0rd@proxy:3128", True),
        ("LEDGER", "postgresql://me:w0/rd@host/db", True),
        ("LEDGER", "postgresql://host/db?password=w0rd", True),
        ("DB_PASS", "w0rd", True),
        ("GOOGLE_CREDENTIALS", "{}", True),
        ("DB_DSN", "host=db", True),
        ("ANY", "host=db user=me password=w0rd", True),
        ("CONN", "AccountName=a;AccountKey=abcd==", True),
        ("CONN", "Server=db;Uid=me;Pwd=w0rd", True),
        ("SA", '{"a": [{"private_key": "w0rd"}]}', True),
        ("DEPLOY", "-----BEGIN OPENSSH PRIVATE KEY-----", True),
        ("ANY", "Bearer w0rd", True),
        *((name, "w0rd", True) for name in SAYING.split()),
        *((name, "128", False) for name in SILENT.split()),
        ("XLA_FLAGS", "--xla_a=b --max-tokens=5", False),
    ],
)
def test_a_variable_that_says_or_holds_a_secret_is_one(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) == secret


def test_a_variable_that_holds_another_one_s_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", VALUE)
    assert is_secret("HARMLESS", f"x{VALUE}x")
    assert not is_secret("HARMLESS", "x")


def test_an_address_to_open_has_neither_user_nor_password() -> None:
    assert without_user("http://me:w0rd@h:5000/#/a@b") == "http://h:5000/#/a@b"
    assert without_user("http://h:5000") == "http://h:5000"
