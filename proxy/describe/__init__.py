"""What can be said beforehand: the API, the models, where a request would go."""
