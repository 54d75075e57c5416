"""From a trained DiT to sounding videos in files."""
