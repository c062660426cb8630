"""The serving step of the demo."""

import random

from onewave.bench.workload import Request, Workload


def gpu_step(seed: int) -> Workload:
    lens = random.Random(seed)
    decodes = [Request(lens.randint(512, 16384), 1) for _ in range(32)]
    return Workload("demo", (*decodes, Request(8192, 2048)), lens_seed=seed)


def cpu_step(seed: int) -> Workload:
    lens = random.Random(seed)
    decodes = [Request(lens.randint(512, 8192), 1) for _ in range(8)]
    return Workload("demo", (*decodes, Request(2048, 128)), lens_seed=seed)
