"""What runs a network: one protocol, one module per library."""
