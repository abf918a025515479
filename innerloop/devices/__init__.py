"""Devices: where the tasks and the training state are placed, in one process or several."""
