"""The prompt that most tests use."""

PROMPT = "a red circle moving left on a navy background"
