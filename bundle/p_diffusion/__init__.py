"""P-diffusion: four steps of residual shifting, the fine stage."""
