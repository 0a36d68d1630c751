"""Policies and wrappers around policies, all one protocol: spec.Policy."""
