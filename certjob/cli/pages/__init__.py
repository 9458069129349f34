"""What people see: one page for each view, and for what the night says."""
