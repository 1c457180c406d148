"""XrayCnn: a small network for X-rays that needs no pretrained weights.

This file imports only torch and transformers: every model folder of this family has a copy, with
which a plain transformers pipeline loads it (`trust_remote_code=True`).
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput


class XrayCnnConfig(PretrainedConfig):
    """The sizes of an XrayCnn.

    Args:
        widths: channels of each block; each block but the first halves the image's side.
        depths: number of convolutions in each block.
        dropout: rate for the pooled features.
        num_channels: channels of the image.
    """

    model_type = "xray_cnn"

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 192),
        depths: Sequence[int] = (1, 1, 2, 2, 2),
        dropout: float = 0.2,
        num_channels: int = 3,
        **kwargs,
    ) -> None:
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths and {len(depths)} depths: give one a block")
        self.widths = list(widths)
        self.depths = list(depths)
        self.dropout = dropout
        self.num_channels = num_channels
        super().__init__(**kwargs)


class XrayCnnForImageClassification(PreTrainedModel):
    """Blocks of convolution, batch norm and ReLU with max-pooling in between, and a linear head.

    The head reads the mean over the last feature map, whose side is 1/16 of the image's, so that
    any image size from 16 pixels works.
    """

    config_class = XrayCnnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: XrayCnnConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.blocks = nn.ModuleList()
        channels = config.num_channels
        for width, depth in zip(config.widths, config.depths, strict=True):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if len(self.blocks) else []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            self.blocks.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # He et al. 2015, for ReLU. transformers' default, normal(0, 0.02), learns more slowly.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_
    ) -> ImageClassifierOutput:
        """Return the logits [N, num_labels] of images [N, 3, H, W]; with labels [N], the loss."""
        features = pixel_values
        for block in self.blocks:
            features = block(features)
        logits = self.classifier(self.dropout(features.mean(dim=(2, 3))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


# save_pretrained then copies this file into the model folder and names it in config.json.
XrayCnnConfig.register_for_auto_class()
XrayCnnForImageClassification.register_for_auto_class("AutoModelForImageClassification")
# With this package, folders load without trust: this code runs, never the folder's copy.
AutoConfig.register(XrayCnnConfig.model_type, XrayCnnConfig, exist_ok=True)
AutoModelForImageClassification.register(
    XrayCnnConfig, XrayCnnForImageClassification, exist_ok=True
)
