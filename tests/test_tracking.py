"""F42: trackers that the configuration names hear every event of a run, and are closed at its end."""

from __future__ import annotations

import attrs
import pytest

from hybridcore.components import check_config
from hybridcore.errors import ConfigError, PluginFailedError
from hybridcore.records import read_run
from hybridcore.runner import run_task


@attrs.frozen(kw_only=True)
class NotesConfig:
    """Table ``[trackers.notes]``."""

    fail_at: str = ""


class Notes:
    """Keeps the names of events."""

    name = "notes"
    Config = NotesConfig
    made: list = []

    def __init__(self, config):
        self.fail_at, self.events, self.closed = config.fail_at, [], 0
        self.made.append(self)

    def on_event(self, event, payload):
        assert not self.closed
        self.events.append(event)
        if event == self.fail_at:
            raise ConnectionError("server is away")

    def close(self):
        self.closed += 1
        if self.fail_at == "close":
            raise ConnectionError("server is away")


@pytest.fixture
def notes(registry):
    Notes.made = []
    return attrs.evolve(registry, trackers={**registry.trackers, "notes": Notes})


def recorded(folder):
    return [event["event"] for event in read_run(folder).events]


def test_a_tracker_hears_what_the_record_holds_and_is_closed_once(configuration, notes, tmp_path):
    for arm in ("hybrid", "baseline"):
        run_task(configuration(trackers={"notes": {}}), arm=arm, out_dir=tmp_path / arm, registry=notes)
        tracker = Notes.made[-1]
        assert tracker.events == recorded(tmp_path / arm)
        assert tracker.closed == 1
    assert len(Notes.made) == 2


def test_without_a_table_there_is_no_tracker(configuration, notes, tmp_path):
    run_task(configuration(), out_dir=tmp_path / "run", registry=notes)
    assert Notes.made == []


def test_it_is_closed_after_an_error_and_after_an_interruption(configuration, notes, tmp_path):
    run_task(
        configuration(trackers={"notes": {}}, task={"name": "toy_problem:build", "fail_at": 20}),
        out_dir=tmp_path / "stopped",
        registry=notes,
    )
    with pytest.raises(Exception, match="batches ended"):
        run_task(
            configuration(trackers={"notes": {}}, task={"name": "toy_problem:build", "finite": 20}),
            out_dir=tmp_path / "ended",
            registry=notes,
        )
    assert [tracker.closed for tracker in Notes.made] == [1, 1]


@pytest.mark.drops_plugins
@pytest.mark.parametrize("fail_at", ["real-step", "run-start", "close"])
def test_f42_one_that_fails_is_dropped_and_the_run_is_the_same(
    configuration, notes, tmp_path, fail_at, caplog
):
    run_task(configuration(), out_dir=tmp_path / "without", registry=notes)
    run_task(
        configuration(trackers={"notes": {"fail_at": fail_at}}), out_dir=tmp_path / "with", registry=notes
    )
    (tracker,) = Notes.made
    assert tracker.events.count(fail_at) == (fail_at != "close") and tracker.closed == 1
    assert "the tracker 'notes' failed in" in caplog.text
    one, other = read_run(tmp_path / "without"), read_run(tmp_path / "with")
    assert [e.loss for e in one.evaluations] == [e.loss for e in other.evaluations]
    if fail_at != "close":
        assert other.summary["plugins_dropped"] == ["tracker notes"]
        assert recorded(tmp_path / "with").count("plugin-failed") == 1


@pytest.mark.drops_plugins
def test_f42_with_raise_the_run_ends_and_the_others_are_closed(configuration, notes, tmp_path):
    tables = {"trackers": {"notes": {"fail_at": "jump"}}, "plugins": {"on_error": "raise"}}
    with pytest.raises(PluginFailedError, match="tracker 'notes'"):
        run_task(configuration(**tables), out_dir=tmp_path / "run", registry=notes)
    assert Notes.made[0].closed == 1


def test_tables_of_trackers_are_checked(notes):
    problems = {"trackers": {"notes": {"fail_att": "x"}, "note": {}, "notes2": 3}}
    with pytest.raises(ConfigError) as caught:
        check_config(problems, notes)
    text = str(caught.value)
    assert "trackers.notes.fail_att" in text and "trackers.note:" in text and "trackers.notes2" in text
