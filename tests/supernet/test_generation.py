"""What is generated with a cache is what the net says without one."""

import pytest
import torch

from supernet.errors import UserError
from supernet.generation import Distribution, generate
from supernet.subnet import extract

WHOLE = Distribution(top_k=0, top_p=1.0)


def uniforms(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.inference_mode()
@pytest.mark.parametrize("end", ["largest", "smallest", "cheapest"])
def test_each_token_is_drawn_from_what_the_net_predicts_there(supernet_of, end):
    supernet = supernet_of(tied=False, output_formats=("Q8_0", "F16"))
    decoder = extract(supernet, getattr(supernet.space, end)).freeze_formats()
    draws, temperatures = uniforms(5, 20), torch.tensor([1.0, 1.3, 0.7, 2.0, 1.0])
    ids = generate(decoder, 7, draws, temperatures, WHOLE, n_ids=40)
    assert ids.shape == (5, 21) and (ids[:, 0] == 7).all() and ids.max() < 40 and len(ids.unique()) > 5
    logits = decoder(ids[:, :-1])[..., :40] / temperatures[:, None, None]
    expected = torch.stack([WHOLE.draw(logits[:, i], draws[:, i]) for i in range(20)], 1)
    assert (expected == ids[:, 1:]).float().mean() > 0.97  # a draw may fall on a sum's last bit
    assert torch.equal(generate(decoder, 7, draws[2:3], temperatures[2:3], WHOLE, n_ids=40), ids[2:3])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ((0, 1.0), [0.1, 0.5, 0.15, 0.25]),
        ((2, 1.0), [0.0, 2 / 3, 0.0, 1 / 3]),
        ((0, 0.6), [0.0, 2 / 3, 0.0, 1 / 3]),
        ((3, 0.4), [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_draws_are_distributed_as_asked(settings, wanted):
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().repeat(10_000, 1)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = Distribution(*settings).draw(logits, grid).bincount(minlength=4) / 10_000
    torch.testing.assert_close(counts, torch.tensor(wanted), rtol=0, atol=2e-4)


@pytest.mark.parametrize("settings", [(-1, 1.0), (0, 0.0), (0, 1.1)])
def test_what_is_no_distribution(settings):
    with pytest.raises(UserError, match=r"data.sampling: top_k must be"):
        Distribution(*settings)
