"""Freed memory is kept if the allocator supports it, and returned on request."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from gvpo import keep_freed_memory
from gvpo.training.allocator import release

SIZES = [2**22] * 4 + [2**25] * 2  # 16 and 128 MiB each
told = keep_freed_memory() if "keep" in sys.argv else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(size) for size in SIZES]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

first, *later = [faults() for _ in range(10)]
held = resident()
release()
print(told, first, later[-1], held - resident())
"""
PAGES = (4 * 2**24 + 2 * 2**27) // os.sysconf("SC_PAGE_SIZE")


def run(*arguments: str, **environment: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is asked for")
def test_kept_memory_causes_no_second_fault_and_is_returned_on_request():
    told, first, later, given_back = run("keep")
    if told == "False":
        pytest.skip("this system's allocator takes no advice")
    assert int(first) > 0.9 * PAGES
    assert int(later) < 0.01 * PAGES
    assert int(given_back) > 0.9 * PAGES


def test_an_environment_that_sets_the_allocator_is_left_unchanged():
    assert run("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"
