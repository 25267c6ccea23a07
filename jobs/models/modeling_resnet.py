"""The residual network as transformers loads it; an exported folder has this file, and resnet.py beside it.

AutoModel.from_pretrained(folder, trust_remote_code=True)(pixel_values).pooler_output
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from .resnet import ResNet


class ResNetEncoderConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """What resnet.py is made with."""

    model_type = "contrastive_resnet"

    def __init__(
        self,
        *,
        num_channels: int = 1,
        width: int = 64,
        layers: int = 2,
        norm: str = "group",
        dropout: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.width, self.layers, self.norm, self.dropout = num_channels, width, layers, norm, dropout
        self.hidden_size = 4 * width


class ResNetEncoder(PreTrainedModel):  # type: ignore[no-untyped-call]
    """pixel_values [n, C, H, W] -> last_hidden_state [n, 4 width, H/4, W/4], and its mean in pooler_output."""

    config_class = ResNetEncoderConfig
    main_input_name = "pixel_values"
    base_model_prefix = "resnet"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.network = ResNet(
            channels=config.num_channels,
            width=config.width,
            layers=config.layers,
            norm=config.norm,
            dropout=config.dropout,
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute the feature map of the last block, and its mean over the positions."""
        features = self.network(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=features, pooler_output=features.mean((2, 3)))
