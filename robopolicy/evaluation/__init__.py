"""Rollouts of policies on frozen conditions, as episode tables."""
