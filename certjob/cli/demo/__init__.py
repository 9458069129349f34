"""A few nights in a row on a throw-away database."""
