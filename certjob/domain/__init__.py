"""Pure: the values, the programme's rules, the coming nights, the rules in words; no I/O."""
