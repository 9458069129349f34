"""Parse, build, call one function, print, choose the exit code."""
