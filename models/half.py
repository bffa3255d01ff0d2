"""Weights in half precision once, in place of a cast at every call.

Autocast casts the weights of a layer whenever the layer runs, and keeps what it has cast only where
a gradient is wanted. A frozen network is therefore cast anew in each of the sampler's evaluations:
269 tensors, 603 MB in float32, of the velocity network for latents of 32 channels.
"""

import torch
from torch import nn

CAST = (nn.Linear, nn.Conv2d)
"""The layers whose weights and biases autocast casts, on CPUs as on CUDA."""


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Store in ``dtype`` the weights that autocast to ``dtype`` would cast at each call.

    Under autocast the network's results stay the same to the bit. Without it the network no longer
    runs. Norms, the scales of attention, and the frequencies that embed the time stay in float32,
    in which autocast leaves them too.
    """
    for layer in network.modules():
        if isinstance(layer, CAST):
            layer.to(dtype)
