"""The command that shows certjob to newcomers: demo."""

from certjob.cli.help import SETTING_UP
from certjob.cli.session import Call, Commands, set_up_logs

app = Commands()


@app.command(
    group=SETTING_UP,
    without=("json", "quiet", "env_file"),
    short_help="Show a few nights on a throw-away database.",
)
def demo(call: Call) -> int:
    """Show a few nights in a row on a throw-away database, with a portal that has cold starts and outages."""
    from certjob.cli.demo.show import show

    set_up_logs(verbose=call.verbose)
    return show(stop=call.stop)
