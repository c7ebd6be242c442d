"""Secrets are found by name, by form, by place and by the environment; other text stays as it is."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smec_core.masking import MASK, is_secret_name, mask, settled

SECRET = "Tr0ub4dor-x9"

PLANTED = [
    "http://me:{}@host:5000/x",
    "request to https://{}@host failed",
    "postgresql+psycopg2://me:p/{}@@host/db",
    r'"https:\/\/me:{}@host\/x"',
    "s3:/key:{}@bucket/x",
    "//me:{}@host/x",
    "SplitResult(scheme='http', netloc='me:{}@127.0.0.1:80', path='')",
    "https://a.blob.core.windows.net/c?sv=2024&sig={}&se=2026",
    "https://b.s3.amazonaws.com/x?X-Amz-Algorithm=A&X-Amz-Credential={0}&X-Amz-Signature={0}&x-amz-security-token={0}",
    "https://storage.googleapis.com/x?GoogleAccessId={0}&X-Goog-Signature={0}&Signature={0}",
    "https://b/x?AWSAccessKeyId={0}&Expires=1&access_token={0}&client_secret={0}&CODE={0}&apikey={0}",
    "GET /callback#access_token={}&state=1",
    "redirect=https%3A%2F%2Fme%3A{}%40host%2Fx",
    "next=https%253A%252F%252Fhost%253Fsig%253D{}%2526x%253D1",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{}%3B",
    "Authorization: Bearer {}",
    "{{'Authorization': 'Basic {}', 'Accept': '*/*'}}",
    '{{"headers": [["Authorization", "Token {}"]]}}',
    "curl -H 'Proxy-Authorization: Digest {}'",
    "Bearer {} was refused",
    "Set-Cookie: session={}; Path=/",
    "X-Api-Key: {}",
    "aws_secret_access_key={}",
    "aws_secret_access_key = {}",
    'export AWS_SECRET_ACCESS_KEY="{}"',
    "AWS_SESSION_TOKEN='{}' python",
    '{{"password": "{}", "user": "me"}}',
    '{{"a": "{{\\"db_password\\": \\"{}\\"}}"}}',
    "{{'clientSecret': '{}', 'x': 1}}",
    "ConnectParams(host='h', password='{}', port=5432)",
    "password: {}",
    "db:\n  - token: {}\n    host: h",
    "api_key: |\n  {0}\n  {0}\nnext: 1",
    "wrong password: {}",
    "DRIVER=x;SERVER=h;UID=me;PWD={{{}}};",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={}==;EndpointSuffix=x",
    "AWS4-HMAC-SHA256 Credential={0}/2026/s3/aws4_request, SignedHeaders=host, Signature={0}",
    "<Credentials><SecretAccessKey>{}</SecretAccessKey></Credentials>",
    "jdbc:oracle:thin:scott/{}@//host:1521/x",
    "me:{}@bucket/data is no such place",
    "secret: !!str {}",
    "secret: &anchor {}",
    "password:\n  {}\nuser: me",
    "PASS={0} sig={0}",
    "mysql --password {} --host h",
    "%7B%22password%22%3A%22{}%22%7D",
    "-----BEGIN RSA PRIVATE KEY-----\n{0}\n{0}\n-----END RSA PRIVATE KEY-----",
]

FORMS = [
    "AKIAIOSFODNN7EXAMPLE:{}",
    "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "ASIAIOSFODNN7EXAMPLE",
    "hf_AbCdEfGhIjKlMnOpQrStUvWx",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0_abcdefghijklmnop",
    "glpat-AbCdEfGhIjKlMnOpQrSt",
    "xoxb-123456789012-abcdefghijkl",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
]

HARMLESS = [
    "s3://bucket/folder@v2/part.parquet?region=eu-west-1",
    "abfs://container@account.dfs.core.windows.net/a",
    "hf://datasets/me/name@main/folder",
    "sqlite:////data/mlflow.db",
    "stored at http://host:5000/x; see it with: mlflow ui --backend-store-uri sqlite:///mlflow.db",
    "the cluster refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token)",
    "env HF_TOKEN: is not set here; give --env NAME=VALUE",
    "{'pass': 'first', 'stage': 32, 'ndcg@10': 0.5}",
    "first pass, stage 32, linear: dev ndcg@10: 0.5013, quality:ndcg@10",
    "TOKENIZERS_PARALLELISM=false max_tokens=512 password_file=/run/secrets/x",
    "must hold key: value lines, and 3 is no key",
    "--set columns.id=sku --set columns.embedding=vector",
    "signature: (int) -> str; basic configuration, a bearer of news",
    "password: null, token: None",
    "python:3.11 at 12:30:05",
]  # fmt: skip


@pytest.mark.parametrize("form", PLANTED)
def test_a_secret_is_masked_wherever_it_stands(form: str) -> None:
    text = form.format(SECRET)
    masked = mask(text)
    assert SECRET not in masked
    assert MASK in masked
    assert SECRET not in mask(f"INFO x.y:3 {text} (retry 2)\nnext line")
    assert mask(masked) == masked


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_known_by_their_form(form: str) -> None:
    text = form.format(SECRET)
    assert mask(f"refused {text}, see 'x'") == "refused ***, see 'x'"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


def test_a_value_of_the_environment_is_found_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "zq/8 Kk+71xx"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", value)
    assert mask(f"sent {value} and {quote(value, safe='')}") == "sent *** and ***"
    # a place is none, and neither is a word that messages have
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/hosts.json")
    monkeypatch.setenv("DB_PASSWORD", "password")
    assert mask("cannot read /etc/hosts.json: password") == "cannot read /etc/hosts.json: password"


def test_names_of_secrets() -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "dbPassword", "x-api-key", "SMTP_PASS", "azure.account.key"):
        assert is_secret_name(name), name
    for name in ("TOKENIZERS_PARALLELISM", "sort_key", "pass", "MLFLOW_TRACKING_USERNAME", "PASSWORD_FILE", "monkey"):
        assert not is_secret_name(name), name


secrets = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="-_.~+"), min_size=8).filter(
    # what stands at the end of a sentence is not of a value; what is no value is not masked
    lambda text: text[-1].isalnum() and text[0].isalnum() and any(map(str.isdigit, text)) and len(set(text)) > 3
)


@given(st.sampled_from(PLANTED), secrets, st.text(st.characters(codec="utf-8", categories=("L", "Zs")), max_size=20))
def test_no_secret_gets_through(form: str, secret: str, around: str) -> None:
    text = f"{around} {form.format(secret)} {around}"
    # a short one may also be a part of the form
    if text.count(secret) == form.format("\0").count("\0"):
        assert secret not in mask(text)


@given(st.text(), st.text("=:&?;@/\"'\\ %{}<>-#|\n", max_size=30), st.sampled_from(PLANTED))
def test_what_is_masked_stays_masked(text: str, marks: str, form: str) -> None:
    masked = mask(f"{text}{marks}{form.format(SECRET)}{marks}{text}")
    assert mask(masked) == masked


@given(st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Z"), exclude_characters="=:@%,>")))
def test_text_that_assigns_nothing_stays(text: str) -> None:
    words = json.dumps(text, ensure_ascii=False).lower()
    if not any(word in words for word in ("bearer", "basic", "--", "akia", "asia", "hf_", "gh", "sk-", "eyj")):
        assert mask(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "/data/global-product-catalog-2024",
        "glove-wiki-gigaword-300",
        "s3://b/sk-news-articles-embeddings/corpus",
        "s3://b/pypi-package-descriptions-2026",
        "hf_internal_testing_embeddings",
        "# basic training/test settings",
    ],
)
def test_names_that_begin_as_tokens_do_are_shown(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize("text", ["a." * 20_000, "http:" * 4000, "x" * 100_000 + "=1"])
def test_hostile_text_takes_no_longer_than_its_length(text: str) -> None:
    """Run with a limit by the caller: what grows with the square of it would take minutes."""
    assert mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "wrong password: swordfish",
        "cannot log in to host: wrong password: swordfish.",
        "login failed with password: swordfish for user me",
        "the client secret: Swordfish, was refused",
        "invalid passphrase: swordfish (retry 2)",
        "bad password: swordfish\nat line 3",
    ],
)
def test_a_password_that_is_one_plain_word_is_masked_in_a_sentence(text: str) -> None:
    assert mask(text) == text.replace("swordfish", MASK).replace("Swordfish", MASK)


@pytest.mark.parametrize(
    "text",
    [
        "cannot read password: missing",
        "invalid password: must have 8 characters",
        "wrong password: try again",
        "the password: expired.",
        "type of password: str",
        "server said password: authentication failed",
        "read the password: nothing of it is kept",
        "Unexpected token: comma",
        "the token: expired",
        "no api key: see the manual",
    ],
)
def test_what_a_sentence_says_of_a_password_is_shown(text: str) -> None:
    assert mask(text) == text


KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----\n"
OVER_LINES = [
    KEY,
    "api_key: |\n  Tr0ub4dor-x9\n  Tr0ub4dor-x9\nnext: 1\n",
    "password:\n  Tr0ub4dor-x9\nuser: me\n",
    'secret = "Tr0ub4dor\nx9 and more\n"\n',
    'password: {\n"a": "Tr0ub4dor-x9"}\n',
    "<password>\nTr0ub4dor-x9\n</password>\n",
    "Authorization: Bearer\n  Tr0ub4dor-x9\n",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\nAKIAIOSFODNN7EXAMPLE\n",
    "AKIAIOSFODNN7EXAMPLE\nwJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
]


def in_pieces(lines: list[str]) -> tuple[str, list[str]]:
    """What is masked of a text that comes line by line, and what was kept back after each line."""
    shown, left, kept = "", "", []
    for line in lines:
        left += line
        done = settled(left)
        shown, left = shown + mask(left[:done]), left[done:]
        kept.append(left)
    return shown + mask(left), kept


@pytest.mark.parametrize("secret", OVER_LINES)
def test_a_secret_of_several_lines_is_masked_when_they_come_one_by_one(secret: str) -> None:
    before, after = ["step 1\n", "token: none\n", "step 2\n"], ["step 3\n", "a: b\n"]
    lines = [*before, *secret.splitlines(keepends=True), *after]
    shown, kept = in_pieces(lines)
    assert shown == mask("".join(lines)) and MASK in shown
    # nothing but a secret is kept back
    assert kept[: len(before)] == [""] * len(before) and kept[-1] == ""


def test_a_value_of_the_environment_may_have_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNING_KEY", "first of it\nsecond of it\nthird of it")
    assert in_pieces(["x\n", "first of it\n", "second of it\n", "third of it\n", "y\n"])[0] == "x\n***\ny\n"
    assert in_pieces(["x\n", "first of it\n", "something else\n"])[0] == "x\nfirst of it\nsomething else\n"


def test_a_text_whose_secret_does_not_end_is_shown_at_last() -> None:
    # by tens, as Ray hands a log on
    lines = ['token="abc\n', *("".join(f"step {ten}{one}, loss 0.5\n" for one in range(10)) for ten in range(60))]
    shown, kept = in_pieces(lines)
    assert max(map(len, kept)) <= 8_100
    assert shown.endswith(lines[-1]) and "abc" not in shown
