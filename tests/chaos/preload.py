"""What the fork server imports once for all processes: all that a run imports."""

import torch
import torch._dynamo  # imported by the first optimizer, for 2 s

import mae.cli.verbs.every
import mae.jobs.pretrain
import mae.report.page  # noqa: F401
import tests.jobs.kill_storm  # noqa: F401

torch.set_num_threads(1)
