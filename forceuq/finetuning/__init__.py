"""Training of a whole backbone on structures, rather than of what comes after cached features."""
