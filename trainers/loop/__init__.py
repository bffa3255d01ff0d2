"""How a network is trained, whatever it is: steps, checkpoints, ranks, the log."""
