"""Other people's environments as ours, one small file each."""
