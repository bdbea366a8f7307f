"""The kernel that makes tokens of patches, for other channels, patches and frames than its own.

D: width, C: channels, T: frames, H, W: rows and columns of a patch.
"""

from typing import NamedTuple

from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Size, Tensor

from m2pt.weights.positions import by


class Kernel(NamedTuple):
    """The size of a kernel (D, C, H, W) or (D, C, T, H, W); of an image's, `frames` is None."""

    channels: int
    frames: int | None
    patch: tuple[int, int]

    @staticmethod
    def of(shape: Size) -> "Kernel | None":
        """None where the shape is not that of a patch's kernel."""
        if len(shape) == 4:
            return Kernel(shape[1], None, (shape[2], shape[3]))
        if len(shape) == 5:
            return Kernel(shape[1], shape[2], (shape[3], shape[4]))
        return None


def check(kernel: Kernel | None, modality: str) -> None:
    """Raises ValueError where a kernel cannot be that of a modality's samples: M2PT's own zoo has
    kernels of images, never trained, beside blocks of every modality."""
    if kernel is None:
        return
    if modality == "video" and kernel.frames is None:
        raise ValueError("its weights are of clips, and it is of images")
    if modality == "audio" and kernel.channels != 1:
        raise ValueError("its weights are of spectrograms, which have one channel")


def changes(source: Kernel, wanted: Kernel) -> list[str]:
    """What becomes of a kernel so that it is of the wanted size, in words; empty: it is as it is.

    Raises:
        ValueError: a kernel of tubelets has no frame that would be an image's.
    """
    if source.frames is not None and wanted.frames is None:
        raise ValueError(f"it has {source.frames} frames, and an image is not one of them")
    told = []
    if source.channels != wanted.channels:
        told.append(f"{source.channels} -> {wanted.channels} channels")
    if source.patch != wanted.patch:
        told.append(f"{by(source.patch)} -> {by(wanted.patch)}")
    if source.frames != wanted.frames:
        frames = "spread over" if source.frames is None else f"{source.frames} ->"
        told.append(f"{frames} {wanted.frames} frames")
    return told


def fitted(kernel: Tensor, wanted: Size) -> Tensor:
    """`kernel` in the wanted shape; the very same tensor where it has that already.

    Channels as in timm (`adapt_input_conv`): repeated and scaled by old over new, so that a sample
    whose channels are alike gives the same tokens; for one channel they are summed. Patches as in
    FlexiViT (Beyer et al. 2023, section 3.4; timm's `resample_patch_embed`): the pseudo-inverse of
    resizing, so that a resized patch gives the same token. Frames in the same manner, along time;
    and an image's kernel becomes one of tubelets as in I3D (Carreira and Zisserman 2017): repeated
    over the frames and divided by their number, so that a still gives the token of its image.
    """
    width, channels, *rest = wanted
    *frames, rows, columns = rest
    found = kernel if kernel.ndim == 5 else kernel[:, :, None]
    if found.shape[1] != channels:
        flat = adapt_input_conv(channels, found.flatten(2, 3), base_chans=found.shape[1])
        found = flat.unflatten(2, found.shape[2:4])
    if tuple(found.shape[3:]) != (rows, columns):
        flat = resample_patch_embed(found.flatten(1, 2), [rows, columns])
        found = flat.unflatten(1, found.shape[1:3])
    if kernel.ndim == 4:
        found = found[:, :, 0] if not frames else found.expand(wanted) / frames[0]
    elif found.shape[2] != frames[0]:
        last = found.movedim(2, 4)  # (D, C, H, W, T)
        # 1 x T and not T x 1: a column of single pixels torch's antialiased resizing gets wrong.
        flat = resample_patch_embed(last.flatten(1, 3)[:, :, None], [1, frames[0]])
        found = flat[:, :, 0].unflatten(1, last.shape[1:4]).movedim(4, 2)
    return found.reshape(width, channels, *rest)
