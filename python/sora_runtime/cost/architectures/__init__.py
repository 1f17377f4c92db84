"""The work of each network class, derived from its layers; keys of a configuration are those of its config.json."""
