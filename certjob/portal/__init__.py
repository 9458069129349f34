"""The visibility of mentors on the portal: queued, pushed, and compared with the portal."""
