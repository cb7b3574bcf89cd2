"""The program ``isoframe``: its sub-commands and those that other packages add."""

from importlib import metadata
from typing import Annotated

import typer

from .convert import convert
from .demo import demo
from .doctor import doctor
from .exports import export, reproduce
from .frame import frame
from .generate import generate
from .info import info
from .jobs import app as jobs
from .jobs import redo, resume
from .serve import app as app_page
from .serve import mcp, serve
from .show_plan import plan
from .terminal.printing import echo, show_usage_plainly

PLUGIN_GROUP = "isoframe.commands"


def build_app() -> typer.Typer:
    """The whole program: built-in sub-commands, then the entry points of :data:`PLUGIN_GROUP`."""
    app = typer.Typer(
        help="FramePack on your own machine: one image in, a video of any length out.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage or a plan that does not fit, 3 inconclusive, 130 Ctrl-C.",
        callback=_root,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (
        convert,
        demo,
        doctor,
        export,
        frame,
        generate,
        info,
        mcp,
        plan,
        redo,
        reproduce,
        resume,
        serve,
    ):
        app.command()(command)
    app.command("app")(app_page)
    app.add_typer(jobs, name="jobs")
    plugins = {plugin.name: plugin for plugin in metadata.entry_points(group=PLUGIN_GROUP)}
    for name, plugin in sorted(plugins.items()):
        loaded = plugin.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name)
        else:
            app.command(name)(loaded)
    show_usage_plainly(app)
    return app


def installed_version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version("isoframe")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(is_asked: bool) -> None:
    if is_asked:
        echo(f"isoframe {installed_version()}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options of the program itself."""
