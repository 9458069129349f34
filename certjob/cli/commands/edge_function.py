"""The command that hands out the portal's Edge Function: edge-function."""

from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.help import SETTING_UP
from certjob.cli.session import Call, Commands

app = Commands()

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", show_default=False, help="The folder of the project's functions, such as supabase/functions."
    ),
]


@app.command(
    "edge-function",
    group=SETTING_UP,
    without=("quiet", "env_file"),
    short_help="Copy the portal's Edge Function into a Supabase project.",
    examples=("certjob edge-function supabase/functions",),
)
def edge_function(call: Call, folder: Folder) -> int:
    """Copy the portal's Edge Function into a Supabase project, and print its lines for config.toml.

    It becomes a new folder in DIR. Nothing is overwritten.
    """
    from certjob.cli.terminal import plain
    from certjob.portal.edge_function import CONFIGURATION, copy_edge_function

    target = copy_edge_function(folder)
    if call.json:
        plain.print_json({"outcome": "ok", "folder": str(target), "configuration": CONFIGURATION})
        return 0
    plain.print_note(call.command, f"copied to {target}; add these lines to config.toml")
    plain.print_result(CONFIGURATION.rstrip())
    return 0
