"""The Bayesian last layer: sufficient statistics, evidence, posterior and training of the projection."""
