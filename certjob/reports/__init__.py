"""The commands that only read, and the ping at the end of a run."""
