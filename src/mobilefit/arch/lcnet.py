"""PP-LCNet (Cui et al., arXiv 2109.15099, Table 1): MobileNetV1's blocks with h-swish, for CPUs.

Squeeze-and-excite and 5x5 kernels come late, where they cost little, and a hidden layer of 1280 units
follows the pooling (section 3). Its width is the same at every multiplier, as in PaddleClas and timm.
"""

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.scaling import Excite
from mobilefit.arch.spec import NetSpec

SE: Excite = "lcnet"


def _block(kernel: int, out: int, stride: int, se: Excite | None = None) -> Block:
    return Block(op="separable", kernel=kernel, out=out, stride=stride, se=se, act="hard_swish", skip="none")


LCNET = NetSpec(
    name="lcnet",
    stem=Conv(out=16, kernel=3, stride=2, act="hard_swish"),  # 224 -> 112
    blocks=(
        #   kernel out stride
        _block(3, 32, 1),
        _block(3, 64, 2),  # 112 -> 56
        _block(3, 64, 1),
        _block(3, 128, 2),  # 56 -> 28
        _block(3, 128, 1),
        _block(3, 256, 2),  # 28 -> 14
        _block(5, 256, 1),
        _block(5, 256, 1),
        _block(5, 256, 1),
        _block(5, 256, 1),
        _block(5, 256, 1),
        _block(5, 512, 2, SE),  # 14 -> 7
        _block(5, 512, 1, SE),
    ),
    head=ClassifierHead(hidden=1280, act="hard_swish", dropout=0.2, scaling="never"),
)
