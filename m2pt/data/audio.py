"""Waveforms to log-mel frames: Kaldi's filter banks, as AST and AudioMAE read them.

Window and mel bands are those of kaldi-native-fbank. The Fourier transform between them is
torch's: the library's own extractor takes 5 ms for five seconds of 8 kHz and holds the
interpreter's lock meanwhile; this takes 1 ms and does not. A test holds the two to each other.
T: frames, W: samples under the window, F: mel bands.
"""

from functools import lru_cache

import kaldi_native_fbank
import numpy as np
import torch
from torch import Tensor

from m2pt.data.schema import FrontEnd

_PREEMPHASIS = 0.97
_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi's, of the energy under one band


def log_mel(waves: Tensor, front: FrontEnd) -> Tensor:
    """Log-mel frames (N, T, F), float32, of waveforms (N, samples) in [-1, 1].

    Each waveform less its mean; each frame less its mean, pre-emphasised, under a Hann window; the
    power in each band from 20 Hz to half the sample rate, then its natural logarithm. Frames that
    would reach past the end are left out (Kaldi's `snip_edges`); the last one is repeated up to
    `front.frames`. A waveform's frames do not depend on what else is in the batch.
    """
    return torch.stack([_frames_of(wave, front) for wave in waves])


def fbank_options(front: FrontEnd) -> kaldi_native_fbank.FbankOptions:
    """The same front end as the library's own extractor is told of it."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = front.rate
    options.frame_opts.frame_length_ms = front.LENGTH_MS
    options.frame_opts.frame_shift_ms = front.SHIFT_MS
    options.frame_opts.window_type = "hanning"
    options.frame_opts.preemph_coeff = _PREEMPHASIS
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = front.bands
    options.htk_compat = True
    options.use_energy = False
    return options


@lru_cache(maxsize=8)
def _banks(front: FrontEnd) -> tuple[Tensor, Tensor]:
    """The window (W,), and the weight of each frequency in each band (frequencies, F)."""
    options = fbank_options(front)
    window = kaldi_native_fbank.FeatureWindowFunction(options.frame_opts).window
    banks = kaldi_native_fbank.MelBanks(options.mel_opts, options.frame_opts).get_matrix()
    return torch.tensor(window), torch.tensor(np.array(banks, dtype=np.float32)).T.contiguous()


def _frames_of(wave: Tensor, front: FrontEnd) -> Tensor:
    """(T, F)."""
    window, banks_QF = _banks(front)
    short = max(0, front.window - len(wave))
    centred = torch.nn.functional.pad(wave - wave.mean(), (0, short))
    frames_TW = centred.unfold(0, front.window, front.hop)
    frames_TW = frames_TW - frames_TW.mean(dim=1, keepdim=True)
    before_TW = torch.cat([frames_TW[:, :1], frames_TW[:, :-1]], dim=1)
    emphasised_TW = (frames_TW - _PREEMPHASIS * before_TW) * window
    spectra_TQ = torch.fft.rfft(emphasised_TW, n=front.transform)
    power_TQ = spectra_TQ.real.square() + spectra_TQ.imag.square()
    bands_TF = (power_TQ[:, : len(banks_QF)] @ banks_QF).clamp_(min=_FLOOR).log_()
    missing = front.frames - len(bands_TF)
    return torch.cat([bands_TF, bands_TF[-1:].expand(missing, -1)])
