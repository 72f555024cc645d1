"""Classifiers become detectors and segmenters: NetSpec -> NetSpec.

The MobileNetV3 paper halves the channels of the last stage for both ("RF2" and the dagger of its
Tables 6 and 7), since they were found for a thousand classes. The released code does so in two ways:
detection keeps the expansion that it taps (C4) whole, segmentation halves it as well. Networks that are
written as ratios (V2, MnasNet) keep their ratios, so there the two are one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from mobilefit.arch.heads import Anchors, SegmentationHead, SegmentationKind, SSDLiteHead
from mobilefit.arch.rows import Block
from mobilefit.arch.scaling import make_divisible
from mobilefit.arch.spec import NetSpec
from mobilefit.arch.width import written_as_ratios
from mobilefit.errors import InputError

DETECTION_SIDE = 320
"""V3 paper, Table 6."""
CITYSCAPES = (1024, 2048)
"""V3 paper, Tables 7 and 8: height and width."""


def strides(spec: NetSpec) -> list[int]:
    """The stride of each block's output against the image, and before them the stem's."""
    found = [spec.stem.stride]
    for block in spec.blocks:
        found.append(found[-1] * block.stride)
    return found


def _last_stage(spec: NetSpec) -> int:
    """The block that goes from a stride of 16 to 32, or would if dilation did not take its place."""
    reducing = [i for i, block in enumerate(spec.blocks) if block.stride == 2]
    if strides(spec)[-1] != 32 or not reducing:
        raise InputError(
            f"'{spec.name}' ends at a stride of {strides(spec)[-1]}, and a head wants one that ends at 32",
            "take a network of the family, or one made from it",
        )
    return reducing[-1]


def halved(spec: NetSpec, task: Literal["detect", "segment"]) -> NetSpec:
    """Half the channels from the last stage on.

    Args:
        task: ``detect`` keeps the expansion of the stage's first block, ``segment`` halves it unless
            the network is written as ratios.
    """
    first = _last_stage(spec)
    keeps = task == "detect" or written_as_ratios(spec.stem, spec.blocks)

    def half(index: int, block: Block) -> Block:
        if index < first:
            return block
        whole = block.expand is None or (index == first and keeps)
        expand = block.expand if whole else make_divisible((block.expand or 0) / 2)
        return replace(block, out=make_divisible(block.out / 2), expand=expand)

    blocks = tuple(half(index, block) for index, block in enumerate(spec.blocks))
    last = None if spec.last is None else replace(spec.last, out=make_divisible(spec.last.out / 2))
    return replace(spec, name=f"{spec.name}_reduced", blocks=blocks, last=last)


def dilated(spec: NetSpec, output_stride: int, rules: Literal["tf", "torchvision"] = "tf") -> NetSpec:
    """The network with a finer last map: strides beyond ``output_stride`` become dilations.

    Args:
        output_stride: 8, 16 or 32.
        rules: ``tf`` dilates the blocks after the one whose stride is taken away (TF-slim), and
            ``torchvision`` that one too.

    Raises:
        InputError: another stride.
    """
    if output_stride not in (8, 16, 32):
        raise InputError(f"output stride {output_stride} is none of 8, 16, 32")
    reached, rate, blocks = spec.stem.stride, 1, []
    for block in spec.blocks:
        if reached * block.stride <= output_stride:
            reached *= block.stride
            blocks.append(replace(block, dilation=rate * block.dilation))
            continue
        own = rate * block.stride if rules == "torchvision" else rate
        rate *= block.stride
        # A block of stride 2 had no residual, and its weights know of none now.
        blocks.append(replace(block, stride=1, dilation=own, skip="none"))
    return replace(spec, blocks=tuple(blocks))


def detector(
    backbone: NetSpec, *, num_classes: int = 90, anchors: Anchors = "tf", reduced: bool = False
) -> NetSpec:
    """SSDLite on a classifier's backbone (V3 paper 6.3).

    C4 is the expansion of the last stage's first block (where there is none before its stride, as in V1, what
    the block takes in), C5 the last layer.

    Args:
        backbone: a network that ends at a stride of 32.
        num_classes: without the background.
        anchors: ``tf``, with sigmoid scores, or ``torchvision``, with softmax scores.
        reduced: half the channels of the last stage, C4 excepted.
    """
    first = _last_stage(backbone)
    expands_before_stride = backbone.blocks[first].parts[0] == "expand" and backbone.blocks[first].kernel
    c4 = f"blocks.{first}.expand" if expands_before_stride else f"blocks.{first - 1}"
    c5 = "last" if backbone.last is not None else f"blocks.{len(backbone.blocks) - 1}"
    base = halved(backbone, "detect") if reduced else backbone
    if base.last is not None:  # the SSD extractors of TensorFlow narrow it at every width
        base = replace(base, last=replace(base.last, scaling="always"))
    head = SSDLiteHead(
        num_classes=num_classes, taps=(c4, c5), anchors=anchors,
        scoring="sigmoid" if anchors == "tf" else "softmax",
    )  # fmt: skip
    return replace(base, name=f"ssdlite_{base.name}", head=head).resolution(DETECTION_SIDE)


def segmenter(
    backbone: NetSpec, *, num_classes: int = 19, kind: SegmentationKind = "lraspp", filters: int = 128,
    output_stride: int = 16, reduced: bool = True, like: Literal["tf", "torchvision"] = "tf",
) -> NetSpec:  # fmt: skip
    """R-ASPP or LR-ASPP on a classifier's backbone (V3 paper 6.4).

    MobileNetV2's last convolution, to 1280 channels, is left out, as DeepLab does.

    Args:
        backbone: a network that ends at a stride of 32.
        filters: F of Table 7.
        output_stride: of the last map: 8, 16 or 32.
        reduced: half the channels of the last stage.
        like: ``tf``: exactly DeepLab's; ``torchvision``: its gate sees the whole image and has no bias,
            its finer map is a block's output, its maps are resized otherwise.
    """
    base = halved(backbone, "segment") if reduced else backbone
    if base.last is not None and base.last.scaling == "above_one":
        base = replace(base, last=None)
    skip = _finer(base, like) if kind == "lraspp" else None
    tap = "last" if base.last is not None else f"blocks.{len(base.blocks) - 1}"
    head = SegmentationHead(num_classes=num_classes, kind=kind, filters=filters, tap=tap, skip=skip)
    if like == "torchvision":
        norm = replace(head.norm, momentum=0.1)
        head = replace(head, pool=None, gate_bias=False, align_corners=False, norm=norm)
    base = dilated(base, output_stride, like)
    return replace(base, name=f"{kind}_{base.name.removesuffix('_reduced')}", head=head).resolution(*CITYSCAPES)


def _finer(spec: NetSpec, like: str) -> str:
    """The layer at a stride of 8 whose logits are added: before squeeze-and-excite in the last block
    of that stride (DeepLab), or the output of its first one (torchvision)."""
    at_eight = [i for i, stride in enumerate(strides(spec)[1:]) if stride == 8]
    if not at_eight:
        raise InputError(f"'{spec.name}' has no block at a stride of 8, which LR-ASPP takes a map from")
    if like == "torchvision":
        return f"blocks.{at_eight[0]}"
    return f"blocks.{at_eight[-1]}.{spec.blocks[at_eight[-1]].parts[-1]}"
