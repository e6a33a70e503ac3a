"""Hosts exchange values, take turns, read each row once and gather arrays. An error names a host that differs."""

import pytest

from t5lite.system.errors import UserError
from t5lite.system.joining import Address, are_several
from tests.hosts import ROOT, start, wait


def test_two_hosts_work_as_one_and_one_that_differs_is_named(tmp_path):
    first, second = wait(start([ROOT / "tests/training/hosts_script.py", "--folder", tmp_path]))
    assert (first[0], second[0]) == (2, 2), first[2] + second[2]
    assert (first[1], second[1]) == ("host 0 alone says so\n", "")
    differs = "host 1 differs from host 0 in data.train (of 1, there of 0)"
    assert second[2].splitlines()[-1].startswith(f"t5lite: {differs}")
    assert first[2].splitlines()[-1].startswith("t5lite: host 1 (") and differs in first[2]


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"
}  # fmt: skip


@pytest.mark.parametrize("tasks, several", [(1, False), (2, True)])
def test_slurm_tells_whether_there_are_several_hosts(monkeypatch, tasks, several):
    assert not are_several(Address())
    for name, value in {**SLURM, "SLURM_NTASKS": str(tasks)}.items():
        monkeypatch.setenv(name, value)
    assert are_several(Address()) == several


@pytest.mark.parametrize(
    "address, message",
    [
        (Address("here:1", 2), "--process_id missing"),
        (Address(None, None, 0), "--coordinator_address and --num_processes missing"),
        (Address("here:1", 2, 2), "--process_id=2 must be at least 0 and below --num_processes=2"),
        (Address("here", 2, 0), "--coordinator_address=here has no port"),
    ],
)
def test_a_wrong_address_is_refused(address, message):
    with pytest.raises(UserError, match=message):
        are_several(address)


def test_a_single_process_joins_no_hosts():
    assert not are_several(Address("here:1", 1, 0))
