"""Built-in channels, one module each; found through the entry-point group ``distributor.channels``."""
