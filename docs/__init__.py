"""The documentation: `python -m docs.api` writes its page on the API."""
