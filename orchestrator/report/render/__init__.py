"""An answer in ink: plots, and the pages that a person opens."""
