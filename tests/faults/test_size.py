"""Row 27 of the fault table: a sweep of 1,000 trials. Its ledger is filled through the session, as Tune's loop would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import psutil
import pytest
from real import call, command, driver, measured, wait_for

from jobs.config import JobConfig
from orchestrator import driver as driving
from orchestrator.ledger import Ledger, this_process
from orchestrator.plan import Plan, make
from orchestrator.runs import RunFolder
from orchestrator.session import Dispatch, Session
from orchestrator.sweep import load

TRIALS = 1000
LEFT = 4
"""Trials that are left for a real driver."""

SWEEP = """
name = "big"
question = "Which temperature is best?"
metric = { name = "knn_accuracy", smallest_difference = 0.01 }
[job]
task = "image"
budget = { steps = 8 }
[job.data]
train = "digits[:300]"
tune = "digits[300:400]"
confirm = "digits[400:500]"
[job.model]
name = "resnet"
width = 8
layers = 1
[job.batch]
size = 16
[job.evaluate]
times = 2
probe = false
references = 300
[job.execution]
ranks = 2
[compare]
"loss.temperature" = [0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2, 0.5]
[tune]
trials = 90
[tune.space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
[confirm]
seeds = 10
"""
"""Ten arms of ninety suggestions and ten confirm seeds."""
