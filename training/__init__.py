"""Models trained from cached latents, never from video files."""
