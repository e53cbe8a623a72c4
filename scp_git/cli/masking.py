"""Secrets in a command line, found and replaced by ``***``. Pure functions over text.

The history is shared, so more is masked than need be: after a name that looks
secret, everything that may belong to the value goes. What was found in the
arguments is then replaced wherever else it appears (``Secrets.redact``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
MIN_SEARCHED = 4
"""Shorter values are masked where they stand but not searched for: ``--key 1`` must not blot out every 1."""

_NOT_SEARCHED = frozenset({"true", "false", "none", "null"})

_SECRET_NAME = re.compile(
    r"passw(?:or)?d|passphrase|token(?!iz)|secret|credential"
    r"|(?:^|[-_.])(?:pass|keys?)(?=$|[-_.\d])|[-_.]pwd$|keys?\d*$",
    re.IGNORECASE,
)
_CAMEL_KEY = re.compile(r"[a-z]Keys?(?![a-z])")
_OPTION = re.compile(r"--[\w.-]+|-[\w.-]{3,}")
_LINK = re.compile(r"([\w.-]+):?==?")
_HEADER = re.compile(r"(?:-H|--[\w-]+=)?\s*(?P<name>[\w-]+)\s*:(?P<gap>\s*)(?P<value>.+)", re.DOTALL)
_HEADER_NAMES = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
_SCHEME = re.compile(r"(?:bearer|basic|token|digest|negotiate|apikey|key)\s+(?=\S)", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"""(?P<lead>\b(?:proxy-)?authorization["']?\s*[:=]\s*["']?)(?P<value>[^"'\r\n]+)""", re.IGNORECASE
)
# The second form is a password with a raw slash or the like; a port before the slash is none.
# Lengths are bounded so that hostile output costs linear time.
_USER_INFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}://)"
    r"(?:(?P<plain>[^\s/?#\"'<>]*)@|(?P<odd>[^\s/?#@:\"'<>]*:(?!\d{1,5}(?:[/?#]|$))[^\s@\"'<>]{0,1024})@)"
)
_NAME = re.compile(r"[\w.-]+")
_JSON_VALUE = re.compile(r"""\\?["']\s*:\s*(?P<value>"(?:[^"\\]|\\.)*"?|[^\s,}\]]+)""")
_WORD = r"""(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"'])+"""
_SHELL_WORD = re.compile(_WORD)
_SHELL_VALUE = re.compile(rf"(?P<gap>\s*[:=]+\s*|\s+)(?P<value>{_WORD})")


class Secrets:
    """The values found in one command line, with the spellings in which output may repeat them."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for value in values:
            self.add(value)

    def add(self, value: str) -> None:
        for form in _forms(value):
            if len(form) >= MIN_SEARCHED and form.lower() not in _NOT_SEARCHED:
                self._values.add(form)
        self._pattern = None

    def redact(self, text: str) -> str:
        """``text`` with every known value replaced; longer values first."""
        if not self._values:
            return text
        if self._pattern is None:
            longest_first = sorted(self._values, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.sub(MASK, text)

    def drop_cut_end(self, text: str) -> str:
        """``text``, known to be cut off, without a secret's beginning at its end."""
        cut = 0
        for value in self._values:
            for size in range(min(len(value) - 1, len(text)), cut, -1):
                if text[-1] == value[size - 1] and text.endswith(value[:size]):
                    cut = size
                    break
        return text[: len(text) - cut]


def mask_argv(argv: Sequence[str]) -> tuple[list[str], Secrets]:
    """The arguments without secrets, and what was taken out of them."""
    secrets = Secrets()
    masked: list[str] = []
    value_follows = False
    for arg in map(readable, argv):
        is_option = _is_secret_option(arg)
        if value_follows and not is_option and arg != "--":
            secrets.add(arg)
            masked.append(MASK)
        else:
            masked.append(_mask_argument(arg, secrets))
        value_follows = is_option
    return [secrets.redact(arg) for arg in masked], secrets


def readable(arg: str) -> str:
    """An argument as Unicode text; bytes that are none become U+FFFD, as they do in decoded output."""
    try:
        return arg.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return arg.encode("utf-8", "replace").decode()


def mask_output(text: str, secrets: Secrets) -> str:
    """Output of a command, without the known values, user info in URLs and Authorization headers."""
    text = secrets.redact(text)
    ignored = Secrets()
    return _mask_user_info(_mask_authorization(text, ignored), ignored)


def looks_secret(name: str) -> bool:
    """Whether a value under this name of an option, variable or header is to be masked."""
    return _SECRET_NAME.search(name) is not None or _CAMEL_KEY.search(name) is not None


def _is_secret_option(arg: str) -> bool:
    return _OPTION.fullmatch(arg) is not None and not arg.startswith("--no-") and looks_secret(arg)


def _mask_argument(arg: str, secrets: Secrets) -> str:
    start = _assigned_at(arg)
    if start is None:
        start = _header_value_at(arg)
    if start is not None:
        secrets.add(arg[start:])
        # It may be the beginning of a script as well: NAME="x" command
        first = _SHELL_WORD.match(arg, start)
        if first is not None:
            secrets.add(first[0])
        return arg[:start] + (MASK if arg[start:] else "")
    arg = _mask_authorization(arg, secrets)
    return _mask_named(_mask_user_info(arg, secrets), secrets)


def _assigned_at(arg: str) -> int | None:
    """Where the value begins in ``NAME=x``, ``--name=x``, ``--env=NAME=x``, provided a name looks secret."""
    at = len(arg) - len(arg.lstrip("-"))
    while link := _LINK.match(arg, at):
        at = link.end()
        if looks_secret(link[1]):
            return at
    return None


def _header_value_at(arg: str) -> int | None:
    header = _HEADER.fullmatch(arg)
    if header is None:
        return None
    name = header["name"].lower()
    spelled_as_header = bool(header["gap"]) or name.startswith("x-")
    if name not in _HEADER_NAMES and not (spelled_as_header and looks_secret(name)):
        return None
    return header.start("value") + _scheme_length(header["value"])


def _scheme_length(value: str) -> int:
    scheme = _SCHEME.match(value)
    return scheme.end() if scheme else 0


# ---------------------------------------------------------------- inside longer text


def _mask_authorization(text: str, secrets: Secrets) -> str:
    def replace(match: re.Match[str]) -> str:
        size = _scheme_length(match["value"])
        secrets.add(match["value"][size:])
        return match["lead"] + match["value"][:size] + MASK

    return _AUTHORIZATION.sub(replace, text)


def _mask_user_info(text: str, secrets: Secrets) -> str:
    def replace(match: re.Match[str]) -> str:
        info = match["plain"] if match["plain"] is not None else match["odd"]
        for value in _url_secrets(info, is_http=match["scheme"].lower().startswith("http")):
            secrets.add(value)
        return match["scheme"] + MASK + "@"

    return _USER_INFO.sub(replace, text)


def _url_secrets(info: str, *, is_http: bool) -> Iterable[str]:
    """The parts of ``user:password`` to look for elsewhere; a lone user is a token in http, a name in ssh."""
    user, colon, password = info.partition(":")
    if password:
        yield from (info, password)
    token_as_user = not password or password == "x-oauth-basic" or len(user) >= 16
    if token_as_user and (is_http or colon):
        yield user


def _mask_named(text: str, secrets: Secrets) -> str:
    """Mask ``--token x``, ``NAME=x`` and ``"name": "x"`` inside an argument that is a script or JSON."""
    out: list[str] = []
    at = 0
    for name in _NAME.finditer(text):
        if name.start() < at or not looks_secret(name[0]):
            continue
        value = _JSON_VALUE.match(text, name.end()) or _SHELL_VALUE.match(text, name.end())
        if value is None or (_is_bare_word(name[0]) and value.groupdict().get("gap", ":").isspace()):
            continue
        secrets.add(value["value"])
        out += [text[at : value.start("value")], MASK]
        at = value.end()
    return "".join(out) + text[at:]


def _is_bare_word(name: str) -> bool:
    return not _is_secret_option(name)


def _forms(value: str) -> Iterable[str]:
    """The spellings of one value: as it is, unquoted, line by line, and as URLs and JSON write it."""
    unquoted = value.replace('"', "").replace("'", "")
    for text in {value, value.strip("\"' \t"), unquoted, unquote(value), _json_text(value)}:
        yield text
        yield from (line.strip() for line in re.split(r"[\r\n]", text))
        yield from (quote(text, safe=""), quote(text), quote_plus(text))
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def _json_text(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return readable(text) if isinstance(text, str) else value
