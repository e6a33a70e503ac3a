"""What test_hosts.py runs on two hosts: each call of system/hosts.py, checked from both sides."""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite import cli
from t5lite.data.rows import TrainRows
from t5lite.system import hosts
from t5lite.training.sharding import local_rows, make_mesh


class Indices:
    """A row source of 24 rows, each its own index."""

    def __len__(self):
        return 24

    def fetch(self, indices):
        return {"tokens": np.asarray(indices, np.int32)[:, None]}


def talk():
    """Values go from host 0 to all, and from all to host 0, also after a wait longer than one call lasts."""
    assert hosts.count_hosts() == 2 and hosts.is_primary() == (hosts.get_index() == 0)
    big = "x" * 2**23
    assert hosts.from_primary({"of": hosts.get_index(), "big": big}) == {"of": 0, "big": big}
    assert hosts.to_primary(hosts.get_index()) == ([0, 1] if hosts.is_primary() else [])
    before = time.monotonic()
    if not hosts.is_primary():
        time.sleep(1 + 2 * hosts.WAIT_MS / 1000)
    hosts.wait_for_all()
    assert time.monotonic() - before > 1


def take_turns(folder):
    """Host 0's block is over before host 1's begins."""
    with hosts.primary_first():
        if hosts.is_primary():
            time.sleep(0.5)
            (folder / "built").touch()
        assert (folder / "built").exists()


def read_every_row_once(mesh):
    """Over two epochs what the hosts read is what one host reads, each row by one host."""
    mine = local_rows(8, mesh)
    alone, shared = TrainRows([(Indices(), 1.0)], 8, 0), TrainRows([(Indices(), 1.0)], 8, 0, mine)
    read = hosts.to_primary(
        [list(zip(mine.tolist(), shared(s)["tokens"][:, 0].tolist(), strict=True)) for s in range(6)]
    )
    if hosts.is_primary():
        for step, parts in enumerate(zip(*read, strict=True)):
            together = sorted(tuple(row) for part in parts for row in part)
            assert together == list(enumerate(alone(step)["tokens"][:, 0].tolist())), step
        epoch = [token for part in read for step in part[:3] for _, token in step]
        assert sorted(epoch) == list(range(24))


def gather(mesh):
    """An array whose parts lie on both hosts comes whole to each."""
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    split = jax.make_array_from_callback(values.shape, NamedSharding(mesh, P(None, "data")), lambda at: values[at])
    assert not split.is_fully_addressable
    found = hosts.gather({"split": split, "sum": jnp.sum(split), "own": np.int32(hosts.get_index())})
    assert (found["split"] == values).all() and found["sum"] == values.sum() and found["own"] == hosts.get_index()


def vote():
    """Host 1's yes at its third question is both hosts' answer to the fourth, and at once where asked so."""
    any_host = hosts.AnyHost()
    says = [hosts.get_index() == 1 and step == 2 for step in range(5)]
    assert [any_host(mine, at_once=False) for mine in says] == [False, False, False, True, False]
    assert any_host(hosts.get_index() == 1, at_once=True) is True
    assert any_host(False, at_once=False) is False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    cli.add_hosts(parser)
    arguments = parser.parse_args()
    with cli.start_jax_on_hosts(arguments):
        mesh = make_mesh(-1, 1, 1)
        talk()
        take_turns(arguments.folder)
        read_every_row_once(mesh)
        gather(mesh)
        vote()
        hosts.check_agreement({"same": [1, 2.5, None]})
        print("host 0 alone says so")
        sys.stdout.flush()
        hosts.check_agreement({"same": 1, "data.train": f"of {hosts.get_index()}"})


if __name__ == "__main__":
    main()
