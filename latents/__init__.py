"""The ground of the project: what a latent is, what made it, and where it lies."""
