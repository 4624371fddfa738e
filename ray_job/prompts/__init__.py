"""From columns to chat messages, and from messages to the parts that a tokenizer reads."""
