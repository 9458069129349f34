"""Plan, guard, apply: mentors and certificates are brought to the state that the rules ask for."""
