"""Shared by the benchmarks: networks, transformers' example as a baseline, the app.

Not a benchmark: the name begins with an underscore, so that the tests do not run it.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_convnext(size: int):
    """Return ConvNeXt V2 in its 'atto' size: 3.4 M parameters."""
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    sizes = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2], "image_size": size}
    return ConvNextV2ForImageClassification(ConvNextV2Config(**sizes, **labels()))


def make_vit(size: int):
    """Return ViT in its 'tiny' size: 5.5 M parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    sizes |= {"num_hidden_layers": 12, "image_size": size}
    return ViTForImageClassification(ViTConfig(**sizes, **labels()))


def make_timm(architecture: str):
    """Return a model of timm in transformers' wrapper."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    config = TimmWrapperConfig(architecture=architecture, **labels())
    return AutoModelForImageClassification.from_config(config)


def labels() -> dict:
    """Return the classes for a config."""
    from pneumonia_hf.labels import LABELS

    return {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}


# Each takes the pixels a side; timm's networks take images of any size.
MODELS = {
    "convnextv2-atto": make_convnext,
    "vit-tiny": make_vit,
    "resnet50": lambda _: make_timm("resnet50"),
    "efficientnet-b0": lambda _: make_timm("efficientnet_b0"),
    "efficientnet-lite0": lambda _: make_timm("tf_efficientnet_lite0"),
}

# The backbone with the same family, whose memory format `train` would use.
BACKBONE_OF = {
    "convnextv2-atto": "convnextv2-tiny",
    "vit-tiny": "vit-base",
    "resnet50": "resnet50",
    "efficientnet-b0": "efficientnet-b0",
    "efficientnet-lite0": "efficientnet-lite0",
}


def make_example(
    model, data, size: int, output: Path, validation=None, callbacks: Sequence = (), **changes
):
    """Return a Trainer set up as transformers' examples/pytorch/image-classification.

    Args:
        model: the model to train.
        data, validation: rows as `load_xrays` returns them.
        size: pixels a side.
        output: folder of its checkpoints.
        callbacks: for the Trainer.
        changes: more of its arguments; all others are transformers' defaults.
    """
    import torch
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        Resize,
        ToTensor,
    )
    from transformers import Trainer, TrainingArguments

    last = [ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    change = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), *last])
    plain = Compose([Resize(size), CenterCrop(size), *last])

    def collate(rows: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    able = torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=not able,
        remove_unused_columns=False,
        report_to=["none"],
        disable_tqdm=True,
        dataloader_pin_memory=able,
        **changes,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=_as_imagefolder(data, change),
        eval_dataset=None if validation is None else _as_imagefolder(validation, plain),
        data_collator=collate,
        callbacks=list(callbacks),
    )


def _as_imagefolder(data, change):
    """Return rows as the imagefolder of `datasets` has them, transformed at each read."""
    from datasets import Dataset, Image

    from pneumonia_hf.data.sources import open_images

    paths = [str(path) for _, path in open_images(data)]
    rows = Dataset.from_dict({"image": paths, "label": data["label"][:]})

    def transform(rows: dict) -> dict:
        images = [image.convert("RGB") for image in rows["image"]]
        rows["pixel_values"] = [change(image) for image in images]
        return rows

    return rows.cast_column("image", Image()).with_transform(transform)


def describe_machine() -> str:
    """Return the hardware and the version of torch."""
    import torch

    from pneumonia_hf.training.provenance import describe_hardware

    return f"{describe_hardware()}, torch {torch.__version__}"


def describe_speed(precision: str, channels_last: bool) -> str:
    """Return precision and memory format in words."""
    return precision + (", channels_last" if channels_last else "")


def wait(device) -> None:
    """Wait until an accelerator has finished."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize()


def time_forward(predictor, file: Path) -> float:
    """Return the median seconds of 20 forward passes of the bare network on an image."""
    import torch

    from pneumonia_hf import read_xray

    network = predictor.network
    pixel_values = network.pixel_values([read_xray(file)])

    times = []
    with torch.inference_mode():
        for _ in range(20):
            started = time.perf_counter()
            network.model(pixel_values=pixel_values)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def start_app(model: str) -> tuple[subprocess.Popen, str]:
    """Start the app on a free port of this machine; return it and its address when it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"MODEL_ID": model, "GRADIO_SERVER_PORT": str(port)}
    environment |= {"MAX_QUEUE": "1000"}
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=environment,
                              stdout=subprocess.DEVNULL)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(480):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return server, url
        except OSError:
            if server.poll() is not None:
                raise SystemExit("The app did not start.") from None
            time.sleep(0.25)
    server.kill()
    raise SystemExit("The app did not start within two minutes.")
