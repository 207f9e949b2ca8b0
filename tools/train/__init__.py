"""Training of bit fully convolutional networks (PyTorch): `python -m tools.train CONFIG ...`."""
