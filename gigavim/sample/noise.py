"""Smooth noise: what makes outlines irregular and surfaces uneven."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smooth_noise(
    shape: tuple[int, int], largest: float, rng: np.random.Generator, *, slope: float = 2.0
) -> NDArray[np.float32]:
    """Draw noise whose amplitude falls with frequency, as a power of it.

    Parameters
    ----------
    largest
        Size of the largest features, in pixels.
    slope
        The power: 1 is rough, 3 is smooth.

    Returns
    -------
    noise
        Of mean 0 and standard deviation 1; opposite edges meet without a seam.
    """
    from scipy import fft

    white = fft.rfft2(rng.standard_normal(shape, np.float32))
    fy, fx = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None]
    spectrum = white * (fy**2 + fx**2 + (1 / largest) ** 2) ** (-slope / 2)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum.astype(np.complex64), shape)
    return np.asarray(noise / noise.std(), np.float32)
