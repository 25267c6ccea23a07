"""The built-in tasks: what is encoded, how pairs of it come about, and what judges an encoder of it.

Each module holds a class under its own name, as `jobs.data.tasks` has it: `Task`, which takes a job and a tokenizer; or
the three methods of `Parts`, as one of the user's own.
"""
