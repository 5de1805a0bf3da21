"""Where a request says which model it wants, and how another name is put there."""
