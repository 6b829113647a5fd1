"""Further networks that nobody looked at while the pruning core was written.

Every module of timm from which the other lists take none (but for the heaviest), and families of transformers
that they leave out, their published blocks at small widths. They are run by `zoo.py --further --tools ours`;
what came of it is in docs/zoo.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.networks import NETWORKS, UNSEEN, Network, vision

_ENCODER: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
_TEXT = {**_ENCODER, "vocab_size": 2000}
_DECODER = {**_TEXT, "use_cache": False}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_OLDER = {"n_layer": 2, "vocab_size": 2000, "use_cache": False}


def _timm(size: int, names: str) -> list[Network]:
    return vision("timm", "further", size, names)


def _hf(model: str, config: str, shape: tuple[int, ...], name: str, settings: dict[str, Any]) -> Network:
    told = {**settings, "model": model, "config": config}
    return Network(model, "transformers", "further", shape, 1000 if name == "input_ids" else 0, name, told)


def _text(family: str, **settings: Any) -> Network:
    return _hf(f"{family}Model", f"{family}Config", (64,), "input_ids", settings)


def _image(family: str, size: int = 224, task: str = "Model", **settings: Any) -> Network:
    return _hf(f"{family}{task}", f"{family}Config", (3, size, size), "pixel_values", settings)


FURTHER: tuple[Network, ...] = (
    *_timm(224, "cpubone_nano cpubone_s0 cspnext_tiny efficientformerv2_s0 efficientvim_m1 gcvit_xxtiny"),
    *_timm(224, "hardcorenas_a iformer_t iformer_s lcnetv2_small lowformer_b0 mvitv2_tiny nextvit_small"),
    *_timm(224, "swiftformer_xs swinv2_cr_tiny_224 vit_small_resnet26d_224 vitamin_small_224 regnetx_002"),
    *_timm(224, "samvit_base_patch16_224"),
    *_timm(256, "mobilenetv5_base hieradet_small"),
    *_timm(299, "legacy_xception inception_v4 inception_resnet_v2"),
    *_timm(331, "nasnetalarge pnasnet5large"),
    *_timm(384, "naflexvit_base_patch16_gap"),
    *_timm(512, "csatv2"),
    *_timm(768, "qwen3_vit_88m"),
    *_timm(896, "sam2_hiera_tiny"),
    _text("MPNet", **_TEXT),
    _text("Deberta", **_TEXT),
    _text("DebertaV2", **_TEXT),
    _text("ConvBert", **_TEXT),
    _text("FNet", num_hidden_layers=2, hidden_size=128, intermediate_size=512, vocab_size=2000),
    _text("SqueezeBert", embedding_size=128, **_TEXT),
    _text("MobileBert", num_hidden_layers=2, vocab_size=2000),
    _text("ModernBert", pad_token_id=0, **_TEXT),
    _text("XLNet", n_layer=2, d_model=128, n_head=4, d_inner=512, vocab_size=2000),
    _text("Bloom", hidden_size=128, n_head=4, **_OLDER),
    _text("GPTJ", n_embd=128, n_head=4, rotary_dim=16, **_OLDER),
    _text(
        "Falcon",
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=4,
        vocab_size=2000,
        use_cache=False,
    ),
    _text("GPTNeoX", **_DECODER),
    _text("Phi", **_DECODER),
    _text("Phi3", pad_token_id=0, **_GROUPED),
    _text("Gemma", head_dim=32, **_GROUPED),
    _text("Gemma2", head_dim=32, **_GROUPED),
    _text("Mistral", **_GROUPED),
    _text("Starcoder2", **_GROUPED),
    _text("StableLm", **_GROUPED),
    _text("Olmo", **_GROUPED),
    _text("Qwen2", **_GROUPED),
    _text("Mamba", num_hidden_layers=2, hidden_size=128, vocab_size=2000, use_cache=False),
    _text(
        "Rwkv",
        num_hidden_layers=2,
        hidden_size=128,
        attention_hidden_size=128,
        vocab_size=2000,
        use_cache=False,
    ),
    _image("ViT", **_ENCODER),
    _image("SiglipVision", **_ENCODER),
    _image("CLIPVision", **_ENCODER),
    _image("ConvNextV2", depths=[1, 1, 2, 1], hidden_sizes=[24, 48, 96, 192]),
    _image("ResNet", embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1]),
    _image("PoolFormer", depths=[1, 1, 2, 1], hidden_sizes=[32, 64, 96, 128]),
    _image("Levit"),
    _image("MobileViT", 256),
    _image(
        "Swinv2",
        256,
        embed_dim=48,
        depths=[1, 1, 2, 1],
        num_heads=[2, 4, 8, 8],
        window_size=8,
        image_size=256,
    ),
    _image("UperNet", 256, "ForSemanticSegmentation", hidden_size=64),
    _image(
        "DPT",
        384,
        "ForDepthEstimation",
        hidden_size=96,
        num_attention_heads=4,
        intermediate_size=256,
        neck_hidden_sizes=[24, 48, 96, 96],
        fusion_hidden_size=32,
    ),
    _image(
        "Detr",
        224,
        "ForObjectDetection",
        encoder_layers=1,
        decoder_layers=1,
        d_model=64,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        use_pretrained_backbone=False,
    ),
    _hf("HubertModel", "HubertConfig", (16000,), "input_values", _ENCODER),
    _hf("ASTModel", "ASTConfig", (1024, 128), "input_values", _ENCODER),
)

LARGE: tuple[Network, ...] = (
    Network("vit_l_16", "torchvision", "large", (3, 224, 224)),
    _hf(
        "LlamaForCausalLM",
        "LlamaConfig",
        (128,),
        "input_ids",
        {
            "num_hidden_layers": 22,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "intermediate_size": 5632,
            "use_cache": False,
        },
    ),
)
"""Of 304 million and of 1.1 billion parameters; too large for the judge, which needs both in float64."""

EVERY = (*NETWORKS, *UNSEEN, *FURTHER, *LARGE)
