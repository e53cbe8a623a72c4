"""Publishing: what may be published, and not a byte of anything else."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scp_git
from scp_git import ChatMessage, OutputRefused, PublishReport, Run, Store, Thread
from scp_git.chat.keys import KEY_NAME
from scp_git.chat.pages import escape, rich
from scp_git.chat.publish import Place, Site, checked_base_url
from scp_git.git.notes import append_note, list_notes, read_note
from scp_git.git.transaction import Transaction
from scp_git.models import MessageFlags
from scp_git.ticket import Ticket

CANARY = "canary-5a1d"
HOSTILE = [
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "\"><svg onload=document.title='pwned'>",
    "'-->]]></style></title><script>document.title='pwned'</script>",
    "javascript:document.title='pwned'",
    "https://x.example/\"onmouseover=document.title='pwned'",
    "https://x.example/'><script>document.title='pwned'</script>",
    "@file:\"<img src=x onerror=document.title='pwned'>\"",
    "&lt;script&gt; &#x3c;script&#x3e;",
    "\x00\x1b[2J\ud7ff\u202e\u2066evil\ufeff\u2028\x85",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "<meta http-equiv=refresh content=0;url=https://x.example><base href=https://x.example>",
]


class Seen(HTMLParser):
    """The tags, attributes and texts of a page, as a browser would find them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def everything(out: Path) -> bytes:
    """Every byte that was written, names included, and what entities and escapes stand for."""
    parts = [str(path.relative_to(out)).encode() for path in out.rglob("*")]
    parts += [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    raw = b"\n".join(parts)
    text = raw.decode()
    plain = [html.unescape(text), unquote(text), text.encode().decode("unicode_escape", "ignore")]
    return b"\n".join([raw, *(each.encode("utf-8", "surrogatepass") for each in plain)])


def pages(out: Path) -> list[Path]:
    return sorted(out.rglob("*.html"))


def feed(out: Path) -> dict[str, object]:
    loaded = json.loads((out / "feed.json").read_bytes())
    assert isinstance(loaded, dict)
    return loaded


def texts(out: Path) -> list[str]:
    return [item["content_text"] for item in feed(out)["items"]]  # type: ignore[attr-defined]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def store(repo: Path) -> Store:
    return Store.open(repo)


# ---------------------------------------------------------------- nothing else


def test_nothing_unpublished_and_nothing_encrypted_appears(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_NAME, f"{CANARY}-key")
    shown_run = store.record_run(
        Run(
            type="deploy",
            summary="public summary",
            metadata={"token": f"{CANARY}-metadata"},
            modules_affected=[f"{CANARY}-module"],
        ),
        [{"type": f"{CANARY}-event"}],
    )
    hidden_run = store.record_run(
        Run(run_id="hidden-1", type=f"{CANARY}-type", summary=f"{CANARY}-summary", user=f"{CANARY}-runner")
    )
    shown = store.create_thread("Public title", anchor_run=hidden_run).thread_id
    hidden = store.create_thread(
        f"{CANARY}-title", tags=[f"{CANARY}-tag"], user=f"{CANARY}-creator"
    ).thread_id
    send = store.send_message
    send("shown in thread", thread_id=shown, publish=True)
    send(f"look at @run:{hidden_run} and @thread:{hidden}", thread_id=shown, run_id=shown_run, publish=True)
    send(f"{CANARY} unflagged", thread_id=shown)
    send(f"{CANARY} unflagged, of a run", run_id=shown_run)
    send(f"{CANARY} in a hidden thread", thread_id=hidden, user=f"{CANARY}-user")
    send(f"{CANARY} about a hidden run", run_id=hidden_run)
    sealed = [
        send(f"{CANARY} encrypted", thread_id=shown, encrypt=True, publish=True),
        send(f"{CANARY} encrypted, of a run", run_id=hidden_run, encrypt=True, publish=True),
        send(f"{CANARY} encrypted, both", run_id=hidden_run, thread_id=hidden, encrypt=True, publish=True),
    ]
    send(sealed[0].text, thread_id=hidden, publish=True)  # a ciphertext sent as plain text
    withdrawn = send(f"{CANARY} withdrawn", thread_id=shown, publish=True)
    store.set_message_flags(withdrawn.id, publish=False, thread_id=shown)
    deleted = send(f"{CANARY} deleted", thread_id=shown, publish=True)
    store.delete_message(deleted.id, thread_id=shown)
    gone = store.create_thread(f"{CANARY} gone").thread_id
    send(f"{CANARY} in a deleted thread", thread_id=gone, publish=True)
    store.delete_thread(gone)
    gone_run = store.record_run(Run(type="x", summary=f"{CANARY} gone"))
    send(f"{CANARY} about a deleted run", run_id=gone_run, publish=True)
    store.delete_run(gone_run)

    assert store.publish_chat(out) == PublishReport(messages=2, threads=1, runs=1)
    written = everything(out)
    assert CANARY.encode() not in written
    assert b"ENC:v1" not in written
    assert all(message.id.encode() not in written for message in (*sealed, withdrawn, deleted))
    assert sorted(texts(out)) == [f"look at @run:{hidden_run} and @thread:{hidden}", "shown in thread"]
    assert b"public summary" in written and b"Public title" in written
    assert len(pages(out)) == 3


def test_what_is_withdrawn_disappears_from_what_was_published(store: Store, out: Path) -> None:
    run = store.record_run(Run(type="x", summary="a summary"))
    thread = store.create_thread(f"{CANARY} title").thread_id
    first = store.send_message(f"{CANARY} one", thread_id=thread, run_id=run, publish=True)
    store.send_message("other", publish=True)
    store.publish_chat(out)
    assert CANARY.encode() in everything(out)
    store.set_message_flags(first.id, publish=False, run_id=run, thread_id=thread)
    assert store.publish_chat(out) == PublishReport(messages=1, threads=1, runs=0)
    assert CANARY.encode() not in everything(out)
    assert run.encode() not in everything(out)
    assert not (out / "runs").exists()


class Append:
    """Lines in the note on a run's tag, as stock git may have appended them."""

    size = 1024

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def apply(self, tx: Transaction) -> None:
        (target,) = list_notes(tx.notes)
        append_note(tx.notes, target, b"\n".join(self.lines))
        assert read_note(tx.notes, target)


def test_foreign_and_damaged_lines_publish_nothing_wrong(store: Store, out: Path) -> None:
    run, other = (store.record_run(Run(run_id=id, type="x", summary=id)) for id in ("run-a", "run-b"))
    store.send_message("fine", run_id=run, publish=True)
    said = ChatMessage(text=f"{CANARY}", run_id=other, flags=MessageFlags(publish=True)).model_dump()
    lines = [
        b"{",
        b'{"publish": true, "run_id": "../../etc"}',
        b'{"publish": true, "run_id": 5}',
        json.dumps({**said, "flags": {"publish": "yes"}}).encode(),
        json.dumps({**said, "id": "m1", "flags": {"publish": True, "encrypted": True}}).encode(),
        json.dumps({**said, "id": "m2", "flags": {}}).encode(),
    ]
    store._wait(Ticket(lambda: Append(lines), size=0))
    assert store.publish_chat(out) == PublishReport(messages=1, threads=0, runs=1)
    assert CANARY.encode() not in everything(out)
    assert texts(out) == ["fine"]


def test_of_copies_that_disagree_none_is_published() -> None:
    def said(publish: bool, encrypted: bool = False) -> ChatMessage:
        flags = MessageFlags(publish=publish, encrypted=encrypted)
        return ChatMessage(id="m", ts="2026-01-01", text=CANARY, thread_id="t", run_id="r", flags=flags)

    threads, runs = {"t": Thread(thread_id="t", title="T")}, {"r": Run(run_id="r", type="x")}
    for copies in ((said(True), said(False)), (said(False), said(True)), (said(True), said(True, True))):
        site = Site.build(
            {("thread", "t"): [copies[0]], ("run", "r"): [copies[1]]}, threads, runs, title="", base_url=""
        )
        assert site.report() == PublishReport(0, 0, 0)
        assert CANARY.encode() not in b"".join(site.files().values())


@given(st.data())
def test_exactly_the_public_messages_are_in_it(data: st.DataObject) -> None:
    places: list[Place] = [("thread", "t1"), ("thread", "t2"), ("run", "r1"), ("run", "r2")]
    threads = {id: Thread(thread_id=id, title=f"title-{id}") for id in ("t1", "t2")}
    runs = {id: Run(run_id=id, type="x", summary=f"summary-{id}") for id in ("r1", "r2")}
    said: dict[Place, list[ChatMessage]] = {place: [] for place in places}
    public: dict[str, list[Place]] = {}
    for number in range(data.draw(st.integers(0, 8))):
        id, all_public = f"m{number}", True
        chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2, unique=True))
        for kind, name in chosen:
            flags = MessageFlags(publish=data.draw(st.booleans()), encrypted=data.draw(st.booleans()))
            all_public = all_public and flags.publish and not flags.encrypted
            message = ChatMessage(id=id, ts="2026-01-01", text=f"text-{id};", flags=flags)
            said[kind, name].append(message)
        if all_public:
            public[id] = chosen
    files = Site.build(said, threads, runs, title="", base_url="").files()
    written = b"".join(files.values()).decode()
    assert {id for id in (f"m{n}" for n in range(8)) if f"text-{id};" in written} == public.keys()
    shown = {place for chosen in public.values() for place in chosen}
    for kind, name in places:
        label = f"title-{name}" if kind == "thread" else f"summary-{name}"
        assert (label in written) == ((kind, name) in shown)
        page = files.get(f"{kind}s/{name}.html", b"").decode()
        for id, chosen in public.items():
            assert (f"text-{id};" in page) == ((kind, name) in chosen)


def test_no_key_is_asked_for(store: Store, out: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, "x")
    store.send_message("secret", encrypt=True, publish=True)
    store.send_message("open", publish=True)
    monkeypatch.delenv(KEY_NAME)
    assert store.publish_chat(out).messages == 1


# ---------------------------------------------------------------- hostile texts


@pytest.fixture
def hostile_site(store: Store, out: Path) -> Path:
    title = "<script>document.title='pwned'</script>"
    run = store.record_run(
        Run(
            run_id="hostile",
            type="<b>",
            subtype="</h1><script>document.title='pwned'</script>",
            summary="<img src=x onerror=document.title='pwned'>",
            user="\" onload=\"document.title='pwned'",
            environment="</dd><script>document.title='pwned'</script>",
            code_ref="<script>x()</script>",
        )
    )
    thread = store.create_thread(title, user=title, tags=[title, "</span><script>"]).thread_id
    for text in HOSTILE:
        store.send_message(text, user=text, thread_id=thread, run_id=run, publish=True)
    store.send_message(f"see @thread:{thread}, @run:{run}.", thread_id=thread, publish=True)
    store.publish_chat(out, title=title)
    return out


def test_nothing_hostile_becomes_markup(hostile_site: Path) -> None:
    known = set("html head meta title link style body header main div a".split())
    known |= set("h1 h2 h3 p span b article time dl dt dd".split())
    assert len(pages(hostile_site)) == 3
    for path in pages(hostile_site):
        data = path.read_bytes()
        seen = Seen(data)
        assert set(seen.tags) <= known
        assert not [name for name, _ in seen.attributes if name.startswith("on")]
        assert {name for name, _ in seen.attributes} <= set(
            "lang charset http-equiv content name rel type href class id datetime dir title".split()
        )
        links = [value for name, value in seen.attributes if name == "href"]
        allowed = re.compile(
            r"(\.\./)?(index\.html|feed\.json|(threads|runs)/[\w.-]+\.html(#[\w.-]+)?)|#[\w.-]+"
        )
        for link in links:
            assert allowed.fullmatch(link) or link.startswith(("https://x.example", "data:image/svg+xml,"))
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", data)
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x80-\x9f]", data.decode())
    text = Seen((hostile_site / "runs/hostile.html").read_bytes()).text
    for said in HOSTILE[:9]:
        assert said in text


def test_every_page_has_a_policy_that_allows_no_script(hostile_site: Path) -> None:
    for path in pages(hostile_site):
        data = path.read_text("utf-8")
        (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', data)
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "script" not in policy
        assert "unsafe" not in policy
        assert data.index("Content-Security-Policy") < data.index("<title>")
        assert 'name="viewport"' in data
        assert "prefers-color-scheme: dark" in data


@pytest.mark.system("chromium")
def test_a_browser_shows_the_page_and_executes_nothing(hostile_site: Path, tmp_path: Path) -> None:
    page = hostile_site / "runs/hostile.html"
    # A control: this browser does run scripts where nothing forbids it.
    control = tmp_path / "control.html"
    control.write_text("<!doctype html><title>quiet</title><script>document.title='pwned'</script>")
    assert "<title>pwned</title>" in rendered(control, tmp_path)
    dom = rendered(page, tmp_path)
    seen = Seen(dom.encode())
    assert re.search(r"<title>&lt;/h1&gt;&lt;script&gt;.*</title>", dom)
    assert seen.tags.count("article") == len(HOSTILE)
    assert "script" not in seen.tags
    assert "img" not in seen.tags
    assert HOSTILE[0] in seen.text


@pytest.mark.system("chromium")
def test_should_escaping_ever_fail_the_policy_still_forbids_scripts(
    store: Store, out: Path, tmp_path: Path
) -> None:
    store.send_message("x", publish=True)
    store.publish_chat(out)
    page = (out / "index.html").read_text("utf-8")
    planted = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"></main>"
    (out / "index.html").write_text(page.replace("</main>", planted), "utf-8")
    dom = rendered(out / "index.html", tmp_path)
    assert "<title>Messages</title>" in dom
    assert "onerror" in dom


def rendered(page: Path, scratch: Path) -> str:
    """The page's DOM after chromium has loaded it, as HTML."""
    done = subprocess.run(
        [
            "chromium",
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--no-first-run", "--disable-extensions"),
            *("--disable-sync", "--no-default-browser-check", "--virtual-time-budget=2000"),
            f"--user-data-dir={scratch / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=25,
        check=True,
    )
    return done.stdout


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from('<>&"@:/\n'), max_size=80))
def test_a_rich_text_shows_the_text_and_links_only(text: str) -> None:
    def link(mention: scp_git.Mention) -> tuple[str, str] | None:
        return None

    for said in (text, f"https://x.example/{text}", f'@file:"{text}"', f"@run:{text}"):
        seen = Seen(rich(said, link).encode())
        assert set(seen.tags) <= {"a", "span"}
        assert {name for name, _ in seen.attributes} <= {"href", "rel", "class"}
        assert seen.text == html.unescape(escape(said))


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_comes_back_from_a_parser(text: str) -> None:
    seen = Seen(f'<p title="{escape(text)}">{escape(text)}</p>'.encode())
    assert seen.tags == ["p"]
    assert [name for name, _ in seen.attributes] == ["title"]
    assert "<" not in escape(text) and '"' not in escape(text) and "'" not in escape(text)


def test_addresses_and_published_mentions_are_links() -> None:
    def link(mention: scp_git.Mention) -> tuple[str, str] | None:
        return ("../runs/r.html", "Deploy <1>") if mention.id == "r" else None

    assert rich("at https://a.example/x?y=1&z=(2).", link) == (
        'at <a href="https://a.example/x?y=1&amp;z=(2" rel="noopener noreferrer nofollow">'
        "https://a.example/x?y=1&amp;z=(2</a>)."
    )
    assert rich("(@run:r, @run:s)", link) == (
        '(<a class="mention" href="../runs/r.html" title="r">@Deploy &lt;1&gt;</a>, '
        '<span class="mention">@run:s</span>)'
    )
    for text in (
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "ftp://x.example",
        "https://",
    ):
        assert "<a" not in rich(text, link)


# ---------------------------------------------------------------- what is published


def test_the_site_holds_the_conversations(store: Store, out: Path) -> None:
    run = store.record_run(
        Run(type="deploy", summary="v3", status="failed", environment="prod", duration_ms=1500)
    )
    thread = store.create_thread("Outage", user="Grace", tags=["ops"], anchor_run=run).thread_id
    first = store.send_message("number one", user="Ada", thread_id=thread, publish=True)
    both = store.send_message("both & more", thread_id=thread, run_id=run, publish=True, source="trace")
    report = store.publish_chat(out, title="Log", base_url="https://x.example/log")
    assert report == PublishReport(messages=2, threads=1, runs=1)
    thread_page = (out / f"threads/{thread}.html").read_text()
    run_page = (out / f"runs/{run}.html").read_text()
    assert thread_page.index("number one") < thread_page.index("both &amp; more")
    assert f'href="../runs/{run}.html#{both.id}"' in thread_page
    assert f'id="{first.id}"' in thread_page
    assert "number one" not in run_page
    assert f'href="../threads/{thread}.html#{both.id}"' in run_page
    text = Seen(run_page.encode()).text
    for part in ("deploy: v3", "failed", "prod", "1.5 s", "trace", "both & more", run):
        assert part in text
    index = (out / "index.html").read_text()
    assert f'href="threads/{thread}.html"' in index
    assert f'href="runs/{run}.html"' in index
    assert feed(out) == {
        "version": "https://jsonfeed.org/version/1.1",
        "title": "Log",
        "home_page_url": "https://x.example/log/index.html",
        "feed_url": "https://x.example/log/feed.json",
        "items": [
            {
                "id": both.id,
                "url": f"https://x.example/log/threads/{thread}.html#{both.id}",
                "title": "Outage",
                "content_text": "both & more",
                "date_published": both.ts,
                "authors": [{"name": "Ada Tester"}],
                "tags": [f"thread:{thread}", f"run:{run}", "source:trace"],
            },
            {
                "id": first.id,
                "url": f"https://x.example/log/threads/{thread}.html#{first.id}",
                "title": "Outage",
                "content_text": "number one",
                "date_published": first.ts,
                "authors": [{"name": "Ada"}],
                "tags": [f"thread:{thread}", "source:manual"],
            },
        ],
    }


def test_without_an_address_the_feed_has_none_and_links_are_relative(store: Store, out: Path) -> None:
    store.send_message("x", publish=True)
    store.publish_chat(out)
    assert not {"home_page_url", "feed_url"} & feed(out).keys()
    links = [value for name, value in Seen((out / "index.html").read_bytes()).attributes if name == "href"]
    assert [link for link in links if "://" in link and not link.startswith("data:")] == []


def test_a_site_of_nothing_says_so(store: Store, out: Path) -> None:
    assert store.publish_chat(out) == PublishReport(0, 0, 0)
    assert "Nothing is published." in (out / "index.html").read_text()
    assert feed(out)["items"] == []


def test_the_same_messages_give_the_same_bytes(
    store: Store, tmp_path: Path, make_repo: Callable[..., Path]
) -> None:
    run = store.record_run(Run(type="x"))
    thread = store.create_thread("T").thread_id
    for n in range(10):
        store.send_message(f"m{n}", run_id=run, thread_id=thread, publish=True)
    store.publish_chat(tmp_path / "a")
    store.publish_chat(tmp_path / "b")
    store.publish_chat(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()
    }


def test_ids_that_differ_in_case_only_get_files_of_their_own(store: Store, out: Path) -> None:
    for id in ("Run-A", "run-a", "run-b"):
        store.record_run(Run(run_id=id, type="x"))
        store.send_message(id, run_id=id, publish=True)
    store.publish_chat(out)
    names = [path.name for path in (out / "runs").iterdir()]
    assert len({name.casefold() for name in names}) == 3
    assert "run-b.html" in names


def test_a_run_whose_tag_is_gone_and_one_without_an_anchor_are_found(
    out: Path, make_repo: Callable[..., Path]
) -> None:
    store = Store.open(make_repo(commits=0))
    run = store.record_run(Run(type="early"))
    store.send_message("before the first commit", run_id=run, publish=True)
    assert store.publish_chat(out) == PublishReport(messages=1, threads=0, runs=1)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "https://",
        "ftp://x",
        "https://x/?a",
        "https://x/#a",
        'https://x/"',
        "https://x y",
        "x",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        checked_base_url(url)
    assert checked_base_url("https://x.example/a") == checked_base_url("https://x.example/a/")


def test_a_refused_address_leaves_no_folder(store: Store, out: Path) -> None:
    with pytest.raises(ValueError, match="base URL"):
        store.publish_chat(out, base_url="javascript:alert(1)")
    assert not out.exists()


async def test_the_functions_publish_and_raise(repo: Path, tmp_path: Path) -> None:
    await scp_git.send_message(repo, "hello", publish=True)
    assert await scp_git.publish_chat(repo, tmp_path / "new") == PublishReport(1, 1, 0)
    (tmp_path / "full").mkdir(exist_ok=True)
    (tmp_path / "full/mine").write_text("x")
    with pytest.raises(OutputRefused, match="holds files"):
        await scp_git.publish_chat(repo, tmp_path / "full")
