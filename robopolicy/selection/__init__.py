"""`robopolicy rank`: a pool of checkpoints is rolled out, scored, ranked, gated and reported. Ranking itself is `ranking`."""
