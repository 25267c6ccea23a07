"""The JSON Schemas of the package: of the sweep file, and of what the verbs print with --json."""
