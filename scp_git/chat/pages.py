"""The pages of a published site: HTML from texts that anybody may have written.

Everything is escaped; there is no script, and the policy in every page allows none. Pages
refer to nothing but each other, so that they work from ``file://`` and tell nobody who reads.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Iterable, Iterator

from scp_git.chat.mentions import Mention, spans

Link = Callable[[Mention], "tuple[str, str] | None"]
"""Address and label of what a mention stands for, if that is published; else ``None``."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f24; --quiet: #5b6570;
  --line: #dfe3e8; --accent: #0b5fbd; --ok: #1a7f37; --failed: #c62828; --partial: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1216; --card: #181c22; --text: #e4e8ed;
  --quiet: #97a1ad; --line: #2b323b; --accent: #6cb2ff; --ok: #4cc36a; --failed: #ff7b72;
  --partial: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.wrap { max-width: 46rem; margin: 0 auto; padding: 0 1rem; }
header { background: var(--card); border-bottom: 1px solid var(--line); }
header .wrap { display: flex; justify-content: space-between; gap: 1rem; padding-block: .8rem; }
header a:first-child { color: var(--text); font-weight: 600; overflow-wrap: anywhere; }
header a:last-child { color: var(--quiet); flex: none; }
main.wrap { padding-block: 1.6rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--quiet);
  margin: 2rem 0 .6rem; }
.quiet { color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .85rem 1.05rem;
  margin: .7rem 0; }
.card:target { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
a.card { display: block; color: inherit; }
a.card:hover { border-color: var(--accent); text-decoration: none; }
.card h3 { margin: 0; font-size: 1.05rem; line-height: 1.35; overflow-wrap: anywhere; }
.excerpt { margin: .3rem 0 .1rem; overflow-wrap: anywhere; }
.meta { display: flex; flex-wrap: wrap; align-items: baseline; gap: .15rem .6rem; margin-bottom: .3rem; }
.meta b { overflow-wrap: anywhere; }
.meta time, .meta a { color: var(--quiet); font-size: .875rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.mention { background: color-mix(in srgb, var(--accent) 12%, transparent); border-radius: 5px;
  padding: .05em .3em; }
.badge { font-size: .75rem; border: 1px solid currentColor; border-radius: 99px; padding: 0 .55em;
  color: var(--quiet); white-space: nowrap; }
.ok { color: var(--ok); } .failed { color: var(--failed); } .partial { color: var(--partial); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0 0;
  font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { h1 { font-size: 1.35rem; } main.wrap { padding-block: 1.1rem 2rem; }
  .card { padding: .75rem .85rem; } }
@media print { body { background: none; } header { display: none; } .card { break-inside: avoid; } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{_STYLE_HASH}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath"
    " fill='%230b5fbd' d='M3 2h10a2 2 0 0 1 2 2v6a2 2 0 0 1-2 2H8l-4 3v-3H3a2 2 0 0 1-2-2V4a2 2 0 0 1 2-2z'"
    "/%3E%3C/svg%3E"
)

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REORDERING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_ADDRESS = re.compile(
    r"https?://[^\s<>\"'`\\\x00-\x20\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]{4,2000}"
)
_BEHIND_ADDRESS = ".,:;!?)]}*~\u2026"


def page(title: str, site: str, body: str, *, up: str) -> bytes:
    """One page; ``up`` leads from its folder to the top of the site (empty, or ``../``)."""
    full = title if title == site else f"{title} \u00b7 {site}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(full)}</title>
<link rel="alternate" type="application/feed+json" href="{up}feed.json">
<link rel="icon" href="{_ICON}">
<style>{STYLE}</style>
</head>
<body>
<header><div class="wrap">
<a href="{up}index.html" lang="">{escape(site)}</a><a href="{up}feed.json">Feed</a>
</div></header>
<main class="wrap">
{body}
</main>
</body>
</html>
""".encode()


def escape(text: str) -> str:
    """Text as it may stand between tags and in quoted attributes, without what would reorder others."""
    text = _REORDERING.sub("", text.replace("\r\n", "\n"))
    return html.escape(_UNPRINTABLE.sub("\ufffd", text))


def rich(text: str, link: Link) -> str:
    """A message's text: addresses are links, and so are mentions of what is published."""
    out: list[str] = []
    place = 0
    for start, end in _addresses(text):
        out += _with_mentions(text[place:start], link)
        address = text[start:end]
        out.append(f'<a href="{escape(address)}" rel="noopener noreferrer nofollow">{escape(address)}</a>')
        place = end
    return "".join([*out, *_with_mentions(text[place:], link)])


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for match in _ADDRESS.finditer(text):
        yield match.start(), match.start() + len(match[0].rstrip(_BEHIND_ADDRESS))


def _with_mentions(text: str, link: Link) -> Iterable[str]:
    place = 0
    for start, end, mention in spans(text):
        yield escape(text[place:start])
        known = link(mention)
        if known is None:
            yield f'<span class="mention">{escape(text[start:end])}</span>'
        else:
            address, label = known
            id = escape(mention.id)
            yield f'<a class="mention" href="{escape(address)}" title="{id}">@{escape(label)}</a>'
        place = end
    yield escape(text[place:])


def shown_time(stored: str) -> str:
    """``<time>`` of a stored time, without its fractions."""
    if not stored:
        return ""
    return f'<time datetime="{escape(stored)}">{escape(stored[:16].replace("T", " "))} UTC</time>'


def plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
