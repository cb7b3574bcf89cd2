"""What the state of a job allows, and how it is spelled."""

import json

from isoframe.engine.jobs.state import JobState


def test_states_are_spelled_as_files_and_answers_have_them() -> None:
    assert [str(state) for state in JobState] == [
        "queued", "running", "stopped", "paused", "done", "failed", "cancelled", "deleted",
    ]  # fmt: skip
    assert json.loads(json.dumps(JobState.PAUSED)) == "paused"
    assert JobState("paused") is JobState.PAUSED


def test_every_state_but_a_deleted_one_is_under_way_or_over_or_can_be_resumed() -> None:
    under_way = {state for state in JobState if state.is_under_way}
    over = {state for state in JobState if state.is_over}
    resumable = {state for state in JobState if state.can_resume}
    assert under_way == {JobState.QUEUED, JobState.RUNNING}
    assert over - resumable == {JobState.DONE}
    assert resumable - over == {JobState.PAUSED, JobState.STOPPED}
    assert not under_way & (over | resumable)
    assert set(JobState) - under_way - over - resumable == {JobState.DELETED}
