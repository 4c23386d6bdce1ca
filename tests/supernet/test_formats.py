import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.errors import UserError
from supernet.formats import FORMATS, IQ4_NL, check_formats, format_named
from supernet.formats.activations import rounded

K_CODES = {"Q2_K": (0, 3), "Q3_K": (-4, 3), "Q6_K": (-32, 31)}
INTEGERS = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-127, 127)}
every_format = pytest.mark.parametrize("name", FORMATS)
every_k_format = pytest.mark.parametrize("name", K_CODES)
every_integer_format = pytest.mark.parametrize("name", INTEGERS)


def normal(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def weights():
    """Rows of 256 whose magnitudes span what float16 can hold, zeros and tiny values among them."""
    tiny = st.floats(-(2**-20), 2**-20, width=32)
    values = st.one_of(st.floats(-60000, 60000, width=32), tiny, st.just(0.0))
    return st.lists(values, min_size=256, max_size=256).map(torch.tensor)


@every_format
@given(weight=weights())
def test_quantize_is_decode_after_encode_and_finite(name, weight):
    weight_format = FORMATS[name]
    quantized = weight_format.quantize(weight)
    assert torch.equal(quantized, weight_format.decode(*weight_format.encode(weight)))
    assert quantized.isfinite().all() and quantized.dtype == torch.float32 and quantized.shape == weight.shape


@every_integer_format
@given(weight=weights())
def test_codes_stay_in_range(name, weight):
    codes, scales = FORMATS[name].encode(weight)
    low, high = INTEGERS[name]
    assert codes.dtype == torch.int8 and codes.shape == (256,)
    assert codes.min() >= low and codes.max() <= high
    assert scales.dtype == torch.float16 and scales.shape == (8,)


@every_integer_format
@pytest.mark.parametrize("magnitude", [1e-2, 1.0, 300.0])
def test_error_is_bounded_by_the_scale(name, magnitude):
    weight = normal(8, 256, scale=magnitude)
    _, scales = FORMATS[name].encode(weight)
    error = (FORMATS[name].quantize(weight) - weight).abs().unflatten(-1, (-1, 32)).amax(-1)
    # Half a step; where there is one code less on the far side, a full one (scales round to float16).
    steps = 0.5 if name == "Q8_0" else 1.01
    assert (error <= steps * scales.float().abs() * 1.001).all()


def test_more_bits_are_nearer():
    weight = normal(16, 256)
    errors = [(f.quantize(weight) - weight).pow(2).mean().item() for f in FORMATS.values()]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0
    bits = [f.bits for f in FORMATS.values()]
    assert bits == sorted(bits)


@pytest.mark.parametrize(
    ("name", "n_bytes"), [("Q4_0", 18), ("IQ4_NL", 18), ("Q5_0", 22), ("Q8_0", 34), ("F16", 64), ("F32", 128)]
)
def test_bytes_of_32_weights(name, n_bytes):
    assert FORMATS[name].n_bytes(32) == n_bytes


@pytest.mark.parametrize(("name", "n_bytes"), [("Q2_K", 84), ("Q3_K", 110), ("Q6_K", 210)])
def test_bytes_of_256_weights(name, n_bytes):
    assert FORMATS[name].n_bytes(256) == n_bytes


@every_k_format
@given(weight=weights())
def test_codes_and_scales_of_k_formats_stay_in_range(name, weight):
    codes, factors, scales = FORMATS[name].encode(weight)
    low, high = K_CODES[name]
    lowest, highest = {"Q2_K": (0, 15), "Q3_K": (-32, 31), "Q6_K": (-128, 127)}[name]
    assert codes.dtype == scales.dtype == torch.int8 and factors.dtype == torch.float16
    assert low <= codes.min() and codes.max() <= high and lowest <= scales.min() and scales.max() <= highest


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0", "IQ4_NL", "Q5_0", "Q6_K"])
def test_least_squares_errs_less(name):
    weight = normal(32, 256)
    errors = [(format_named(name, f).quantize(weight) - weight).square().mean() for f in ("mse", "absmax")]
    assert errors[0] < errors[1]


def test_a_clipped_scale_is_a_fraction_of_the_absolute_maximum():
    weight, clip = normal(8, 512), format_named("Q2_K", "clip")
    assert torch.equal(clip.quantize(weight), FORMATS["Q2_K"].quantize(weight, torch.full((8, 32), 0.8)))
    assert torch.equal(clip.decode(*clip.encode(weight)), clip.quantize(weight))
    errors = [(format_named("Q2_K", f).quantize(weight) - weight).square().mean() for f in ("mse", "clip", "absmax")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0"])
def test_learned_factors_scale_and_learn(name):
    weight, learned = normal(8, 512).requires_grad_(), format_named(name, "learned")
    log_factors = torch.zeros(8, 512 // learned.part, requires_grad=True)
    quantized = learned.fake_quantize(weight, log_factors)
    assert torch.equal(quantized, FORMATS[name].quantize(weight.detach()))
    (quantized - weight.detach()).square().sum().backward()
    errors = [quantized.detach().sub(weight.detach()).square().sum()]
    for _ in range(20):
        with torch.no_grad():
            log_factors -= 0.02 * log_factors.grad.sign()
            log_factors.grad = None
        quantized = learned.fake_quantize(weight, log_factors)
        loss = (quantized - weight.detach()).square().sum()
        loss.backward()
        errors.append(loss.detach())
    assert errors[-1] < 0.97 * errors[0]
    half = learned.quantize(weight.detach()[:, :256], log_factors.detach()[:, : 256 // learned.part].exp())
    assert torch.equal(half, learned.quantize(weight.detach(), log_factors.detach().exp())[:, :256])


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0", "IQ4_NL", "Q5_0", "Q8_0", "NF4"])
@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_the_gradient_of_a_factor_is_that_of_a_learned_step(name, factor):
    """LSQ's equation 3, from the steps that are stored: code - weight / step inside, the last code outside."""
    weight, learned = normal(4, 512).requires_grad_(), format_named(name, "learned")
    log_factors = torch.full((4, 512 // learned.part), factor).log().requires_grad_()
    gradient = normal(4, 512, seed=3)
    quantized = learned.fake_quantize(weight, log_factors)
    quantized.backward(gradient)
    w, q = weight.detach(), quantized.detach()
    parts = w.unflatten(-1, (-1, learned.part))
    if name == "NF4":
        outside = parts.abs() > factor * parts.abs().amax(-1, keepdim=True)
    else:
        scale, offset = learned.stored(*learned.encode(w, log_factors.detach().exp())[1:])
        codes = (parts + (0 if offset is None else offset.unsqueeze(-1))) / scale.unsqueeze(-1)
        outside = (codes < learned.low - 0.5) | (codes > learned.high + 0.5)
    wanted = (gradient * (q - torch.where(outside.flatten(-2), 0.0, w))).unflatten(-1, (-1, learned.part)).sum(-1)
    torch.testing.assert_close(log_factors.grad, wanted)
    assert outside.any() == (factor < 1 or name in ("Q3_K", "Q4_0", "IQ4_NL", "Q5_0"))


def test_an_unknown_fitting_is_refused():
    with pytest.raises(UserError, match=r"model\.scales\.F16 must be one of absmax, got 'mse'"):
        format_named("F16", "mse")
    with pytest.raises(UserError, match=r"model\.scales\.Q4_0 must be one of absmax, mse, learned, got 'clip'"):
        format_named("Q4_0", "clip")
    with pytest.raises(UserError, match=r"model\.scales\.Q2_K must be one of absmax, clip, mse, learned"):
        format_named("Q2_K", "best")


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("Q8_0", 1e-2), ("Q8_K", 2e-2)])
def test_rounded_activations_are_near_and_pass_the_gradient(kind, error):
    x = normal(3, 512).requires_grad_()
    near = rounded(x, kind)
    assert 0 < (near - x).norm() / x.norm() < error
    near.backward(torch.ones_like(x))
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(rounded(torch.zeros(1, 256), kind), torch.zeros(1, 256))
    assert rounded(x, None) is x and rounded(x, "F32") is x


@every_integer_format
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_that_are_codes_are_exact(name, sign):
    low, high = INTEGERS[name]
    row = (torch.arange(32) % (high - low + 1) + low).float() * sign
    codes, scales = FORMATS[name].encode(row)
    assert torch.equal(FORMATS[name].quantize(row), row)
    if name != "Q8_0":  # the scale takes the sign, so that the code is `low` either way
        assert scales.item() == sign and codes.min() == low


@pytest.mark.parametrize("sign", [1, -1])
def test_uneven_levels_are_exact_and_what_lies_between_goes_to_the_nearest(sign):
    levels = torch.tensor(IQ4_NL.levels).float()
    row = torch.cat((levels, levels.flip(0))) * sign
    codes, scales = IQ4_NL().encode(row)
    assert torch.equal(IQ4_NL().quantize(row), row)
    assert scales.item() == sign and codes.tolist() == (sign * row).int().tolist()
    between = torch.linspace(-127, 113, 481)
    wanted = levels[(between.unsqueeze(1) - levels).abs().argmin(1)]
    assert torch.equal(IQ4_NL().rounded(between), wanted)


@every_format
def test_zeros_and_tiny_values(name):
    assert torch.equal(FORMATS[name].quantize(torch.zeros(2, 256)), torch.zeros(2, 256))
    weight = torch.cat((torch.zeros(32), normal(224)))  # a group of zeros beside one that is not
    assert torch.equal(FORMATS[name].quantize(weight)[:32], torch.zeros(32))
    tiny = normal(256, scale=1e-10)
    assert (FORMATS[name].quantize(tiny) - tiny).abs().max() <= tiny.abs().max()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "Q2_K"])  # whose offsets are coarse
def test_rounding_twice_changes_little(name):
    once = FORMATS[name].quantize(normal(4, 256))
    torch.testing.assert_close(FORMATS[name].quantize(once), once, rtol=2e-3, atol=2e-3)


@every_format
def test_slicing_commutes(name):
    weight, weight_format = normal(6, 4, 768), FORMATS[name]
    whole = weight_format.quantize(weight)
    for rows, heads, columns in ((6, 4, 256), (3, 2, 512), (1, 1, 768), (5, 4, 256)):
        prefix = weight[:rows, :heads, :columns]
        assert torch.equal(weight_format.quantize(prefix), whole[:rows, :heads, :columns])
    if name in INTEGERS:
        codes, scales = weight_format.encode(weight)
        sliced_codes, sliced_scales = weight_format.encode(weight[..., :96])
        assert torch.equal(sliced_codes, codes[..., :96]) and torch.equal(sliced_scales, scales[..., :3])
    elif name in K_CODES:
        whole_parts, parts = weight_format.encode(weight), weight_format.encode(weight[..., :256])
        assert all(torch.equal(a, b.narrow(2, 0, a.shape[2])) for a, b in zip(parts, whole_parts, strict=True))


@every_format
def test_the_gradient_is_the_identitys(name):
    weight = normal(4, 256).requires_grad_()
    gradient = normal(4, 256, seed=1)
    quantized = FORMATS[name].fake_quantize(weight)
    assert torch.equal(quantized, FORMATS[name].quantize(weight.detach()))
    quantized.backward(gradient)
    assert torch.equal(weight.grad, gradient)


def test_without_gradients_nothing_is_recorded():
    weight = normal(4, 64).requires_grad_()
    with torch.no_grad():
        assert not FORMATS["Q4_0"].fake_quantize(weight).requires_grad
    assert not FORMATS["Q4_0"].fake_quantize(weight.detach()).requires_grad


def test_unknown_name():
    with pytest.raises(UserError, match=r"unknown weight format 'Q3_9'; known: Q2_K, "):
        format_named("Q3_9")


@pytest.mark.parametrize("names", [(), ("Q8_0", "Q4_0"), ("Q4_0", "Q4_0")])
def test_formats_must_ascend(names):
    with pytest.raises(UserError, match=r"^some\.key: formats must ascend"):
        check_formats("some.key", names, (32,))


def attention(**changes):
    values = dict(d_model=(64,), norm_eps=1e-5, head_dim=32, kv_heads=(1,), heads_per_kv=(1, 2))
    formats = dict(qkv_formats=("F16",), o_formats=("F16",), droppable=False)
    return ElasticAttention(**(values | formats | changes))


def swiglu(**changes):
    values = dict(d_model=(64,), norm_eps=1e-5, width=(32, 64))
    formats = dict(gate_up_formats=("F16",), down_formats=("F16",), droppable=False)
    return ElasticSwiGLU(**(values | formats | changes))


@pytest.mark.parametrize(
    ("build", "changes", "key"),
    [
        (attention, dict(d_model=(48,), qkv_formats=("Q4_0",)), "model.blocks.attention.qkv_formats"),
        (attention, dict(head_dim=48, o_formats=("Q4_0",)), "model.blocks.attention.o_formats"),
        (attention, dict(d_model=(48,), droppable=True), "model.blocks.attention.droppable"),
        (attention, dict(head_dim=16, droppable=True), "model.blocks.attention.droppable"),
        (swiglu, dict(d_model=(48,), gate_up_formats=("Q8_0",)), "model.blocks.mlp.gate_up_formats"),
        (swiglu, dict(width=(48,), down_formats=("Q5_0",)), "model.blocks.mlp.down_formats"),
        (swiglu, dict(d_model=(48,), droppable=True), "model.blocks.mlp.droppable"),
    ],
)
def test_a_width_that_fits_no_group_is_refused(build, changes, key):
    with pytest.raises(UserError, match=rf"^{key}: a width of (16|48) does not fit Q\d_0"):
        build(**changes)


@pytest.mark.parametrize(
    ("build", "changes", "key"),
    [
        (attention, dict(kv_heads=(2, 1)), "model.blocks.attention.kv_heads"),
        (attention, dict(kv_heads=()), "model.blocks.attention.kv_heads"),
        (attention, dict(heads_per_kv=(0, 1)), "model.blocks.attention.heads_per_kv"),
        (attention, dict(head_dim=33), "model.head_dim"),
        (swiglu, dict(width=(64, 64)), "model.blocks.mlp.width"),
        (swiglu, dict(width=()), "model.blocks.mlp.width"),
    ],
)
def test_extents_are_checked(build, changes, key):
    with pytest.raises(UserError, match=f"^{key} must"):
        build(**changes)


def test_widths_that_need_no_group_may_be_odd():
    assert attention(d_model=(48,), head_dim=48).head_dim == 48
    assert swiglu(d_model=(40,), width=(7, 33)).widths == (7, 33)


@pytest.mark.parametrize("d_model", [(), (64, 32), (0, 32)])
def test_the_models_width_is_checked(supernet_of, d_model):
    with pytest.raises(UserError, match=r"^model\.d_model must ascend"):
        supernet_of(d_model=d_model)


def test_the_embeddings_formats_are_checked(supernet_of):
    with pytest.raises(UserError, match=r"^model\.embedding_formats: a width of 48"):
        supernet_of(d_model=(48,), embedding_formats=("Q4_0",))
    with pytest.raises(UserError, match=r"^model\.n_layers must"):
        supernet_of(n_layers=0)
