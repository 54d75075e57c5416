"""The autoencoder's models: KL-VAE and vocoder."""
