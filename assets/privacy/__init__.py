"""Differential privacy: bounds, plan, noise, ledger, consistency. One patient over one 364-day window."""
