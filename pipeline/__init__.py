"""Videos in, committed latents out: sources, decoding, stages, engines."""
