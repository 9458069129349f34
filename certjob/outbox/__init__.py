"""Claim, lease, try, settle: what every way out of the machine shares, whatever it delivers."""
