import pytest

from forceuq.checkpoints import checkpoints_of


def test_an_interrupted_training_goes_on_by_the_same_code_only(tmp_path):
    """Otherwise a fit would say that it is of today's code and have epochs of yesterday's."""
    folder = tmp_path / "checkpoints/fit"
    with pytest.raises(KeyboardInterrupt), checkpoints_of(folder, "old") as checkpoints:
        checkpoints.mkdir(parents=True)
        (checkpoints / "state").write_text("two epochs")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), checkpoints_of(folder, "old") as checkpoints:
        assert (checkpoints / "state").read_text() == "two epochs"
        raise KeyboardInterrupt
    with checkpoints_of(folder, "new") as checkpoints:
        assert not checkpoints.exists()
    # What the code before left would be of no use any more.
    assert not folder.exists()
    with checkpoints_of(folder, "new") as checkpoints:
        assert not checkpoints.exists()
