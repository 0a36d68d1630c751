"""Simulated pools of policies, on which ways of choosing one are compared."""
