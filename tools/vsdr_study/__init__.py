"""Does VSDR pick the right policy? A pool of independently trained policies, ranked before the target sees them."""
