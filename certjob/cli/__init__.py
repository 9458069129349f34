"""The command line: options in, pages out."""

import sys

if sys.platform == "win32":  # first, because other modules need the signals of Unix
    print("certjob: Windows is not supported; use Linux, for example WSL or a container", file=sys.stderr)  # noqa: T201
    sys.exit(2)
