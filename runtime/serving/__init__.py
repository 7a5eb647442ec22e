"""One engine directory behind OpenAI's chat API."""
