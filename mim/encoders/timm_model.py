"""Timm: any backbone of timm, by its name, with the ways of hiding that its architecture allows.

Shapes: B batch, C channels, H W pixels, h w entries high and wide, D width.
"""

import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from einops import rearrange
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from mim.encoders.base import Encoder
from mim.encoders.hiding import find_way
from mim.encoders.hiding.backbone import BackboneSettings
from mim.encoders.hiding.base import whole
from mim.encoders.hiding.layout import measure
from mim.encoders.hiding.replace import Replace
from mim.encoders.hiding.stem import first_layer
from mim.encoders.timm_layers import layers_of, module_of
from mim.encoders.windowed import attention_of_windows
from mim.ops.truncated_normal import trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask

BACKBONE = "backbone."  # of timm's names in the encoder's


class Timm(Encoder, name="timm"):
    """A model of timm under timm's parameter names in `backbone`, with masking around it (mim/encoders/hiding/).

    Without a mask it is timm's model: its features are those of timm's forward_features. The classifier is left out;
    parameters that only the classifier reads, such as its norm, are not trained.

    Args:
        model: a name of timm.list_models(), with or without the tag of its weights.
        hidden: what happens to hidden cells: `drop` leaves their tokens out, `replace` puts a learned mask token in
            their place, `sparse` computes a convolutional net on visible places alone, `none` is the plain backbone.
            `mim-backbones NAME` says which of them a model can do.
        pretrained: whether a run that starts without INIT.checkpoint begins with timm's pretrained weights, which timm
            downloads. Its log says the mean and std of their images.
        options: further arguments of timm.create_model, each as `key=value`, such as `patch_size=8`.
        drop_path: stochastic depth rate of the last block, in [0, 1); the rate rises linearly from 0.
        replace_at: with `replace`, the number of the stage behind which the mask token stands, counted from 1 over
            the strides of at least 4 pixels; 0 is behind the stem where its patches do not overlap, and behind stage 3
            where they do, with a learned colour in hidden pixels.

    Raises ValueError where timm has no such model, the model cannot have such images or options, or its architecture
    cannot hide cells in this way.
    """

    can_drop = True
    free_keys: ClassVar[tuple[str, ...]] = (*Encoder.free_keys, "pretrained", "replace_at")

    def __init__(
        self,
        image: ImageSpec,
        *,
        model: str = "vit_small_patch16_224",
        hidden: Literal["drop", "replace", "sparse", "none"] = "replace",
        pretrained: bool = False,
        options: tuple[str, ...] = (),
        drop_path: float = 0.0,
        replace_at: int = 0,
    ):
        if replace_at and hidden != "replace":
            raise ValueError(f"ENCODER.replace_at is {replace_at}, and only ENCODER.hidden replace takes it")
        settings = BackboneSettings(model, options, drop_path)
        layout = measure(settings, image)
        backbone = settings.build(image)
        way = None
        if hidden != "none":
            kind = find_way(settings, image, hidden)
            way = kind(backbone, layout, replace_at) if kind is Replace else kind(backbone, layout)
        super().__init__(
            image,
            hidden,
            width=layout.width,
            patch=layout.stride if way is None else way.cell,
            stride=layout.stride,
            num_prefix=layout.num_prefix if layout.has_class else 0,
            embed_width=0 if way is None else way.token_width,
            stages=layout.stages,
        )
        path, first = first_layer(backbone)
        self.stem_weight = f"{BACKBONE}{path}.weight" if isinstance(first, nn.Conv2d) else ""
        self.settings, self.pretrained = settings, pretrained
        self.layout, self.backbone, self.way = layout, backbone, way
        if self.mask_token is not None:
            trunc_normal_(self.mask_token, 0.02)
        for name, parameter in backbone.named_parameters():
            if name in layout.unused:
                parameter.requires_grad_(False)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None, stages: Sequence[int] = ()) -> Features:
        if mask is None:
            return self._whole(img_BCHW, stages)
        if self.way is None:
            raise ValueError("an encoder with hidden: none cannot replace what a mask hides")
        return self.way(self.backbone, img_BCHW, mask, self.mask_token, stages)

    @property
    def title(self) -> str:
        return f"timm {self.settings.model}"

    def load_published(self) -> list[str]:
        if not self.pretrained:
            return []
        published: Any = self.settings.build(self.image, pretrained=True)
        self.backbone.load_state_dict(published.state_dict())
        known = published.pretrained_cfg
        mean, std = ([round(value, 4) for value in known[key]] for key in ("mean", "std"))
        return [f"{self.title}: timm's pretrained weights; their images had DATA.mean {mean} and DATA.std {std}"]

    def behind(self, name: str) -> bool:
        classifier = self.backbone.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
        paths = (classifier,) if isinstance(classifier, str) else classifier
        return name.startswith(tuple(f"{BACKBONE}{path}." for path in paths))

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """By timm's own filter for the files of this architecture, which also resizes positions."""
        ours = self.state_dict()
        convert = getattr(sys.modules[type(self.backbone).__module__], "checkpoint_filter_fn", None)
        fits = all(name in state and state[name].shape == weight.shape for name, weight in ours.items())
        if fits or convert is None:
            return state
        inside = {name.removeprefix(BACKBONE): each for name, each in state.items() if name.startswith(BACKBONE)}
        beside = {name: each for name, each in state.items() if not name.startswith(BACKBONE)}
        try:
            converted = convert(inside, self.backbone)
        except (LookupError, RuntimeError, ValueError, AttributeError, TypeError):  # another architecture's file
            return state
        return {**beside, **{BACKBONE + name: each for name, each in converted.items()}}

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        """The last map of each stride, (B, D, h, w); that of the last stride is the output."""
        numbers = list({stage.stride: number for number, stage in enumerate(self.layout.stages)}.values())
        features = self._whole(img_BCHW, numbers)
        maps = {
            self.layout.stages[number].stride: map_BDhw
            for number, map_BDhw in zip(numbers, features.stages_BDhw, strict=True)
        }
        return {**maps, self.spec.stride: rearrange(features.tokens_BND, "b (h w) d -> b d h w", h=self.spec.grid[0])}

    def blocks(self) -> list[nn.Module]:
        """The largest module of each layer behind the stem (mim/encoders/timm_layers.py)."""
        modules = (module_of(self.backbone, names) for names in self._layers()[1:])
        return [module for module in modules if module is not None]

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        parameters = dict(self.backbone.named_parameters())
        layers = [[parameters[name] for name in names] for names in self._layers()]
        stem = [parameter for name, parameter in self.named_parameters() if not name.startswith(BACKBONE)]
        return [[*stem, *layers[0]], *layers[1:]]

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        """The MLP, its norm and its scale, under the names that most of timm's blocks give them."""
        if not hasattr(block, "norm2") or not hasattr(block, "mlp"):
            return []
        parts = [getattr(block, name, None) for name in ("norm2", "mlp", "ls2", "gamma_2")]
        return [part for part in parts if isinstance(part, (nn.Module, nn.Parameter))]

    def whole_attention(self, block: nn.Module, weights: Tensor) -> Tensor:
        if isinstance(block, (SwinTransformerBlock, SwinTransformerV2Block)):
            return attention_of_windows(block, weights)
        height, width = self.image.height, self.image.width
        tokens = {(height // stage.stride) * (width // stage.stride) for stage in self.layout.stages}
        if weights.shape[-1] not in tokens | {count + self.layout.num_prefix for count in tokens}:
            raise ValueError(f"{type(block).__name__} of timm does not attend between the tokens of a whole image")
        return weights

    def _whole(self, img_BCHW: Tensor, stages: Sequence[int]) -> Features:
        if self.way is not None:
            self.way.forget()
        return whole(self.backbone, self.layout, img_BCHW, stages)

    def _layers(self) -> list[list[str]]:
        return layers_of(self.backbone, self.layout.unused)
