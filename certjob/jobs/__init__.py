"""The commands that change data: one function each, and the report of a run."""
