"""What no message, log line, manifest or page may show: credentials."""
