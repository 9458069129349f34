"""The face: commands, pages, the terminal, the demo; nothing below it prints."""
