"""Calls behind the one who asks: in order, none lost, and the first exception the last call."""

import threading

import pytest

from forceuq.features.behind import Behind


def test_every_call_is_made_in_order_in_another_thread():
    made = []
    with Behind(lambda value, *, twice: made.append((value * (1 + twice), threading.get_ident()))) as behind:
        for value in range(50):
            behind.call(value, twice=value % 2 == 0)
    assert [value for value, _ in made] == [value * (1 + (value % 2 == 0)) for value in range(50)]
    assert {thread for _, thread in made} != {threading.get_ident()}
    assert len({thread for _, thread in made}) == 1


def test_the_caller_goes_on_until_two_calls_wait():
    release, began, made = threading.Event(), threading.Event(), []

    def slow(value):
        began.set()
        assert release.wait(10)
        made.append(value)

    with Behind(slow) as behind:
        behind.call(0)
        assert began.wait(10)
        behind.call(1)
        assert made == []
        third = threading.Thread(target=behind.call, args=(2,))
        third.start()
        third.join(0.1)
        assert third.is_alive()
        release.set()
        third.join(10)
        behind.wait()
        assert made == [0, 1, 2]


@pytest.mark.parametrize("last", [0, 3])
def test_an_exception_reaches_the_caller_and_nothing_is_called_after_it(last):
    made = []

    def failing(value):
        if value == last:
            raise ValueError(f"no {value}")
        made.append(value)

    def run():
        with Behind(failing) as behind:
            for value in range(last + 1 + 5 * (last > 0)):
                behind.call(value)

    with pytest.raises(ValueError, match=f"no {last}"):
        run()
    assert made == list(range(last))


def test_an_exception_of_the_caller_is_the_one_that_is_raised_once_the_thread_has_ended():
    before = threading.active_count()

    def failing(value):
        raise ValueError(value)

    def run():
        with Behind(failing) as behind:
            behind.call(1)
            raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        run()
    assert threading.active_count() == before
