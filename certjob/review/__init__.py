"""Plan, guard and apply the changes that the rules decide."""
