"""The names of transformers' weights on disk, which every version of the library reads; in memory they differ."""

from mim.interop import simmim
from mim.interop.formats import BACKBONE, ENCODER
from mim.interop.names import Row, add_prefix, rows

POSITIONS = "decoder.decoder_pos_embed"  # fixed; a head here computes them when it is built
POOLER = "pooler."  # of ViTModel: it comes after the features
BLOCK = rows(
    ("norm1", "layernorm_before"),
    ("attn.proj", "attention.output.dense"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
QKV = ("query", "key", "value")
VIT_BLOCK = (*BLOCK, *rows(("attn.qkv", tuple(f"attention.attention.{part}" for part in QKV))))
VIT = (
    *rows((f"{ENCODER}mask_token", "embeddings.mask_token")),
    *add_prefix(
        rows(
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("norm", "layernorm"),
        ),
        BACKBONE,
    ),
    *add_prefix(VIT_BLOCK, f"{BACKBONE}blocks.{{block}}.", "encoder.layer.{block}."),
)
DECODER = (
    *rows(
        ("head.embed", "decoder.decoder_embed"),
        ("head.mask_token", "decoder.mask_token"),
        ("head.norm", "decoder.decoder_norm"),
        ("head.predict", "decoder.decoder_pred"),
    ),
    *add_prefix(VIT_BLOCK, "head.layers.{block}.", "decoder.decoder_layers.{block}."),
    *add_prefix(VIT_BLOCK, "head.layers.{block}.", "decoder.decoder_encoder.layer.{block}."),  # of version 5
)
SELF = "attention.self."
V1_BLOCK = rows(
    ("attn.qkv", tuple(f"{SELF}{part}" for part in QKV)),
    (simmim.BIAS_TABLE, f"{SELF}relative_position_bias_table"),
)
V2_BLOCK = rows(
    ("attn.qkv.weight", tuple(f"{SELF}{part}.weight" for part in QKV)),
    ("attn.q_bias", f"{SELF}query.bias"),
    ("attn.v_bias", f"{SELF}value.bias"),
    ("attn.logit_scale", f"{SELF}logit_scale"),
    *((f"attn.cpb_mlp.{layer}", f"{SELF}continuous_position_bias_mlp.{layer}") for layer in (0, 2)),
)


def _swin(block: tuple[Row, ...]) -> tuple[Row, ...]:
    return (
        *rows((f"{ENCODER}mask_token", "embeddings.mask_token")),
        *add_prefix(
            rows(
                ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                ("patch_embed.norm", "embeddings.norm"),
                ("norm", "layernorm"),
            ),
            BACKBONE,
        ),
        *add_prefix(simmim.DOWNSAMPLE, BACKBONE, "encoder."),
        *add_prefix(block, f"{BACKBONE}layers.{{stage}}.blocks.{{block}}.", "encoder.layers.{stage}.blocks.{block}."),
    )


ENCODERS = {  # by model_type: our encoder, the prefix of its names, their table
    "vit_mae": ("vit", "vit.", VIT),
    "vit": ("vit", "vit.", VIT),
    "swin": ("swin", "swin.", _swin((*BLOCK, *V1_BLOCK))),
    "swinv2": ("swin_v2", "swinv2.", _swin((*BLOCK, *V2_BLOCK))),
}


def table_of(model_type: str, bare: bool) -> tuple[Row, ...]:
    """The names of a model of this type; with `bare`, of its encoder alone, which has no prefix."""
    _, prefix, table = ENCODERS[model_type]
    top = DECODER if model_type == "vit_mae" else rows(("head.conv", "decoder.0"), ("readouts.0.linear", "classifier"))
    return table if bare else (*add_prefix(table, theirs=prefix), *top)
