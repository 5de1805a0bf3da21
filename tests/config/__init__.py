"""`routes.toml`: what it may say, and how everything that is wrong with it is told, at once."""
