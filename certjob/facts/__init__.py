"""What is known: rosters and organisations come in, mentors are read for a decision."""
