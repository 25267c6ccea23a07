"""An answer in words: what a report says, as tables, lists and paragraphs without a format."""
