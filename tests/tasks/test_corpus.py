import numpy as np
import pytest

from hybridcore.errors import TaskError
from hybridcore.tasks.corpus import load_corpus
from hybridcore.tasks.stdlib_gpt import StdlibGpt


def _library(folder, count=30):
    for index in range(count):
        (folder / f"m{index:02d}.py").write_text(f"# {index:02d}\n")
    for excluded in ("site-packages", "test", "__pycache__"):
        (folder / excluded).mkdir()
        (folder / excluded / "a.py").write_text("# never\n")
    return folder


def test_files_are_dealt_in_order(tmp_path):
    corpus = load_corpus(10_000, _library(tmp_path))
    assert corpus.files["probes"] == ("m04.py", "m14.py", "m24.py")
    assert corpus.files["validation"] == ("m09.py", "m19.py", "m29.py")
    assert len(corpus.files["training"]) == 24
    assert bytes(corpus.probes) == b"# 04\n\n# 14\n\n# 24\n"
    assert b"never" not in bytes(corpus.training)


def test_reading_stops_at_the_cap(tmp_path):
    corpus = load_corpus(5 * 12, _library(tmp_path))
    assert sum(map(len, corpus.files.values())) == 12


def test_too_few_files_is_an_error(tmp_path):
    with pytest.raises(TaskError, match="standard library's source"):
        load_corpus(10_000, _library(tmp_path, 9))


def test_held_out_windows_come_from_held_out_files():
    task = StdlibGpt(StdlibGpt.Config(depth=1, max_bytes=500_000, batch_size=4))
    problem = task.problem(seed=0)
    corpus = load_corpus(500_000)
    for batches, text in ((problem.probes, corpus.probes), (problem.validation, corpus.validation)):
        for tokens, _ in batches:
            for row in tokens:
                assert row.astype(np.uint8).tobytes() in bytes(text)
    assert len(problem.probes) == len(problem.validation) == 8
    assert not set(corpus.files["training"]) & set(corpus.files["probes"] + corpus.files["validation"])


def test_targets_are_the_next_bytes_and_windows_tile_the_text():
    task = StdlibGpt(StdlibGpt.Config(depth=1, max_bytes=500_000, batch_size=64, context=32))
    source = task.problem(seed=0).batches
    tokens, targets = source.gather(np.arange(50))
    text = load_corpus(500_000).training.astype(np.int64)
    assert np.array_equal(tokens.ravel(), text[: 50 * 32])
    assert np.array_equal(targets.ravel(), text[1 : 50 * 32 + 1])
    assert source.count == (text.size - 1) // 32
    assert source.gather(np.array([source.count - 1]))[1].shape == (1, 32)


def test_context_longer_than_a_split_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("hybridcore.tasks.stdlib_gpt.load_corpus", lambda n: load_corpus(n, folder))
    folder = _library(tmp_path)
    with pytest.raises(TaskError) as caught:
        StdlibGpt(StdlibGpt.Config(depth=1)).problem(seed=0)
    assert caught.value.where == "task.context"


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="divisor of 128"):
        StdlibGpt.Config(heads=3)
    with pytest.raises(ValueError, match="out of range"):
        StdlibGpt.Config(heads=0)
