"""Extensions of the protocol (RFC 6455 section 9), a module each."""
