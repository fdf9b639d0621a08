"""The states of a connection, and what a close frame holds.

Belongs here: which state follows which, close codes and reasons as bytes. Does not belong here: frames, sending, waiting.
"""

from __future__ import annotations

from typing import Final

from gws_gevent.exceptions import GwsError
from gws_gevent.frames import MAX_CONTROL_PAYLOAD, CloseCode, State, Step, is_sendable_close_code

__all__ = ["close_payload", "next_state"]

NEXT_STATE: Final = {
    (State.CONNECTING, Step.ACCEPTED): State.OPEN,
    (State.CONNECTING, Step.STREAM_ENDED): State.CLOSED,
    (State.OPEN, Step.CLOSE_SENT): State.CLOSING,
    (State.OPEN, Step.CLOSE_RECEIVED): State.CLOSING,
    (State.OPEN, Step.STREAM_ENDED): State.CLOSED,
    (State.CLOSING, Step.CLOSE_SENT): State.CLOSING,
    (State.CLOSING, Step.CLOSE_RECEIVED): State.CLOSING,
    (State.CLOSING, Step.STREAM_ENDED): State.CLOSED,
}


def next_state(state: State, step: Step) -> State:
    """Look a transition up; a missing one is our own mistake and a GwsError."""
    try:
        return NEXT_STATE[state, step]
    except KeyError:
        raise GwsError(f"{step.name} is not possible while {state.name}") from None


def close_payload(code: int, reason: str = "") -> bytes:
    """Encode the payload of a close frame (section 5.5.1). Code 1005 gives the empty payload.

    Raises:
        ValueError: a code that may not be sent, a reason without a code, or one longer than 123 bytes of UTF-8.
        TypeError: a reason that is not str.
    """
    if not isinstance(reason, str):
        raise TypeError(f"a close reason is str, not {type(reason).__name__}")
    if code == CloseCode.NO_STATUS and not reason:
        return b""
    if isinstance(code, bool) or not isinstance(code, int) or not is_sendable_close_code(code):
        raise ValueError(f"close code {code!r} may not be sent")
    payload = int(code).to_bytes(2, "big") + reason.encode()
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError(f"a close reason holds at most {MAX_CONTROL_PAYLOAD - 2} bytes of UTF-8, not {len(payload) - 2}")
    return payload
