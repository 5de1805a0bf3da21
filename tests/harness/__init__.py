"""What the tests stand on: a scripted upstream, the proxy itself, and a client that hides nothing."""
