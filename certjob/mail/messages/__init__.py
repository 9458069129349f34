"""The texts that people read: Jinja2 templates in this folder, one text and one HTML file per message and language."""
