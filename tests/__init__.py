"""The tests: each name is a sentence about certjob."""
