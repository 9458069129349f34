"""The command line: commands, pages, the terminal. Nothing below it prints."""
