"""Claim rows, call a service with retries, and settle the outcome: shared by portal and mail."""
