"""Values, rules, projections and explanations. Everything here is pure; no module does I/O."""
