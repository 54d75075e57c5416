"""How far apart the latents of two refs are, such as before and after an encoder update."""
