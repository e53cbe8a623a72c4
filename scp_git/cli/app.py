"""The command tree: global options, completion, help. Imports click and no other part of the library."""

from __future__ import annotations

import click

from scp_git.cli.lazy import LazyGroup
from scp_git.cli.terminal import emit

_EPILOG = """\b
Exit codes:
  0    done
  1    an error
  2    wrong usage, or a value that cannot be recorded
  3    there is no such run, thread, message or session
  4    a remote refused something
  5    the repository is busy
  130  interrupted
`run` exits with the code of its command instead.
"""

_COMMANDS = {
    "chat": "scp_git.cli.chat:chat",
    "ledger": "scp_git.cli.ledger:ledger",
    "maintain": "scp_git.cli.transfer:maintain",
    "pull": "scp_git.cli.sync:pull",
    "push": "scp_git.cli.sync:push",
    "run": "scp_git.cli.run:run",
    "search": "scp_git.cli.search:search",
    "stats": "scp_git.cli.search:stats",
    "status": "scp_git.cli.sync:status",
    "sync": "scp_git.cli.sync:sync",
    "trace": "scp_git.cli.trace:trace",
    "watch": "scp_git.cli.watch:watch",
}


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from scp_git import __version__

        emit(f"scp-git {__version__}\n")
        context.exit()


@click.group(
    cls=LazyGroup,
    homes=_COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-C",
    "path",
    metavar="PATH",
    type=click.Path(),
    help="A folder of the repository to use; the top of its tree is found. Default: the current folder.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def app(context: click.Context, path: str | None) -> None:
    """Operational history inside a git repository: what was executed, when, by whom, and how it ended."""
    context.obj = path


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete scp-git commands.

    \b
    bash:  eval "$(scp-git completion bash)"       in ~/.bashrc
    zsh:   eval "$(scp-git completion zsh)"        in ~/.zshrc
    fish:  scp-git completion fish > ~/.config/fish/completions/scp-git.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(app, {}, "scp-git", "_SCP_GIT_COMPLETE")
    # Not source(): for bash that would start a bash to ask for its version.
    emit(script.source_template % script.source_vars() + "\n")
