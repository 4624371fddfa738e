"""What a few families need beyond the general adapter, a file for each."""
