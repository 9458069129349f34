"""certjob: the nightly job that keeps mentors' certificates, pauses, reminders and the portal in agreement."""

from importlib.metadata import version

__version__ = version("certjob")
"""The release and the commit of the build, such as ``1.0.0+3c02eb4f2a17``."""
