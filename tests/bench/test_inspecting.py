"""`mixcache.bench.inspect`: pipelines that batch their branches, loops of one's own, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixcache import BlockList, ModelAdapter, Session, bench
from mixcache.bench import Found
from tests.conftest import built
from tests.helpers import state_of
from tests.zoo import unusual


def text(found: Found) -> str:
    return str(found).partition("\n\n")[0]


def test_branches_in_one_batch_are_told_by_their_place() -> None:
    """LTX-Video calls its model once, the conditional half last, with both copies of the latent."""
    tiny = built("ltx")
    before = state_of(tiny.pipe.transformer)
    plain = tiny.run(3)
    kept: list[Tensor] = []
    (found,) = bench.inspect(tiny.pipe, lambda session: kept.append(tiny.run(3)))
    assert torch.equal(kept[0], plain), "watching changes nothing"
    assert state_of(tiny.pipe.transformer).keys() == before.keys()
    assert torch.equal(tiny.run(3), plain)
    assert "`hidden_states`: all of it, 2 copies along the batch" in text(found)
    assert "-2 * call 0[0] + 3 * call 0[1]" in text(found)
    assert "the conditional branch is call 0, part 1 of 2" in text(found)
    assert "its samples computed alone give the same" in text(found)
    record = found.record
    assert (record.branches, record.doubled_order) == ("doubled", ("uncond", "cond"))
    assert eval(str(found).partition("\n\n")[2], {"ModelAdapter": ModelAdapter, "BlockList": BlockList}) == record


def test_branches_that_cannot_be_taken_out_of_their_batch_are_said() -> None:
    """Perturbed-attention guidance: three branches, and the model does not take one of them alone."""
    tiny = unusual.perturbed()
    (found,) = bench.inspect(tiny.pipe, lambda session: tiny.run(3))
    assert "3 copies along the batch" in text(found)
    assert "its samples computed alone give something else" in text(found)
    assert any("computed alone are not what the whole batch gives" in one for one in found.missing)


def test_residuals_between_blocks_are_said() -> None:
    tiny = unusual.controlled()
    (found,) = bench.inspect(tiny.pipe, lambda session: tiny.run(3))
    assert "transformer_blocks: result 1 of 2 goes nowhere" in found.missing
    assert found.record.blocks == ()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix(x))


class Taken(nn.Module):
    """A model in a loop of one's own: a list in, a list out, with the sign turned where it is asked for."""

    def __init__(self, sign: float = 1.0, blocks: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.sign = sign

    def forward(self, x: list[Tensor], t: float) -> list[Tensor]:
        h = torch.stack(x)
        for layer in self.layers:
            h = layer(h)
        return list(self.sign * (h - t))


def denoise(session: Session, model: nn.Module, sign: float = 1.0, steps: int = 4) -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), session.run(num_steps=steps) as run:
        for i in range(steps):
            with run.step(i, sigma=1 - i / steps):
                x = x - sign * torch.stack(model(list(x), 1 - i / steps)) / steps


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loop_of_ones_own(sign: float) -> None:
    """The argument that moves is the latent; which way it moves says what the output means."""
    torch.manual_seed(0)
    model = Taken(sign)
    (found,) = bench.inspect(model, lambda session: denoise(session, model, sign))
    assert "`x`: all of it, a list, one tensor per sample" in text(found)
    assert f"the next latent is 1 * latent {'-' if sign > 0 else '+'} 0.25 * call 0" in text(found)
    assert f"flow, with the {'usual' if sign > 0 else 'other'} sign" in text(found)
    assert found.missing == ()
    assert found.record == ModelAdapter(
        model="Taken",
        latent_argument="x",
        prediction="flow",
        blocks=(BlockList(path="layers", streams=("x",), returns=("x",)),),
    )


def test_a_model_without_blocks_and_one_that_is_never_called() -> None:
    """It says so for each; nothing is made up."""
    torch.manual_seed(0)
    bare = Taken(blocks=0)
    (found,) = bench.inspect(bare, lambda session: denoise(session, bare))
    assert found.missing == ("blocks: nothing ran in a list of blocks; policies work at 'step' and 'cfg'",)
    (found,) = bench.inspect(bare, lambda session: None)
    assert "latent and prediction: no call of it could be followed" in text(found)
    assert found.record == ModelAdapter(model="Taken")
