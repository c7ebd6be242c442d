"""What of a text is a secret: one table, for all that is said, logged or stored.

A secret is known by its name (`password=...`, `"token": "..."`, `?sig=...`), by its form (those of tokens are as in
gitleaks' rules), by its place (in a URI before `@`, after `Bearer`), or because a variable of the environment that is
named like a secret has it as its value. Where a text can be read in two ways, more is masked rather than less.
"""

import os
import re
from collections.abc import Iterator
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
_WORD = 64
"""Characters before a name that are looked at: the word there."""
_PROSE = re.compile(r"[A-Za-z]?[a-z]*|[A-Z]+")
_ALSO_IN_PROSE = re.compile(r"(?:passw(?:or)?d|passphrase|passcode|pwd|secret)$", re.IGNORECASE)
"""Names of which a sentence may tell the value, one plain word: `wrong password: swordfish`."""
_TOLD_WITH = re.compile(
    r"(?i)wrong|invalid|incorrect|bad|given|supplied|provided|received|got|sent|entered|tried|with|using|used"
)
"""Words before such a name after which more of the sentence may follow the value."""
_SAID_OF_IT = r"""(?ix)
    a|an|the|this|that|these|its?|is|are|was|were|be|been|has|have|had|do|does|did|not?|none|must|should|
    shall|can|cannot|could|may|might|will|would|you|your|they|we|please|use|set|see|try|check|give|enter|type|choose|provided?|
    expect(?:s|ed)|needs?|too|very|only|at|in|on|of|for|from|to|by|with|or|and|but|if|when|because|since|as|any|all|
    least|missing|required|optional|empty|blank|absent|expired|denied|(?:in)?valid|(?:in)?correct|wrong|bad|illegal|malformed|
    unknown|unset|undefined|unexpected|refused|rejected|fail(?:s|ed|ure)|errors?|mismatch|changed|protected|hidden|
    redacted|masked|ok|okay|accepted|done|yes|(?:un)?available|unsupported|forbidden|disabled|locked|blocked|
    (?:un)?authori[sz]ed|weak|strong|short|long|same|default|reset|sent|updated|saved|stored|found|removed|deleted|given|
    configured|encrypted|hashed|plain|string|str|text|bytes|values?|authentication|access|login|permission"""
"""What messages say of a secret after its name and a colon, beside its value; compiled when it is asked for."""
_CLAUSE_ENDS = re.compile(r"['`]?[ \t]*(?:[,.;!?()\[\]|\r\n]|-|\Z)")
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


_GOES_ON = (f"  {'Xx0z' * 10}}}])\n", f"AKIA{'X' * 16}\n")
"""Lines that may come after a text: any secret that has begun in it goes on with the first, or is beside the second."""
_LONGEST = 8_000
"""Characters of a secret that goes over lines: of the longest keys there are."""


def settled(text: str) -> int:
    r"""How much of a text can be masked before the rest is there: up to the line in which an unended secret begins.

    Args:
        text: whole lines.

    Returns:
        Characters; all of them, too, where the end of a secret does not come for very long.

    Example:
        >>> settled("it has\n-----BEGIN PRIVATE KEY-----\nabc\n")
        7
    """
    stop = len(text)
    # what stands before one may be another
    while len(text) - stop < _LONGEST:
        begin = _begin_of_open(text[max(stop - _LONGEST, 0) : stop])
        if begin is None:
            return stop
        stop = max(stop - _LONGEST, 0) + begin
    return len(text)


def _begin_of_open(text: str) -> int | None:
    """Where the last line begins from which on a text has a secret without its end; None where there is none."""
    masked = mask(text)
    rest = next((rest for rest in _continuations(text) if mask(text + rest) != masked + mask(rest)), None)
    if rest is None:
        return None
    begins = [0, *(found.end() for found in re.finditer("\n", text))]
    low, high, middle = 0, len(begins) - 1, 1
    while high - low > 1:
        # the first line first: what was kept back begins with it
        low, high = (middle, high) if _goes_on(text[begins[middle] :], rest) else (low, middle)
        middle = (low + high) // 2
    return begins[low]


def _goes_on(text: str, rest: str) -> bool:
    return mask(text + rest) != mask(text) + mask(rest)


def _continuations(text: str) -> Iterator[str]:
    yield from _GOES_ON
    for name, value in os.environ.items():
        if "\n" in value and _is_secret(name):
            parts = value.splitlines(keepends=True)
            for count in range(1, len(parts)):
                if text.endswith("".join(parts[:count])):
                    yield "".join(parts[count:])


def is_secret_name(name: str) -> bool:
    """Whether a variable of the environment that is called so holds a secret."""
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
    start, word = found.start("name"), value.rstrip(",.")
    before = text[max(start - _WORD, 0) : start]
    told = before.rstrip(" ")
    if told == before or not told[-1:].isalnum() or not _PROSE.fullmatch(word):
        return True
    if not _ALSO_IN_PROSE.search(found["name"]) or re.fullmatch(_SAID_OF_IT, word):
        return False
    is_told_with = _TOLD_WITH.fullmatch(told.rpartition(" ")[2]) is not None
    return is_told_with or _CLAUSE_ENDS.match(text, found.end() + len(word)) is not None


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
