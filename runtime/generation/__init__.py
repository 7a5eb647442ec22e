"""From encoded pictures and a prompt to an answer, token by token."""
