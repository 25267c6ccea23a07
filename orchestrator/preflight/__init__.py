"""What is asked before a session: the doctor's checks, what must be there, how long a sweep takes."""
