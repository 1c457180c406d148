"""What tests share: tiny models from configs, drawn X-rays, scripts run as a user would."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextV2Config,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    MobileViTConfig,
    PreTrainedConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from pneumonia_hf.models.xray_cnn import XrayCnnConfig

ROOT = Path(__file__).resolve().parents[1]
# The real X-rays that lie beside some checkouts; tests that need them skip without.
REAL_XRAYS = ROOT.parent / "shared" / "xrays"
# Of two processes on the CPU.
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file",
            str(ROOT / "train_scripts/accelerate/two_cpu_processes.yaml")]  # fmt: skip

TINY_CONFIGS: dict[str, PreTrainedConfig] = {
    "vit-base": ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    ),
    "dinov2-small": Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=7
    ),
    "convnextv2-tiny": ConvNextV2Config(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32
    ),
    "deit-small": DeiTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    ),
    "swin-tiny": SwinConfig(
        embed_dim=8, depths=[1, 2, 2], num_heads=[1, 2, 2], window_size=4, image_size=64
    ),
    "convnext-tiny": ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_scale_init_value=1.0,  # as after pretraining: from 1e-6 on no block would matter
        image_size=32,
    ),
    "mobilevit-small": MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=2,
        image_size=64,
    ),
    "resnet50": TimmWrapperConfig(
        architecture="resnet50",
        model_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    ),
    "efficientnet-b0": TimmWrapperConfig(architecture="test_efficientnet"),
    "efficientnet-b3": TimmWrapperConfig(architecture="test_efficientnet"),
    "efficientnet-lite0": TimmWrapperConfig(architecture="test_efficientnet"),
    "densenet121": TimmWrapperConfig(
        architecture="densenet121", model_args={"growth_rate": 8, "block_config": [2, 2, 2, 2]}
    ),
    "timm": TimmWrapperConfig(architecture="test_convnext", model_args={"ls_init_value": 1.0}),
    "xray-cnn": XrayCnnConfig(widths=[8, 16, 24], depths=[1, 1, 1]),
}


def draw_pixels(labels: np.ndarray, side: int) -> np.ndarray:
    """Return a drawn X-ray for each label: uint8 [N, 1, side, side]."""
    images = [draw_xray(seed, bool(label), (side, side)) for seed, label in enumerate(labels)]
    return np.stack([np.asarray(image)[None] for image in images])


TINY_SIZES = dict.fromkeys(TINY_CONFIGS, 64) | {
    "vit-base": 32,
    "deit-small": 32,
    "dinov2-small": 28,
}


def noise(name: str, batch: int = 4) -> torch.Tensor:
    """Return `pixel_values` of noise at the tiny size of a family."""
    size = TINY_SIZES[name]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def training_loss(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the loss of a model in training mode, with labels in turn."""
    model.train()
    torch.manual_seed(1)
    labels = torch.arange(len(pixel_values)) % 2
    return model(pixel_values=pixel_values, labels=labels).loss


def draw_xray(seed: int, ill: bool, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """Draw two dark lungs on gray; an ill one has a white cloud in a lung."""
    generator = np.random.default_rng(seed)
    image = Image.new("L", size, 150)
    draw = ImageDraw.Draw(image)
    width, height = size
    for left in (0.12, 0.55):
        draw.ellipse((left * width, 0.15 * height, (left + 0.33) * width, 0.9 * height), fill=40)
    if ill:
        x, y = generator.uniform(0.15, 0.7) * width, generator.uniform(0.3, 0.6) * height
        draw.ellipse((x, y, x + 0.22 * width, y + 0.25 * height), fill=210)
    noise = generator.normal(0, 8, (height, width))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def draw_mask(seed: int, size: tuple[int, int] = (299, 299)) -> Image.Image:
    """Draw the mask of two lungs."""
    generator = np.random.default_rng(seed)
    image = Image.new("L", size)
    width, height = size
    for left in (0.12, 0.55):
        top, right = generator.uniform(0.1, 0.2) * height, (left + 0.33) * width
        ImageDraw.Draw(image).ellipse((left * width, top, right, 0.9 * height), fill=255)
    return image


def draw_folder(folder: Path, patients: int, images: int = 1, seed: int = 0) -> Path:
    """Write NORMAL and PNEUMONIA folders with Kermany's file names."""
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / name).mkdir(parents=True)
        for patient in range(patients):
            for image in range(images):
                file = (
                    f"person{patient}_virus_{image}.png"
                    if label
                    else f"IM-{patient:04}-{image:04}.png"
                )
                image = draw_xray(seed + 1000 * label + 10 * patient + image, ill=bool(label))
                image.save(folder / name / file)
    return folder


def draw_xrays(folder, patients: int = 12, start: int = 0) -> None:
    """Write images that differ as real X-rays do."""
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for patient in range(start, start + patients):
            image = draw_textured_xray(1000 * label + patient, ill=bool(label))
            file = f"person{patient}_virus_0.png" if label else f"IM-{patient:04}-0000.png"
            image.save(folder / name / file)


def draw_textured_xray(seed: int, ill: bool) -> Image.Image:
    """Draw an X-ray with its own texture, so that no two are similar."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(60, 200, (9, 9)).astype(np.uint8)
    texture = Image.fromarray(coarse).resize((160, 140), Image.Resampling.BICUBIC)
    lungs = draw_xray(seed, ill, (160, 140))
    return Image.blend(lungs, texture, 0.5)


def settle_batch_norms(model: torch.nn.Module, size: int) -> None:
    """Give batch norms the statistics of noise: those of a drawn model let nearly nothing through.

    MobileViT's weights are even drawn around 0, so that all images look alike to it.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        torch.nn.init.ones_(norm.weight)
        norm.momentum = None  # the plain mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(pixel_values=torch.randn(8, 3, size, size))
    model.eval()


def save_tiny_body(name: str, folder: Path) -> Path:
    """Write the pretrained body of a tiny model of this family, as the Hub would have it."""
    torch.manual_seed(0)
    config = TINY_CONFIGS[name]
    if config.model_type == "deit":
        model = DeiTForImageClassificationWithTeacher(config)  # what the Hub's config.json names
    elif config.model_type in ("timm_wrapper", "xray_cnn"):
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = AutoModel.from_config(config)
    settle_batch_norms(model, TINY_SIZES[name])
    model.save_pretrained(folder)
    return folder


def rename_classes(model: Path, *names: str) -> Path:
    """Give the classes of a model folder other names, in this order."""
    file = model / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    file.write_text(json.dumps(config))
    return model


def run_script(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a script as a user would, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train_scripts" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        timeout=240,
    )


def call_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script inside this process, which spares the seconds that its imports take."""
    from importlib import import_module

    from pneumonia_hf import cli as console

    main = import_module(f"train_scripts.{name.removesuffix('.py')}").main
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            console.run_script(main)
    except SystemExit as ended:
        return subprocess.CompletedProcess(sys.argv, ended.code, out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    raise AssertionError("run_script always exits")


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    """Check that a script ended as for a user's mistake: status 2, one line, these words."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr + done.stdout
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: "), message
    for word in words:
        assert word in message, message


def train_tiny(
    name: str,
    body: Path,
    data: Path,
    output: Path,
    augment: float = 1.0,
    callbacks: tuple = (),
    channels_last: bool | None = False,
    trainable_layer_groups: int | None = None,
    drop_path: float | None = None,
    curves: bool = False,
    other_class: bool = False,
    **changes,
) -> Path:
    """Train a tiny model in this process, for a few steps; draw its curves only if asked to."""
    from transformers import set_seed

    from pneumonia_hf.data.load import DataConfig, load_xrays
    from pneumonia_hf.models.build import ModelConfig, build_model
    from pneumonia_hf.training.augment import AugmentConfig
    from pneumonia_hf.training.recipe import Recipe
    from pneumonia_hf.training.train import XrayTrainingArguments, train

    settings = {
        "num_train_epochs": 3,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "cpu_threads": 1,
        "report_to": ["none"],
        "disable_tqdm": True,
        "attribution_images": 0,
        "bootstrap_resamples": 20,  # resampling would take most of a tiny run's time
        "threshold_resamples": 50,
        "metric_for_best_model": "auroc",  # to score copies too would take as long as to train
    } | changes
    arguments = XrayTrainingArguments(output_dir=str(output), **settings)
    recipe = Recipe(
        DataConfig([str(data)]),
        ModelConfig(
            name,
            str(body),
            TINY_SIZES[name],
            trainable_layer_groups,
            channels_last=channels_last,
            drop_path=drop_path,
            other_class=other_class,
        ),
        AugmentConfig(augment_strength=augment),
    )
    set_seed(arguments.seed)
    model, processor = build_model(recipe.model)
    data = load_xrays(recipe.data)
    # Matplotlib would take a sixth of the time of a tiny run.
    drawn = nullcontext() if curves else patch("pneumonia_hf.training.finalize.draw_curves")
    with drawn:
        return train(model, processor, data, recipe, arguments, callbacks)


def quick_flags(model: Path, data: Path, output: Path) -> list[object]:
    """Return the flags of evaluate_model.py for a quick report."""
    return ["--model", model, "--data_dir", data, "--output_dir", output, "--quick"]


def call(url: str, body: bytes | None = None, headers: dict[str, str] | None = None):
    """Return status, headers and body of a request."""
    request = urllib.request.Request(url, body, headers or {})
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()
