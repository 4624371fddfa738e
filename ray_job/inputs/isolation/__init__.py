"""Files that native code opens in a process of its own: it may crash, hang or grow there, and costs that file only."""
