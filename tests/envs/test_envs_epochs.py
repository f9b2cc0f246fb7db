"""Every row once an epoch, whatever the seed; the same again for the same seed."""

from hypothesis import given
from hypothesis import strategies as st

from envs.epochs import Epochs


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), epoch=st.integers(0, 5))
def test_every_row_comes_once_an_epoch(seed, count, epoch):
    indices = range(epoch * count, (epoch + 1) * count)
    found = [Epochs(seed).row(index, count=count) for index in indices]
    assert {e for e, _ in found} == {epoch}
    assert sorted(row for _, row in found) == list(range(count))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(Epochs(seed).row(epoch * 50 + i, count=50)[1] for i in range(50))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4
