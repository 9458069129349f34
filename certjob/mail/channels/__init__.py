"""The ways out for messages: SMTP, a Maildir, a webhook."""
