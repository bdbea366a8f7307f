"""The Multimodal Pathway: W + λW' in the linears of a transformer, from attaching to fusing."""
