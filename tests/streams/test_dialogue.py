"""Dialogue: when a drain may end a connection, without one."""

from __future__ import annotations

import pytest

from asyncserver.connections.dialogue import Dialogue


def heard(nbytes: int, *, unconsumed: int = 0) -> Dialogue:
    """A dialogue in which so many bytes have come, of which a message takes the last, or those that wait."""
    dialogue = Dialogue()
    dialogue.bytes_received = nbytes
    dialogue.begin_message(unconsumed)
    return dialogue


def say(dialogue: Dialogue, nbytes: int) -> None:
    """Send."""
    dialogue.bytes_sent += nbytes
    dialogue.answer()


def test_new() -> None:
    """Nobody has said anything, and a drain need not wait for anybody."""
    dialogue = Dialogue()
    assert dialogue.bytes_moved == 0
    assert not dialogue.draining
    assert not dialogue.begin_drain(unread=0, due=0.0)
    assert dialogue.draining
    assert dialogue.may_end()


def test_first_words_are_waited_for() -> None:
    """They are owed an answer, until they can no longer be on their way."""
    dialogue = Dialogue()
    assert dialogue.begin_drain(unread=0, due=0.5)
    assert not dialogue.may_end()
    assert not dialogue.begin_drain(unread=0, due=0.0)
    assert dialogue.may_end()


@pytest.mark.parametrize(("unread", "received"), [(10, 0), (0, 10)])
def test_who_has_spoken_is_not_waited_for(unread: int, received: int) -> None:
    """Neither if it has been heard, nor if it will be."""
    dialogue = heard(received)
    assert not dialogue.begin_drain(unread, due=0.5)


def test_active_and_between() -> None:
    """What has come since we last sent is a message under way; with our answer it is over."""
    dialogue = heard(10)
    dialogue.begin_drain(unread=0, due=0.0)
    assert not dialogue.may_end()
    say(dialogue, 5)
    dialogue.begin_message(0)
    assert dialogue.may_end()
    assert dialogue.bytes_moved == 15


def test_owed() -> None:
    """What had reached the host when the drain began is answered, though we have just sent."""
    dialogue = heard(10)
    say(dialogue, 5)
    dialogue.begin_drain(unread=7, due=0.0)
    dialogue.begin_message(0)
    assert not dialogue.may_end()
    dialogue.bytes_received += 7
    dialogue.owe_at_most(0)
    assert not dialogue.may_end()
    say(dialogue, 5)
    dialogue.begin_message(0)
    assert dialogue.may_end()


def test_tls_makes_more_of_a_message_than_it_is() -> None:
    """Its kernel bytes were owed; when they are read, fewer have come."""
    dialogue = Dialogue()
    dialogue.begin_drain(unread=29, due=0.0)
    dialogue.begin_message(0)
    dialogue.bytes_received += 7
    dialogue.owe_at_most(0)
    say(dialogue, 7)
    dialogue.begin_message(0)
    assert dialogue.may_end()


def test_the_next_message_half_here_is_not_owed() -> None:
    """A peer that sends without end: what came behind the owed bytes, and waits in the buffer, ends nothing."""
    dialogue = heard(10)
    dialogue.begin_drain(unread=0, due=0.0)
    dialogue.bytes_received += 6  # with the rest of the first message, half of the next
    say(dialogue, 5)
    dialogue.begin_message(3)
    assert dialogue.may_end()


def test_a_message_in_the_buffer_that_came_before_the_drain_is_owed() -> None:
    """It has been received, but not by the handler."""
    dialogue = heard(20, unconsumed=20)
    dialogue.begin_drain(unread=0, due=0.0)
    say(dialogue, 5)
    dialogue.begin_message(10)
    assert not dialogue.may_end()
    say(dialogue, 5)
    dialogue.begin_message(0)
    assert dialogue.may_end()


def test_message_without_an_answer() -> None:
    """What is said to get none is over, but for what has been read beyond it."""
    dialogue = heard(10)
    dialogue.settle(unconsumed=4)
    dialogue.begin_drain(unread=0, due=0.0)
    assert not dialogue.may_end()
    dialogue.settle(unconsumed=0)
    assert dialogue.may_end()
    dialogue.bytes_received += 1
    dialogue.begin_message(0)
    assert not dialogue.may_end()


def test_message_without_an_answer_behind_one_with() -> None:
    """Whether one was answered says nothing about the next."""
    dialogue = heard(10)
    say(dialogue, 5)
    dialogue.bytes_received += 10
    dialogue.begin_message(0)
    dialogue.begin_drain(unread=3, due=0.0)
    dialogue.settle(unconsumed=0)
    assert not dialogue.may_end()
    dialogue.bytes_received += 3
    dialogue.settle(unconsumed=0)
    assert dialogue.may_end()
