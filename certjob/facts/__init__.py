"""Facts: read rosters and organisations, and read mentors for a decision."""
