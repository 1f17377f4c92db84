"""The command `sora-bench`: one module per command, heavy imports inside the command functions."""
