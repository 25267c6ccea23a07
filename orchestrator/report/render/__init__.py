"""An answer as tables, plots and pages."""
