"""cluster/raft.py, outbox.py and seams.py hook into names inside PySyncObj; this fails when its source is not the one that was read."""

from __future__ import annotations

import hashlib
import inspect
from importlib import metadata

import pysyncobj.syncobj as engine
import pytest

from quorumq.cluster import raft, seams


def test_the_engine_is_the_version_that_was_read() -> None:
    assert metadata.version("pysyncobj") == "0.3.17"
    source = inspect.getsource(engine).replace("\r\n", "\n")
    assert hashlib.sha256(source.encode()).hexdigest() == HASH


HASH = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"


@pytest.mark.parametrize("name", [name for name in vars(raft.Raft) if name.startswith("_SyncObj__")])
def test_each_overridden_name_exists_in_the_engine(name: str) -> None:
    assert callable(getattr(engine.SyncObj, name))


def test_there_is_exactly_one_replicated_method() -> None:
    replicated = [name for name, value in vars(raft.Raft).items() if getattr(value, "replicated", False)]
    assert sorted(replicated) == ["apply", "apply_v0"]


def test_nothing_can_be_unpickled() -> None:
    assert engine.pickle is seams.codec
    with pytest.raises(ValueError, match="not a message"):
        engine.pickle.loads(b"\x80\x04\x95\x10cos\nsystem\n(S'true'\ntR.")
