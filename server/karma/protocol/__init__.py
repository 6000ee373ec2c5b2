"""The wire protocol without I/O: bytes in, requests out; values in, bytes out."""
