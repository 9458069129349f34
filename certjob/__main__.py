"""``python -m certjob`` is the same command."""

from certjob.cli.entry import main

if __name__ == "__main__":
    main()
