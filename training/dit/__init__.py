"""MM-LDM's diffusion transformer: joint noise prediction for video and audio latents."""
