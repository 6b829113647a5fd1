"""Forty networks of other libraries that nobody had looked at; the list was committed before their first run.

Segmentation models, Ultralytics' models as they are shipped, networks wrapped by peft, and torchvision's and
transformers' detectors, video, audio and vision-language models. All have random weights; transformers' are
small. Those of ../shared/cases and of the other lists are left out. They need an environment of their own:

    pip install torch==2.14.1 torchvision==0.29.1 segmentation_models_pytorch ultralytics peft transformers
    python benchmarks/zoo/zoo.py --forty --tools ours
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from benchmarks.zoo.networks import Network

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Shipped(Network):
    """A network with a constructor and inputs of its own.

    Attributes:
        make: the constructor.
        draw: inputs, from a batch size and a generator.
    """

    make: Callable[[], Any] = nn.Identity
    draw: Callable[[int, Generator], Inputs] | None = None

    def build(self) -> nn.Module:
        """A new instance with the same random weights each time, in eval mode."""
        torch.manual_seed(0)
        model = self.make()
        assert isinstance(model, nn.Module)
        return model.eval()

    def example(self, batch: int = 2, seed: int = 1) -> Inputs:
        """Inputs by the names of forward's parameters; some are lists of tensors."""
        if self.draw is None:
            return super().example(batch, seed)
        return self.draw(batch, Generator().manual_seed(seed))


def _segmentation(kind: str, encoder: str, size: int = 224, **settings: Any) -> Shipped:
    def make() -> Any:
        import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

        return getattr(smp, kind)(encoder_name=encoder, encoder_weights=None, classes=4, **settings)

    return Shipped(f"{kind}-{encoder}", "smp", "segmentation", (3, size, size), make=make)


def _yolo(name: str, size: int = 320) -> Shipped:
    def make() -> Any:
        from ultralytics import YOLO  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

        return YOLO(f"{name}.yaml").model

    return Shipped(name, "ultralytics", "ultralytics", (3, size, size), make=make)


def _images(size: int, batch: int, generator: Generator) -> Inputs:
    return {"images": [torch.rand(3, size, size, generator=generator) for _ in range(batch)]}


def _vision(name: str, family: str, shape: tuple[int, ...], **settings: Any) -> Shipped:
    def make() -> Any:
        from torchvision.models import get_model  # pyright: ignore[reportMissingImports]

        return get_model(name, weights=None, **settings)

    draw = partial(_images, shape[-1]) if family == "detection" else None
    return Shipped(name, "torchvision", family, shape, make=make, draw=draw)


def _detector(name: str, size: int = 320, **settings: Any) -> Shipped:
    return _vision(name, "detection", (3, size, size), weights_backbone=None, **settings)


def _hugging(kind: str, config: str, **settings: Any) -> Any:
    import transformers  # pyright: ignore[reportMissingImports]

    return getattr(transformers, kind)(getattr(transformers, config)(**settings))


def _audio(kind: str, config: str, shape: tuple[int, ...], name: str, **settings: Any) -> Shipped:
    make = partial(_hugging, kind, config, **settings)
    return Shipped(kind, "transformers", "audio", shape, 0, name, make=make)


def _adapted(name: str, base: Callable[[], Any], adapter: str, target: list[str], **settings: Any) -> Shipped:
    def make() -> Any:
        import peft  # pyright: ignore[reportMissingImports]

        return peft.get_peft_model(base(), getattr(peft, adapter)(target_modules=target, **settings))

    if "ViT" in name:
        return Shipped(name, "peft", "peft", (3, 224, 224), 0, "pixel_values", make=make)
    return Shipped(name, "peft", "peft", (64,), 1000, "input_ids", make=make)


def _words(batch: int, generator: Generator, length: int = 16) -> Tensor:
    return torch.randint(3, 1000, (batch, length), generator=generator)


def _pairs(size: int, batch: int, generator: Generator) -> Inputs:
    words = _words(batch, generator)
    return {"input_ids": words, "pixel_values": torch.randn(batch, 3, size, size, generator=generator)}


def _masked_pairs(size: int, batch: int, generator: Generator) -> Inputs:
    both = _pairs(size, batch, generator)
    words = both["input_ids"]
    masks = {"attention_mask": torch.ones_like(words), "token_type_ids": torch.zeros_like(words)}
    return {"input_ids": words, **masks, "pixel_values": both["pixel_values"]}


def _prompted(size: int, batch: int, generator: Generator) -> Inputs:
    """A text that begins with the places of the image's 49 patches."""
    both = _pairs(size, batch, generator)
    places = torch.full((batch, 49), _IMAGE_TOKEN)
    return {**both, "input_ids": torch.cat([places, both["input_ids"]], 1)}


def _together(kind: str, config: str, draw: Callable[..., Inputs] = _pairs, **settings: Any) -> Shipped:
    make = partial(_hugging, kind, config, **settings)
    shape, draw = (3, 224, 224), partial(draw, 224)
    return Shipped(kind, "transformers", "vision-language", shape, make=make, draw=draw)


_IMAGE_TOKEN = 1000
_ENCODER = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
_TEXT = {**_ENCODER, "vocab_size": 1001}
_IMAGE = {**_ENCODER, "image_size": 224, "patch_size": 32}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
_HEADS = ["q_proj", "v_proj"]

FORTY: tuple[Shipped, ...] = (
    _segmentation("Unet", "resnet34"),
    _segmentation("Unet", "se_resnet50", decoder_attention_type="scse"),
    _segmentation("Linknet", "mobilenet_v2"),
    _segmentation("DeepLabV3", "resnet18"),
    _segmentation("DeepLabV3Plus", "efficientnet-b0"),
    _segmentation("PSPNet", "densenet121"),
    _segmentation("UPerNet", "mit_b0"),
    *map(_yolo, ["yolov5n-p6", "yolov6n", "yolov8n-p2", "yolov8n-obb", "yolov9t", "yolov9c-seg", "yolov10s"]),
    *map(_yolo, ["yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo12n-seg", "yolo12n-obb"]),
    _detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    _detector("fcos_resnet50_fpn", min_size=320, max_size=320),
    _detector("maskrcnn_resnet50_fpn", min_size=320, max_size=320),
    _detector("ssd300_vgg16", 300),
    _vision("mc3_18", "video", (3, 16, 112, 112)),
    _vision("r2plus1d_18", "video", (3, 8, 112, 112)),
    _vision("swin3d_t", "video", (3, 8, 112, 112)),
    _adapted(
        "LoRA-Granite",
        partial(_hugging, "GraniteForCausalLM", "GraniteConfig", **_DECODER),
        "LoraConfig",
        _HEADS,
    ),
    _adapted(
        "DoRA-Cohere",
        partial(_hugging, "CohereForCausalLM", "CohereConfig", **_DECODER),
        "LoraConfig",
        _HEADS,
        use_dora=True,
    ),
    _adapted(
        "IA3-Olmo2",
        partial(_hugging, "Olmo2ForCausalLM", "Olmo2Config", **_DECODER),
        "IA3Config",
        ["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    _adapted(
        "LoHa-ViT",
        partial(_hugging, "ViTForImageClassification", "ViTConfig", **_IMAGE),
        "LoHaConfig",
        _HEADS,
    ),
    _audio("WavLMModel", "WavLMConfig", (16000,), "input_values", **_ENCODER),
    _audio(
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        (16000,),
        "input_values",
        vocab_size=32,
        **_ENCODER,
    ),
    _audio("SpeechT5HifiGan", "SpeechT5HifiGanConfig", (40, 80), "spectrogram"),
    _audio("EncodecModel", "EncodecConfig", (1, 16000), "input_values"),
    _audio("ClapAudioModelWithProjection", "ClapAudioConfig", (1, 1001, 64), "input_features"),
    _together("CLIPModel", "CLIPConfig", text_config=_TEXT, vision_config=_IMAGE, projection_dim=64),
    _together("BlipModel", "BlipConfig", text_config=_TEXT, vision_config=_IMAGE, projection_dim=64),
    _together("ViltModel", "ViltConfig", _masked_pairs, **_IMAGE, vocab_size=1001),
    _together(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        _prompted,
        text_config={**_DECODER, "model_type": "llama"},
        vision_config={**_IMAGE, "model_type": "clip_vision_model"},
        image_token_index=_IMAGE_TOKEN,
    ),
    _together(
        "OwlViTForObjectDetection",
        "OwlViTConfig",
        text_config=_TEXT,
        vision_config=_IMAGE,
        projection_dim=128,
    ),
)


def _flow(batch: int, generator: Generator) -> Inputs:
    return {name: torch.rand(batch, 3, 128, 128, generator=generator) for name in ("image1", "image2")}


ALSO: tuple[Shipped, ...] = (
    dataclasses.replace(_vision("raft_small", "flow", (3, 128, 128)), draw=_flow),
    _vision("s3d", "video", (3, 16, 224, 224)),
    _segmentation("MAnet", "resnet34"),
    _segmentation("Segformer", "mit_b0"),
    *map(_yolo, ["yolo12n", "yolov5n", "yolov8n-seg", "yolov8n-pose"]),
)
"""Those of earlier trials that are in no other list."""
