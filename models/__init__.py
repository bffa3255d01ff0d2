"""Single-device PyTorch: tensors in, tensors out; one file per architecture or idea."""
