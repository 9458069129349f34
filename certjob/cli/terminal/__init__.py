"""Output: tables, lines, JSON, CSV, logs."""
