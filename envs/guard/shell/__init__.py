"""Shell commands, read as a shell reads them, without running anything."""
