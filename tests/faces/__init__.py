"""The four systems that this proxy stands in for: what each one's page says, held against its file."""
