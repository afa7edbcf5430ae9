"""Compiled programs are kept for the session: most tests build the same small models afresh."""

from __future__ import annotations

import jax
import pytest

KEEP = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_traceback_in_locations_limit": 0,  # nobody reads which lines an operation is from
}


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """In this process and in those that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEEP, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jit"))}.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
