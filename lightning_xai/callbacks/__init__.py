"""The Lightning side: the callback, what it writes, and the same without a Trainer."""
