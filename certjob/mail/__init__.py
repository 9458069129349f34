"""Reminders and digests: queue, write, send and settle them."""
