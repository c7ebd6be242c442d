"""What of a text is a secret: one table, for all that is said, logged or stored.

A secret is known by its name (`password=...`, `"token": "..."`, `?sig=...`), by its form (those of tokens are as in
gitleaks' rules), by its place (in a URI before `@`, after `Bearer`), or because a variable of the environment that is
named like a secret has it as its value. Where a text can be read in two ways, more is masked rather than less.
"""

import os
import re
from functools import cache, lru_cache
from urllib.parse import quote

MASK = "***"
LEAST_VALUE = 8
"""Characters that a value of the environment must have to be found by itself: shorter ones are words, too."""

_ANYWHERE = re.compile(
    r"passw(?:or)?d|passphrase|passcode|secret|credential|odbcconnect|connectionstring|accesskey|"
    r"(?:api|auth|private|account|storage|shared|encryption|signing|master|subscription|sas|deploy|license)key"
)
"""What a name has in it, without its separators, that is always one of a secret."""
_LAST = ("token", "pwd", "jwt", "cookie", "signature", "sharedaccesssignature")
_PLACES = {"PWD", "OLDPWD"}
_NO_SECRET = {"file", "path", "dir", "name", "ref", "type", "mode", "length", "expires", "expiry", "ttl", "count"}
_IN_QUERY = {"sig", "sas", "code", "key", "auth", "pass", "sid", "otp", "googleaccessid", "user_pass", "authorization"}
"""Names that hold a secret in the query or the fragment of a URI, and hold something else elsewhere."""
_QUERY_PARTS = re.compile(r"pass|pwd|secret|token|key|odbc|credential|signature|assertion|jwt|session")
_PROSE = re.compile(r"[A-Za-z]?[a-z]*|[A-Z]+")
_EMPTY = {"", MASK, "none", "null", "true", "false", "~"}

_HEX = "%(?:25)*"
_ASSIGNED = re.compile(
    rf"""(?:(?P<before>{_HEX}(?:26|3F|3B|23|20|22|27|2C|0A|7B)|<|(?<![\w-])--?)|(?<![\w$-]))
    (?P<name>[A-Za-z_$][\w.$-]{{0,100}})
    (?P<close>\\*["']|{_HEX}2[27])?
    (?P<sep>[ \t]*(?:=>|:=|=(?!=)|:(?!//)(?:[ \t]*\n[ \t]+(?![\w.-]+:))?|{_HEX}3[AD]|,(?=[ \t]*b?\\*["'])|>)[ \t]*
        |(?<=\w)[ \t]+(?=[^\s=:,-]))
    (?:[!&][^\s"']*[ \t]+)?b?(?P<open>\\*["']|{_HEX}2[27])?""",
    re.VERBOSE,
)
_UNQUOTED = re.compile(r'[^\s&;"]+')
_ENCODED = re.compile(rf'(?:(?!{_HEX}(?:26|3B|20|22|27|0A|23|7D|2C))[^\s&;"])+')
_BRACKETS = {"{": "}", "[": "]", "(": ")"}
_BLOCK = re.compile(r"[|>][+-]?\d?[ \t]*(?:\n[ \t]+[^\n]*|\n[ \t]*(?=\n))+")

_SLASHES = r"\\?/\\?/"
_WORD_WITH_AT = re.compile(r"(?<![^\s\"])[^\s\"@]*+@[^\s\"]*")
_AUTHORITY = re.compile(rf"(:{_SLASHES})[^'/@]*:")
_HOST = r"[A-Za-z][\w.-]*/|\d+(?:\.\d+){3}|localhost|[\w-]+\.[\w.-]*[A-Za-z]|[\w-]+:\d"
_SCHEMES = r"file|s3a?|gs|gcs|abfss?|hdfs|https?|hf|\w+sql[\w+]*"
_NO_TOKEN = r"(?!(?:auth|token|scheme|header|realm|error|cred|cert)\w*\b)"
_AWS_KEY = r"[A-Za-z0-9+/]{40}"
_BESIDE = r"[\s:;,'\"|=]{1,4}"
_TOKENS = (
    r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|gl(?:pat|dt|rt|rtr|cbt|ptt|ft|imt|agent|oas|soat)-[\w-]{16,}",
    r"hf_(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{10,}|dapi[a-f0-9]{32}",
    r"xox[abeoprs]-[\w-]{10,}|sk-(?=[\w-]*[A-Z])(?=[\w-]*[0-9])[\w-]{20,}|[rs]k_(?:live|test)_\w{16,}",
    r"AIza[\w-]{35}|ya29\.[\w-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-AgE[\w-]{16,}",
    r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",
)
_FORMS = (
    (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
    # a user or a token before the host of a URI; what Azure has there without a colon is the container
    (rf"(?i)(?<!\babfs)(?<!\babfss)(?<!\bwasb)(?<!\bwasbs)(:{_SLASHES})[^\s'\"/]+@", rf"\1{MASK}@"),
    (rf"(?i)(\b(?:{_SCHEMES}):/?)[^\s'\"/@:]*:[^\s\"']*@", rf"\1{MASK}@"),
    (rf"(?i)({_HEX}3A{_HEX}2F{_HEX}2F)[^\s\"'&/]*({_HEX}40)", rf"\1{MASK}\2"),
    (r"(?<!:)(//)[^\s\"'/@]*:[^\s\"'/@]*@", rf"\1{MASK}@"),
    (r"(?i)(\bjdbc:\w+:\w+:)[^\s@\"']+@", rf"\1{MASK}@"),
    # the same without a scheme
    (rf"(?<![\w/.:@%+*-])[\w.%+-]+:[^\s:@/\"'\\]{{3,}}(@(?:{_HOST}))", rf"{MASK}\1"),
    # headers
    (
        r"(?i)(\b(?:proxy-)?authorization\\*[\"']?\s*[:=,]\s*(?:b?\\*[\"'])?)(?!\*\*\*)[^\s\"'\\][^\"'\\\r\n]*",
        rf"\1{MASK}",
    ),
    (r"(?i)(\b(?:set-)?cookie:[ \t]*)(?!\*\*\*)[^\s\"'][^\"'\r\n]*", rf"\1{MASK}"),
    (rf"(?i)(\bbearer(?:\s+|{_HEX}20|\+)){_NO_TOKEN}[\w.~+/=-]{{6,}}", rf"\1{MASK}"),
    (
        rf"(\b[Bb]asic(?:\s+|{_HEX}20))(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9+/]{{8,}}={{0,2}}",
        rf"\1{MASK}",
    ),
    # ids of Amazon's keys, with the key beside them
    (
        rf"(?:(?<![\w+/=]){_AWS_KEY}{_BESIDE})?(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Za-z0-9])"
        rf"(?:{_BESIDE}{_AWS_KEY}(?![\w+/=])|[:/|,][^\s\"'&]*[^\s\"'&.,;)])?",
        MASK,
    ),
    (rf"(?<![A-Za-z0-9])(?:{'|'.join(_TOKENS)})", MASK),
)


@cache
def _forms() -> list[tuple[re.Pattern[str], str]]:
    # here and not above: `smec --help` has nothing to mask
    return [(re.compile(pattern), text) for pattern, text in _FORMS]


def mask(text: str) -> str:
    """The text, with *** for each secret in it; see the module.

    Example:
        >>> mask("GET https://me:open-sesame@host/x?sig=abc&x=1 failed")
        'GET https://***@host/x?sig=***&x=1 failed'
    """
    # what is left of one secret may show where the next one begins
    for _ in range(9):
        before = text
        text = _mask_named(_mask_forms(_mask_environment(text)))
        if text == before:
            break
    return text


def is_secret_name(name: str) -> bool:
    """Whether a setting, a variable or a column of this name holds a secret."""
    return _is_secret(name)


def _mask_environment(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= LEAST_VALUE and name not in _PLACES and _is_secret(name) and not _is_plain(value):
            for form in (value, quote(value, safe="")):
                text = text.replace(form, MASK)
    return text


def _is_plain(value: str) -> bool:
    """Whether a value says nothing: a word that stands in messages, or the place of a file that holds the secret."""
    return _ANYWHERE.fullmatch(value.lower()) is not None or (value.startswith("/") and os.path.exists(value))


def _mask_user(found: re.Match[str]) -> str:
    """User and password of a URI, which reach to the last @ there is: a password may have one, too."""
    word = found[0]
    last = word.rindex("@")
    start = _AUTHORITY.search(word, 0, last)
    return word if start is None else f"{word[: start.end(1)]}{MASK}{word[last:]}"


def _mask_forms(text: str) -> str:
    text = _WORD_WITH_AT.sub(_mask_user, text)
    for pattern, replacement in _forms():
        text = pattern.sub(replacement, text)
    return text


def _mask_named(text: str) -> str:
    parts: list[str] = []
    done = 0
    for found in _ASSIGNED.finditer(text):
        start = found.end()
        if start < done or not _is_assigned_secret(text, found):
            continue
        stop = _end_of_value(text, found)
        value = text[start:stop]
        if value.lower() in _EMPTY or not _is_meant(text, found, value):
            continue
        parts += [text[done:start], MASK]
        done = stop
    return "".join([*parts, text[done:]])


def _is_assigned_secret(text: str, found: re.Match[str]) -> bool:
    before, sep = found["before"] or "", found["sep"]
    if sep.isspace():
        # a flag and its value
        return before.startswith("-") and not found["close"] and _is_secret(found["name"])
    if sep.strip() == ">" and before != "<":
        return False
    in_query = before.startswith("%") or text[max(found.start("name") - 1, 0) : found.start("name")] in tuple("?&;#")
    name = found["name"].lower()
    if name.endswith("signature") and ":" in sep:
        # that of a function or of a model
        return False
    if name in ("pass", "sig") and "=" in sep:
        return True
    return _is_secret(found["name"], in_query and ("=" in sep or "%" in sep))


def _is_meant(text: str, found: re.Match[str], value: str) -> bool:
    """Whether what follows a name is its value: a colon may also be one of a sentence."""
    if found["sep"].strip(" \t\n") != ":" or found["close"] or found["open"]:
        return True
    told = text[: found.start("name")].rstrip(" ")
    is_in_sentence = told != text[: found.start("name")] and told[-1:].isalnum()
    return not (is_in_sentence and _PROSE.fullmatch(value.rstrip(",.")))


@lru_cache(4096)
def _is_secret(name: str, in_query: bool = False) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_.$-")
    words = re.sub(r"[.$-]", "_", words)
    joined = words.replace("_", "")
    if in_query and ({words, joined} & _IN_QUERY or _QUERY_PARTS.search(joined)):
        return True
    last = words.rpartition("_")[2]
    if last in _NO_SECRET or joined.endswith("applicationcredentials"):
        return False
    return bool(_ANYWHERE.search(joined)) or last.endswith(_LAST) or words.endswith("_pass")


def _end_of_value(text: str, found: re.Match[str]) -> int:
    start, opened = found.end(), found["open"]
    if opened:
        escapes, mark = opened[:-1], opened[-1]
        if escapes:
            # of JSON in JSON, or percent-encoded
            stop = text.find(opened, start)
        else:
            closing = re.compile(rf"(?:[^\\{mark}]|\\.)*", re.S).match(text, start)
            stop = closing.end() if closing else start
        return len(text) if stop < 0 else stop
    if found["sep"].strip() == ">":
        stop = text.find("<", start)
        return len(text) if stop < 0 else stop
    if block := _BLOCK.match(text, start):
        return block.end()
    if text[start : start + 1] in _BRACKETS:
        stop = text.find(_BRACKETS[text[start]], start)
        if stop >= 0:
            return stop + 1
    value = (_ENCODED if "%" in found["sep"] else _UNQUOTED).match(text, start)
    if value is None:
        return start
    return start + max(len(value[0].rstrip("'`,.)]}>\\")), 1)
