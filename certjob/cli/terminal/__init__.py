"""How anything is printed: tables, lines, JSON, CSV, logs."""
