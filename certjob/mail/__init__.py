"""Reminders and coordinators' digests: queued, written, handed over, settled."""
