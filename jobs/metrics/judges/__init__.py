"""The built-in judges: what a source that judges holds, and what an encoder is asked about it; one module each.

Each module holds a class under its own name, as `jobs.data.tasks.judging` has it: `Judge`, which takes a job. Its
constants say of which tasks it is (`TASKS`) and what it measures (`MEASURES`); they are read without importing it.
"""
