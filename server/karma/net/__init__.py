"""Sockets: the listener, one session per connection, and the HTTP sidecar."""
