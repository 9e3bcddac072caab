"""Operations the encoder is built on, each defined once and implemented several times.

An operation takes the state before the first token and returns the state after the last one, so a
sequence may be cut anywhere. Tensors are channel-last: the channels of one token lie side by side
in memory.

Sizes: ``b`` batch, ``l`` length (tokens), ``d`` channels, ``n`` states of a channel, ``g`` groups
of channels that share B and C, ``k`` taps of the convolution. Tensors: ``u`` input, ``dt`` step
size (Delta in the papers), ``A`` decay rates, ``B`` input and ``C`` output weights of the states,
``D`` skip weights, ``z`` gate, ``h`` state, ``y`` output, ``s`` sum of step sizes.
"""

from gigavim.kernels.conv import causal_conv
from gigavim.kernels.scan import (
    Backend,
    ScanInputs,
    bidirectional_scan,
    combine,
    scan_backend,
    scan_summary,
    selective_scan,
)

__all__ = [
    "Backend",
    "ScanInputs",
    "bidirectional_scan",
    "causal_conv",
    "combine",
    "scan_backend",
    "scan_summary",
    "selective_scan",
]
