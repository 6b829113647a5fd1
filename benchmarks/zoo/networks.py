"""The networks of the zoo. The list was committed before the first run, and is not made to fit.

Each is built with random weights by the library's own constructor, for the input size it was published with.
Language models have a published small configuration, or the published widths with fewer layers. `UNSEEN`
holds networks that were run only after the pruning core had been mended on the others: a forecast for yours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.vision_operators import define_missing


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        source: "torchvision", "timm", "transformers" or "own".
        family: the kind of architecture; figures are also given by family.
        shape: of one input, without the batch.
        tokens: for token ids, how many there are; 0 for a continuous input.
        settings: arguments of the constructor.
    """

    name: str
    source: str
    family: str
    shape: tuple[int, ...]
    tokens: int = 0
    input_name: str = "x"
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A new instance with the same random weights each time, in eval mode."""
        torch.manual_seed(0)
        return _BUILD[self.source](self).eval()

    def example(self, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
        """Inputs by the names of forward's parameters."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, *self.shape)
        if self.tokens:
            return {self.input_name: torch.randint(0, self.tokens, shape, generator=generator)}
        return {self.input_name: torch.randn(shape, generator=generator)}


def _torchvision(network: Network) -> nn.Module:
    define_missing()
    from torchvision.models import get_model  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {"weights": None, **network.settings}
    if "deeplab" in network.name or "raspp" in network.name or "fcn" in network.name:
        settings["weights_backbone"] = None
    model = get_model(network.name, **settings)
    assert isinstance(model, nn.Module)
    return model


def _timm(network: Network) -> nn.Module:
    define_missing()  # timm imports torchvision
    from timm import create_model  # pyright: ignore[reportMissingImports]

    model = create_model(network.name, pretrained=False, **network.settings)
    assert isinstance(model, nn.Module)
    return model


def _transformers(network: Network) -> nn.Module:
    define_missing()  # transformers imports torchvision where it is installed
    import transformers  # pyright: ignore[reportMissingImports]

    settings = dict(network.settings)
    kind = settings.pop("model")
    config = getattr(transformers, settings.pop("config"))(**settings)
    model = getattr(transformers, kind)(config)
    assert isinstance(model, nn.Module)
    return model


def _own(network: Network) -> nn.Module:
    from benchmarks.zoo import own_networks

    model = getattr(own_networks, network.name)(**network.settings)
    assert isinstance(model, nn.Module)
    return model


_BUILD: dict[str, Callable[[Network], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "own": _own,
}


def vision(source: str, family: str, size: int, names: str) -> list[Network]:
    return [Network(name, source, family, (3, size, size)) for name in names.split()]


def _text(name: str, family: str, model: str, config: str, **settings: Any) -> Network:
    settings |= {"model": model, "config": config}
    return Network(name, "transformers", family, (128,), 1000, "input_ids", settings)


_SMALL = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4}
_DECODER = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
    "vocab_size": 8000,
    "use_cache": False,
}

NETWORKS: tuple[Network, ...] = (
    *vision("torchvision", "plain", 224, "alexnet vgg11_bn squeezenet1_1 googlenet"),
    *vision("torchvision", "plain", 299, "inception_v3"),
    *vision("torchvision", "resnet", 224, "resnet18 resnet50 resnext50_32x4d"),
    *vision("torchvision", "densenet", 224, "densenet121"),
    *vision("torchvision", "mobile", 224, "mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x1_0"),
    *vision("torchvision", "efficientnet", 224, "efficientnet_b0"),
    *vision("torchvision", "regnet", 224, "regnet_x_400mf regnet_y_400mf"),
    *vision("torchvision", "convnext", 224, "convnext_tiny"),
    *vision("torchvision", "vit", 224, "vit_b_32"),
    *vision("torchvision", "swin", 224, "swin_t maxvit_t"),
    *vision("torchvision", "swin", 256, "swin_v2_t"),
    *vision("torchvision", "segmentation", 520, "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"),
    Network("r3d_18", "torchvision", "video", (3, 16, 112, 112)),
    *vision("timm", "resnet", 224, "seresnext26d_32x4d skresnet18 resnest14d res2net50_26w_4s"),
    *vision("timm", "resnet", 256, "nf_resnet50 botnet26t_256 halonet26t cspresnet50"),
    *vision("timm", "resnet", 224, "gernet_s tresnet_m selecsls42b"),
    *vision("timm", "nfnet", 224, "eca_nfnet_l0"),
    *vision("timm", "repvgg", 224, "repvgg_a0 mobileone_s0 repghostnet_050"),
    *vision("timm", "aggregation", 224, "dla34 ese_vovnet19b_dw dpn68 hrnet_w18_small hgnetv2_b0"),
    *vision("timm", "aggregation", 256, "cspdarknet53"),
    *vision("timm", "mobile", 224, "ghostnet_100 rexnet_100 mixnet_s mobilenetv4_conv_small lcnet_050"),
    *vision("timm", "mobile", 224, "fbnetc_100 repvit_m0_9 starnet_s1 shvit_s1"),
    *vision("timm", "mobile", 256, "mobilenetv4_hybrid_medium fastvit_t8"),
    *vision("timm", "efficientnet", 224, "tf_efficientnet_lite0 regnetz_b16"),
    *vision("timm", "plain", 299, "xception41"),
    *vision("timm", "convnext", 224, "convnextv2_atto inception_next_tiny mambaout_femto rdnet_tiny"),
    *vision("timm", "metaformer", 224, "poolformer_s12 caformer_s18 convmixer_768_32 focalnet_tiny_srf"),
    *vision(
        "timm", "vit", 224, "vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 cait_xxs24_224"
    ),
    *vision("timm", "vit", 224, "xcit_nano_12_p16_224 eva02_tiny_patch14_224 volo_d1_224 hiera_tiny_224"),
    *vision("timm", "vit", 224, "tnt_s_patch16_224 pit_ti_224 levit_128s tiny_vit_5m_224 visformer_tiny"),
    *vision("timm", "vit", 240, "crossvit_tiny_240"),
    *vision("timm", "swin", 224, "swin_tiny_patch4_window7_224 twins_svt_small davit_tiny nest_tiny"),
    *vision("timm", "swin", 256, "swinv2_tiny_window8_256 maxvit_pico_rw_256"),
    *vision("timm", "hybrid", 224, "pvt_v2_b0 coat_lite_tiny coatnet_nano_rw_224 efficientformer_l1"),
    *vision("timm", "hybrid", 224, "efficientvit_b0 efficientvit_m0"),
    *vision("timm", "hybrid", 256, "mobilevit_xxs mobilevit_s mobilevitv2_050 edgenext_xx_small"),
    *vision("timm", "mlp-mixer", 224, "mixer_s32_224 gmlp_s16_224 resmlp_12_224"),
    *vision("timm", "recurrent", 224, "sequencer2d_s"),
    _text("bert", "bert", "BertModel", "BertConfig", intermediate_size=1024, **_SMALL),
    _text("roberta", "bert", "RobertaModel", "RobertaConfig", intermediate_size=1024, **_SMALL),
    _text(
        "distilbert",
        "bert",
        "DistilBertModel",
        "DistilBertConfig",
        n_layers=4,
        dim=384,
        hidden_dim=1536,
        n_heads=6,
    ),
    _text(
        "albert", "bert", "AlbertModel", "AlbertConfig", intermediate_size=1024, embedding_size=128, **_SMALL
    ),
    _text("gpt2", "gpt", "GPT2LMHeadModel", "GPT2Config", n_layer=4, n_embd=384, n_head=6, use_cache=False),
    _text(
        "opt",
        "gpt",
        "OPTForCausalLM",
        "OPTConfig",
        num_hidden_layers=4,
        hidden_size=384,
        ffn_dim=1536,
        num_attention_heads=6,
        word_embed_proj_dim=384,
        vocab_size=8000,
        use_cache=False,
    ),
    _text("llama", "llama", "LlamaForCausalLM", "LlamaConfig", **_DECODER),
    _text("mistral", "llama", "MistralForCausalLM", "MistralConfig", **_DECODER),
    _text("qwen3", "llama", "Qwen3ForCausalLM", "Qwen3Config", head_dim=64, **_DECODER),
    _text(
        "t5_encoder", "bert", "T5EncoderModel", "T5Config", num_layers=4, d_model=384, d_ff=1024, num_heads=6
    ),
    Network(
        "segformer_b0",
        "transformers",
        "segmentation",
        (3, 512, 512),
        0,
        "pixel_values",
        {"model": "SegformerForSemanticSegmentation", "config": "SegformerConfig"},
    ),
    Network(
        "dinov2_small",
        "transformers",
        "vit",
        (3, 224, 224),
        0,
        "pixel_values",
        {"model": "Dinov2Model", "config": "Dinov2Config", "hidden_size": 384, "num_attention_heads": 6},
    ),
    Network(
        "hf_vit",
        "transformers",
        "vit",
        (3, 224, 224),
        0,
        "pixel_values",
        {
            "model": "ViTForImageClassification",
            "config": "ViTConfig",
            "hidden_size": 192,
            "num_attention_heads": 3,
            "intermediate_size": 768,
        },
    ),
    Network(
        "wav2vec2",
        "transformers",
        "audio",
        (16000,),
        0,
        "input_values",
        {
            "model": "Wav2Vec2Model",
            "config": "Wav2Vec2Config",
            "num_hidden_layers": 4,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
    ),
    Network("Lstm", "own", "recurrent", (100, 40)),
    Network("Gru", "own", "recurrent", (100, 40)),
    Network("PilotNet", "own", "plain", (3, 66, 200)),
    Network("PixelUNet", "own", "segmentation", (3, 256, 256)),
    Network("YoloLike", "own", "detector", (3, 320, 320)),
    Network("TiedLanguageModel", "own", "recurrent", (64,), 2000),
    Network("CalledTwice", "own", "plain", (3, 128, 128)),
    Network("ConvAutoencoder", "own", "plain", (3, 128, 128)),
    Network("SpatialAttention", "own", "plain", (3, 128, 128)),
    Network("TorchEncoder", "own", "vit", (196, 192)),
    Network("HardCoded", "own", "plain", (3, 128, 128)),
)

UNSEEN: tuple[Network, ...] = (
    *vision("torchvision", "resnet", 224, "wide_resnet50_2"),
    *vision("torchvision", "efficientnet", 224, "efficientnet_v2_s"),
    *vision("torchvision", "segmentation", 520, "fcn_resnet50"),
    *vision("timm", "resnet", 224, "ecaresnet26t legacy_seresnet18 resnetv2_50d_gn"),
    *vision("timm", "mobile", 224, "tinynet_e spnasnet_100 mobilenetv3_small_050 ghostnetv2_100"),
    *vision("timm", "mobile", 256, "mobilenet_edgetpu_v2_xs"),
    *vision("timm", "aggregation", 224, "ese_vovnet39b darknet53 dla46x_c"),
    *vision("timm", "convnext", 224, "convnext_femto"),
    *vision("timm", "vit", 224, "vit_relpos_small_patch16_224 convit_tiny deit3_small_patch16_224"),
    *vision("timm", "hybrid", 224, "pvt_v2_b1 repvit_m1 efficientvit_m1 fasternet_t0"),
    *vision("timm", "swin", 224, "swin_s3_tiny_224 twins_pcpvt_small"),
    *vision("timm", "nfnet", 256, "nf_regnet_b1"),
    _text(
        "electra",
        "bert",
        "ElectraModel",
        "ElectraConfig",
        intermediate_size=1024,
        embedding_size=128,
        **_SMALL,
    ),
    _text(
        "gpt_neox",
        "gpt",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        num_hidden_layers=4,
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        vocab_size=8000,
        use_cache=False,
    ),
    _text("qwen2", "llama", "Qwen2ForCausalLM", "Qwen2Config", **_DECODER),
)
