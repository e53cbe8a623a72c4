"""``scp-git chat``: say something about a run or in a thread, read it, and publish what may be published."""

from __future__ import annotations

import sys

import click

from scp_git.cli import conversation
from scp_git.cli.place import opened
from scp_git.cli.terminal import complain, confirmed, emit

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON document, ASCII, nothing cut.")
_RUN_OPTION = click.option("--run", "run_id", metavar="ID", help="The run that it is about.")
_THREAD_OPTION = click.option("--thread", "thread_id", metavar="ID", help="The thread that it is in.")
_USER_OPTION = click.option("--user", help="Default: the git identity.")
_COUNT = click.IntRange(min=1)
_MAX_INPUT = 4 * 1024 * 1024
_SCISSORS = "# ------------------------ >8 ------------------------"
_EXPLAINED = f"""\


{_SCISSORS}
# Write the message above this line; everything from here on is ignored.
# An empty message is not sent.
"""


@click.group()
def chat() -> None:
    """Messages about runs and in threads."""


# ---------------------------------------------------------------- messages


@chat.command()
@click.argument("text", metavar="[TEXT]...", nargs=-1)
@_RUN_OPTION
@_THREAD_OPTION
@_USER_OPTION
@click.option("--encrypt", is_flag=True, help="Store it encrypted, with the key CONTENT_VAULT_ENC_KEY.")
@click.option("--publish", is_flag=True, help="It may be published (see `publish`).")
@_JSON_OPTION
@click.pass_obj
def send(
    path: str | None,
    text: tuple[str, ...],
    run_id: str | None,
    thread_id: str | None,
    user: str | None,
    encrypt: bool,
    publish: bool,
    as_json: bool,
) -> None:
    """Send a message and print its id, once it is stored for good.

    Without TEXT it is read from standard input, or written in $VISUAL or $EDITOR if that is a terminal.
    Arguments stay in the shell's history: what is to be encrypted is better piped or written.

    Without --run and --thread it goes to the thread `general`; with both it is stored in both.
    """
    written = _text_of(text)
    if not written.strip():
        raise click.UsageError("there is no text to send")
    with opened(path) as store:
        message = store.send_message(
            written,
            user=user or "",
            thread_id=thread_id,
            run_id=run_id,
            publish=publish,
            encrypt=encrypt,
        )
    if as_json:
        conversation.print_message(message)
    else:
        emit(message.id + "\n")


def _text_of(words: tuple[str, ...]) -> str:
    if words and words != ("-",):
        return " ".join(words)
    if words or sys.stdin is None or not sys.stdin.isatty():
        return _piped()
    written = click.edit(_EXPLAINED, extension=".md", require_save=False)
    return (written or "").partition(_SCISSORS)[0].rstrip()


def _piped() -> str:
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise click.UsageError(f"standard input has more than {_MAX_INPUT} bytes")
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("standard input is not UTF-8") from None


@chat.command("list")
@_RUN_OPTION
@_THREAD_OPTION
@click.option("-n", "count", metavar="N", type=_COUNT, default=50, show_default=True, help="At most N.")
@click.option("--before", metavar="ID", help="Only messages older than this one: the next page.")
@_JSON_OPTION
@click.pass_obj
def list_messages(
    path: str | None,
    run_id: str | None,
    thread_id: str | None,
    count: int,
    before: str | None,
    as_json: bool,
) -> None:
    """List the latest messages of a run, of a thread or of both; without either those of `general`.

    On a terminal as a conversation, the newest last, with what mentions stand for. Else the newest first,
    one line per message with TAB between id, time, user, thread, run, flags and text.
    """
    with opened(path) as store:
        messages = store.list_messages(run_id=run_id, thread_id=thread_id, n=count, before=before)
        given = (run_id, thread_id) if run_id or thread_id else ("general",)
        conversation.print_messages(messages, store.resolve_mentions, as_json=as_json, given=given)


@chat.command()
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@_RUN_OPTION
@_THREAD_OPTION
@click.pass_obj
def delete(path: str | None, message_ids: tuple[str, ...], run_id: str | None, thread_id: str | None) -> int:
    """Delete messages and print the ids of those deleted.

    They go in every clone that pulls this. What git's history holds stays there: to undo the leak of a
    secret, change the secret.
    """
    from scp_git.errors import NotFound

    code = 0
    with opened(path) as store:
        for message_id in message_ids:
            if store.delete_message(message_id, run_id=run_id, thread_id=thread_id):
                emit(message_id + "\n")
            else:
                complain(str(NotFound("message", message_id)))
                code = 3
    return code


@chat.command()
@click.argument("message_id", metavar="ID")
@click.option("--publish/--no-publish", required=True, help="Whether it may be published.")
@_RUN_OPTION
@_THREAD_OPTION
@_JSON_OPTION
@click.pass_obj
def flags(
    path: str | None,
    message_id: str,
    publish: bool,
    run_id: str | None,
    thread_id: str | None,
    as_json: bool,
) -> None:
    """Change whether a message may be published, and print its id."""
    with opened(path) as store:
        message = store.set_message_flags(message_id, publish=publish, run_id=run_id, thread_id=thread_id)
    if as_json:
        conversation.print_message(message)
    else:
        emit(message.id + "\n")


@chat.command()
@click.argument("prefix")
@click.option("-n", "count", metavar="N", type=_COUNT, default=20, show_default=True, help="At most N.")
@_JSON_OPTION
@click.pass_obj
def mention(path: str | None, prefix: str, count: int, as_json: bool) -> None:
    """Say what PREFIX, such as @run:dep or @file:src/, may become in a message, the newest first.

    On a terminal a table; else one line each with TAB between the mention, its label and detail. After the
    colon an id's beginning is looked for, or words of label and detail.
    """
    with opened(path) as store:
        found = store.complete_mention(prefix, n=count)
    conversation.print_mentions(found, as_json=as_json)


# ---------------------------------------------------------------- threads


@chat.command()
@_JSON_OPTION
@click.pass_obj
def threads(path: str | None, as_json: bool) -> None:
    """List all threads, the newest first.

    On a terminal a table; else one line per thread with TAB between id, creation time, creator, run, tags
    and title.
    """
    with opened(path) as store:
        found = store.list_threads()
    conversation.print_threads(found, as_json=as_json)


@chat.group()
def thread() -> None:
    """Make, show and delete a thread."""


@thread.command("new")
@click.argument("title", nargs=-1, required=True)
@click.option("--run", "anchor_run", metavar="ID", help="A run that it is about.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="May be repeated.")
@_USER_OPTION
@_JSON_OPTION
@click.pass_obj
def new_thread(
    path: str | None,
    title: tuple[str, ...],
    anchor_run: str | None,
    tags: tuple[str, ...],
    user: str | None,
    as_json: bool,
) -> None:
    """Create a thread and print its id."""
    with opened(path) as store:
        made = store.create_thread(" ".join(title), user=user or "", anchor_run=anchor_run, tags=list(tags))
    if as_json:
        conversation.print_thread(made)
    else:
        emit(made.thread_id + "\n")


@thread.command("show")
@click.argument("thread_id", metavar="ID")
@click.option("-n", "count", metavar="N", type=_COUNT, default=50, show_default=True, help="At most N.")
@_JSON_OPTION
@click.pass_obj
def show_thread(path: str | None, thread_id: str, count: int, as_json: bool) -> None:
    """Show one thread with its latest messages."""
    from scp_git.errors import NotFound

    with opened(path) as store:
        found = next((each for each in store.list_threads() if each.thread_id == thread_id), None)
        if found is None:
            raise NotFound("thread", thread_id)
        messages = store.list_messages(thread_id=thread_id, n=count)
        conversation.print_conversation(found, messages, store.resolve_mentions, as_json=as_json)


@thread.command("delete")
@click.argument("thread_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete_thread(path: str | None, thread_id: str, yes: bool) -> int:
    """Delete a thread with all its messages, and print its id; asks first if stdin is a terminal."""
    from scp_git.errors import NotFound

    with opened(path) as store:
        if not yes and not confirmed(f"Delete the thread {thread_id} with all its messages?"):
            complain("nothing was deleted")
            return 1
        if not store.delete_thread(thread_id):
            raise NotFound("thread", thread_id)
    emit(thread_id + "\n")
    return 0


# ---------------------------------------------------------------- publishing and the key


def _base_url(context: click.Context, option: click.Parameter, value: str) -> str:
    from scp_git.chat.publish import checked_base_url

    try:
        return checked_base_url(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@chat.command()
@click.option("--out", metavar="DIR", type=click.Path(), required=True, help="The folder; made if missing.")
@click.option("--title", default="", help="The site's title. Default: Messages.")
@click.option(
    "--base-url",
    metavar="URL",
    default="",
    callback=_base_url,
    help="Where it will be, for addresses in the feed.",
)
@_JSON_OPTION
@click.pass_obj
def publish(path: str | None, out: str, title: str, base_url: str, as_json: bool) -> None:
    """Write the messages that may be published to DIR, as a web site and a JSON feed.

    Never an encrypted message, nor a thread or run without such messages. DIR must be empty, new, or of an
    earlier call, whose files are then replaced; what may not be published any more disappears from it.
    """
    with opened(path) as store:
        report = store.publish_chat(out, title=title, base_url=base_url)
    conversation.print_report(report, as_json=as_json)


@chat.command()
def keygen() -> None:
    """Print a new random key as a line for the file .env.

    \b
    scp-git chat keygen >> .env && chmod 600 .env

    The file must not be committed. Whoever has the key can read everything that was encrypted with it, and
    nobody can without.
    """
    import secrets

    emit(f"CONTENT_VAULT_ENC_KEY={secrets.token_urlsafe(32)}\n")
