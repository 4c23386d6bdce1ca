"""bitsandbytes itself says what NF4 and INT8 are: codes, scales and values, with no tolerance."""

import pytest
import torch
from torch import Tensor

from supernet.errors import UserError
from supernet.formats import check_formats, format_named
from supernet.formats.bitsandbytes import INT8, NF4, NF4_BOUNDS, NF4_VALUES


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes.functional", exc_type=ImportError)


def hard_weights() -> Tensor:
    """Random rows, and rows of what could go wrong: ties and their neighbors, zeros, denormals, halves, extremes."""
    torch.manual_seed(0)
    weight = torch.randn(32, 256)
    bounds = torch.tensor(NF4_BOUNDS)
    beside = [torch.nextafter(bounds, torch.full_like(bounds, end)) for end in (-2.0, 2.0)]
    weight[0, :64] = torch.cat((bounds, *beside, torch.tensor(NF4_VALUES), torch.tensor([1.0, -1.0, 0.0])))
    weight[0, 64:128] = 3.7 * weight[0, :64]
    weight[0, 128:192] = weight[0, :64] / 8
    weight[1] = 0
    weight[2] *= 1e-40
    weight[3] *= 1e30
    weight[4] = weight[4].half().float()
    weight[5, :64], weight[5, 64:] = 1.0, -0.3
    return weight


@pytest.mark.parametrize("shape", [(32, 256), (4, 8, 256), (128, 64)])
def test_nf4_is_what_bitsandbytes_stores_and_reads(bitsandbytes, shape: tuple[int, ...]) -> None:
    weight = hard_weights().reshape(shape)
    packed, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes, scales = NF4().encode(weight)
    assert torch.equal(codes.flatten()[::2].to(torch.uint8) << 4 | codes.flatten()[1::2], packed.flatten())
    assert codes.dtype == torch.int8 and codes.shape == shape
    assert torch.equal(scales.flatten(), state.absmax) and scales.shape == (*shape[:-1], shape[-1] // 64)
    assert torch.equal(state.code, torch.tensor(NF4_VALUES))
    theirs = bitsandbytes.dequantize_4bit(packed, state)
    assert torch.equal(NF4().decode(codes, scales), theirs)
    assert torch.equal(NF4().quantize(weight), theirs)


def test_nf4_slices_at_groups() -> None:
    weight = hard_weights()
    assert torch.equal(NF4().quantize(weight)[:16, :128], NF4().quantize(weight[:16, :128]))
    assert NF4().n_bytes(64) == 36


def test_scales_can_be_fitted() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    errors = {fitting: (NF4(fitting).quantize(weight) - weight).square().mean() for fitting in ("absmax", "mse")}
    assert errors["mse"] < errors["absmax"]
    assert torch.equal(NF4("mse").quantize(weight), NF4("mse").decode(*NF4("mse").encode(weight)))
    factors = torch.full((16, 4), 0.5)
    codes, scales = NF4("learned").encode(weight, factors)
    assert torch.equal(scales, 0.5 * NF4().encode(weight)[1])
    assert codes.aminmax() == (0, 15)  # what is beyond the scale is clipped
    assert torch.equal(NF4("learned").decode(codes, scales), NF4("learned").quantize(weight, factors))


def test_int8_is_what_bitsandbytes_stores_and_reads(bitsandbytes) -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(2)).half()
    weight[0, :2] = torch.tensor([2.0, 1.0])  # a tie: 63.5
    codes, scales, _ = bitsandbytes.int8_vectorwise_quant(weight)
    ours, our_scales = INT8().encode(weight.float())
    assert torch.equal(ours, codes) and torch.equal(our_scales.squeeze(-1), scales)
    assert torch.equal(INT8().decode(ours, our_scales), bitsandbytes.int8_vectorwise_dequant(codes, scales))
    assert torch.equal(INT8().quantize(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_families_do_not_mix() -> None:
    assert format_named("NF4").bits == 4.5
    assert check_formats("key", ("NF4", "F16"), (64, 128)) == ("NF4", "F16")
    with pytest.raises(UserError, match="ascend"):
        check_formats("key", ("Q4_0", "NF4"), (64,))
    with pytest.raises(UserError, match="a width of 96 does not fit NF4"):
        check_formats("key", ("NF4",), (96,))
    with pytest.raises(UserError, match="INT8"):
        check_formats("key", ("INT8", "F16"), (64,))
