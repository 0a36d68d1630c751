"""What a policy is worth, judged from recorded data instead of by running it: off-policy evaluation on plain arrays."""
