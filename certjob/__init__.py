"""certjob: the nightly job that keeps mentors' certificates, pauses, reminders and the portal in agreement."""

__version__ = "0.1.0"
