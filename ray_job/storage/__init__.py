"""Places on local disks and object stores, files that are visible whole or not at all, and retries."""
