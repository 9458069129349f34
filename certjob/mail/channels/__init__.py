"""Channels that send messages: SMTP, a Maildir."""
