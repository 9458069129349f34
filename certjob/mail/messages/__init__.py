"""The texts of the messages: Jinja2 templates with their sentences in each language."""
