"""What masked tokens are asked for: the normalised content of a patch or of a group of points.

B: batch, C: channels, T: frames, H, W: height and width, L: tokens, M: masked tokens, P: values of
one patch, G: groups, K: points of a group.
"""

from torch import Tensor

from m2pt.models.config import Tokenizer

# A patch of background varies by noise alone; dividing by that would ask for nothing but noise.
_PATCH_VARIANCE_FLOOR = 0.1


def patch_targets(samples: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Patches (B, L, P) of images (B, C, H, W) or clips (B, C, T, H, W), in the tokenizer's order.

    Each patch is brought to mean 0 and variance about 1, as in MAE.
    """
    size = tokenizer.patch
    clips = samples if samples.ndim == 5 else samples[:, :, None]
    tubelet = tokenizer.tubelet if samples.ndim == 5 else 1
    batch, channels, frames, height, width = clips.shape
    cut = clips.reshape(
        batch, channels, frames // tubelet, tubelet, height // size, size, width // size, size
    )
    patches = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    centred = patches - patches.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + _PATCH_VARIANCE_FLOOR).sqrt()


def group_targets(relative_BGK3: Tensor) -> Tensor:
    """Groups of relative coordinates, each brought to a mean square radius of 1."""
    square = relative_BGK3.square().sum(dim=-1).mean(dim=-1)
    return relative_BGK3 / square.clamp(min=1e-8).sqrt()[:, :, None, None]


def patch_loss(predicted_BMP: Tensor, wanted_BMP: Tensor) -> Tensor:
    """Mean squared error."""
    return (predicted_BMP - wanted_BMP).square().mean()


def chamfer_loss(predicted_BMP: Tensor, wanted_BMK3: Tensor) -> Tensor:
    """Chamfer distance of point sets, as in Point-MAE: the order of the points is of no matter.

    For each point the square distance to the nearest one of the other set, averaged, both ways.
    """
    predicted = predicted_BMP.view_as(wanted_BMK3)
    apart = predicted[:, :, :, None] - wanted_BMK3[:, :, None]
    squares_BMKK = apart.square().sum(dim=-1)
    return squares_BMKK.amin(dim=-1).mean() + squares_BMKK.amin(dim=-2).mean()


def visible_and_masked(drawn_BL: Tensor) -> Tensor:
    """A random order (B, L) of the tokens of each sample: visible ones first, then masked ones.

    `drawn_BL` holds a random number for each token.
    """
    return drawn_BL.argsort(dim=1)
