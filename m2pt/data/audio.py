"""Waveforms to log-mel frames."""

import torch
from torch import Tensor

from m2pt.data.schema import FrontEnd

_FLOOR = 1e-6  # of the power of a full-scale tone: about -60 dB, near the noise of 16-bit sound
_CHUNK = 64


def log_mel(waves: Tensor, front: FrontEnd) -> Tensor:
    """Log-mel frames (N, T, F), float32, of waveforms (N, samples) in [-1, 1].

    Power spectra under a Hann window, through triangular filters on the mel scale of O'Shaughnessy
    (2595 · log10(1 + f / 700)), then the natural logarithm over a floor.
    """
    window = torch.hann_window(front.window, dtype=torch.float32)
    filters_QF = _mel_filters(front)
    parts = [
        _frames(waves[first : first + _CHUNK], front, window) @ filters_QF
        for first in range(0, len(waves), _CHUNK)
    ]
    return torch.cat(parts).add_(_FLOOR).log_()


def _frames(waves: Tensor, front: FrontEnd, window: Tensor) -> Tensor:
    """Power spectra (N, T, Q), in parts of the power of a full-scale tone."""
    padded = torch.nn.functional.pad(waves, (0, front.frames * front.hop - waves.shape[1]))
    spectra_NQT = torch.stft(
        padded,
        n_fft=2 * front.window,
        hop_length=front.hop,
        win_length=front.window,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectra_NQT.abs().square_() / (window.sum() / 2) ** 2
    return power[:, :, : front.frames].transpose(1, 2)


def _mel_filters(front: FrontEnd) -> Tensor:
    """Triangular filters (Q, F) with peak 1 from 0 Hz to half the sample rate."""
    top = _mel(torch.tensor(front.rate / 2, dtype=torch.float64))
    mels = torch.linspace(0, float(top), front.bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = torch.linspace(0, front.rate / 2, front.window + 1, dtype=torch.float64)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_(min=0).float()


def _mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)
