"""pyarrow without pandas, which it imports with its first array: a quarter of a second in every process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import pyarrow as pa


class _NoPandas:
    """Finds no pandas."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        """Raise ImportError for pandas; leave everything else to the other finders."""
        if name == "pandas":
            raise ImportError(name)


@cache
def leave_pandas_out() -> None:
    """Let pyarrow look for pandas now, and find none. Nothing is changed where it is imported already.

    `to_pandas` and `Table.from_pandas` import it as ever. Only `pa.array` of a Series or of `pd.NaT` treats them as it
    does where pandas is not installed; no code of this package makes an array of those. Relies on a private name of
    pyarrow; without that name, pandas is imported as before.
    """
    known = getattr(pa.lib, "_pandas_api", None)
    if known is None or "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        _ = known.have_pandas
        pa.array([None, 1.0])  # what is written in C++ looks for itself
    finally:
        sys.meta_path.remove(finder)
