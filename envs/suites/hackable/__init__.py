"""Tasks in which the shortcut is really there: for measuring who takes it, and for training a guard's arms."""
