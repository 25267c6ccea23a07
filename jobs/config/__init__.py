"""What one job is: its fields and the rules between them, what is wrong with a file, what a trial's id is made of."""

from __future__ import annotations

from jobs.config.after_sections import without_dims as without_dims
from jobs.config.data_sections import Augment as Augment
from jobs.config.data_sections import Mine as Mine
from jobs.config.job import DIVIDES as DIVIDES
from jobs.config.job import EXECUTION_METRICS as EXECUTION_METRICS
from jobs.config.job import OF_SEED as OF_SEED
from jobs.config.job import POINTS as POINTS
from jobs.config.job import ConfigError as ConfigError
from jobs.config.job import ConfigIssue as ConfigIssue
from jobs.config.job import JobConfig as JobConfig
from jobs.config.job import canonical as canonical
from jobs.config.job import field_names as field_names
from jobs.config.job import issues as issues
from jobs.config.job import load_job as load_job
from jobs.config.job import nearest as nearest
from jobs.config.job import trial_id as trial_id
from jobs.config.section import Section as Section
from jobs.config.sections import Budget as Budget
from jobs.config.sections import Evaluate as Evaluate
from jobs.config.sections import Execution as Execution
from jobs.config.sections import Loss as Loss
from jobs.config.sections import Optimizer as Optimizer
