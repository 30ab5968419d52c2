"""FoG: values from a large world model, first-order gradients from a light latent surrogate (arXiv 2602.06219)."""
