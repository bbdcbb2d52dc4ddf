import pytest

from forceuq.checkpoints import checkpoints_of


def run(folder, code):
    """Run a job that trains an epoch, and is killed before its third; return after how many it began."""
    with checkpoints_of(folder, code) as checkpoints:
        state = checkpoints / "state"
        done = int(state.read_text()) if state.exists() else 0
        checkpoints.mkdir(parents=True, exist_ok=True)
        state.write_text(str(done + 1))
        if done < 2:
            raise KeyboardInterrupt
    return done


def test_an_interrupted_training_goes_on_by_the_same_code_only(tmp_path):
    """Otherwise a fit would say that it is of today's code and have epochs of yesterday's."""
    folder = tmp_path / "checkpoints/fit"
    for code in ("old", "old", "new", "new"):
        with pytest.raises(KeyboardInterrupt):
            run(folder, code)
    assert run(folder, "new") == 2
    # What the code before left would be of no use any more; and what is done is not taken up again.
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        run(folder, "new")
