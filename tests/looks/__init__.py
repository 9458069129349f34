"""How our mails look: every message as a picture, with contrasts and sizes."""
