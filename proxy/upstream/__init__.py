"""The upstream's side of the wire: where to, what is sent, what comes back."""
