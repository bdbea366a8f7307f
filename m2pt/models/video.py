"""Video to tokens: one token per tubelet.

B: batch, C: channels, T: frames, H, W: height and width, L: tokens, D: width of the model.
"""

from torch import Tensor, nn


class TubeletEmbed(nn.Module):
    """Cuts a clip (B, C, T, H, W) into tubelets and projects each: (B, L, D).

    Takes the place of timm's `PatchEmbed` in a `VisionTransformer`, which reads `num_patches` and
    `grid_size` of it. Tokens run over time first, then rows, then columns.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        frames: int,
        tubelet: int,
        bias: bool = True,
        **_unused: object,
    ) -> None:
        """The first four are named as timm passes them; further ones of timm's are not needed."""
        super().__init__()
        self.grid_size = (frames // tubelet, img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1] * self.grid_size[2]
        size = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=size, stride=size, bias=bias)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """Tokens (B, L, D)."""
        tokens_BDL: Tensor = self.proj(clips_BCTHW).flatten(2)
        return tokens_BDL.transpose(1, 2)
