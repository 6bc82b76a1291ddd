"""Memory of large tensors is kept from step to step and returned after training."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_HAS_MALLOPT = hasattr(ctypes.CDLL(None), "mallopt")

# A process of its own: what an earlier test allocated would be at hand in this one.
_FAULTS = """
import resource, torch
from mae.train.allocator import kept_memory

def faults_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(size << 18) for size in (9, 30, 50)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

def resident_mib():
    line, = (line for line in open("/proc/self/status") if "VmRSS" in line)
    return int(line.split()[1]) / 1024

faults_a_step()
usual = faults_a_step()
with kept_memory(torch.device("cpu")):
    faults_a_step()
    kept, within = faults_a_step(), resident_mib()
print(usual, kept, within - resident_mib())
"""


@pytest.mark.skipif(not _HAS_MALLOPT, reason="not glibc")
def test_steps_do_not_fetch_the_same_pages_again_and_the_memory_is_returned() -> None:
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    usual, kept, returned_mib = map(float, done.stdout.split())
    assert usual > 10_000  # 50 MiB and 30 MiB are more than glibc keeps by default
    assert kept < 100
    assert returned_mib > 40
