"""The recommendation, tuning, memory, learning and generation logic behind the nodes."""
