"""Diffusion of a window's two latents: noise, tasks, loss, guidance and sampling."""
