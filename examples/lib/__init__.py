"""Code that several of the examples share: options, data, networks, checkpoints."""
