"""The command line: options in, pages out."""

import sys

if sys.platform == "win32":  # before the modules that need Unix signals are imported
    print("certjob: Windows is not supported; use Linux, for example WSL or a container", file=sys.stderr)  # noqa: T201
    sys.exit(2)
