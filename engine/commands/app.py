"""The program ``isoframe``: its sub-commands and those that other packages add."""

from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated

import typer

PLUGIN_GROUP = "isoframe.commands"


def main() -> None:
    """Run the command line of this process."""
    build_app()(prog_name="isoframe")


def build_app() -> typer.Typer:
    """The whole program: built-in sub-commands, then the entry points of :data:`PLUGIN_GROUP`."""
    app = typer.Typer(
        help="FramePack on your own machine: one image in, a video of any length out.",
        callback=_root,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    plugins = {plugin.name: plugin for plugin in entry_points(group=PLUGIN_GROUP)}
    for name, plugin in sorted(plugins.items()):
        app.add_typer(plugin.load(), name=name)
    return app


def installed_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("isoframe")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"isoframe {installed_version()}")
        raise typer.Exit
