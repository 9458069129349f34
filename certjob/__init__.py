"""certjob: the nightly job that keeps mentors' certificates, pauses, reminders and the portal in agreement."""

__version__ = "1.0.0"
